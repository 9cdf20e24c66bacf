"""The newest rows of one partition: loaded, kept up with the store, and sealed in the background.

The event loop's thread owns the state and only swaps references. One change is made at a time; reading the store and
preparing a change run in one executor, building an index in another, and neither makes a reader wait.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import pyarrow as pa

from likewise.shards import index, index_build, memory
from likewise.shards.block_keeper import BlockKeeper, KeptBlock
from likewise.shards.cache import SealedCache
from likewise.shards.pause import Pause
from likewise.shards.protocols import I64, Changes, Delta, HistoryGone, PartitionSource, Unavailable
from likewise.shards.rows import LiveRows, Snapshot
from likewise.shards.seal import SealedBlock, due, has_rest, load, renumber, seal
from likewise.shards.spec import GallerySpec

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_P = ParamSpec("_P")

BEHIND_POLL_S: Final = (0.02, 1.0)
"""First and longest wait between looks at the store while a version asked for has not come, in seconds."""

TIDY_AFTER_S: Final = 5.0  # after a load, so that it takes nothing from a server that starts


class Follower:
    """Keeps a partition at the store's newest version; use it from one event loop.

    Args:
        spec: The gallery.
        number: Which of its partitions.
        source: Where the rows are.
        executor: For store reads and preparing changes.
        builder: For index builds.
        cache: Folder of sealed indexes; None to keep none.
        poll_s: Look for commits this often besides what is pushed; None for never.
        busy: Searches are running; asked from the builder's thread.
        on_rows: Told of the newest rows whenever their slots were numbered anew, on the event loop.
    """

    def __init__(
        self,
        spec: GallerySpec,
        number: int,
        source: PartitionSource,
        *,
        executor: Executor,
        builder: Executor,
        cache: Path | None,
        poll_s: float | None,
        busy: Callable[[], bool] = lambda: False,
        on_rows: Callable[[Snapshot], None] = lambda snapshot: None,
    ) -> None:
        self.spec = spec
        self.partition: LiveRows | None = None
        self.message = ""
        self._number = number
        self._source = source
        self._executor = executor
        self._builder = builder
        self._cache_folder = cache
        self._poll_s = poll_s
        self._busy = busy
        self._on_rows = on_rows
        self._changing = asyncio.Lock()
        self._moved = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._build: asyncio.Task[None] | None = None
        self._keeper = BlockKeeper(cache, number, executor=builder, spawn=self._spawn)
        self._pause = Pause()
        self._poll: asyncio.Task[None] | None = None
        self._failed_at: tuple[object, int] | None = None
        self._closed = False

    @property
    def building(self) -> bool:
        """A new sealed block is on the way."""
        return self._build is not None

    async def start(self) -> None:
        """Load the newest version."""
        await self._exclusively(self._reload)
        if self._poll_s is not None:
            self._poll = self._poll or self._spawn(self._follow(self._poll_s))

    async def close(self) -> None:
        """Stop the build, wake those who wait for a version, and wait for what runs."""
        self._closed = True
        self._pause.cancel()
        if self._poll is not None:
            self._poll.cancel()
        async with self._moved:
            self._moved.notify_all()
        while self._tasks:  # a build that ends has its block kept by another task
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def update(self, spec: GallerySpec) -> None:
        """Take a changed index or new attributes; a new index is built in the background.

        Raises:
            ValueError: If anything changed that makes it another partition.
        """
        if (spec.gallery_id, spec.shards, spec.spaces) != (self.spec.gallery_id, self.spec.shards, self.spec.spaces):
            raise ValueError("a shard keeps its gallery, spaces and partition; make a new shard")

        async def work() -> None:
            self.spec, self._failed_at = spec, None
            if self.partition is not None:  # a build for the old one sees that it was replaced, and stops
                self.partition = self.partition.renewed(spec)
                self._on_rows(self.partition.snapshot)
            self._consider_build()

        await self._exclusively(work)

    async def apply(self, delta: Delta) -> None:
        """Take a committed change; one that was taken before is passed over, a gap is filled from the store."""

        async def work() -> None:
            partition = self.partition
            if partition is None or delta.version <= partition.snapshot.version:
                return  # the load to come, or the one before, has it
            if delta.base_version > partition.snapshot.version:
                await self._catch_up()
                return
            await self._take(delta.upserts, delta.deleted_ids, delta.version)

        if not self._closed:
            await self._exclusively(work)

    @property
    def version(self) -> int:
        """Store version served, 0 before the first load."""
        return self.partition.snapshot.version if self.partition else 0

    async def settled(self) -> None:
        """Wait until no build is running or due, and what was built is kept. A rest may be sealed later."""
        while (task := self._build or self._keeper.task) is not None:
            await asyncio.gather(task, return_exceptions=True)

    async def _follow(self, poll_s: float) -> None:
        while not self._closed:
            await asyncio.sleep(poll_s)
            try:
                await self._exclusively(self._catch_up)
            except Exception:
                log.exception("shard %d of %s cannot follow its store", self._number, self.spec.name)

    async def reach(self, version: int) -> LiveRows:
        """The partition, once it has come to `version`."""
        wait_s, longest_s = BEHIND_POLL_S
        while True:
            if self._closed:
                raise Unavailable("the shard is closing")
            if self.partition is None:
                raise Unavailable(f"shard {self._number} of {self.spec.name!r} is loading")
            if self.partition.snapshot.version >= version:
                return self.partition

            async def fill() -> None:
                if self.version < version:  # not filled for somebody else meanwhile
                    await self._catch_up()

            await self._exclusively(fill)
            if self.version < version:
                await self._wait_for_move(version, wait_s)
                wait_s = min(2 * wait_s, longest_s)

    async def _wait_for_move(self, version: int, wait_s: float) -> None:
        def arrived() -> bool:
            return self._closed or self.version >= version

        async with self._moved:
            try:
                await asyncio.wait_for(self._moved.wait_for(arrived), wait_s)
            except TimeoutError:
                return

    async def _catch_up(self) -> None:
        """Take everything committed since; under the lock."""
        if self.partition is None:
            return
        since = self.partition.snapshot.version

        def read() -> Changes | None:
            newest = self._source.version()
            return self._source.changes(since, newest) if newest > since else None

        try:
            changes = await self._run(read)
        except HistoryGone:
            log.info("shard %d of %s loads anew: version %d is gone", self._number, self.spec.name, since)
            await self._reload()
            return
        if changes is not None:
            await self._take(changes.upserts, changes.deleted_ids, changes.version)

    async def _take(self, upserts: pa.RecordBatch, deleted_ids: Sequence[str], version: int) -> None:
        partition = self.partition
        if partition is None:
            raise AssertionError("a change before the load. This is a bug.")

        staged = await self._run(
            lambda: partition.stage(self._own(upserts), deleted_ids, version=version),
        )
        partition.publish(staged)
        await self._after_move()

    async def _reload(self) -> None:
        """Load the newest version from the store; under the lock."""
        cache, spec = self._cache(), self.spec
        after = self.partition.snapshot if self.partition else None

        def read() -> LiveRows:
            version = self._source.version()
            kept = {} if cache is None else {s.name: k for s in spec.spaces if (k := cache.load(s)) is not None}

            def rows(held: I64 | None) -> Iterator[pa.RecordBatch]:
                loaded = self._source.load(version) if held is None else self._source.load(version, held=held)
                return map(self._own, loaded)

            return load(spec, rows, kept, version=version, after=after, folder=self._cache_folder)

        started = time.perf_counter()
        try:
            partition = await self._run(read)
        except Exception as error:
            if self.partition is None:
                self.message = f"the partition could not be loaded: {error}"
            raise
        self.message = ""
        self.partition = partition
        asyncio.get_running_loop().call_later(TIDY_AFTER_S, lambda: self._closed or self._spawn(self._tidy()))
        self._on_rows(partition.snapshot)
        log.info(
            "shard %d of %s serves version %d: %d rows, %d from a kept index, loaded in %.1f s",
            self._number,
            spec.name,
            partition.snapshot.version,
            partition.snapshot.live,
            partition.snapshot.sealed_live if partition.snapshot.spaces[spec.spaces[0].name].index else 0,
            time.perf_counter() - started,
        )
        await self._after_move()

    async def _after_move(self) -> None:
        async with self._moved:
            self._moved.notify_all()
        self._consider_build()

    # Sealing

    def _consider_build(self) -> None:
        if self.partition is None or self._build is not None or self._closed:
            return
        if self._due():
            self._begin_build(self.partition)
        elif has_rest(self.partition.snapshot, self.spec):
            self._pause.then(self._seal_rest)

    def _seal_rest(self) -> None:
        """Build for fewer fresh rows than are due, when builds have paused for long enough."""
        if self.partition is None or self._build is not None or self._closed or self._failed():
            return
        if has_rest(self.partition.snapshot, self.spec):
            self._begin_build(self.partition)

    def _begin_build(self, partition: LiveRows) -> None:
        self._build = self._spawn(self._seal(partition, partition.snapshot, self.spec))

    def _due(self) -> bool:
        """Whether a build should begin."""
        return self.partition is not None and not self._failed() and due(self.partition.snapshot, self.spec)

    def _failed(self) -> bool:
        """Whether a build would fail as the last one did."""
        if self.partition is None or self._failed_at is None:
            return False
        now, (spec, live) = self.partition.snapshot, self._failed_at
        return spec == self.spec.index and live <= 1.25 * now.live and now.live <= 1.25 * live

    async def _seal(self, partition: LiveRows, snapshot: Snapshot, spec: GallerySpec) -> None:
        """Build a sealed block, put it in place and have it kept, unless another is about to take its place."""
        placed: KeptBlock | None = None
        live = snapshot.live
        self._pause.begin()
        try:
            placed = await self._build_and_place(partition, snapshot, spec)
            del partition, snapshot  # they hold the block before
            if placed is not None:
                self.message, self._failed_at = "", None
                if not self._due():
                    await self._tidy()
        except index_build.BuildStopped:
            log.debug("a build of shard %d of %s was stopped", self._number, spec.name)
        except Exception as error:
            log.exception("shard %d of %s could not build its index", self._number, spec.name)
            self.message = f"the last build failed: {error}"
            self._failed_at = (spec.index, live)
        finally:
            self._build = None
            self._pause.end()
        self._consider_build()
        # Writing a block takes as long as building half of one.
        if placed is not None and self._build is None:
            self._keeper.keep(placed)

    async def _tidy(self) -> None:
        """What no search waits for when an index has come: where it lies in memory, and what is left of making it."""
        loop, stop = asyncio.get_running_loop(), lambda: self._closed
        for space in self.partition.snapshot.spaces.values() if self.partition else ():
            await loop.run_in_executor(self._builder, index.use_large_pages, space.index, stop)
        await loop.run_in_executor(self._builder, memory.give_back)

    async def _build_and_place(self, partition: LiveRows, snapshot: Snapshot, spec: GallerySpec) -> KeptBlock | None:
        def replaced() -> bool:
            return self._closed or self.partition is not partition

        folder = self._cache_folder
        block = await asyncio.get_running_loop().run_in_executor(
            self._builder, lambda: seal(snapshot, spec, stop=replaced, busy=self._busy, folder=folder)
        )
        if not await self._place(partition, block, spec):
            return None
        indexes = {name: space.index for name, space in block.spaces.items()}
        return KeptBlock(spec, block.source.stamps[block.slots], indexes)

    async def _place(self, partition: LiveRows, block: SealedBlock, spec: GallerySpec) -> bool:
        """Swap a block in; False if the rows were numbered anew while it was built."""
        # Not _exclusively: this runs in a task of the shard's own, which nobody cancels.
        async with self._changing:
            if self.partition is not partition or self._closed:
                return False
            self.partition = await self._run(renumber, partition, block, spec)
            self._on_rows(self.partition.snapshot)
            return True

    def _own(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of this partition."""
        if self.spec.shards == 1 or rows.num_rows == 0:
            return rows
        mine = rows.column("shard_hash").to_numpy(zero_copy_only=False) % self.spec.shards == self._number
        return rows if mine.all() else rows.filter(pa.array(mine))

    def _cache(self) -> SealedCache | None:
        return SealedCache(self._cache_folder, self.spec, self._number) if self._cache_folder else None

    async def _run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:  # its caller may have gone away
            log.debug("a change of shard %d of %s failed", self._number, self.spec.name, exc_info=error)

    async def _exclusively(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run one change at a time, to its end: a caller that goes away leaves no thread writing without the lock."""

        async def locked() -> None:
            async with self._changing:
                await work()

        await asyncio.shield(self._spawn(locked()))
