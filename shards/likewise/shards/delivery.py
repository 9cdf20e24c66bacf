"""Committed changes on their way to those who follow a gallery.

Each follower has a bounded queue and a task of its own, so a slow one delays nobody. What does not fit is left out; the
follower sees the gap in the versions and catches up from the store.
"""

import asyncio
import logging
from collections import deque
from typing import Final

import pyarrow as pa

from likewise.shards.protocols import Delta, DeltaSink

_log = logging.getLogger(__name__)

MAX_DELTAS: Final = 64
MAX_BYTES: Final = 128 << 20
"""Of rows waiting for one follower; a single larger delta is still delivered if nothing else waits."""


class Feed:
    """The queue and the task of one follower."""

    def __init__(self, sink: DeltaSink, *, max_deltas: int = MAX_DELTAS, max_bytes: int = MAX_BYTES) -> None:
        """Start delivering to `sink`; needs a running loop."""
        self.sink = sink
        self._max_deltas = max_deltas
        self._max_bytes = max_bytes
        self._waiting: deque[Delta] = deque()
        self._bytes = 0
        self._skipped: Delta | None = None
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task = asyncio.create_task(self._run(), name="delta-feed")

    def offer(self, delta: Delta) -> None:
        """Queue a delta, or leave it out if the queue is full."""
        size = delta.upserts.nbytes
        full = len(self._waiting) >= self._max_deltas or (self._waiting and self._bytes + size > self._max_bytes)
        if full or self._skipped is not None:
            self._skipped = delta
        else:
            self._waiting.append(delta)
            self._bytes += size
        self._idle.clear()
        self._wake.set()

    async def drained(self) -> None:
        """Return when nothing waits any more."""
        await self._idle.wait()

    async def close(self) -> None:
        """Stop; what waits is dropped."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._idle.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (delta := self._next()) is not None:
                try:
                    await self.sink.apply(delta)
                except Exception:
                    _log.warning("a follower failed to take version %d", delta.version, exc_info=True)
            self._idle.set()

    def _next(self) -> Delta | None:
        if self._waiting:
            delta = self._waiting.popleft()
            self._bytes -= delta.upserts.nbytes
            return delta
        if self._skipped is not None:
            # Only tells the version reached: the follower's own is older than its base, so it catches up.
            skipped, self._skipped = self._skipped, None
            nothing = pa.RecordBatch.from_pylist([], schema=skipped.upserts.schema)
            return Delta(base_version=skipped.version, version=skipped.version, upserts=nothing, deleted_ids=())
        return None


class Delivery:
    """All followers of one gallery."""

    def __init__(self) -> None:
        """Nobody follows yet."""
        self._feeds: list[Feed] = []

    def add(self, sink: DeltaSink) -> None:
        """Deliver to `sink` from the next commit on; adding it twice changes nothing."""
        if not any(feed.sink is sink for feed in self._feeds):
            self._feeds.append(Feed(sink))

    async def remove(self, sink: DeltaSink) -> None:
        """Deliver nothing more to `sink`."""
        for feed in [feed for feed in self._feeds if feed.sink is sink]:
            self._feeds.remove(feed)
            await feed.close()

    def publish(self, delta: Delta) -> None:
        """Queue a delta for everybody."""
        for feed in self._feeds:
            feed.offer(delta)

    async def drained(self) -> None:
        """Return when every follower has taken what was published."""
        for feed in list(self._feeds):
            await feed.drained()

    async def close(self) -> None:
        """Stop all deliveries."""
        while self._feeds:
            await self._feeds.pop().close()
