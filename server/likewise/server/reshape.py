"""Whether new shards of a gallery may take over from those that serve: built, complete, and as good as they claim.

The same checks for shards in this process and behind a channel. What they are held against is the store: at the version
that a shard answers from, it has to hold every row of its partition and no other, and its index has to find what a
comparison with every row finds.
"""

import asyncio
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from likewise.server import read
from likewise.server.errors import FailedPrecondition
from likewise.shards.merge import merge
from likewise.shards.protocols import F32, HistoryGone, SearchOptions, ShardHits, ShardSearch
from likewise.shards.recall import recall_at_k
from likewise.shards.recipe import FLAT, recipe
from likewise.shards.spec import GallerySpec, generation
from likewise.v1 import gallery_service_pb2 as pb

MIN_RECALL: Final = 0.9
"""Recall below which a new index does not take over, unless the caller says otherwise."""

PROBES: Final = 48
PROBE_K: Final = 10
PROBE_BATCH: Final = 8
"""Probes asked at once: a comparison with every row takes time in proportion, and searches of callers wait for it."""

ATTEMPTS: Final = 5
"""Of a check that a write in between spoils."""

POLL_S: Final = (0.02, 1.0)
"""First and longest wait between looks at a build."""

CHECK_FAILED: Final = "RESHAPE_CHECK_FAILED"
CHANGE_RUNNING: Final = "CHANGE_RUNNING"

_ROUNDING: Final = 1e-9
"""A mean of tenths that is what was asked for may come out a little lower."""

_log = logging.getLogger(__name__)


class Truth(Protocol):
    """A gallery's store."""

    async def version(self) -> int:
        """Newest committed version."""
        ...

    async def rows(self, version: int, shard: int, shards: int) -> int:
        """Live rows of one of `shards` partitions at a version; HistoryGone if that is cleaned up."""
        ...

    async def sample(self, space: str, count: int) -> F32:
        """(n, dim) unit vectors of up to `count` random rows; HistoryGone if they are cleaned up meanwhile."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the checks of new shards saw.

    Attributes:
        rows: Live rows in all.
        recall: Mean recall@10 of the probes, the worst space's; 1.0 where every search is exact.
        probes: How many probes.
    """

    rows: int
    recall: float
    probes: int


def is_reshape(old: GallerySpec, new: GallerySpec) -> bool:
    """Whether a change needs other shards than those that serve, rather than their being told of it."""
    return generation(old) != generation(new)


def shape(spec: GallerySpec) -> str:
    """The part of a description that makes a generation, in words: "4 shards, hnsw (m 16)"."""
    numbers = [f"{name} {value}" for name in ("m", "ef_construction", "nlist") if (value := getattr(spec.index, name))]
    kind = f"{spec.index.kind} ({', '.join(numbers)})" if numbers else spec.index.kind
    return f"{spec.shards} shard{'s' if spec.shards != 1 else ''}, {kind}"


def change_running(name: str) -> FailedPrecondition:
    """The refusal of a change of a gallery while another one is under way."""
    return FailedPrecondition(
        f"gallery {name!r} is being changed already: wait for that call to end, or end it, and ask again",
        reason=CHANGE_RUNNING,
        metadata={"gallery": name},
    )


async def check(
    shards: Sequence[ShardSearch], spec: GallerySpec, truth: Truth, *, min_recall: float | None = None
) -> Verdict:
    """Return when all of a gallery's new shards are built, complete and good enough.

    Args:
        shards: All shards of the new generation, by number; loaded, and followers of the writer.
        spec: Their description.
        truth: The gallery's store.
        min_recall: Lowest recall@10 to accept, in [0, 1]; None for `MIN_RECALL`.

    Raises:
        FailedPrecondition: RESHAPE_CHECK_FAILED, saying which check failed and with what figures.
        Unavailable: If a shard does not answer.
    """
    floor = MIN_RECALL if min_recall is None else min_recall
    await read.from_all(list(enumerate(shards)), lambda numbered: _built(*numbered, spec))
    newest = await truth.version()
    counts = await read.from_all(
        list(enumerate(shards)), lambda numbered: _complete(*numbered, spec, truth, min_version=newest)
    )
    recalls: list[float] = []
    probes = 0
    for space in spec.spaces:
        queries = await _sample(truth, space.name)
        probes = len(queries)
        recalls.append(await _recall(shards, queries, space.name))
    recall = min(recalls)
    if recall < floor - _ROUNDING:
        raise _failed(
            spec,
            "recall",
            f"its recall@{PROBE_K} over {probes} stored vectors is {recall:.3f} against its own exact search, and "
            f"{floor:.3f} is asked for: choose larger index parameters, or a lower min_recall",
            recall=f"{recall:.6f}",
            min_recall=f"{floor:.6f}",
            probes=str(probes),
        )
    verdict = Verdict(rows=sum(counts), recall=recall, probes=probes)
    _log.info(
        "gallery %r: new shards (%s) hold %d rows, recall@%d %.3f",
        spec.name,
        shape(spec),
        verdict.rows,
        PROBE_K,
        recall,
    )
    return verdict


async def _built(number: int, shard: ShardSearch, spec: GallerySpec) -> None:
    wait, longest = POLL_S
    while True:
        stats = await shard.stats()
        if stats.state == pb.INDEX_STATE_FAILED:
            reason = stats.message.rsplit(": ", 1)[-1]  # FAISS's own begins with where in its source it is
            raise _failed(spec, "build", f"shard {number}: {reason}", shard=str(number))
        if stats.state == pb.INDEX_STATE_READY:
            return
        # Under steady writes one build follows the other; the first is enough to serve.
        wanted = recipe(spec.index, stats.live).factory
        if stats.state == pb.INDEX_STATE_BUILDING and (stats.index != FLAT or wanted == FLAT):
            return
        await asyncio.sleep(wait)
        wait = min(2 * wait, longest)


async def _complete(number: int, shard: ShardSearch, spec: GallerySpec, truth: Truth, *, min_version: int) -> int:
    for _ in range(ATTEMPTS):
        live, version = await shard.count(b"", min_version=min_version)
        try:
            expected = await truth.rows(version, number, spec.shards)
        except HistoryGone:
            continue  # many writes, and a clean-up between the two calls
        if live != expected:
            raise _failed(
                spec,
                "counts",
                f"shard {number} holds {live} rows at version {version}, the store has {expected} for it",
                shard=str(number),
                got=str(live),
                expected=str(expected),
                version=str(version),
            )
        return live
    raise _failed(
        spec,
        "counts",
        f"the versions that shard {number} served were cleaned up {ATTEMPTS} times before its rows "
        "could be compared with them",
        shard=str(number),
    )


async def _sample(truth: Truth, space: str) -> F32:
    for attempt in range(ATTEMPTS):
        try:
            return await truth.sample(space, PROBES)
        except HistoryGone:
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises. This is a bug.")


async def _recall(shards: Sequence[ShardSearch], queries: F32, space: str) -> float:
    """Recall@k over all shards of the index's answers, weighed by queries."""
    total = 0.0
    for start in range(0, len(queries), PROBE_BATCH):
        piece = queries[start : start + PROBE_BATCH]
        total += len(piece) * await _recall_of(shards, piece, space)
    return total / len(queries) if len(queries) else 1.0


async def _recall_of(shards: Sequence[ShardSearch], queries: F32, space: str) -> float:
    best = 0.0
    for _ in range(ATTEMPTS):
        truth = await _search(shards, queries, SearchOptions(space, PROBE_K, exact=True))
        found = await _search(shards, queries, SearchOptions(space, PROBE_K, exact=False))
        best = max(best, recall_at_k(_ids(found), _ids(truth), PROBE_K))
        if [hits.version for hits in found] == [hits.version for hits in truth]:
            break  # else rows came or went between the two, which is nothing that the index missed
    return best


async def _search(shards: Sequence[ShardSearch], queries: F32, options: SearchOptions) -> list[ShardHits]:
    return await read.from_all(shards, lambda shard: shard.search(queries, options))


def _ids(parts: Sequence[ShardHits]) -> list[Sequence[str]]:
    merged = merge(parts, PROBE_K)
    bounds = np.asarray(merged.offsets).tolist()
    return [merged.ids[low:high] for low, high in itertools.pairwise(bounds)]


def _failed(spec: GallerySpec, which: str, what: str, **figures: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"gallery {spec.name!r} stays as it is, its new shards ({shape(spec)}) failed the check of {which}: {what}",
        reason=CHECK_FAILED,
        metadata={"gallery": spec.name, "check": which, **figures},
    )
