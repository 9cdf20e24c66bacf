"""`likewise gallery`: make, look at, change, export, import and delete galleries."""

import math
from typing import Annotated

import typer

from likewise.client.attributes import TYPE_NAMES
from likewise.client.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_S,
    Address,
    AsJson,
    GalleryName,
    LongTimeout,
    Timeout,
    connect,
)
from likewise.client.cli.output import print_facts, print_json, print_table, shown
from likewise.client.galleries import GalleryInfo, IndexSpec

app = typer.Typer(no_args_is_help=True, help="Make, look at, change, export, import and delete galleries.")


@app.command()
def create(
    name: GalleryName,
    encoder: Annotated[str | None, typer.Option(help="Model family that encodes images and texts.")] = None,
    dim: Annotated[int | None, typer.Option(min=1, help="Numbers a vector, for vectors only.")] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:TYPE", help=f"An attribute; repeatable. Types: {', '.join(TYPE_NAMES.values())}."),
    ] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Partitions.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Copies of each shard; more than 1 on a cluster.")] = None,
    index: Annotated[str | None, typer.Option(help="auto, flat, hnsw, ivf, or a FAISS factory string.")] = None,
    exist_ok: Annotated[bool, typer.Option(help="Take the gallery that is there, if it is the same.")] = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Make an empty gallery."""
    attributes = dict(_attribute(given) for given in attribute or ())
    with connect(address, timeout) as client:
        made = client.create_gallery(
            name,
            encoder=encoder,
            dim=dim,
            attributes=attributes,
            shards=shards,
            replicas=replicas,
            index=index,
            exist_ok=exist_ok,
        )
        print_info(made.info(), as_json=as_json)


@app.command("list")
def list_galleries(
    address: Address = DEFAULT_ADDRESS, timeout: Timeout = DEFAULT_TIMEOUT_S, as_json: AsJson = False
) -> None:
    """All galleries in name order."""
    with connect(address, timeout) as client:
        galleries = client.galleries()
    if as_json:
        print_json(galleries)
    else:
        rows = [(one.name, one.dim, one.encoder or "vectors only", one.shards, one.index.kind) for one in galleries]
        print_table(("name", "dim", "encoder", "shards", "index"), rows)


@app.command()
def show(
    name: GalleryName, address: Address = DEFAULT_ADDRESS, timeout: Timeout = DEFAULT_TIMEOUT_S, as_json: AsJson = False
) -> None:
    """What a gallery is made of."""
    with connect(address, timeout) as client:
        print_info(client.gallery(name).info(), as_json=as_json)


@app.command()
def stats(
    name: GalleryName, address: Address = DEFAULT_ADDRESS, timeout: Timeout = DEFAULT_TIMEOUT_S, as_json: AsJson = False
) -> None:
    """How many items a gallery has, and the state of its shards."""
    with connect(address, timeout) as client:
        found = client.gallery(name).stats()
    if as_json:
        print_json(found)
        return
    typer.echo(f"{found.items:,} items at version {found.version:,}")
    columns = ("shard", "state", "index", "live", "sealed", "fresh", "tombstones", "version", "memory MiB", "message")
    print_table(
        columns,
        [
            (
                one.shard,
                one.state,
                one.index,
                one.live,
                one.sealed,
                one.fresh,
                one.tombstones,
                one.version,
                one.memory_bytes / (1 << 20),
                one.message,
            )
            for one in found.shards
        ],
    )
    copies = [
        (one.shard, copy.address, copy.state, copy.version, copy.lag) for one in found.shards for copy in one.replicas
    ]
    if copies:
        print_table(("shard", "replica", "state", "version", "behind"), copies)


@app.command()
def update(
    name: GalleryName,
    shards: Annotated[int | None, typer.Option(min=1, help="Partitions.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Copies of each shard; more than 1 on a cluster.")] = None,
    index: Annotated[str | None, typer.Option(help="auto, flat, hnsw, ivf, or a FAISS factory string.")] = None,
    m: Annotated[int | None, typer.Option(help="HNSW links a node.")] = None,
    ef_construction: Annotated[int | None, typer.Option(help="HNSW candidates while building.")] = None,
    ef: Annotated[int | None, typer.Option(help="HNSW candidates while searching.")] = None,
    nlist: Annotated[int | None, typer.Option(help="IVF lists.")] = None,
    nprobe: Annotated[int | None, typer.Option(help="IVF lists visited while searching.")] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(metavar="NAME:TYPE", help="An attribute to add; repeatable.")
    ] = None,
    min_recall: Annotated[
        float | None, typer.Option(min=0, max=1, help="Lowest recall@10 to accept of a new index; default 0.9.")
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: LongTimeout = None,
    as_json: AsJson = False,
) -> None:
    """Change a gallery in use.

    New shards are built beside the old ones, checked, and switched to; Ctrl-C before that leaves all as it was. What is
    not named of an index is the server's default, so name all of it.
    """
    numbers = {"m": m, "ef_construction": ef_construction, "ef": ef, "nlist": nlist, "nprobe": nprobe}
    if index is None and any(number is not None for number in numbers.values()):
        raise typer.BadParameter("its numbers need --index, which they belong to")
    wanted = None if index is None else IndexSpec(kind=index, **numbers)
    attributes = dict(_attribute(given) for given in attribute or ()) or None
    with connect(address, DEFAULT_TIMEOUT_S) as client:
        changed = client.gallery(name).update(
            shards=shards,
            replicas=replicas,
            index=wanted,
            attributes=attributes,
            min_recall=min_recall,
            timeout=timeout or math.inf,
        )
        print_info(changed, as_json=as_json)


@app.command()
def export(
    name: GalleryName,
    folder: Annotated[
        str | None, typer.Argument(metavar="[FOLDER]", help="Name below the server's export root; default GALLERY.")
    ] = None,
    snapshot: Annotated[str | None, typer.Option(help="Which version; default the newest.")] = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: LongTimeout = None,
    as_json: AsJson = False,
) -> None:
    """Write a gallery, whole, to a new folder below the server's export root."""
    with connect(address, DEFAULT_TIMEOUT_S) as client:
        made = client.gallery(name).export(folder or name, snapshot=snapshot, timeout=timeout or math.inf)
    if as_json:
        print_json(made)
    else:
        typer.echo(
            f"exported {made.gallery} at version {made.version:,} to {made.folder}: "
            f"{made.rows:,} items, {made.files:,} files, {made.bytes:,} bytes"
        )


@app.command("import")
def import_gallery(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Name below the server's export root.")],
    name: Annotated[str | None, typer.Option(help="Of the gallery to be; default that of the exported one.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="The gallery takes no writes.")] = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: LongTimeout = None,
    as_json: AsJson = False,
) -> None:
    """Make a gallery of an exported folder; every file is checked first."""
    with connect(address, DEFAULT_TIMEOUT_S) as client:
        made = client.import_gallery(folder, name, read_only=read_only, timeout=timeout or math.inf)
        print_info(made.info(), as_json=as_json)


@app.command()
def delete(
    name: GalleryName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Delete a gallery with all its items, for good."""
    with connect(address, timeout) as client:
        if not yes:
            count = client.gallery(name).count()
            typer.confirm(f"Delete gallery {name!r} with its {count:,} items, for good?", abort=True, err=True)
        client.delete_gallery(name)
    if as_json:
        print_json({"deleted": name})
    else:
        typer.echo(f"deleted {name}")


def _attribute(given: str) -> tuple[str, str]:
    name, colon, kind = given.partition(":")
    if not colon or not name or not kind:
        raise typer.BadParameter(f"must be NAME:TYPE, got {given!r}", param_hint="--attribute")
    return name, kind


def print_info(info: GalleryInfo, *, as_json: bool) -> None:
    """Print what a gallery is made of."""
    if as_json:
        print_json(info)
        return
    index = {key: value for key in info.index.__slots__ if (value := getattr(info.index, key)) is not None}
    print_facts(
        {
            "name": info.name,
            "encoder": info.encoder or "none, vectors only",
            "dim": str(info.dim),
            "attributes": info.attributes,
            "shards": info.shards,
            "replicas": info.replicas,
            "index": index.pop("kind") + (f" ({shown(index)})" if index else ""),
            "version": info.version,
            "writes": "refused: read-only" if info.read_only else "taken",
            "created": info.created,
            "id": info.gallery_id,
            "space": info.space,
        }
    )
