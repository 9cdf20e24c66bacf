"""Copies of transfers, held where a test wants them."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from likewise.server import transfers
from likewise.shards import copying


class Gate:
    """Holds every copy until it is opened, and notes when one is told to stop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stopped = self.stopped = threading.Semaphore(0)

        class Stop(threading.Event):
            def set(self) -> None:
                super().set()
                stopped.release()

        monkeypatch.setattr(transfers, "threading", SimpleNamespace(Event=Stop))
        self.reached = threading.Semaphore(0)
        self.open = threading.Event()
        wrote = copying.Tally.wrote

        def waiting(tally: copying.Tally, size: int) -> None:
            self.reached.release()
            assert self.open.wait(30)
            wrote(tally, size)

        monkeypatch.setattr(copying.Tally, "wrote", waiting)

    async def passed(self) -> None:
        assert await asyncio.to_thread(self.reached.acquire, timeout=30)

    async def told_to_stop(self) -> None:
        assert await asyncio.to_thread(self.stopped.acquire, timeout=30)
