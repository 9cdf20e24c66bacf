"""`likewise ingest`: store a folder of images or a file of rows."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from likewise.client.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_S,
    Address,
    AsJson,
    GalleryName,
    Timeout,
    connect,
)
from likewise.client.cli.output import print_json
from likewise.client.cli.sources import Bad, Columns, Row, Source, open_source
from likewise.client.errors import InvalidArgument
from likewise.client.galleries import GalleryInfo
from likewise.client.sync import Client
from likewise.client.sync_gallery import Gallery

_BATCH_ROWS: Final = 2048  # rows checked, looked up and sent together; the SDK cuts them into messages
_SHOWN_BAD: Final = 20


@dataclass(slots=True)
class Report:
    """What became of a source."""

    gallery: str
    stored: int = 0
    already_stored: int = 0
    bad: list[Bad] = field(default_factory=list)


def ingest(
    gallery: GalleryName,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A folder of images, or a CSV, JSONL or Parquet file.")
    ],
    create: Annotated[bool, typer.Option("--create", help="Make the gallery first, if it is not there.")] = False,
    encoder: Annotated[str | None, typer.Option(help="With --create: model family for images and texts.")] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="With --create: partitions.")] = None,
    index: Annotated[
        str | None, typer.Option(help="With --create: auto, flat, hnsw, ivf, or a factory string.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Leave out items whose id is stored already.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="List and leave out what cannot be stored.")] = False,
    attribute: Annotated[
        list[str] | None, typer.Option(help="Column to take as an attribute; repeatable. Default: all others.")
    ] = None,
    id_column: Annotated[str, typer.Option(help="Column of ids.")] = "id",
    path_column: Annotated[str, typer.Option(help="Column of image paths, relative to the file.")] = "path",
    vector_column: Annotated[str, typer.Option(help="Column of vectors.")] = "vector",
    text_column: Annotated[
        str, typer.Option(help="Column of texts, when there are neither paths nor vectors.")
    ] = "text",
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|local",
            help="Write side by side on this Ray cluster, or one of this machine's own, and commit once: for images on "
            "a server that runs on Ray, and Parquet files (or a folder of them) with vectors.",
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="With --ray: processes. Default: its CPUs.")] = None,
    max_bad: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="With --ray: share of the rows that may be left out as bad.")
    ] = 0.0,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Store a folder of images, or the rows of a file: columns id, one of path, vector and text, and attributes.

    What is stored stays stored when this fails or is interrupted; run it again with --resume to go on. With --ray
    nothing is stored before all is written; run it again to go on from what was written.
    """
    columns = Columns(id_column, path_column, vector_column, text_column, tuple(attribute) if attribute else None)
    parts = sorted(source.glob("*.parquet")) if ray and source.is_dir() else []
    opened = open_source(parts[0] if parts else source, columns)
    report = Report(gallery)
    with connect(address, timeout) as client:
        target = _target(client, gallery, opened, create=create, encoder=encoder, shards=shards, index=index)
        info = target.info()
        if ray is not None:
            _bulk().ingest_on(ray, address, gallery, source, columns, workers=workers, max_bad=max_bad, as_json=as_json)
            return
        with _progress(opened.total(), quiet=as_json) as progress:
            if not skip_bad and opened.kind() == "images" and opened.total():
                # Looking at the files costs little beside encoding them: nothing is stored when one is bad.
                _refuse_bad([row for row in opened.rows({}, None) if isinstance(row, Bad)], report)
            _store(target, opened, info, report, resume=resume, skip_bad=skip_bad, progress=progress)
    _print_report(report, as_json=as_json)


def _bulk() -> Any:
    """The heavy half, by name: the SDK installs without it."""
    try:
        return import_module("likewise.cli.bulk.command")
    except ImportError as error:
        raise InvalidArgument(
            f"--ray needs more: pip install 'likewise[cpu,cluster]' ({error})", field="ray"
        ) from error


def _target(
    client: Client,
    name: str,
    source: Source,
    *,
    create: bool,
    encoder: str | None,
    shards: int | None,
    index: str | None,
) -> Gallery:
    if not create:
        if encoder or shards or index:
            raise InvalidArgument("--encoder, --shards and --index are for --create", field="create")
        return client.gallery(name)
    if any(known.name == name for known in client.galleries()):
        return client.gallery(name)
    if encoder is None and source.kind() != "vectors":
        raise InvalidArgument(
            f"--create for {source.kind()} needs --encoder, see `likewise model list`", field="encoder"
        )
    return client.create_gallery(
        name,
        encoder=encoder,
        dim=None if encoder else source.dim(),
        attributes=source.attribute_types(),
        shards=shards,
        index=index,
        exist_ok=True,
    )


def _store(
    gallery: Gallery,
    source: Source,
    info: GalleryInfo,
    report: Report,
    *,
    resume: bool,
    skip_bad: bool,
    progress: "_Steps | None",
) -> None:
    kind = source.kind()
    for batch in _batches(source.rows(info.attributes, info.dim)):
        bad = [row for row in batch if isinstance(row, Bad)]
        good = {row.id: row for row in batch if isinstance(row, Row)}
        if bad and not skip_bad:
            _refuse_bad(bad, report)
        report.bad.extend(bad)
        if resume and good:
            missing = gallery.get(list(good), attributes=False).missing
            report.already_stored += len(good) - len(missing)
            good = {name: good[name] for name in missing}
        _send(gallery, kind, good, report, skip_bad=skip_bad)
        if progress:
            progress.advance(len(batch))


def _send(gallery: Gallery, kind: str, rows: Mapping[str, Row], report: Report, *, skip_bad: bool) -> None:
    left = dict(rows)
    while left:
        try:
            result = gallery.upsert(
                list(left), attributes=_columns(left.values()), progress=False, **_content(kind, left.values())
            )
        except InvalidArgument as error:
            failure = error.upsert
            report.stored += failure.stored if failure else 0
            if failure is None or not failure.item:
                raise
            refused = Bad(str(left[failure.item].content) if kind == "images" else failure.item, str(error))
            if not skip_bad:
                _refuse_bad([refused], report)
            report.bad.append(refused)
            left = {name: left[name] for name in failure.not_stored if name != failure.item}
        else:
            report.stored += result.upserted
            return


def _content(kind: str, rows: Iterable[Row]) -> dict[str, Any]:
    contents = [row.content for row in rows]
    return {kind: np.stack(contents) if kind == "vectors" else contents}


def _columns(rows: Iterable[Row]) -> list[Mapping[str, Any]] | None:
    taken = [row.attributes for row in rows]
    return taken if any(taken) else None


def _batches(rows: Iterator[Row | Bad]) -> Iterator[list[Row | Bad]]:
    while batch := list(islice(rows, _BATCH_ROWS)):
        yield batch


def _refuse_bad(bad: list[Bad], report: Report) -> None:
    if not bad:
        return
    for one in bad[:_SHOWN_BAD]:
        sys.stderr.write(f"{one.item}: {one.reason}\n")
    if len(bad) > _SHOWN_BAD:
        sys.stderr.write(f"... and {len(bad) - _SHOWN_BAD:,} more\n")
    items = "1 item" if len(bad) == 1 else f"{len(bad):,} items"
    raise InvalidArgument(
        f"{items} cannot be stored; {report.stored:,} are stored so far. "
        "Correct them and go on with --resume, or leave them out with --skip-bad"
    )


def _print_report(report: Report, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    for one in report.bad:
        sys.stderr.write(f"left out {one.item}: {one.reason}\n")
    already = f", {report.already_stored:,} were there already" if report.already_stored else ""
    bad = f", {len(report.bad):,} bad left out" if report.bad else ""
    typer.echo(f"stored {report.stored:,} items in {report.gallery}{already}{bad}")


class _Steps:
    """A progress bar on stderr."""

    def __init__(self, total: int | None) -> None:
        self._progress = Progress(
            TextColumn("items"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("items", total=total)

    def __enter__(self) -> "_Steps":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, items: int) -> None:
        self._progress.advance(self._task, items)


def _progress(total: int | None, *, quiet: bool) -> AbstractContextManager[_Steps | None]:
    return nullcontext() if quiet or not sys.stderr.isatty() else _Steps(total)
