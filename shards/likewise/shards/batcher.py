"""Adaptive micro-batching: while one batch runs, the next collects; an idle batcher adds no delay.

Requests with equal keys may share a batch. The queue is bounded in queries; entries whose caller went away are dropped
before they cost anything, and a batch nobody waits for any more is told to stop.

A batch goes to a thread and back, which takes longer than a small search itself. So a request that meets no other and
is known to be short runs where it is, as long as such searches take no more than a share of the event loop's time.
"""

import asyncio
import contextlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from likewise.shards.protocols import Overloaded, Unavailable
from likewise.shards.search_threads import SearchThreads

MAX_BATCH: Final = 256
MAX_QUEUED: Final = 4_096

INLINE_S: Final = 0.002
"""Longest request, as expected from those before, that may run on the event loop, where whatever comes meanwhile waits
for it. In a thread it takes some 0.15 to 0.3 ms longer, for cold caches and waiting for the interpreter."""

INLINE_SHARE: Final = 0.6
"""Of the event loop's time that such requests may take; beyond, other calls would wait for them."""

BUSY_SHARE: Final = 0.85
"""Of the event loop's time since the last batch, from which on it is taken to have other requests waiting, so that one
that meets no other in the queue lets them come along, or else goes to the thread. A lone caller's server is at work for
0.55 to 0.75 of it, that of two that each make calls for more than 0.9. 32 of these had 1,300 answers a second instead
of 1,750 without this, and 1,440 instead of 1,860 where those that met nobody in a turn of the loop ran on it."""

_COSTS_KEPT: Final = 256
_NEWEST_WEIGHT: Final = 0.2
_SURPRISE: Final = 4.0
"""How many times longer than expected a batch takes that alone counts: the next ones may take as long, off the loop."""

_Key = TypeVar("_Key", bound=Hashable)
_Request = TypeVar("_Request")
_Result = TypeVar("_Result")

Run = Callable[[_Key, Sequence[_Request], Callable[[], bool]], Sequence[_Result]]
"""Answers the requests of one batch in order; blocking. The last argument says whether everybody has gone."""


class Timed(NamedTuple, Generic[_Result]):
    """A result with its times, in microseconds: waiting for the batch to start, and the batch."""

    result: _Result
    queue_us: int
    search_us: int


class ShardBatch(NamedTuple):
    """A batch that is about to run: how many queries it has, and how many wait for a later one."""

    queries: int
    waiting: int


@dataclass(slots=True)
class _Entry(Generic[_Key, _Request, _Result]):
    key: _Key
    request: _Request
    queries: int
    future: "asyncio.Future[Timed[_Result]]"
    since: float


class Batcher(Generic[_Key, _Request, _Result]):
    """Queue before threads; use it from one event loop.

    Args:
        run: Answers a batch, in a thread.
        threads: Where batches run, one at a time.
        max_batch: Most queries of one batch; a larger request runs alone.
        max_queued: Most queries waiting; a request over it is refused.
        on_batch: Told about every batch, on the event loop.
        inline: Whether a request of this key may run on the event loop when it is short; by default none may.
        clock: Seconds, growing.
        own_clock: Seconds that the calling thread has been at work.
    """

    def __init__(
        self,
        run: "Run[_Key, _Request, _Result]",
        threads: SearchThreads,
        *,
        max_batch: int = MAX_BATCH,
        max_queued: int = MAX_QUEUED,
        on_batch: Callable[[ShardBatch], None] | None = None,
        inline: Callable[[_Key], bool] = lambda _: False,
        clock: Callable[[], float] = time.perf_counter,
        own_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._run = run
        self._threads = threads
        self._max_batch = max_batch
        self._max_queued = max_queued
        self._on_batch = on_batch
        self._inline = inline
        self._clock = clock
        self._own_clock = own_clock
        self._inline_budget = _Budget(INLINE_SHARE, most_s=2 * INLINE_S)
        self._costs: OrderedDict[tuple[_Key, int], float] = OrderedDict()  # of a query, by key and octave of the batch
        self._queue: deque[_Entry[_Key, _Request, _Result]] = deque()
        self._queued = 0
        self._busy_s = 0.001
        self._ended_at = (0.0, 0.0)
        self._due = False
        self._running: asyncio.Future[None] | None = None
        self._closed = False

    @property
    def queued(self) -> int:
        """Queries waiting for a batch."""
        return self._queued

    async def submit(self, key: _Key, request: _Request, *, queries: int) -> Timed[_Result]:
        """The answer to one request of so many queries.

        Raises:
            Overloaded: If the queue is full.
            Unavailable: If the batcher is closed.
        """
        if self._closed:
            raise Unavailable("the shard is closing")
        if self._queue and self._queued + queries > self._max_queued:
            raise Overloaded(
                f"the shard's queue takes {self._max_queued} queries, {self._queued} wait and {queries} came",
                retry_after_s=self._busy_s * (1 + self._queued / self._max_batch),
            )
        now = self._clock()
        if self._running is None and not self._queue:
            own = self._own_clock()
            if self._may_run_here(key, queries, now, own):
                return self._at_once(key, request, queries, now, own)
        loop = asyncio.get_running_loop()
        entry = _Entry(key, request, queries, loop.create_future(), now)
        self._queue.append(entry)
        self._queued += queries
        if self._running is None and not self._due:
            # Not at once: whoever is ready in this turn of the event loop shares the batch.
            self._due = True
            loop.call_soon(self._next, loop)
        return await entry.future

    async def close(self) -> None:
        """Refuse what waits and let the running batch end."""
        self._closed = True
        while self._queue:
            entry = self._queue.popleft()
            if not entry.future.done():
                entry.future.set_exception(Unavailable("the shard is closing"))
        self._queued = 0
        if self._running is not None:
            await asyncio.shield(self._running)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the next batch, if there is one and none is running."""
        self._due = False
        while self._running is None and (entries := self._next_batch()):
            started = self._clock()
            batch = _Batch(entries, started, self._queued)
            alone = len(entries) == 1 and not self._queue
            if alone and self._may_run_here(batch.key, batch.queries, started, self._own_clock()):
                self._finish(self._answered(batch))
                continue
            self._running = loop.create_future()
            try:
                self._threads.start(self._work, batch, loop)
            except RuntimeError as error:  # they were shut down
                batch.failure = Unavailable(f"the shard cannot search: {error}")
                self._done(batch, loop)

    def _may_run_here(self, key: _Key, queries: int, now: float, own: float) -> bool:
        """Whether the event loop, at work for `own` seconds until now, has time to spare for a request."""
        since, own_since = self._ended_at
        if own - own_since >= BUSY_SHARE * (now - since) or not self._inline(key):
            return False
        cost = queries * self._costs.get((key, queries.bit_length()), math.inf)
        return cost <= INLINE_S and self._inline_budget.covers(cost, now)

    def _at_once(self, key: _Key, request: _Request, queries: int, started: float, own: float) -> Timed[_Result]:
        """Answer a request that met no other where it is, which is two turns of the event loop less."""
        try:
            (result,) = self._run(key, (request,), _never)
        finally:
            self._ended_at = self._clock(), self._own_clock()
            self._tell(ShardBatch(queries, 0))
        self._ended(key, queries, self._ended_at[1] - own, started)
        return Timed(result, 0, int(self._busy_s * 1e6))

    def _work(self, batch: "_Batch[_Key, _Request, _Result]", loop: asyncio.AbstractEventLoop) -> None:
        """Run a batch, in a thread."""
        answered = self._answered(batch)
        with contextlib.suppress(RuntimeError):  # the event loop was closed, nobody waits
            loop.call_soon_threadsafe(self._done, answered, loop)

    def _answered(self, batch: "_Batch[_Key, _Request, _Result]") -> "_Batch[_Key, _Request, _Result]":
        # The thread's own time: what it waited for the interpreter is not what the search costs.
        own_s = time.thread_time()
        try:
            batch.results = self._run(batch.key, [entry.request for entry in batch.entries], batch.abandoned)
        except BaseException as error:  # also what is no `Exception`: callers and the next batch wait for it
            batch.failure = error
        batch.own_s = time.thread_time() - own_s
        return batch

    def _done(self, batch: "_Batch[_Key, _Request, _Result]", loop: asyncio.AbstractEventLoop) -> None:
        """Give out what a batch of a thread came to; the next one begins first, so that the thread does not idle."""
        ended, self._running = self._running, None
        self._next(loop)
        self._finish(batch)
        if ended is not None:
            ended.set_result(None)

    def _finish(self, batch: "_Batch[_Key, _Request, _Result]") -> None:
        self._give_out(batch)
        self._tell(ShardBatch(batch.queries, batch.waiting))

    def _tell(self, batch: ShardBatch) -> None:
        if self._on_batch is not None:
            # After the turns of those who have waited: they are not to wait for what is counted.
            asyncio.get_running_loop().call_soon(self._on_batch, batch)

    def _give_out(self, batch: "_Batch[_Key, _Request, _Result]") -> None:
        if batch.failure is not None:
            for entry in batch.entries:
                if not entry.future.done():
                    entry.future.set_exception(batch.failure)
            return
        self._ended_at = self._clock(), self._own_clock()
        self._ended(batch.key, batch.queries, batch.own_s, batch.started)
        search_us = int(self._busy_s * 1e6)
        for entry, result in zip(batch.entries, batch.results, strict=True):
            if not entry.future.done():
                entry.future.set_result(Timed(result, int((batch.started - entry.since) * 1e6), search_us))

    def _ended(self, key: _Key, queries: int, own_s: float, started: float) -> None:
        """Remember what each query of a batch took, in seconds of its thread; several share what one bears alone."""
        self._busy_s = self._ended_at[0] - started
        alike, cost = (key, queries.bit_length()), own_s / queries
        before = self._costs.pop(alike, cost)
        weight = _NEWEST_WEIGHT if cost < _SURPRISE * before else 1.0
        self._costs[alike] = before + weight * (cost - before)
        if len(self._costs) > _COSTS_KEPT:
            self._costs.popitem(last=False)

    def _next_batch(self) -> list[_Entry[_Key, _Request, _Result]]:
        """Entries of the key that has waited longest, as many as fit; they leave the queue."""
        batch: list[_Entry[_Key, _Request, _Result]] = []
        kept: deque[_Entry[_Key, _Request, _Result]] = deque()
        size = 0
        while self._queue:
            entry = self._queue.popleft()
            if entry.future.done():
                self._queued -= entry.queries
            elif not batch or (entry.key == batch[0].key and size + entry.queries <= self._max_batch):
                batch.append(entry)
                size += entry.queries
            else:
                kept.append(entry)
        self._queue = kept
        self._queued -= size
        return batch


class _Batch(Generic[_Key, _Request, _Result]):
    """Entries that run together, and what came of it."""

    def __init__(self, entries: Sequence[_Entry[_Key, _Request, _Result]], started: float, waiting: int) -> None:
        self.entries = entries
        self.key = entries[0].key
        self.queries = sum([entry.queries for entry in entries])
        self.started = started
        self.waiting = waiting
        self.results: Sequence[_Result] = ()
        self.failure: BaseException | None = None
        self.own_s = 0.0

    def abandoned(self) -> bool:
        """Whether everybody has gone."""
        return all(entry.future.done() for entry in self.entries)


def _never() -> bool:
    return False


class _Budget:
    """Time that may be spent at a rate, in seconds a second, and saved up to a bound."""

    def __init__(self, rate: float, *, most_s: float) -> None:
        self._rate, self._most_s = rate, most_s
        self._left_s, self._at = most_s, 0.0

    def covers(self, cost_s: float, now: float) -> bool:
        """Spend `cost_s` if it is there."""
        self._left_s = min(self._most_s, self._left_s + self._rate * (now - self._at))
        self._at = now
        if self._left_s < cost_s:
            return False
        self._left_s -= cost_s
        return True
