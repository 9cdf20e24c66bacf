"""The answering side of a stream of questions: several are in work at a time, each answered when its answer is there.

The asking side is `likewise.message_stream`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

QuestionT = TypeVar("QuestionT")
AnswerT = TypeVar("AnswerT")

_IDLE: Final = 4
"""Workers of a stream that are kept for the next questions."""


class MessageServer(Generic[QuestionT, AnswerT]):
    """Answers streams of one kind, until it drains.

    A question has a `correlation_id`; one whose `cancel` is set gives up an earlier one.

    Args:
        answer: Answers a question, with an error in the answer if need be.
        in_flight: Questions of one stream in work at the same time; reading pauses meanwhile.
    """

    def __init__(self, answer: Callable[[QuestionT], Awaitable[AnswerT]], *, in_flight: int) -> None:
        self._answer = answer
        self._in_flight = in_flight
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """End all streams when what was read is answered: one that is idle would keep a server from stopping."""
        self._draining.set()

    async def serve(
        self, questions: AsyncIterator[QuestionT], write: Callable[[AnswerT], Awaitable[None]], context: Any
    ) -> int:
        """Answer one stream; returns at its end, or when all is answered while draining.

        Args:
            questions: As they come.
            write: Sends an answer; called once at a time.
            context: Of the call.

        Returns:
            How many questions there were.
        """
        # At once: the caller then knows that questions are taken, and that nothing in between holds messages back.
        await context.send_initial_metadata(())
        try:
            async with asyncio.TaskGroup() as tasks:
                stream = _Stream(questions, self._answer, write, self._in_flight, tasks)
                draining = tasks.create_task(self._draining.wait())
                try:
                    await asyncio.wait((stream.read, draining), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    stream.end()
                    draining.cancel()
        except BaseExceptionGroup as group:
            # Questions have their own errors; what is left is the stream's, and the first one ended it.
            raise group.exceptions[0] from None
        return stream.count


class _Stream(Generic[QuestionT, AnswerT]):
    """One stream and those who work on it: one reads a question, has another one read on, and answers what it read.

    So no task is made for a question, and none has to begin before it is worked on (leader and followers: Schmidt et
    al. 2000, Pattern-Oriented Software Architecture 2).

    Attributes:
        count: Questions read.
        read: Done when no more will be.
    """

    def __init__(
        self,
        questions: AsyncIterator[Any],
        answer: Callable[[QuestionT], Awaitable[AnswerT]],
        write: Callable[[AnswerT], Awaitable[None]],
        in_flight: int,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.count = 0
        self.read: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._questions = questions
        self._answer = answer
        self._write = write
        self._free = in_flight  # counted here: a semaphore takes seven calls of Python a question
        self._room: asyncio.Future[None] | None = None
        self._untaken = in_flight + 1  # places for workers: one more reads what gives up the questions of the others
        self._tasks = tasks
        self._reader: asyncio.Task[None] | None = None
        self._idle: list[tuple[asyncio.Task[None], asyncio.Future[None]]] = []
        self._writing = asyncio.Lock()
        self._in_work: dict[int, asyncio.Task[None]] = {}
        self._read_on()

    def end(self) -> None:
        """Read no more; what was read is still answered."""
        if self.read.done():
            return
        self.read.set_result(None)
        if self._reader is not None:
            self._reader.cancel()
        for worker, _ in self._idle:
            worker.cancel()

    def _read_on(self) -> None:
        """Have somebody read the next question; where all are at work, whoever is done first will."""
        self._reader = None
        if self.read.done():
            return
        if self._idle:
            self._reader, turn = self._idle.pop()
            turn.set_result(None)
        elif self._untaken:
            self._untaken -= 1
            self._reader = self._tasks.create_task(self._work())

    async def _work(self) -> None:
        me = self._reader
        if me is None:
            raise AssertionError("a worker that nobody had read. This is a bug.")
        try:
            while (question := await self._next()) is not None:
                await self._serve(question, me)
                if self._reader is None:
                    self._reader = me
                elif self.read.done() or len(self._idle) >= _IDLE:
                    return
                else:
                    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._idle.append((me, turn))
                    await turn
        except Exception:
            self.end()  # before the group does: nobody is to be had for a stream that has failed
            raise
        finally:
            self._untaken += 1
            if self._reader is None:
                self._read_on()

    async def _next(self) -> Any | None:
        """The next question, for the one who reads; None at the end."""
        if self.read.done():
            return None
        async for question in self._questions:
            if not question.cancel:
                self.count += 1
                self._read_on()
                return question
            if (worker := self._in_work.get(question.correlation_id)) is not None:
                worker.cancel()  # it ends, and another one takes its place
        self._reader = None
        self.end()
        return None

    async def _serve(self, question: Any, worker: asyncio.Task[None]) -> None:
        number = question.correlation_id
        while not self._free:
            self._room = asyncio.get_running_loop().create_future()
            await self._room
        self._free -= 1
        self._in_work[number] = worker
        try:
            answer = await self._answer(question)
        finally:
            self._free += 1
            if self._room is not None and not self._room.done():
                self._room.set_result(None)
            # Before it is written: gRPC ends a stream whose writer is cancelled.
            if self._in_work.get(number) is worker:
                del self._in_work[number]
        async with self._writing:
            await self._write(answer)
