"""Room for upserts in work: a bound on the bytes that all calls and streams of a server hold at the same time."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from likewise.server.errors import Overloaded

_RETRY_S: Final = 0.5


class WriteRoom:
    """Bytes of upserts in work; belongs to one event loop. Calls are refused where streams wait.

    A single message that is larger than all the room is let in when nothing else is in work.

    Args:
        limit: Most bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Hold so many bytes inside the block.

        Raises:
            Overloaded: If there is no room for them.
        """
        if self._waiting or not self._fits(size):
            raise Overloaded(
                f"{self._used:,} bytes of upserts are in work, at most {self._limit:,} may be; got {size:,} more",
                reason="TOO_MANY_WRITES",
                retry_after_s=_RETRY_S,
            )
        self._used += size
        try:
            yield
        finally:
            self.give_back(size)

    async def take(self, size: int) -> None:
        """Hold so many bytes until `give_back`; waits for room, first come, first served."""
        if not self._waiting and self._fits(size):
            self._used += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            elif not turn.cancelled():
                self._used -= size
            self._let_in()
            raise

    def give_back(self, size: int) -> None:
        """Let go of bytes that were taken."""
        self._used -= size
        self._let_in()

    def _fits(self, size: int) -> bool:
        return self._used == 0 or self._used + size <= self._limit

    def _let_in(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if turn.done():
                self._waiting.popleft()
            elif self._fits(size):
                self._waiting.popleft()
                self._used += size
                turn.set_result(None)
            else:
                return
