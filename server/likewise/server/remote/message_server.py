"""The answering side of a stream of questions: each is answered in a task of its own, when its answer is there.

The asking side is `likewise.message_stream`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

QuestionT = TypeVar("QuestionT")
AnswerT = TypeVar("AnswerT")


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
        stream = _Stream(self._answer, write, self._in_flight)
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(stream.read(questions, tasks))
                draining = tasks.create_task(self._draining.wait())
                await asyncio.wait((reading, draining), return_when=asyncio.FIRST_COMPLETED)
                reading.cancel()
                draining.cancel()
        except BaseExceptionGroup as group:
            # Questions have their own errors; what is left is the stream's, and the first one ended it.
            raise group.exceptions[0] from None
        return stream.count


class _Stream(Generic[QuestionT, AnswerT]):
    """One stream and what of it is in work.

    Attributes:
        count: Questions read.
    """

    def __init__(
        self,
        answer: Callable[[QuestionT], Awaitable[AnswerT]],
        write: Callable[[AnswerT], Awaitable[None]],
        in_flight: int,
    ) -> None:
        self.count = 0
        self._answer = answer
        self._write = write
        self._free = in_flight  # counted here: a semaphore takes seven calls of Python a question
        self._room: asyncio.Future[None] | None = None
        self._writing = asyncio.Lock()
        self._in_work: dict[int, asyncio.Task[None]] = {}

    async def read(self, questions: AsyncIterator[Any], tasks: asyncio.TaskGroup) -> None:
        async for question in questions:
            number = question.correlation_id
            if question.cancel:
                if (running := self._in_work.get(number)) is not None:
                    running.cancel()
                continue
            self.count += 1
            while not self._free:
                self._room = asyncio.get_running_loop().create_future()
                await self._room
            self._free -= 1
            task = self._in_work[number] = tasks.create_task(self._run(question))
            # Not in the task: one that is cancelled before its first step runs nothing of what it has.
            task.add_done_callback(self._ended(number))

    async def _run(self, question: QuestionT) -> None:
        answer = await self._answer(question)
        async with self._writing:
            await self._write(answer)

    def _ended(self, number: int) -> Callable[[asyncio.Task[None]], None]:
        def ended(task: asyncio.Task[None]) -> None:
            self._free += 1
            if self._room is not None and not self._room.done():
                self._room.set_result(None)
            if self._in_work.get(number) is task:
                del self._in_work[number]

        return ended
