"""`likewise ingest --ray`, as it is called from the light half of the command line."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from likewise.cli.bulk.run import Options, Result, ingest, on_ray, progress_path, server_at
from likewise.client.cli.output import print_json
from likewise.client.cli.sources import Columns
from likewise.client.errors import InvalidArgument
from likewise.server.cluster.bootstrap import ClusterError
from likewise.server.cluster.bulk_tasks import connected


def ingest_on(
    ray: str,
    address: str,
    gallery: str,
    source: Path,
    columns: Columns,
    *,
    workers: int | None,
    max_bad: float,
    as_json: bool,
) -> None:
    """Ingest, and print what became of it.

    Args:
        ray: Cluster to work on; "local" for one of this process's own.
        address: The server.
        gallery: Its name.
        source: A folder of images, a Parquet file or a folder of them.
        columns: Which column of a Parquet file means what.
        workers: Processes; None for as many as the cluster has CPUs.
        max_bad: Share of the rows that may be left out.
        as_json: Print JSON.

    Raises:
        LikewiseError: If it failed; nothing is stored.
    """
    options = Options(columns, max_bad, progress_path(gallery, source))
    try:
        with connected(ray), server_at(address) as server, _shown(quiet=as_json) as bar:
            result = ingest(server, on_ray(workers), gallery, source, options, report=bar.update)
    except ClusterError as error:
        raise InvalidArgument(str(error), field="ray") from error
    print_json(result) if as_json else _print(result)


class _Bar:
    """A progress bar with a rate on a terminal; nothing elsewhere."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task = None if progress is None else progress.add_task("rows", total=None, rate="")
        self._start: tuple[float, int] | None = None

    def update(self, done: int, total: int) -> None:
        if self._progress is None or self._task is None:
            return
        now = time.monotonic()
        if self._start is None:
            self._start = (now, done)
        began, before = self._start
        rate = f"{(done - before) / max(now - began, 1e-9):,.0f}/s" if done > before else ""
        self._progress.update(self._task, completed=done, total=total, rate=rate)


@contextmanager
def _shown(*, quiet: bool) -> Iterator[_Bar]:
    if quiet or not sys.stderr.isatty():
        yield _Bar(None)
        return
    progress = Progress(
        TextColumn("rows"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with progress:
        yield _Bar(progress)


def _print(result: Result) -> None:
    for one in result.bad:
        sys.stderr.write(f"left out {one.place}: {one.reason}\n")
    resumed = f", {result.resumed:,} rows written by an earlier run" if result.resumed else ""
    bad = f", {len(result.bad):,} bad left out" if result.bad else ""
    rate = result.stored / max(result.seconds, 1e-9)
    typer.echo(
        f"stored {result.stored:,} items in {result.gallery}{resumed}{bad}: {result.seconds:.1f} s, {rate:,.0f}/s, "
        f"the commit {result.commit_seconds:.1f} s"
    )
