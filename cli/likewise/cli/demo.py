"""`likewise demo`: conditional search on real image files, from nothing to a contact sheet."""

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from likewise.cli import demo_gallery, demo_queries, demo_report
from likewise.cli.demo_gallery import Item, Recipe
from likewise.cli.demo_report import Answer
from likewise.cli.server_process import ServerFailed, ServerProcess, serve_command, stop_on_sigterm
from likewise.cli.sheet import to_html
from likewise.cli.sheet_picture import draw
from likewise.client import Client, Gallery
from likewise.client.errors import FailedPrecondition, LikewiseError, NotFound

app = typer.Typer(add_completion=False)

_GALLERY: Final = "shapes"
_ENCODER: Final = "shapes"
_SHARDS: Final = 2
_HITS: Final = 6
_PIPE_WIDTH: Final = 120
_INGEST_ROWS: Final = 250


@app.command()
def demo(
    items: Annotated[
        int, typer.Option(min=demo_gallery.MIN_ITEMS, max=200_000, help="Pictures in the gallery.")
    ] = 5_000,
    directory: Annotated[
        Path, typer.Option(help="Where pictures, store, log and sheet go; a second run reuses them.")
    ] = Path("demo-out"),
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another gallery and another reference.")] = 2_024,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port of the server; 0 takes a free one.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the server running afterwards, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Search a gallery of drawn pictures under different conditions, and show what comes.

    Draws the pictures, starts a server, ingests them, asks about one picture in several ways, and writes a contact
    sheet.
    """
    # A pipe or a file has no width of its own; the table is at its best in this one.
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    stop_on_sigterm()
    try:
        result = run(Recipe(items, seed), directory, console=console, port=port, keep=keep)
    except KeyboardInterrupt:
        console.print("Stopped.")
        raise typer.Exit(130) from None
    except (ServerFailed, FileExistsError, LikewiseError, OSError) as error:
        console.print(f"[red]The demo failed:[/red] {error}", highlight=False, markup=True, soft_wrap=True)
        raise typer.Exit(1) from error
    if as_json:
        print(json.dumps(result, indent=2))


def run(recipe: Recipe, directory: Path, *, console: Console, port: int = 0, keep: bool = False) -> dict[str, Any]:
    """The whole demo; returns what `--json` prints.

    Raises:
        ServerFailed: If the server does not come up.
        FileExistsError: If the directory holds something that the demo did not make.
        LikewiseError: If a call to the server fails.
    """
    started = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    store = directory / "store"
    gallery_items = _draw_pictures(recipe, directory / "pictures", store, console)
    reference = demo_gallery.reference_scene(recipe)
    picture = demo_report.photograph(reference)
    (directory / "reference.png").write_bytes(picture)
    stored = demo_gallery.stored_reference(recipe, gallery_items)
    console.print("Starting the server ...")
    with ServerProcess(serve_command(store, port=port), log_path=directory / "server.log") as server:
        console.print(f"  it listens on {server.address}, its log is {server.log_path}", highlight=False)
        with Client(server.address) as client:
            gallery = _filled_gallery(client, gallery_items, console)
            queries = demo_queries.build(reference, stored)
            answers = _ask(gallery, queries, gallery_items, picture=picture, stored=stored)
        html_path, png_path = _write_sheet(answers, directory, picture=picture, stored=stored, items=recipe.items)
        elapsed_s = time.perf_counter() - started
        _print_result(console, answers, html_path, png_path, elapsed_s)
        if keep:
            _keep(console, server.address, directory / "reference.png")
    console.print("The server has stopped.")
    return {
        "items": recipe.items,
        "seed": recipe.seed,
        "answers": [demo_report.to_dict(answer) for answer in answers],
        "right": sum(answer.right for answer in answers),
        "possible": sum(answer.possible for answer in answers),
        "sheet_html": str(html_path),
        "sheet_png": str(png_path),
        "elapsed_s": round(elapsed_s, 1),
    }


def _draw_pictures(recipe: Recipe, folder: Path, store: Path, console: Console) -> list[Item]:
    wanted = demo_gallery.items(recipe, folder)
    if demo_gallery.is_complete(folder, recipe, wanted):
        console.print(f"{recipe.items:,} pictures are in {folder} already.", highlight=False)
        return wanted
    console.print(f"Drawing {recipe.items:,} pictures into {folder} ...", highlight=False)
    if folder.exists():
        # The old pictures' gallery goes first: an interruption in between must not leave it beside new pictures.
        shutil.rmtree(store, ignore_errors=True)
    with _progress(console) as bar:
        task = bar.add_task("  drawn", total=recipe.items)
        demo_gallery.render_all(folder, recipe, wanted, progress=lambda done, _: bar.update(task, completed=done))
    return wanted


def _filled_gallery(client: Client, wanted: Sequence[Item], console: Console) -> Gallery:
    gallery = _existing_gallery(client, len(wanted))
    if gallery is not None:
        console.print(f"The store holds all {len(wanted):,} items already.", highlight=False)
        return gallery
    gallery = client.create_gallery(_GALLERY, encoder=_ENCODER, shards=_SHARDS, attributes=demo_gallery.ATTRIBUTES)
    console.print(f"Ingesting {len(wanted):,} pictures: encoding, storing, indexing ...", highlight=False)
    with _progress(console) as bar:
        task = bar.add_task("  stored", total=len(wanted))
        for start in range(0, len(wanted), _INGEST_ROWS):
            rows = wanted[start : start + _INGEST_ROWS]
            gallery.upsert(
                [item.id for item in rows],
                images=[item.path for item in rows],
                attributes=[item.attributes for item in rows],
            )
            bar.advance(task, len(rows))
    return gallery


def _existing_gallery(client: Client, items: int) -> Gallery | None:
    """The gallery of an earlier run, if it is whole and of the server's present model; otherwise it is deleted."""
    try:
        gallery = client.gallery(_GALLERY)
        space = gallery.info().space
    except NotFound:
        return None
    try:
        models = gallery.compose(text="a red circle").models
        if gallery.count() == items and all(model.space == space for model in models):
            return gallery
    except FailedPrecondition:
        pass  # the gallery was made with another model
    client.delete_gallery(_GALLERY)
    return None


def _ask(
    gallery: Gallery,
    queries: Sequence[demo_queries.Query],
    gallery_items: Sequence[Item],
    *,
    picture: bytes,
    stored: Item,
) -> list[Answer]:
    by_id = {item.id: item for item in gallery_items}
    gallery.search(image=picture, condition="the same colour", k=_HITS)  # the first call of a process warms it up
    answers = []
    for query in queries:
        arguments: dict[str, Any] = {"condition": query.condition, "mode": query.mode, "where": query.where}
        if query.reference:
            arguments |= {"image": picture} if query.reference == "picture" else {"id": stored.id}
        given = {name: value for name, value in arguments.items() if value is not None}
        before = time.perf_counter()
        hits = gallery.search(k=_HITS, **given)
        elapsed_ms = (time.perf_counter() - before) * 1e3
        possible = demo_queries.possible(
            query, gallery_items, k=_HITS, without=stored.id if query.reference == "item" else ""
        )
        answers.append(Answer(query, [by_id[name] for name in hits.ids], hits, elapsed_ms, possible))
    return answers


def _write_sheet(
    answers: Sequence[Answer], directory: Path, *, picture: bytes, stored: Item, items: int
) -> tuple[Path, Path]:
    sheet = demo_report.sheet(
        answers, picture=picture, stored=stored, items=items, footer=f"Likewise {version('likewise')}, likewise demo"
    )
    html_path, png_path = directory / "sheet.html", directory / "sheet.png"
    html_path.write_text(to_html(sheet), encoding="utf-8")
    draw(sheet).save(png_path, optimize=True)
    return html_path, png_path


def _print_result(
    console: Console, answers: Sequence[Answer], html_path: Path, png_path: Path, elapsed_s: float
) -> None:
    right, possible = sum(answer.right for answer in answers), sum(answer.possible for answer in answers)
    console.print()
    console.print(demo_report.table(answers))
    console.print(
        f"[green]✓[/green] what the picture shows satisfies the condition: {right} of the {possible} hits that could. "
        "All but the last two rows ask about the same picture.",
        highlight=False,
    )
    console.print(f"\nThe contact sheet: [bold]{html_path.resolve()}[/bold]", highlight=False, soft_wrap=True)
    console.print(f"and as a picture:  [bold]{png_path.resolve()}[/bold]", highlight=False, soft_wrap=True)
    console.print(f"Done in {elapsed_s:.0f} s.", highlight=False)


def _keep(console: Console, address: str, reference: Path) -> None:
    console.print(
        f"\nThe server stays on {address} until Ctrl-C. Try, in another terminal:\n"
        f'  likewise search {_GALLERY} --address {address} --image {reference} --condition "in green"',
        highlight=False,
        soft_wrap=True,
    )
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print()


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        yield bar
