"""Long copies in threads: a few at a time, told step by step, given up when nobody waits any more."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from likewise.server.errors import Overloaded
from likewise.shards.copying import Progress, Report
from likewise.shards.protocols import ShardError

T = TypeVar("T")

AT_ONCE: Final = 2
"""Transfers at a time: each keeps a disk busy."""

_RETRY_S: Final = 10.0


class GivenUp(ShardError):
    """Nobody waits for the transfer any more."""


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The end of a transfer.

    Attributes:
        result: What it gave.
        progress: Its last step.
    """

    result: T
    progress: Progress


class Transfers:
    """Runs transfers."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="transfer")
        self._running = 0
        self._closing = threading.Event()

    async def run(self, work: Callable[[Report], T]) -> AsyncGenerator[Progress | Done[T]]:
        """Run `work` in a thread and yield its newest progress as fast as it is taken, then what it gave.

        Whoever closes the generator, or is cancelled in it, stops the work at its next report and waits for that.

        Raises:
            Overloaded: If as many transfers are running as may.
        """
        if self._running >= AT_ONCE:
            raise Overloaded(
                f"{self._running} restores, exports and imports are running, the limit is {AT_ONCE}",
                reason="TRANSFERS_BUSY",
                retry_after_s=_RETRY_S,
            )
        loop = asyncio.get_running_loop()
        news = asyncio.Event()
        stop = threading.Event()
        newest = Progress(0, 0, 0, 0)

        def report(progress: Progress) -> None:
            nonlocal newest
            if stop.is_set() or self._closing.is_set():
                raise GivenUp("the transfer was given up")
            newest = progress
            loop.call_soon_threadsafe(news.set)

        self._running += 1
        future = loop.run_in_executor(self._executor, work, report)
        future.add_done_callback(lambda _: news.set())
        try:
            while True:
                await news.wait()
                news.clear()
                if future.done():
                    break
                yield newest
            yield Done(future.result(), newest)
        finally:
            stop.set()
            if not future.done():
                await asyncio.wait([future])
            self._running -= 1

    async def finish(self, work: Callable[[Report], T]) -> T:
        """As `run`, for those who want the end alone."""
        stream = self.run(work)
        try:
            async for step in stream:
                if isinstance(step, Done):
                    return step.result
        finally:
            await stream.aclose()
        raise AssertionError("a transfer ends with what it gave. This is a bug.")

    async def close(self) -> None:
        """Stop what runs at its next report."""
        self._closing.set()
        await asyncio.to_thread(self._executor.shutdown)
