"""A runner of batches that a test can hold up."""

import asyncio
import threading
from collections.abc import Sequence

from likewise.server.batcher import Batcher


class Doubler:
    """Doubles numbers; while `gate` is closed a batch waits in its thread. -1 in a batch fails it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.started = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        self.started.release()
        assert self.gate.wait(10)
        if -1 in items:
            raise ArithmeticError("minus one")
        return [2 * item for item in items]

    async def running(self) -> None:
        """Returns once one more batch has begun."""
        assert await asyncio.to_thread(self.started.acquire, timeout=10)


async def call(batcher: Batcher[int, int], *items: int) -> list[int]:
    with batcher.admit(len(items)) as lane:
        return await lane.run(items)
