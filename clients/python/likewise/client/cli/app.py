"""The root of the command line."""

from importlib.metadata import version
from typing import Annotated

import typer

from likewise.client.cli import gallery, ingest, model, search, snapshot
from likewise.client.cli.commands import CommandGroup

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find what is like this, in the way I say.",
)
app.add_typer(gallery.app, name="gallery")
app.add_typer(model.app, name="model")
app.add_typer(snapshot.app, name="snapshot")
app.command("ingest")(ingest.ingest)
app.command("search")(search.search)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"likewise {version('likewise')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass
