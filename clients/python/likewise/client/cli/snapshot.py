"""`likewise snapshot`: name versions of a gallery, and make galleries of them."""

from typing import Annotated

import typer

from likewise.client.cli.gallery import print_info
from likewise.client.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_S,
    Address,
    AsJson,
    GalleryName,
    Timeout,
    connect,
)
from likewise.client.cli.output import print_json, print_table
from likewise.client.snapshots import Snapshot

app = typer.Typer(no_args_is_help=True, help="Name versions of a gallery, and make galleries of them.")

SnapshotName = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="Name of the snapshot.")]

_COLUMNS = ("name", "version", "items", "made", "note")


@app.command()
def create(
    gallery: GalleryName,
    name: SnapshotName,
    note: Annotated[str, typer.Option(help="Why; shown in the list.")] = "",
    version: Annotated[
        int | None, typer.Option(min=1, help="Default the newest; one of the last ten minutes may do too.")
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Name a version, so that it stays whatever is written later. It costs no copy."""
    with connect(address, timeout) as client:
        made = client.gallery(gallery).create_snapshot(name, note=note, version=version)
    if as_json:
        print_json(made)
    else:
        typer.echo(f"{made.name}: {made.rows:,} items at version {made.version:,}")


@app.command("list")
def list_snapshots(
    gallery: GalleryName,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """A gallery's snapshots in name order."""
    with connect(address, timeout) as client:
        found = client.gallery(gallery).snapshots()
    if as_json:
        print_json(found)
    else:
        print_table(_COLUMNS, [_row(one) for one in found])


@app.command()
def delete(
    gallery: GalleryName,
    name: SnapshotName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Forget a snapshot, for good; galleries restored from it stay."""
    with connect(address, timeout) as client:
        if not yes:
            typer.confirm(f"Forget snapshot {name!r} of gallery {gallery!r}, for good?", abort=True, err=True)
        client.gallery(gallery).delete_snapshot(name)
    if as_json:
        print_json({"deleted": name})
    else:
        typer.echo(f"deleted {name}")


@app.command()
def restore(
    gallery: GalleryName,
    name: SnapshotName,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Name of the gallery to be.")],
    read_only: Annotated[
        bool, typer.Option("--read-only", help="It takes no writes: the way to search a past version.")
    ] = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Make a new gallery of a snapshot; it outlives the snapshot and the gallery that it was taken of."""
    with connect(address, timeout) as client:
        made = client.gallery(gallery).restore_snapshot(name, new, read_only=read_only)
        print_info(made.info(), as_json=as_json)


def _row(one: Snapshot) -> tuple[str, int, int, object, str]:
    return (one.name, one.version, one.rows, one.created, one.note)
