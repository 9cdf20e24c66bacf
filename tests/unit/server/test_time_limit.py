"""Work has its time, and a timer only if it waits for something."""

import asyncio
from typing import NoReturn

import pytest

from likewise.server.time_limit import TimeIsOver, within


class Work:
    """Waits for a future between two turns of the event loop, and notes how it ended."""

    def __init__(self) -> None:
        self.waits_for: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.end = "none"

    async def run(self) -> int:
        try:
            await asyncio.sleep(0)
            found = await self.waits_for
            await asyncio.sleep(0)
        except BaseException as error:
            self.end = type(error).__name__
            raise
        self.end = "done"
        return found + 1


async def test_work_that_waits_for_nothing_sets_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_timer(delay: float | None) -> NoReturn:
        raise AssertionError(delay)

    async def value() -> int:
        return 7

    async def failure() -> int:
        raise KeyError("k")

    monkeypatch.setattr(asyncio, "timeout", no_timer)

    assert await within(1.0, value()) == 7
    with pytest.raises(KeyError):
        await within(1.0, failure())


@pytest.mark.parametrize("timeout_s", [None, 60.0])
async def test_work_that_waits_ends_as_by_itself(timeout_s: float | None) -> None:
    answered, failed = Work(), Work()
    tasks = [asyncio.create_task(within(timeout_s, work.run())) for work in (answered, failed)]
    await asyncio.sleep(0)
    answered.waits_for.set_result(4)
    failed.waits_for.set_exception(KeyError("k"))

    assert await tasks[0] == 5
    with pytest.raises(KeyError):
        await tasks[1]
    assert (answered.end, failed.end) == ("done", "KeyError")


async def test_work_whose_time_is_over_is_cancelled_and_its_task_goes_on() -> None:
    work = Work()

    with pytest.raises(TimeIsOver):
        await within(0.0, work.run())

    assert work.end == "CancelledError"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_timeout_of_the_work_itself_is_no_end_of_its_time() -> None:
    work = Work()
    work.waits_for.set_exception(TimeoutError("mine"))

    with pytest.raises(TimeoutError, match="mine") as caught:
        await within(60.0, work.run())

    assert not isinstance(caught.value, TimeIsOver)


async def test_who_is_cancelled_takes_the_work_along() -> None:
    work = Work()
    task = asyncio.create_task(within(60.0, work.run()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task

    assert work.end == "CancelledError"
    assert work.waits_for.cancelled()


async def test_work_that_nobody_goes_on_with_is_closed() -> None:
    work = Work()
    limited = within(60.0, work.run())
    limited.send(None)

    limited.close()

    assert work.end == "GeneratorExit"
