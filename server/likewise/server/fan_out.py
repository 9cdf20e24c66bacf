"""One search over all shards of a gallery: at once, within the caller's deadline, under its policy for partial answers.

Under FAIL the first shard that fails ends the call, with the shard's number in the error. Under ALLOW the rest answers,
and what is missing is told with its number of items; an answer of no shard at all is an error under either, because
nothing was searched. What is the caller's own fault (an attribute that is not there) is never a degradation.
"""

import asyncio
import contextvars
import functools
import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from likewise.server import failures
from likewise.server.errors import (
    DeadlinePassed,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServiceError,
    Unavailable,
    Unimplemented,
)
from likewise.server.protocols import GalleryHandle
from likewise.server.remote import deadlines
from likewise.server.time_limit import TimeIsOver, within
from likewise.server.validate_search import Partial
from likewise.shards.protocols import F32, SearchOptions, ShardHits, ShardSearch
from likewise.v1 import search_service_pb2 as pb

log = logging.getLogger(__name__)

SHARD_UNAVAILABLE: Final = "SHARD_UNAVAILABLE"
SHARD_TIMEOUT: Final = "SHARD_TIMEOUT"
SHARD_OVERLOADED: Final = "SHARD_OVERLOADED"
SHARD_FAILED: Final = "SHARD_FAILED"

_RETRY_S: Final = 1.0
# What is kept of the deadline for merging and replying: a tenth, at most 250 ms, which a busy machine may take.
_RESERVED_SHARE: Final = 0.1
_RESERVED_MAX_S: Final = 0.25
# Of what is left when shards are lost, for the writer to say how many rows they have, and how long it may take at most.
_COUNT_SHARE: Final = 0.5
_COUNT_MAX_S: Final = 1.0

_CALLERS_FAULT: Final = (InvalidRequest, NotFound, FailedPrecondition, Unimplemented)


class LiveCounts:
    """How many live rows each shard had when it last answered, to say what is missing when it does not."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int], int] = {}

    def note(self, gallery_id: str, shard: int, rows: int) -> None:
        """Remember what a shard said."""
        self._rows[gallery_id, shard] = rows

    def known(self, gallery_id: str, shard: int) -> int | None:
        """Rows of the shard, None if it never answered."""
        return self._rows.get((gallery_id, shard))


class FanOut(NamedTuple):
    """What came back.

    Attributes:
        answers: Hits by shard number, of the shards that answered.
        coverage: What was searched of what there is.
        elapsed_us: From the first call to the last answer, microseconds.
    """

    answers: Mapping[int, ShardHits]
    coverage: pb.Coverage
    elapsed_us: int


async def fan_out(
    handle: GalleryHandle, queries: F32, options: SearchOptions, *, partial: Partial, live: LiveCounts
) -> FanOut:
    """Search every shard of a gallery.

    Cancelling it cancels the shards' calls.

    Args:
        handle: The gallery.
        queries: (n, dim) unit vectors.
        options: What they share.
        partial: The caller's policy.
        live: Row counts, read for missing shards and updated from the answers.

    Raises:
        Unavailable: SHARD_UNAVAILABLE or COVERAGE_BELOW_MINIMUM.
        DeadlinePassed: If shards were still searching when the deadline came near.
        Overloaded: If a shard's queue is full, under FAIL or when no shard answered.
    """
    started = time.perf_counter()
    budget = _budget(deadlines.remaining_s())
    if len(handle.shards) == 1:
        answers, lost = await _of_one(handle, queries, options, budget)
    else:
        answers, lost = await _of_many(handle, queries, options, budget, partial)
    elapsed_us = round((time.perf_counter() - started) * 1e6)
    for shard, hits in answers.items():
        live.note(handle.spec.gallery_id, shard, hits.plan.live)
    # Under FAIL one failure cuts the others short: shards that were merely still searching are not the reason.
    if lost and (not partial.allowed or not answers):
        raise min(lost.values(), key=lambda error: isinstance(error, DeadlinePassed))
    missing = await _missing(handle, answers, lost, live) if lost else {}
    coverage = _coverage(handle, answers, lost, missing)
    if coverage.fraction < partial.min_coverage:
        raise Unavailable(
            f"{coverage.fraction:.1%} of gallery {handle.spec.name!r} could be searched, partial.min_coverage is "
            f"{partial.min_coverage:.1%}; missing are the shards {sorted(lost)}",
            reason="COVERAGE_BELOW_MINIMUM",
            retry_after_s=_RETRY_S,
            metadata={"coverage": f"{coverage.fraction:.6f}", "shards": ",".join(map(str, sorted(lost)))},
        )
    return FanOut(answers=answers, coverage=coverage, elapsed_us=elapsed_us)


async def _of_one(
    handle: GalleryHandle, queries: F32, options: SearchOptions, budget: float | None
) -> tuple[dict[int, ShardHits], dict[int, ServiceError]]:
    """The answer or the loss of the only shard, in the task of the call itself."""
    token = deadlines.shorten(budget)
    try:
        return {0: await within(budget, handle.shards[0].search(queries, options))}, {}
    except TimeIsOver:
        return {}, {0: _too_late(handle, 0)}
    except Exception as error:
        return {}, {0: _lost(handle, 0, error)}
    finally:
        deadlines.restore(token)


async def _of_many(
    handle: GalleryHandle, queries: F32, options: SearchOptions, budget: float | None, partial: Partial
) -> tuple[dict[int, ShardHits], dict[int, ServiceError]]:
    answers: dict[int, ShardHits] = {}
    lost: dict[int, ServiceError] = {}
    context = contextvars.copy_context()
    context.run(deadlines.set_deadline, budget)
    tasks = [asyncio.create_task(_search(shard, queries, options), context=context.copy()) for shard in handle.shards]
    try:
        await asyncio.wait(
            tasks,
            timeout=budget,
            return_when=asyncio.ALL_COMPLETED if partial.allowed else asyncio.FIRST_EXCEPTION,
        )
        for shard, task in enumerate(tasks):
            if not task.done():
                lost[shard] = _too_late(handle, shard)
            elif error := task.exception():
                lost[shard] = _lost(handle, shard, error)
            else:
                answers[shard] = task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return answers, lost


def _too_late(handle: GalleryHandle, shard: int) -> DeadlinePassed:
    return DeadlinePassed(
        f"shard {shard} of gallery {handle.spec.name!r} was still searching when the deadline came near",
        reason=SHARD_TIMEOUT,
        metadata={"shard": str(shard)},
    )


async def _search(shard: ShardSearch, queries: F32, options: SearchOptions) -> ShardHits:
    return await shard.search(queries, options)


def _budget(remaining_s: float | None) -> float | None:
    if remaining_s is None:
        return None
    return remaining_s - min(remaining_s * _RESERVED_SHARE, _RESERVED_MAX_S)


def _lost(handle: GalleryHandle, shard: int, error: BaseException) -> ServiceError:
    """What a failing shard means, or the caller's own fault raised."""
    what = f"shard {shard} of gallery {handle.spec.name!r}"
    metadata = {"shard": str(shard)}
    known = failures.known(error)
    if isinstance(known, _CALLERS_FAULT):
        raise error
    match known:
        case DeadlinePassed():
            return DeadlinePassed(f"{what}: {known}", reason=SHARD_TIMEOUT, metadata=metadata)
        case Overloaded():
            return Overloaded(
                f"{what}: {known}", reason=SHARD_OVERLOADED, retry_after_s=known.retry_after_s, metadata=metadata
            )
        case Unavailable():
            return Unavailable(f"{what}: {known}", reason=SHARD_UNAVAILABLE, retry_after_s=_RETRY_S, metadata=metadata)
    log.error("%s failed", what, exc_info=error)
    return Unavailable(f"{what} failed", reason=SHARD_FAILED, retry_after_s=_RETRY_S, metadata=metadata)


def _coverage(
    handle: GalleryHandle,
    answers: Mapping[int, ShardHits],
    lost: Mapping[int, ServiceError],
    missing: Mapping[int, int],
) -> pb.Coverage:
    searched = sum(hits.plan.live for hits in answers.values())
    if not lost:
        return _complete(searched, len(handle.shards))
    total = searched + sum(missing.values())
    coverage = pb.Coverage(
        fraction=searched / total if total else 1.0,
        items_searched=searched,
        items_total=total,
        shards_ok=len(answers),
        shards_total=len(handle.shards),
    )
    by_reason: dict[str, list[int]] = defaultdict(list)
    for shard, error in lost.items():
        by_reason[error.reason].append(shard)
    for reason, shards in sorted(by_reason.items()):
        coverage.degradations.add(reason=reason, items=sum(missing[shard] for shard in shards), shards=shards)
    return coverage


@functools.lru_cache(maxsize=256)
def _complete(items: int, shards: int) -> pb.Coverage:
    """The coverage of an answer of every shard; shared by all such answers, which take copies."""
    return pb.Coverage(fraction=1.0, items_searched=items, items_total=items, shards_ok=shards, shards_total=shards)


async def _missing(
    handle: GalleryHandle, answers: Mapping[int, ShardHits], lost: Mapping[int, ServiceError], live: LiveCounts
) -> dict[int, int]:
    """Rows of each lost shard: as the writer counts them in the store, or as well as is known without it."""
    shards = len(handle.shards)
    left = deadlines.remaining_s()
    patience = _COUNT_MAX_S if left is None else min(_COUNT_MAX_S, left * _COUNT_SHARE)

    async def count(shard: int) -> int:
        try:
            async with asyncio.timeout(patience):
                rows = await handle.writer.live_rows(shard, shards)
        except Exception as error:
            log.debug("the rows of shard %d of gallery %r were not counted: %r", shard, handle.spec.name, error)
            return _last_known(handle, shard, answers, live)
        live.note(handle.spec.gallery_id, shard, rows)
        return rows

    return dict(zip(lost, await asyncio.gather(*map(count, lost)), strict=True))


def _last_known(handle: GalleryHandle, shard: int, answers: Mapping[int, ShardHits], live: LiveCounts) -> int:
    rows = live.known(handle.spec.gallery_id, shard)
    if rows is not None:
        return rows
    # It never answered since this router started. Ids are spread by hash, so the others tell its size well enough.
    sizes: Sequence[int] = [hits.plan.live for hits in answers.values()]
    return round(sum(sizes) / len(sizes))
