"""A stream that carries many small calls of an event loop: a message costs a fraction of what a call costs.

Questions and answers are told apart by a number (`correlation_id`) and may overtake each other. The stream is opened
beside the first question and used once the other side has sent its headers, so that nothing waits for it, and a proxy
that holds streams back, or a server without them, leaves everything as it was: until then, and whenever the stream ends
before an answer, the question is to be asked by a call of its own.
"""

import asyncio
import itertools
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

import grpc
import grpc.aio

OPENING_S: Final = 10.0
"""How long the other side may take for the headers."""

_WAIT_S: Final = (1.0, 60.0)
"""First and longest wait before a stream that was no good is opened again."""

_ENDED: Final = (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError)
"""What reading from a stream, or writing to it, says when it has ended."""

_log = logging.getLogger(__name__)


class Answer(Protocol):
    """A message that says which question it answers."""

    correlation_id: int


AnswerT = TypeVar("AnswerT", bound=Answer)


class MessageStream(Generic[AnswerT]):
    """Keeps a stream open while there are questions; for one event loop.

    Args:
        connect: Makes the gRPC call, with nothing sent yet; raises if there never will be another.
        withdraw: The message that gives up a question.
        most: Questions that one stream carries at a time.
        age_s: How long a stream is used, about: the next one may go to another of several servers, as calls do in turn.
    """

    def __init__(
        self, connect: Callable[[], Any], withdraw: Callable[[int], bytes], *, most: int, age_s: float = math.inf
    ) -> None:
        self._connect = connect
        self._withdraw = withdraw
        self._most = most
        self._age_s = age_s
        self._stream: _Stream[AnswerT] | None = None
        self._opening: asyncio.Task[None] | None = None
        self._wait_s = _WAIT_S[0]
        self._next_s = 0.0
        self._over = False

    @property
    def ready(self) -> bool:
        """Whether it carries another question now; opens a stream where there is none."""
        stream = self._stream
        if (stream is None or not stream.open or time.monotonic() > stream.until_s) and not self._over:
            self._open_soon()
        return stream is not None and stream.open and stream.has_room

    async def ask(
        self, pack: Callable[[int], bytes], timeout_s: float | None, too_late: Callable[[], Exception]
    ) -> AnswerT | None:
        """The answer to a question, or None if the stream ended before it; to be called while `ready`.

        Where nobody waits for the answer any more the other side is told so.

        Args:
            pack: The message with its number.
            timeout_s: Longest wait; None for any.
            too_late: What to raise after it.
        """
        if self._stream is None:
            raise AssertionError("a question for a stream that is not there. This is a bug.")
        return await self._stream.ask(pack, timeout_s, too_late)

    async def close(self) -> None:
        """End the stream; what it has not answered never will be."""
        self._over = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._stream is not None:
            await self._stream.close()

    def _open_soon(self) -> None:
        if self._opening is None and time.monotonic() >= self._next_s:
            self._opening = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        try:
            await self._replace()
        except Exception as error:
            _log.debug("there are no more streams: %s", error)
            self._over = True
        finally:
            self._opening = None

    async def _replace(self) -> None:
        old = self._stream
        if old is not None and not old.open:
            self._stream = None
            if not old.answered:
                self._later()  # it was opened and then no good
                return
        call = self._connect()
        try:
            async with asyncio.timeout(OPENING_S):
                await call.initial_metadata()
        except (TimeoutError, *_ENDED):
            call.cancel()
            self._later()
            return
        if call.done():
            self._over = await call.code() is grpc.StatusCode.UNIMPLEMENTED
            self._later()
            return
        until_s = time.monotonic() + self._age_s * random.uniform(0.8, 1.2)
        self._stream = _Stream(call, self._withdraw, most=self._most, until_s=until_s)
        self._wait_s = _WAIT_S[0]
        if old is not None:
            old.finish()

    def _later(self) -> None:
        self._next_s = time.monotonic() + self._wait_s
        self._wait_s = min(2 * self._wait_s, _WAIT_S[1])


class _Stream(Generic[AnswerT]):
    """A stream that the other side has taken.

    Attributes:
        open: Whether it can be written to.
        until_s: When it has been used long enough, by the monotonic clock.
        answered: How many questions were.
    """

    def __init__(self, call: Any, withdraw: Callable[[int], bytes], *, most: int, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.open = True
        self.until_s = until_s
        self.answered = 0
        self._call = call
        self._withdraw = withdraw
        self._most = most
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[AnswerT | None]] = {}
        self._outbox: deque[bytes] = deque()
        self._news: asyncio.Future[None] = loop.create_future()
        self._finishing = False
        self._tasks = loop.create_task(self._read()), loop.create_task(self._write())

    @property
    def has_room(self) -> bool:
        """Whether it takes another question."""
        return len(self._asked) < self._most and len(self._outbox) < 2 * self._most

    async def ask(
        self, pack: Callable[[int], bytes], timeout_s: float | None, too_late: Callable[[], Exception]
    ) -> AnswerT | None:
        number = next(self._numbers)
        data = pack(number)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[AnswerT | None] = loop.create_future()
        self._asked[number] = future
        self._send(data)
        timer = None if timeout_s is None else loop.call_later(timeout_s, _expire, future, too_late)
        try:
            return await future
        finally:
            if timer is not None:
                timer.cancel()
            if self._asked.pop(number, None) and self.open:  # its caller has gone, or the time was over
                self._send(self._withdraw(number))

    def finish(self) -> None:
        """Have it end when all is answered."""
        self._finishing = True
        self._tell()

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _send(self, data: bytes) -> None:
        # Written by a task of the stream's own: gRPC ends a stream whose writer is cancelled.
        self._outbox.append(data)
        self._tell()

    def _tell(self) -> None:
        """Have the writer look what there is; an `asyncio.Event` takes three times the calls for it."""
        if not self._news.done():
            self._news.set_result(None)

    async def _write(self) -> None:
        try:
            while not (self._finishing and not self._asked and not self._outbox):
                await self._news
                self._news = asyncio.get_running_loop().create_future()
                while self._outbox:
                    await self._call.write(self._outbox.popleft())
            await self._call.done_writing()
        except _ENDED as error:
            _log.debug("a stream ended while it was written to: %s", error)
        finally:
            self.open = False

    async def _read(self) -> None:
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                self.answered += 1
                future = self._asked.pop(message.correlation_id, None)
                if future is not None and not future.done():
                    future.set_result(message)
                if self._finishing:
                    self._tell()
        except _ENDED as error:
            _log.debug("a stream ended: %s", error)
        finally:
            self.open = False
            self._tasks[1].cancel()
            for future in self._asked.values():
                if not future.done():
                    future.set_result(None)
            self._asked.clear()


def _expire(future: "asyncio.Future[Any]", too_late: Callable[[], Exception]) -> None:
    if not future.done():
        future.set_exception(too_late())
