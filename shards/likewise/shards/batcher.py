"""Adaptive micro-batching: while one batch runs, the next collects; an idle batcher adds no delay.

Requests with equal keys may share a batch. The queue is bounded in queries; entries whose caller went away are dropped
before they cost anything, and a batch nobody waits for any more is told to stop.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from likewise.shards.protocols import Overloaded, Unavailable

MAX_BATCH: Final = 256
MAX_QUEUED: Final = 4_096

_Key = TypeVar("_Key", bound=Hashable)
_Request = TypeVar("_Request")
_Result = TypeVar("_Result")

Run = Callable[[_Key, Sequence[_Request], Callable[[], bool]], Sequence[_Result]]
"""Answers the requests of one batch in order; blocking. The last argument says whether everybody has gone."""


@dataclass(frozen=True, slots=True)
class Timed(Generic[_Result]):
    """A result with its times, in microseconds: waiting for the batch to start, and the batch."""

    result: _Result
    queue_us: int
    search_us: int


@dataclass(frozen=True, slots=True)
class ShardBatch:
    """A batch that is about to run: how many queries it has, and how many wait for a later one."""

    queries: int
    waiting: int


@dataclass(slots=True)
class _Entry(Generic[_Key, _Request, _Result]):
    key: _Key
    request: _Request
    queries: int
    future: "asyncio.Future[Timed[_Result]]"
    since: float = field(default_factory=time.perf_counter)


class Batcher(Generic[_Key, _Request, _Result]):
    """Queue before one executor; use it from one event loop.

    Args:
        run: Answers a batch, in the executor.
        executor: Where batches run, one at a time.
        max_batch: Most queries of one batch; a larger request runs alone.
        max_queued: Most queries waiting; a request over it is refused.
        on_batch: Told about every batch, on the event loop.
    """

    def __init__(
        self,
        run: "Run[_Key, _Request, _Result]",
        executor: Executor,
        *,
        max_batch: int = MAX_BATCH,
        max_queued: int = MAX_QUEUED,
        on_batch: Callable[[ShardBatch], None] | None = None,
    ) -> None:
        self._run = run
        self._executor = executor
        self._max_batch = max_batch
        self._max_queued = max_queued
        self._on_batch = on_batch
        self._queue: deque[_Entry[_Key, _Request, _Result]] = deque()
        self._queued = 0
        self._busy_s = 0.001
        self._runner: asyncio.Task[None] | None = None
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
        future: asyncio.Future[Timed[_Result]] = asyncio.get_running_loop().create_future()
        entry = _Entry(key, request, queries, future)
        self._queue.append(entry)
        self._queued += queries
        if self._runner is None:
            self._runner = asyncio.create_task(self._drain())
        return await future

    async def close(self) -> None:
        """Refuse what waits and let the running batch end."""
        self._closed = True
        while self._queue:
            entry = self._queue.popleft()
            if not entry.future.done():
                entry.future.set_exception(Unavailable("the shard is closing"))
        self._queued = 0
        if self._runner is not None:
            await self._runner

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batch := self._next_batch():
                started = time.perf_counter()
                requests = [entry.request for entry in batch]
                if self._on_batch is not None:
                    self._on_batch(ShardBatch(sum(entry.queries for entry in batch), self._queued))

                def abandoned(entries: Sequence[_Entry[_Key, _Request, _Result]] = batch) -> bool:
                    return all(entry.future.done() for entry in entries)

                try:
                    results = await loop.run_in_executor(self._executor, self._run, batch[0].key, requests, abandoned)
                except Exception as error:
                    for entry in batch:
                        if not entry.future.done():
                            entry.future.set_exception(error)
                    continue
                self._busy_s = time.perf_counter() - started
                for entry, result in zip(batch, results, strict=True):
                    if not entry.future.done():
                        queue_us = int((started - entry.since) * 1e6)
                        entry.future.set_result(Timed(result, queue_us, int(self._busy_s * 1e6)))
        finally:
            self._runner = None

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
