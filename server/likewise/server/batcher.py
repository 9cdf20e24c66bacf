"""Dynamic batching: single items of many callers run together on one thread.

A batch starts at once when the runner is idle and collects while one runs, so that batches grow with the load and an
idle server adds no wait (Crankshaw et al., Clipper, 2017, section 4.3). Callers that were answered together tend to
call again together, so right after a batch the next one waits a moment for them: without that the first to come back
runs alone and the others wait for it. Callers take turns within a batch: a call of a
thousand items leaves room in every batch for the call of one. A batch has until the latest deadline of its callers:
whoever runs it reads that from `remote.deadlines`.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from likewise.server.errors import Overloaded, Unavailable
from likewise.server.remote import deadlines

T = TypeVar("T")
R = TypeVar("R")

_LOG = logging.getLogger(__name__)

_RETRY_MIN_S: Final = 0.05
_RETRY_MAX_S: Final = 5.0
_SMOOTHING: Final = 0.2
"""Weight of the newest batch in the running mean of seconds an item."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one batcher.

    Attributes:
        max_batch: Items run together, at least 1.
        max_items: Items admitted at a time, waiting or running, at least max_batch; past it callers are refused.
        max_delay_s: How long an idle runner waits for a fuller batch, seconds; 0 starts at once.
        max_running: Batches in progress at a time, at least 1; more where another machine or a GPU does the work.
        regather: Longest wait after a batch of several for its callers to come back, as a share of its run; 0 for none.
        max_weight: Most that the items of a batch weigh together, at least 1, whatever weighs them; a heavier one runs
            alone. None for no bound.
    """

    max_batch: int = 32
    max_items: int = 1024
    max_delay_s: float = 0.0
    max_running: int = 1
    regather: float = 0.03
    max_weight: int | None = None

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {self.max_batch}")
        if self.max_items < self.max_batch:
            raise ValueError(f"max_items must be at least max_batch ({self.max_batch}), got {self.max_items}")
        if self.max_delay_s < 0:
            raise ValueError(f"max_delay_s must not be negative, got {self.max_delay_s}")
        if self.max_running < 1:
            raise ValueError(f"max_running must be at least 1, got {self.max_running}")
        if self.max_weight is not None and self.max_weight < 1:
            raise ValueError(f"max_weight must be at least 1, got {self.max_weight}")
        if self.regather < 0:
            raise ValueError(f"regather must not be negative, got {self.regather}")


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one batch was like, for the metrics.

    Attributes:
        name: The batcher's.
        waiting: Items left waiting when it started.
        queue_s: Wait of each of its items, seconds.
        run_s: The run itself, seconds.
        failed: Whether the run raised.
    """

    name: str
    waiting: int
    queue_s: tuple[float, ...]
    run_s: float
    failed: bool

    @property
    def size(self) -> int:
        """Items in it."""
        return len(self.queue_s)


@dataclass(slots=True, eq=False)
class _Entry(Generic[T, R]):
    item: T
    future: asyncio.Future[R]
    since_s: float
    until_s: float | None
    """When its caller stops waiting, of `time.monotonic`; None for never."""


class Lane(Generic[T, R]):
    """One call's place in the queue; made by `Batcher.admit`, used inside its `with` block.

    Attributes:
        window: How many of the call's items may be in `run` at a time.
    """

    def __init__(self, batcher: "Batcher[T, R]", window: int) -> None:
        self.window = window
        self._batcher = batcher
        self._in_flight = 0
        self._entries: deque[_Entry[T, R]] = deque()

    async def run(self, items: Sequence[T]) -> list[R]:
        """Run items in whatever batches come; result i belongs to items[i].

        Cancelling it withdraws the items that have not started.

        Raises:
            ValueError: If more than `window` of the call's items would be in flight.
            Unavailable: If the batcher closes.
            Exception: What the run of a batch with one of the items raised, or gave for one of them.
        """
        if self._in_flight + len(items) > self.window:
            raise ValueError(f"at most {self.window} items at a time, got {len(items)} beside {self._in_flight}")
        self._in_flight += len(items)
        futures = self._batcher._enqueue(self, items)
        try:
            return list(await asyncio.gather(*futures))
        finally:
            self._in_flight -= len(items)

    async def run_all(self, items: Sequence[T]) -> list[R]:
        """As `run` for any number of items: as many of them are in flight as the window takes."""
        if len(items) <= self.window:
            return await self.run(items)
        step = min(self._batcher.limits.max_batch, self.window)
        results: list[R] = []
        parts: deque[asyncio.Task[list[R]]] = deque()
        try:
            for first in range(0, len(items), step):
                if len(parts) == self.window // step:
                    results += await parts.popleft()
                parts.append(asyncio.create_task(self.run(items[first : first + step])))
            while parts:
                results += await parts.popleft()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
        return results


class Batcher(Generic[T, R]):
    """Runs items of concurrent callers in batches on a thread of its own. All methods belong to one event loop.

    Args:
        run: Takes 1 to max_batch items, returns a result for each, in order, or the exception that is its own. It
            blocks, and runs on max_running threads.
        name: For logs, metrics and messages.
        limits: Its bounds.
        on_batch: Told about every batch, on the event loop.
        weigh: What an item costs a batch, for `max_weight`.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Sequence[R | Exception]],
        *,
        name: str,
        limits: BatchLimits | None = None,
        on_batch: Callable[[BatchReport], None] | None = None,
        weigh: Callable[[T], int] = lambda _: 0,
    ) -> None:
        self.name = name
        self.limits = limits or BatchLimits()
        self._run = run
        self._on_batch = on_batch
        self._weigh = weigh
        self._executor = ThreadPoolExecutor(max_workers=self.limits.max_running, thread_name_prefix=f"batch-{name}")
        self._lanes: deque[Lane[T, R]] = deque()
        self._admitted = 0
        self._waiting = 0
        self._item_s = 0.0
        self._runners: set[asyncio.Task[None]] = set()
        self._wanted = self.limits.max_batch
        self._enough = asyncio.Event()
        self._returning = (0, 0.0)  # items that may wait soon, and until when to expect them, of `time.perf_counter`
        self._closed = False

    @property
    def admitted(self) -> int:
        """Items that callers hold a place for."""
        return self._admitted

    @property
    def waiting(self) -> int:
        """Items that no batch has taken yet."""
        return self._waiting

    @contextlib.contextmanager
    def admit(self, items: int) -> Iterator[Lane[T, R]]:
        """Take places for a call of `items` items, at most for the batches that may run and one more, which waits.

        Raises:
            Overloaded: If the places are taken; nothing was done, and the error says when to come back.
            Unavailable: If the batcher closes.
        """
        if self._closed:
            raise Unavailable(f"{self.name} is shutting down")
        window = min(items, (self.limits.max_running + 1) * self.limits.max_batch, self.limits.max_items)
        if self._admitted + window > self.limits.max_items:
            raise Overloaded(
                f"the queue of {self.name} is full: {self._admitted} items, the limit is {self.limits.max_items}",
                retry_after_s=min(max(self._admitted * self._item_s, _RETRY_MIN_S), _RETRY_MAX_S),
                metadata={"model": self.name, "items": str(self._admitted), "limit": str(self.limits.max_items)},
            )
        self._admitted += window
        lane = Lane(self, window)
        try:
            yield lane
        finally:
            self._admitted -= window
            self._withdraw(lane)

    async def close(self) -> None:
        """Refuse new calls, let the running batch finish, answer those who wait with Unavailable."""
        self._closed = True
        for lane in self._lanes:
            for entry in lane._entries:
                if not entry.future.done():
                    entry.future.set_exception(Unavailable(f"{self.name} is shutting down"))
        self._enough.set()
        if self._runners:
            await asyncio.wait(self._runners)
        self._executor.shutdown(wait=False)

    def _enqueue(self, lane: Lane[T, R], items: Sequence[T]) -> list[asyncio.Future[R]]:
        if self._closed:
            raise Unavailable(f"{self.name} is shutting down")
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[R]] = [loop.create_future() for _ in items]
        if not futures:
            return futures
        if not lane._entries:
            self._lanes.append(lane)
        now = time.perf_counter()
        left = deadlines.remaining_s()
        until = None if left is None else time.monotonic() + left
        lane._entries.extend(_Entry(item, future, now, until) for item, future in zip(items, futures, strict=True))
        self._waiting += len(futures)
        if self._waiting >= self._wanted:
            self._enough.set()
        if len(self._runners) < self.limits.max_running:
            # The task begins after the callers that are ready now have queued: they share its first batch.
            self._runners.add(loop.create_task(self._work(), name=f"batch-{self.name}"))
        return futures

    def _withdraw(self, lane: Lane[T, R]) -> None:
        """Forget what a vanished caller left waiting, so that the places it gives back are really free."""
        if lane._entries:
            self._waiting -= len(lane._entries)
            lane._entries.clear()
            self._lanes.remove(lane)

    async def _work(self) -> None:
        runner = asyncio.current_task()
        assert runner is not None
        try:
            while self._lanes:
                await self._wait_for(self.limits.max_batch, self.limits.max_delay_s)
                expected, until_s = self._returning
                await self._wait_for(expected, until_s - time.perf_counter())
                if batch := self._take():
                    await self._execute(batch)
        finally:
            # Not in a callback: who queues in between would find a runner that no longer looks.
            self._runners.discard(runner)

    async def _wait_for(self, items: int, seconds: float) -> None:
        """Return when so many items wait, or after so many seconds."""
        if seconds <= 0 or self._waiting >= items or self._closed:
            return
        self._wanted = items
        self._enough.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._enough.wait()

    def _take(self) -> list[_Entry[T, R]]:
        """The next batch: each waiting call's share in turn, then the rest of the room in turn again.

        It ends at the first item that weighs too much for what is in it; that item's call is first the next time, or
        last if it has had its turn.
        """
        batch: list[_Entry[T, R]] = []
        left = math.inf if self.limits.max_weight is None else self.limits.max_weight
        full = False
        while self._lanes and len(batch) < self.limits.max_batch and not full:
            share = max(1, (self.limits.max_batch - len(batch)) // len(self._lanes))
            lane = self._lanes.popleft()
            taken = 0
            while lane._entries and taken < share and not full:
                weight = self._weigh(lane._entries[0].item)
                full = bool(batch) and weight > left
                if full:
                    break
                entry = lane._entries.popleft()
                self._waiting -= 1
                if not entry.future.done():
                    batch.append(entry)
                    taken += 1
                    left -= weight
            if lane._entries and full and not taken:
                self._lanes.appendleft(lane)  # its turn is still to come
            elif lane._entries:
                self._lanes.append(lane)
        return batch

    async def _execute(self, batch: list[_Entry[T, R]]) -> None:
        start = time.perf_counter()
        queue_s = tuple(start - entry.since_s for entry in batch)
        waiting = self._waiting
        error: Exception | None = None
        results: Sequence[R | Exception] = ()
        try:
            loop = asyncio.get_running_loop()
            results = await loop.run_in_executor(self._executor, self._run_until, _latest(batch), batch)
            if len(results) != len(batch):
                raise RuntimeError(f"{self.name} gave {len(results)} results for {len(batch)} items. This is a bug.")
        except Exception as caught:
            _LOG.warning("a batch of %d failed in %s: %r", len(batch), self.name, caught)
            error = caught
        run_s = time.perf_counter() - start
        for i, entry in enumerate(batch):
            if entry.future.done():
                continue
            outcome = results[i] if error is None else error
            if isinstance(outcome, Exception):
                entry.future.set_exception(outcome)
            else:
                entry.future.set_result(outcome)
        if len(batch) > 1 and error is None:
            expected = min(len(batch) + self._waiting, self.limits.max_batch)
            self._returning = (expected, start + run_s * (1 + self.limits.regather))
        per_item = run_s / len(batch)
        self._item_s = per_item if not self._item_s else self._item_s + _SMOOTHING * (per_item - self._item_s)
        if self._on_batch is not None:
            try:
                self._on_batch(BatchReport(self.name, waiting, queue_s, run_s, error is not None))
            except Exception:
                # Losing a figure is better than a queue that nobody works off.
                _LOG.exception("the report of a batch of %s was refused", self.name)

    def _run_until(self, until_s: float | None, batch: Sequence[_Entry[T, R]]) -> Sequence[R | Exception]:
        """Run a batch, on a thread, within the latest deadline of its callers."""
        items = [entry.item for entry in batch]
        if until_s is None:
            return self._run(items)
        with deadlines.limited(max(0.0, until_s - time.monotonic())):
            return self._run(items)


def _latest(batch: Sequence[_Entry[T, R]]) -> float | None:
    ends = [entry.until_s for entry in batch if entry.until_s is not None]
    return max(ends) if len(ends) == len(batch) else None
