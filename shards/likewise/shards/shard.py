"""One partition of a gallery, served from memory.

Every call works on the newest snapshot it finds and never waits for a write or a build. A shard can be thrown away at
any time: the store has the rows, and the cache folder saves building the index again.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import numpy as np

from likewise.shards import faiss_threads, partial_indexes, reads
from likewise.shards.attributes import check_names
from likewise.shards.batcher import MAX_BATCH, MAX_QUEUED, Batcher, ShardBatch
from likewise.shards.follower import Follower
from likewise.shards.masks import MAX_BYTES, FilterCache
from likewise.shards.partial_indexes import PartialIndexes
from likewise.shards.protocols import (
    F32,
    Delta,
    PartitionSource,
    Rows,
    SearchOptions,
    ShardHits,
    UnknownAttribute,
)
from likewise.shards.recall_guard import SHARE, RecallGuard, guard_executor
from likewise.shards.rows import Snapshot
from likewise.shards.search import BatchKey, Request, answer, batch_key
from likewise.shards.search_threads import SearchThreads
from likewise.shards.spec import GallerySpec, SpaceSpec
from likewise.v1 import gallery_service_pb2 as pb

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_Executor = TypeVar("_Executor", bound=Executor)
_P = ParamSpec("_P")

BUSY_S: Final = 1.0
"""A shard counts as searched for so long after a batch, in seconds: about a piece of a build."""

INLINE_ROWS: Final = 64
"""Rows fetched without going to a thread: copying them is cheaper than the hop."""


@dataclass(frozen=True, slots=True)
class ShardLimits:
    """Bounds of one shard.

    Attributes:
        max_batch: Most queries of one batch.
        max_queued: Most queries waiting.
        filter_cache_bytes: Bitmaps kept.
        exact_rows: Filtered rows up to which comparing all is preferred to the index; None for what suits it.
        poll_s: Look for commits at the store this often besides what is pushed; None for never.
        recall_share: Time for checking recall as a share of the time of searches; 0 for no checks.
        partial_share: Memory for indexes of single filters as a share of what the shard's indexes take without the
            vectors; 0 for none.
    """

    max_batch: int = MAX_BATCH
    max_queued: int = MAX_QUEUED
    filter_cache_bytes: int = MAX_BYTES
    exact_rows: int | None = None
    poll_s: float | None = None
    recall_share: float = SHARE
    partial_share: float = partial_indexes.SHARE


def build_executor(workers: int = 1) -> ThreadPoolExecutor:
    """Threads for index builds that give way to searches; one pool may serve all shards of a process."""
    return ThreadPoolExecutor(workers, thread_name_prefix="likewise-build", initializer=faiss_threads.give_way)


class Shard:
    """In-memory shard; implements `ShardSearch` and `DeltaSink`. Use it from one event loop.

    Args:
        spec: The gallery.
        number: Which of its partitions.
        source: Where the rows are.
        executor: For searches; its own two threads when None. Not shut down when given.
        reader: For store reads and preparing changes; `executor` when None. Not shut down.
        builder: For index builds, see `build_executor`; its own thread when None. Not shut down when given.
        checker: For checks of recall, see `guard_executor`; its own thread when None. Not shut down when given.
        cache: Folder of sealed indexes; None to keep none.
        limits: Bounds.
        on_batch: Told about every batch of searches, on the event loop.
    """

    def __init__(
        self,
        spec: GallerySpec,
        number: int,
        source: PartitionSource,
        *,
        executor: SearchThreads | None = None,
        reader: Executor | None = None,
        builder: Executor | None = None,
        checker: Executor | None = None,
        cache: Path | None = None,
        limits: ShardLimits = ShardLimits(),
        on_batch: Callable[[ShardBatch], None] | None = None,
    ) -> None:
        self._number = number
        self._owned: list[Executor] = []
        self._executor = executor or self._keep_open(SearchThreads(2, name=f"likewise-shard-{number}"))
        builder = builder or self._keep_open(build_executor())
        self._follower = Follower(
            spec,
            number,
            source,
            executor=reader or self._executor,
            builder=builder,
            cache=cache,
            poll_s=limits.poll_s,
            busy=self._is_searched,
            on_rows=self._moved,
        )
        self._partials = PartialIndexes(
            self._newest,
            lambda snapshot, filter: self._masks.allowed(snapshot, filter),
            builder=builder,
            share=limits.partial_share,
            busy=self._is_searched,
            give_up=lambda: self._follower.building,
        )
        self._guard = RecallGuard(
            self._newest,
            lambda snapshot, filter: self._masks.allowed(snapshot, filter),
            self._partials.of,
            target=spec.index.target_recall,
            executor=checker or self._keep_open(guard_executor()),
            share=limits.recall_share,
        )
        self._limits = limits
        self._searched_s = -math.inf
        self._masks = FilterCache(spec.attributes, max_bytes=limits.filter_cache_bytes)
        self._batcher: Batcher[BatchKey, Request, ShardHits] = Batcher(
            self._answer,
            self._executor,
            max_batch=limits.max_batch,
            max_queued=limits.max_queued,
            on_batch=on_batch,
            inline=self._is_known,
        )
        self._orders = reads.IdOrder()

    # Life

    async def start(self) -> None:
        """Load the newest version; searches are served from the end of this on.

        Raises:
            Exception: Whatever the source raised; the shard then reports FAILED and `start` may be called again.
        """
        await self._follower.start()

    async def close(self) -> None:
        """Refuse new calls, stop the build, and wait for what runs."""
        await self._batcher.close()
        await self._guard.close()
        await self._partials.close()
        await self._follower.close()
        for executor in self._owned:
            executor.shutdown(wait=False)

    async def update(self, spec: GallerySpec) -> None:
        """Take a changed index or new attributes; a new index is built in the background.

        Raises:
            ValueError: If anything changed that makes it another partition.
        """
        await self._follower.update(spec)
        self._guard.target = spec.index.target_recall
        # After the rows: bitmaps of a new attribute need its column (see _answer).
        self._masks = FilterCache(spec.attributes, max_bytes=self._limits.filter_cache_bytes)

    async def settled(self) -> None:
        """Wait until no build is running or due."""
        await self._follower.settled()
        await self._partials.settled()

    async def checked(self) -> None:
        """Wait until recall has been checked as far as it may be; long on a busy machine, whose last thread it has."""
        await self._guard.settled()

    @property
    def version(self) -> int:
        """Store version served, 0 before the first load."""
        return self._follower.version

    # DeltaSink

    async def apply(self, delta: Delta) -> None:
        """Take a committed change; one that was taken before is passed over, a gap is filled from the store."""
        await self._follower.apply(delta)

    # ShardSearch

    async def search(self, queries: F32, options: SearchOptions) -> ShardHits:
        """See `ShardSearch.search`."""
        dim = self._check(options.space, options.attributes).dim
        if queries.ndim != 2 or queries.shape[1] != dim or len(queries) == 0:
            raise ValueError(f"queries must have the shape (n, {dim}) with n > 0, got {queries.shape}")
        if options.k < 1:
            raise ValueError(f"k must be at least 1, got {options.k}")
        if len(options.exclusions) not in (0, len(queries)):
            raise ValueError(f"{len(queries)} queries need as many exclusions or none, got {len(options.exclusions)}")
        await self._follower.reach(options.min_version)
        if not options.space:
            options = options._replace(space=self._follower.spec.spaces[0].name)
        options = self._guard.resolve(options)
        request = Request(np.ascontiguousarray(queries, dtype=np.float32), options)
        key = batch_key(options._replace(exclusions=()) if options.exclusions else options)
        timed = await self._batcher.submit(key, request, queries=len(queries))
        if self._partials.due:
            self._partials.begin()
        self._guard.sample(request.queries[0], options, timed.result.plan)
        return timed.result._replace(queue_us=timed.queue_us, search_us=timed.search_us)

    async def fetch(
        self,
        ids: Sequence[str],
        *,
        space: str,
        attributes: Sequence[str] = (),
        vectors: bool = False,
        min_version: int = 0,
    ) -> Rows:
        """See `ShardSearch.fetch`."""
        self._check(space, attributes)
        partition = await self._follower.reach(min_version)
        slots, snapshot, name = np.array(partition.slots_of(ids), dtype=np.int64), partition.snapshot, self._name(space)
        if len(slots) <= INLINE_ROWS:
            return reads.rows(snapshot, slots, space=name, names=attributes, vectors=vectors)
        return await self._run(reads.rows, snapshot, slots, space=name, names=attributes, vectors=vectors)

    async def page(
        self,
        *,
        after: str,
        limit: int,
        filter: bytes,
        space: str,
        attributes: Sequence[str] = (),
        vectors: bool = False,
        min_version: int = 0,
    ) -> Rows:
        """See `ShardSearch.page`."""
        self._check(space, attributes)
        partition = await self._follower.reach(min_version)
        snapshot, masks, name = partition.snapshot, self._masks, self._name(space)

        def work() -> Rows:
            allowed = masks.allowed(snapshot, filter)
            slots = reads.page(snapshot, self._orders.slots(snapshot), allowed.mask, after=after, limit=limit)
            return reads.rows(snapshot, slots, space=name, names=attributes, vectors=vectors)

        return await self._run(work)

    async def count(self, filter: bytes, *, min_version: int = 0) -> tuple[int, int]:
        """See `ShardSearch.count`."""
        snapshot = (await self._follower.reach(min_version)).snapshot
        if not filter:
            return snapshot.live, snapshot.version
        allowed = await self._run(self._masks.allowed, snapshot, filter)
        return allowed.count, snapshot.version

    async def stats(self) -> pb.ShardStats:
        """See `ShardSearch.stats`; answers while loading too."""
        follower = self._follower
        state = pb.INDEX_STATE_FAILED if follower.message else pb.INDEX_STATE_READY
        if follower.partition is None:
            state = pb.INDEX_STATE_FAILED if follower.message else pb.INDEX_STATE_LOADING
            return pb.ShardStats(shard=self._number, state=state, message=follower.message)
        stats = reads.stats(follower.partition.snapshot, follower.spec, shard=self._number)
        stats.recall.extend(self._guard.report([space.name for space in follower.spec.spaces]))
        stats.recall_seconds = self._guard.spent_s
        stats.partial_indexes = self._partials.count
        stats.memory_bytes += self._partials.memory_bytes
        stats.state = pb.INDEX_STATE_BUILDING if follower.building else state
        stats.message = follower.message
        return stats

    # Parts

    def _answer(self, key: BatchKey, requests: Sequence[Request], stop: Callable[[], bool]) -> Sequence[ShardHits]:
        started = self._searched_s = time.monotonic()
        masks, partition = self._masks, self._follower.partition  # in this order, see update
        if partition is None:
            raise AssertionError("a search before the load. This is a bug.")
        found = answer(
            partition.snapshot,
            key,
            requests,
            shard=self._number,
            masks=masks,
            partials=self._partials,
            exact_rows=self._limits.exact_rows,
            stop=stop,
        )
        self._guard.earn(time.monotonic() - started)
        return found

    def _is_known(self, key: BatchKey) -> bool:
        """Whether a search takes what one like it did: a filter may have to be evaluated anew, which takes longer."""
        partition = self._follower.partition
        return not key.filter or (partition is not None and self._masks.holds(partition.snapshot, key.filter))

    def _moved(self, snapshot: Snapshot) -> None:
        self._partials.moved(snapshot)
        self._guard.moved(snapshot)

    def _newest(self) -> Snapshot | None:
        partition = self._follower.partition
        return partition.snapshot if partition is not None else None

    def _is_searched(self) -> bool:
        return time.monotonic() - self._searched_s < BUSY_S

    def _check(self, space: str, names: Sequence[str]) -> SpaceSpec:
        try:
            found = self._follower.spec.space(space)
        except KeyError:
            known = [known.name for known in self._follower.spec.spaces]
            raise UnknownAttribute("space", f"{space!r} is no space of the gallery, which has {known}") from None
        if names:
            check_names(names, self._follower.spec.attributes, field="mask.attributes")
        return found

    def _name(self, space: str) -> str:
        return self._follower.spec.space(space).name

    def _keep_open(self, executor: _Executor) -> _Executor:
        self._owned.append(executor)
        return executor

    async def _run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))
