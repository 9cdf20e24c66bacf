"""A gallery filled with a data set on a running server, and the wait until its index is built."""

import time
from pathlib import Path
from typing import Final

from likewise.cli.benchmark.dataset import Dataset, item_id
from likewise.client import Client, Gallery
from likewise.client.galleries import IndexSpec
from likewise.client.gallery_stats import GalleryStats
from likewise.shards.seal import FRESH_ROWS

ATTRIBUTES: Final = {"share": "double", "cluster_share": "double"}
_POLL_S: Final = 0.1
_READY_S: Final = 1_800.0
_REST_S: Final = 60.0


class NotReady(RuntimeError):
    """The index was not built in time, or its build failed."""


def create(client: Client, name: str, dim: int, *, index: IndexSpec, shards: int) -> Gallery:
    """An empty gallery for vectors of `dim` with the data set's attributes."""
    return client.create_gallery(name, dim=dim, attributes=ATTRIBUTES, shards=shards, index=index)


def fill(gallery: Gallery, dataset: Dataset) -> float:
    """Upsert every row; returns the seconds until the last one was acknowledged, that is, durable."""
    rows = len(dataset.base)
    ids = [item_id(row) for row in range(rows)]
    columns = {"share": dataset.share, "cluster_share": dataset.cluster_share}
    started = time.perf_counter()
    gallery.upsert(ids, vectors=dataset.base, attributes=columns, progress=False, timeout=600)
    return time.perf_counter() - started


def wait_sealed(gallery: Gallery, rows: int, *, index: str) -> GalleryStats:
    """Wait until every shard has taken all rows and built its index over them.

    Args:
        gallery: After `fill`.
        rows: Items it has.
        index: Kind asked for; all rows of a "flat" gallery are compared, however many are fresh.

    Raises:
        NotReady: If a build failed, or it takes longer than half an hour.
    """
    deadline = time.monotonic() + _READY_S
    while True:
        stats = gallery.stats()
        for shard in stats.shards:
            if shard.state == "failed":
                raise NotReady(f"shard {shard.shard} could not build its index: {shard.message}")
        if is_sealed(stats, rows, flat=index == "flat"):
            return stats
        if time.monotonic() > deadline:
            raise NotReady(f"no index after {_READY_S:.0f} s: {stats.shards}")
        time.sleep(_POLL_S)


def wait_at_rest(gallery: Gallery, rows: int, *, index: str) -> GalleryStats:
    """As `wait_sealed`, then for as long as shards may take to seal the rest too: searches compare it row by row."""
    stats = wait_sealed(gallery, rows, index=index)
    until = time.monotonic() + _REST_S
    while index != "flat" and time.monotonic() < until:
        if all(shard.fresh <= FRESH_ROWS for shard in stats.shards) and is_sealed(stats, rows, flat=False):
            break
        time.sleep(_POLL_S)
        stats = gallery.stats()
    return stats


def is_sealed(stats: GalleryStats, rows: int, *, flat: bool) -> bool:
    """Whether all rows are there and, unless the index is flat, in a sealed index but for the few that stay fresh.

    A shard leaves a small rest fresh for a while rather than building at once for it; a tenth is the most.
    """
    shards = stats.shards
    if sum(shard.live for shard in shards) < rows or any(shard.state != "ready" for shard in shards):
        return False
    return flat or sum(shard.fresh for shard in shards) <= rows // 10


def resident_mib(pid: int) -> float | None:
    """Resident memory of a process in MiB; None where the system does not tell."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None
