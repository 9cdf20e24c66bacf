"""Limits of time for work that mostly ends without having waited for anything.

A search that is answered on the event loop is over before a timer could run out. `asyncio.timeout` sets one and takes
it back all the same, 30 us of a search's 900.
"""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class TimeIsOver(TimeoutError):
    """The work took longer than it had."""


async def within(timeout_s: float | None, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, in the task that awaits it; a timer is set once the work waits for something.

    Args:
        timeout_s: How long it may take, in seconds; None for any time.
        work: Nothing of it has begun.

    Raises:
        TimeIsOver: The work was cancelled for it. A `TimeoutError` of the work itself stays what it is.
    """
    try:
        waits_for = work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await _Begun(work, waits_for)
    except TimeoutError as error:
        if limit.expired():
            raise TimeIsOver from error
        raise


class _Begun(Generic[T]):
    """What is left of a coroutine that was begun by hand, to be awaited.

    Args:
        work: The coroutine.
        waits_for: What it gave its task to wait for.
    """

    def __init__(self, work: Coroutine[Any, Any, T], waits_for: Any) -> None:
        self._work = work
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        work, waits_for = self._work, self._waits_for
        try:
            while True:
                try:
                    came = yield waits_for
                except GeneratorExit:
                    work.close()
                    raise
                except BaseException as error:
                    waits_for = work.throw(error)
                else:
                    waits_for = work.send(came)
        except StopIteration as end:
            result: T = end.value
            return result
