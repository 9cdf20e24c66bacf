"""Which filters of a shard have an index of their own.

A filter is given one when searches under it, such as it would make faster, have taken about half as long as building it
takes. So whatever is asked, building costs no more than twice what the searches cost that asked for it, and a filter
that comes once or changes with every search has none. All of a shard's together are bounded, as a share of what its
indexes take; the least recently used ones go first.
"""

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, NamedTuple

from likewise.shards import partial_index
from likewise.shards.index_build import BuildStopped
from likewise.shards.masks import Allowed
from likewise.shards.partial_index import PartialIndex
from likewise.shards.rows import Snapshot

log = logging.getLogger(__name__)

SHARE: Final = 0.5
"""Most memory of all, as a share of what the shard's indexes take without the vectors."""

EARNED_S_PER_ROW: Final = 20e-6
"""Time of searches that pays for a row: half of what building it takes, which nobody waits for. 16,900 rows of 32
numbers, 32 links a row, took 37 us a row on two cores, 200,000 x 512 under filters of 5 to 50 % 34 to 38."""

FILTERS: Final = 256
"""Filters whose searches are added up, the latest."""

FAR_QUERIES: Final = 256
FAR_SHARE: Final = 0.25
"""An index goes when more than this share of so many queries were far from its rows: they are searched twice."""

_NEVER: Final = float("-inf")


class _Key(NamedTuple):
    filter: bytes
    space: str


@dataclass(slots=True)
class _Kept:
    partial: PartialIndex
    generation: int
    queries: int = 0
    far: int = 0


class PartialIndexes:
    """The partial indexes of one shard.

    `of`, `earn` and `note` may be called from any thread, the rest from one event loop.

    Args:
        newest: The rows; None while there are none.
        allowed: Rows that a filter leaves; called from the builder's thread.
        builder: For builds, see `build_executor`. Not shut down.
        share: Of the memory of the shard's indexes; 0 for none at all.
        busy: Whether half of the cores are to be left to others.
        give_up: Whether the builder is needed for something else: what is being built is then stopped.
    """

    def __init__(
        self,
        newest: Callable[[], Snapshot | None],
        allowed: Callable[[Snapshot, bytes], Allowed],
        *,
        builder: Executor,
        share: float = SHARE,
        busy: Callable[[], bool] = lambda: False,
        give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._newest = newest
        self._allowed = allowed
        self._builder = builder
        self._share = share
        self._busy = busy
        self._give_up = give_up
        self._lock = threading.Lock()
        self._generation = -1
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._earned: OrderedDict[_Key, float] = OrderedDict()
        self._due: OrderedDict[_Key, None] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    # The searches' side

    def of(self, snapshot: Snapshot, allowed: Allowed, space: str) -> PartialIndex | None:
        """The index of what a filter allows, if it has one."""
        if allowed.key is None or not self._kept:
            return None
        key = _Key(allowed.key.filter, space)
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or kept.generation != snapshot.generation:
                return None
            if not kept.partial.serves(allowed):
                del self._kept[key]
                return None
            self._kept.move_to_end(key)
            return kept.partial

    def earn(self, snapshot: Snapshot, allowed: Allowed, space: str, seconds: float) -> None:
        """Note time of searches that an index of their filter's own would have made faster."""
        index = snapshot.spaces[space].index
        if allowed.key is None or index is None:
            return
        key = _Key(allowed.key.filter, space)
        with self._lock:
            if snapshot.generation != self._generation:
                return
            earned = self._earned[key] = self._earned.pop(key, 0.0) + seconds
            if len(self._earned) > FILTERS:
                self._earned.popitem(last=False)
            if earned < EARNED_S_PER_ROW * allowed.sealed:
                return
            if partial_index.expected_bytes(index, allowed.sealed) > self._most_bytes(snapshot):
                self._earned[key] = _NEVER
            else:
                self._due[key] = None

    def note(self, allowed: Allowed, space: str, *, queries: int, far: int) -> None:
        """Note how many of the queries were far from all rows of the index of their filter."""
        if allowed.key is None:
            return
        key = _Key(allowed.key.filter, space)
        with self._lock:
            if (kept := self._kept.get(key)) is None or kept.generation != allowed.key.generation:
                return
            kept.queries, kept.far = kept.queries + queries, kept.far + far
            if kept.queries < FAR_QUERIES:
                return
            if kept.far > FAR_SHARE * kept.queries:
                del self._kept[key]
                self._earned[key] = _NEVER
            kept.queries = kept.far = 0

    # The rows' side

    @property
    def due(self) -> bool:
        """Whether `begin` has something to begin."""
        return bool(self._due) and self._task is None

    def begin(self) -> None:
        """Build what is due, in the background."""
        if self.due and not self._closed:
            self._task = asyncio.create_task(self._work())

    def moved(self, snapshot: Snapshot) -> None:
        """Begin anew where slots were numbered anew."""
        with self._lock:
            if snapshot.generation != self._generation:
                self._generation = snapshot.generation
                self._kept.clear()
                self._earned.clear()
                self._due.clear()

    async def close(self) -> None:
        """Stop what is being built, and wait for it."""
        self._closed = True
        await self.settled()
        with self._lock:
            self._kept.clear()

    async def settled(self) -> None:
        """Wait until nothing is being built."""
        while self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._kept)

    @property
    def memory_bytes(self) -> int:
        """Estimate of what they take."""
        with self._lock:
            return self._bytes()

    # Parts

    async def _work(self) -> None:
        try:
            while self._due and not self._closed:
                with self._lock:
                    key, _ = self._due.popitem(last=False)
                    self._earned[key] = _NEVER  # not due again while it is being built
                await self._build(key)
        finally:
            self._task = None

    async def _build(self, key: _Key) -> None:
        snapshot = self._newest()
        if snapshot is None or snapshot.generation != self._generation:
            return  # `moved` has not been told yet
        started = time.perf_counter()

        def stop() -> bool:
            return self._closed or self._give_up() or self._generation != snapshot.generation

        def work() -> PartialIndex | None:
            allowed = self._allowed(snapshot, key.filter)
            return partial_index.build(snapshot, allowed, key.space, stop=stop, busy=self._busy)

        built: PartialIndex | None = None
        try:
            built = await asyncio.get_running_loop().run_in_executor(self._builder, work)
        except BuildStopped:
            self._earned.pop(key, None)
            return
        except Exception:
            log.exception("an index for a filter could not be built; its searches go on without")
        if built is not None and self._keep(key, built, snapshot):
            took = time.perf_counter() - started
            log.info("a filter has an index of its own: %d rows, built in %.1f s", built.index.rows, took)

    def _keep(self, key: _Key, built: PartialIndex, snapshot: Snapshot) -> bool:
        with self._lock:
            if snapshot.generation != self._generation:
                return False
            self._earned.pop(key, None)
            self._kept[key] = _Kept(built, snapshot.generation)
            while self._bytes() > self._most_bytes(snapshot):
                self._kept.popitem(last=False)
            return key in self._kept

    def _bytes(self) -> int:
        return sum(kept.partial.memory_bytes for kept in self._kept.values())

    def _most_bytes(self, snapshot: Snapshot) -> float:
        indexes = (space.index for space in snapshot.spaces.values())
        return self._share * sum(index.core_bytes for index in indexes if index is not None)
