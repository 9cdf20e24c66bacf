import asyncio
import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.server.doubler import Doubler, call

from likewise.server.batcher import Batcher, BatchLimits, BatchReport
from likewise.server.errors import Overloaded, Unavailable
from likewise.server.remote import deadlines


async def test_callers_that_are_ready_together_share_one_batch(batcher: Batcher[int, int], doubler: Doubler) -> None:
    results = await asyncio.gather(*(call(batcher, *items) for items in ([1], [2, 3], [4])))

    assert results == [[2], [4, 6], [8]]
    assert [sorted(batch) for batch in doubler.batches] == [[1, 2, 3, 4]]


async def test_a_lone_caller_does_not_wait_for_others(batcher: Batcher[int, int], doubler: Doubler) -> None:
    assert await call(batcher, 5) == [10]
    assert doubler.batches == [[5]]


async def test_callers_that_come_while_a_batch_runs_are_collected(batcher: Batcher[int, int], doubler: Doubler) -> None:
    doubler.gate.clear()
    first = asyncio.create_task(call(batcher, 0))
    await doubler.running()
    later = [asyncio.create_task(call(batcher, i)) for i in (1, 2, 3)]
    await asyncio.sleep(0)
    doubler.gate.set()

    assert await asyncio.gather(first, *later) == [[0], [2], [4], [6]]
    assert doubler.batches == [[0], [1, 2, 3]]


async def test_no_batch_is_larger_than_allowed(batcher: Batcher[int, int], doubler: Doubler) -> None:
    results = await call(batcher, *range(8))

    assert results == [0, 2, 4, 6, 8, 10, 12, 14]
    assert [len(batch) for batch in doubler.batches] == [4, 4]


async def test_all_batches_run_on_one_thread_that_is_not_the_loops(
    batcher: Batcher[int, int], doubler: Doubler
) -> None:
    await asyncio.gather(*(call(batcher, i) for i in range(8)))
    await call(batcher, 8)

    assert len(doubler.threads) == 1
    assert threading.get_ident() not in doubler.threads


async def test_a_single_item_gets_into_the_next_batch_although_a_large_call_waits(doubler: Doubler) -> None:
    batcher = Batcher(doubler, name="doubler", limits=BatchLimits(max_batch=4, max_items=100))
    doubler.gate.clear()
    large = asyncio.create_task(call(batcher, *range(8)))
    await doubler.running()
    single = asyncio.create_task(call(batcher, 99))
    await asyncio.sleep(0)
    doubler.gate.set()

    await asyncio.gather(large, single)

    assert 99 in doubler.batches[1]
    assert len(doubler.batches[1]) == 4
    await batcher.close()


async def test_a_full_queue_refuses_and_says_when_to_come_back(batcher: Batcher[int, int], doubler: Doubler) -> None:
    doubler.gate.clear()
    waiting = [asyncio.create_task(call(batcher, i)) for i in range(8)]
    await doubler.running()

    with pytest.raises(Overloaded, match="8 items, the limit is 8") as caught:
        await call(batcher, 9)

    assert caught.value.retry_after_s is not None
    assert 0.05 <= caught.value.retry_after_s <= 5.0
    doubler.gate.set()
    assert await asyncio.gather(*waiting) == [[2 * i] for i in range(8)]
    assert await call(batcher, 9) == [18]


async def test_a_call_larger_than_the_queue_is_admitted_with_a_window(batcher: Batcher[int, int]) -> None:
    with batcher.admit(1_000) as lane:
        assert lane.window == 8
        assert batcher.admitted == 8
        with pytest.raises(ValueError, match="at most 8 items at a time, got 9"):
            await lane.run(range(9))

    assert batcher.admitted == 0


async def test_items_of_a_caller_that_went_away_are_not_run(batcher: Batcher[int, int], doubler: Doubler) -> None:
    doubler.gate.clear()
    first = asyncio.create_task(call(batcher, 0))
    await doubler.running()
    gone = asyncio.create_task(call(batcher, 1, 2))
    stays = asyncio.create_task(call(batcher, 3))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert (batcher.admitted, batcher.waiting) == (2, 1)
    doubler.gate.set()

    assert (await first, await stays) == ([0], [6])
    assert doubler.batches == [[0], [3]]


async def test_one_of_a_callers_runs_may_be_withdrawn_alone(batcher: Batcher[int, int], doubler: Doubler) -> None:
    doubler.gate.clear()
    with batcher.admit(3) as lane:
        runs = [asyncio.create_task(lane.run([0]))]
        await doubler.running()
        runs += [asyncio.create_task(lane.run([i])) for i in (1, 2)]
        await asyncio.sleep(0)
        runs[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await runs[1]
        doubler.gate.set()

        assert [await runs[0], await runs[2]] == [[0], [4]]
    assert doubler.batches == [[0], [2]]


async def test_a_deadline_ends_the_wait_and_frees_the_places(batcher: Batcher[int, int], doubler: Doubler) -> None:
    doubler.gate.clear()
    first = asyncio.create_task(call(batcher, 0))
    await doubler.running()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await call(batcher, 1)

    assert batcher.admitted == 1
    doubler.gate.set()
    await first
    assert await call(batcher, 2) == [4]
    assert [1] not in doubler.batches


async def test_a_caller_that_leaves_while_its_batch_runs_does_not_disturb_it(
    batcher: Batcher[int, int], doubler: Doubler
) -> None:
    doubler.gate.clear()
    gone, stays = asyncio.create_task(call(batcher, 1)), asyncio.create_task(call(batcher, 2))
    await doubler.running()
    gone.cancel()
    doubler.gate.set()

    assert await stays == [4]
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_a_failed_batch_fails_its_members_and_nobody_else(batcher: Batcher[int, int], doubler: Doubler) -> None:
    doubler.gate.clear()
    first = asyncio.create_task(call(batcher, 0))
    await doubler.running()
    members = [asyncio.create_task(call(batcher, i)) for i in (-1, 2)]
    await asyncio.sleep(0)
    doubler.gate.set()

    outcomes = await asyncio.gather(first, *members, return_exceptions=True)

    assert outcomes[0] == [0]
    assert [type(outcome) for outcome in outcomes[1:]] == [ArithmeticError, ArithmeticError]
    assert await call(batcher, 3) == [6]


async def test_a_run_that_loses_results_fails_its_batch() -> None:
    batcher: Batcher[int, int] = Batcher(lambda items: list(items)[1:], name="loser")

    with pytest.raises(RuntimeError, match="1 results for 2 items"):
        await call(batcher, 1, 2)

    await batcher.close()


async def test_closing_answers_those_who_wait_and_finishes_what_runs(doubler: Doubler) -> None:
    batcher = Batcher(doubler, name="doubler", limits=BatchLimits(max_batch=1, max_items=8))
    doubler.gate.clear()
    runs = asyncio.create_task(call(batcher, 1))
    await doubler.running()
    waits = asyncio.create_task(call(batcher, 2))
    await asyncio.sleep(0)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    doubler.gate.set()

    assert await runs == [2]
    with pytest.raises(Unavailable, match="shutting down"):
        await waits
    await closing
    with pytest.raises(Unavailable, match="shutting down"):
        await call(batcher, 3)
    assert doubler.batches == [[1]]


async def test_every_batch_is_reported(doubler: Doubler) -> None:
    reports: list[BatchReport] = []
    batcher = Batcher(doubler, name="doubler", limits=BatchLimits(max_batch=2, max_items=8), on_batch=reports.append)

    await call(batcher, 1, 2, 3)
    with pytest.raises(ArithmeticError):
        await call(batcher, -1)
    await batcher.close()

    assert [(report.size, report.waiting, report.failed) for report in reports] == [
        (2, 1, False),
        (1, 0, False),
        (1, 0, True),
    ]
    assert all(min(report.queue_s) >= 0 and report.run_s >= 0 for report in reports)


async def test_a_report_has_the_wait_of_every_item(doubler: Doubler) -> None:
    reports: list[BatchReport] = []
    batcher = Batcher(doubler, name="doubler", limits=BatchLimits(max_batch=4, max_items=8), on_batch=reports.append)
    doubler.gate.clear()
    first_calls = [asyncio.create_task(call(batcher, 0)) for _ in range(2)]
    await doubler.running()
    late_call = asyncio.create_task(call(batcher, 1))
    await asyncio.sleep(0)  # it queues as soon as it runs
    assert batcher.waiting == 1
    queued = time.perf_counter()
    await asyncio.to_thread(lambda: None)
    waited = time.perf_counter() - queued
    doubler.gate.set()

    await asyncio.gather(*first_calls, late_call)
    await batcher.close()

    first, second = reports
    assert (first.size, len(first.queue_s)) == (2, 2)
    assert (second.size, len(second.queue_s)) == (1, 1)
    # The late one was waiting before `queued` and the batch before it could not end until the gate opened.
    assert second.queue_s[0] >= waited


class DeadlineReader:
    """Answers with the seconds that each batch has left, None for one without a deadline."""

    def __init__(self) -> None:
        self.left: list[float | None] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.left.append(deadlines.remaining_s())
        return list(items)


async def within(batcher: Batcher[int, int], timeout_s: float | None, item: int) -> None:
    deadlines.set_deadline(timeout_s)
    await call(batcher, item)


@pytest.mark.parametrize(
    ("timeouts", "expected"),
    [
        pytest.param([5.0, 60.0, 30.0], 60.0, id="the latest"),
        pytest.param([5.0, None], None, id="none when somebody has none"),
    ],
)
async def test_a_batch_has_until_the_latest_deadline_of_its_callers(
    timeouts: list[float | None], expected: float | None
) -> None:
    reader = DeadlineReader()
    batcher = Batcher(reader, name="reader")

    await asyncio.gather(*(asyncio.create_task(within(batcher, timeout, 1)) for timeout in timeouts))

    assert reader.left == [expected if expected is None else pytest.approx(expected, abs=2)]
    await batcher.close()


async def test_a_deadline_of_one_batch_does_not_stay_for_the_next() -> None:
    reader = DeadlineReader()
    batcher = Batcher(reader, name="reader")

    await asyncio.create_task(within(batcher, 5.0, 1))
    await asyncio.create_task(within(batcher, None, 1))

    assert reader.left[1] is None
    await batcher.close()


async def test_several_batches_may_run_where_the_limits_say_so(doubler: Doubler) -> None:
    batcher = Batcher(doubler, name="doubler", limits=BatchLimits(max_batch=1, max_items=8, max_running=2))
    doubler.gate.clear()
    calls = [asyncio.create_task(call(batcher, i)) for i in range(3)]

    await doubler.running()
    await doubler.running()

    assert len(doubler.batches) == 2
    doubler.gate.set()
    assert await asyncio.gather(*calls) == [[0], [2], [4]]
    await batcher.close()


async def test_a_report_that_is_refused_does_not_stop_the_work(doubler: Doubler) -> None:
    def refuse(report: BatchReport) -> None:
        raise KeyError(report.name)

    batcher = Batcher(doubler, name="doubler", limits=BatchLimits(max_batch=1, max_items=8), on_batch=refuse)

    assert await call(batcher, 1, 2) == [2, 4]

    await batcher.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), max_size=9), max_size=12), st.integers(1, 5), st.integers(1, 3))
def test_every_caller_gets_its_own_results_in_its_own_order(
    calls: list[list[int]], max_batch: int, max_running: int
) -> None:
    async def scenario() -> list[list[int]]:
        limits = BatchLimits(max_batch=max_batch, max_items=1_000, max_running=max_running)
        batcher = Batcher(Doubler(), name="doubler", limits=limits)

        async def in_windows(items: list[int]) -> list[int]:
            results: list[int] = []
            with batcher.admit(len(items)) as lane:
                for start in range(0, len(items), lane.window or 1):
                    results += await lane.run(items[start : start + lane.window])
            return results

        try:
            return await asyncio.gather(*(in_windows(items) for items in calls))
        finally:
            await batcher.close()

    assert asyncio.run(scenario()) == [[2 * item for item in items] for items in calls]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"max_batch": 8, "max_items": 4}, r"max_items must be at least max_batch \(8\), got 4"),
        ({"max_delay_s": -1.0}, "max_delay_s must not be negative, got -1.0"),
        ({"regather": -0.1}, "regather must not be negative, got -0.1"),
        ({"max_weight": 0}, "max_weight must be at least 1, got 0"),
        ({"max_running": 0}, "max_running must be at least 1, got 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchLimits(**limits)  # type: ignore[arg-type]
