"""Options that several commands share."""

from typing import Annotated

import typer

from likewise.client.sync import Client

Address = Annotated[
    str,
    typer.Option(envvar="LIKEWISE_ADDRESS", help="Server: host:port, or a gRPC target.", show_default=True),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds a call may take.")]
LongTimeout = Annotated[float | None, typer.Option(min=0.001, help="Seconds it may take; default no limit.")]
GalleryName = Annotated[str, typer.Argument(metavar="GALLERY", help="Name of the gallery.")]

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 60.0


def connect(address: str, timeout: float) -> Client:
    """A client for a command; to be used as a context manager."""
    return Client(address, timeout=timeout)
