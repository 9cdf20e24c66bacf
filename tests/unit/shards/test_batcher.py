import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from tests.unit.panic import Panic

from likewise.shards.batcher import BUSY_SHARE, Batcher, Run, ShardBatch, _Budget
from likewise.shards.protocols import Overloaded, Unavailable
from likewise.shards.search_threads import SearchThreads


class Gate:
    """Runs batches in a thread, each only after it was let through, and remembers them."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.abandoned: list[bool] = []
        self.begun = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def run(self, key: str, requests: Sequence[int], abandoned: Callable[[], bool]) -> list[int]:
        self.batches.append((key, list(requests)))
        self.begun.release()
        self.let.acquire()
        self.abandoned.append(abandoned())
        if key == "bad":
            raise KeyError(key)
        if key == "panic":
            raise Panic(key)
        return [10 * request for request in requests]

    async def wait_begun(self) -> None:
        await asyncio.to_thread(self.begun.acquire)


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    gate = Gate()
    yield gate
    gate.let.release(1_000)


@pytest.fixture
async def batcher(gate: Gate) -> AsyncIterator[Batcher[str, int, int]]:
    executor = SearchThreads(1, name="search")
    batcher: Batcher[str, int, int] = Batcher(gate.run, executor, max_batch=4, max_queued=6)
    yield batcher
    gate.let.release(1_000)
    await batcher.close()
    executor.shutdown()


def ask(batcher: Batcher[str, int, int], key: str, request: int, queries: int = 1) -> "asyncio.Task[int]":
    async def result() -> int:
        return (await batcher.submit(key, request, queries=queries)).result

    return asyncio.create_task(result())


async def test_what_comes_while_a_batch_runs_is_the_next_batch(batcher: Batcher[str, int, int], gate: Gate) -> None:
    first = ask(batcher, "a", 1)
    await gate.wait_begun()
    others = [ask(batcher, "a", n) for n in (2, 3, 4)]
    await asyncio.sleep(0)
    gate.let.release(2)

    assert await asyncio.gather(first, *others) == [10, 20, 30, 40]
    assert gate.batches == [("a", [1]), ("a", [2, 3, 4])]


async def test_only_equal_keys_share_a_batch_and_the_longest_wait_goes_first(
    batcher: Batcher[str, int, int], gate: Gate
) -> None:
    gate.let.release(10)

    results = await asyncio.gather(*(ask(batcher, key, n) for n, key in enumerate("abab")))

    assert results == [0, 10, 20, 30]
    assert gate.batches == [("a", [0, 2]), ("b", [1, 3])]


async def test_a_batch_holds_no_more_queries_than_it_may(batcher: Batcher[str, int, int], gate: Gate) -> None:
    gate.let.release(10)

    await asyncio.gather(*(ask(batcher, "a", n, queries=2) for n in range(3)))
    await ask(batcher, "a", 9, queries=100)

    assert gate.batches == [("a", [0, 1]), ("a", [2]), ("a", [9])]


async def test_a_full_queue_refuses_and_says_when_to_come_back(batcher: Batcher[str, int, int], gate: Gate) -> None:
    running = ask(batcher, "a", 1)
    await gate.wait_begun()
    waiting = [ask(batcher, "a", n) for n in range(6)]
    await asyncio.sleep(0)

    with pytest.raises(Overloaded, match="takes 6 queries, 6 wait and 1 came") as caught:
        await batcher.submit("a", 7, queries=1)

    assert caught.value.retry_after_s > 0
    gate.let.release(10)
    await asyncio.gather(running, *waiting)
    assert batcher.queued == 0


async def test_requests_whose_callers_left_cost_nothing(batcher: Batcher[str, int, int], gate: Gate) -> None:
    running = ask(batcher, "a", 1)
    await gate.wait_begun()
    gone, stays = ask(batcher, "a", 2), ask(batcher, "a", 3)
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    gate.let.release(10)

    assert await running == 10
    assert await stays == 30
    assert gate.batches == [("a", [1]), ("a", [3])]


async def test_a_running_batch_learns_that_everybody_left(batcher: Batcher[str, int, int], gate: Gate) -> None:
    running = ask(batcher, "a", 1)
    await gate.wait_begun()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    gate.let.release(2)
    await ask(batcher, "a", 2)

    assert gate.abandoned == [True, False]


@pytest.mark.parametrize(("key", "error"), [("bad", KeyError), ("panic", Panic)])
async def test_a_failing_batch_fails_its_own_requests_only(
    batcher: Batcher[str, int, int], gate: Gate, key: str, error: type[BaseException]
) -> None:
    gate.let.release(10)

    async with asyncio.timeout(10):
        bad, good = await asyncio.gather(ask(batcher, key, 1), ask(batcher, "good", 2), return_exceptions=True)

    assert isinstance(bad, error)
    assert good == 20


async def test_times_are_told_in_microseconds(batcher: Batcher[str, int, int], gate: Gate) -> None:
    gate.let.release(10)

    timed = await batcher.submit("a", 1, queries=1)

    assert timed.result == 10
    assert timed.queue_us >= 0
    assert timed.search_us >= 0


async def test_closing_ends_the_running_batch_and_refuses_the_rest(batcher: Batcher[str, int, int], gate: Gate) -> None:
    running = ask(batcher, "a", 1)
    await gate.wait_begun()
    waiting = ask(batcher, "a", 2)
    await asyncio.sleep(0)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    gate.let.release(10)
    await closing

    assert await running == 10
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await batcher.submit("a", 3, queries=1)


class Clock:
    """Time that passes when it is told to, for a share of which the thread is at work."""

    def __init__(self) -> None:
        self.now, self.own = 1.0, 0.0

    def __call__(self) -> float:
        return self.now

    def at_work(self) -> float:
        return self.own

    def passes(self, seconds: float, share: float) -> None:
        self.now += seconds
        self.own += share * seconds


def batcher_of(run: Run[str, int, int], threads: SearchThreads, clock: Clock) -> Batcher[str, int, int]:
    """One whose requests may all run on the event loop."""
    return Batcher(run, threads, inline=lambda _: True, clock=clock, own_clock=clock.at_work)


async def test_a_lone_short_request_runs_on_an_event_loop_that_has_time_and_several_never_do() -> None:
    threads: list[int] = []
    clock = Clock()

    def run(key: str, requests: Sequence[int], abandoned: Callable[[], bool]) -> list[int]:
        threads.append(threading.get_ident())
        return [10 * request for request in requests]

    with SearchThreads(1, name="search") as executor:
        batcher: Batcher[str, int, int] = Batcher(
            run, executor, inline=lambda key: key == "a", clock=clock, own_clock=clock.at_work
        )
        here = threading.get_ident()
        assert await ask(batcher, "a", 1) == 10
        clock.passes(0.01, 0.1)
        assert await ask(batcher, "a", 2) == 20
        clock.passes(0.01, 1.0)  # so that they wait for each other
        assert [*await asyncio.gather(ask(batcher, "a", 3), ask(batcher, "a", 4))] == [30, 40]
        clock.passes(0.01, 1.0)  # and this one would leave others waiting, if it ran here
        assert await ask(batcher, "a", 5) == 50
        for request in (6, 7):
            clock.passes(0.01, 0.1)
            assert await ask(batcher, "b", request) == 10 * request
        await batcher.close()

    # The first one tells how long such a request takes.
    assert [thread == here for thread in threads] == [False, True, False, False, False, False]


async def test_a_request_is_answered_at_once_on_an_idle_event_loop_and_waits_for_company_on_a_busy_one() -> None:
    batches: list[list[int]] = []
    told: list[ShardBatch] = []
    clock = Clock()

    def run(key: str, requests: Sequence[int], abandoned: Callable[[], bool]) -> list[int]:
        batches.append(list(requests))
        return [10 * request for request in requests]

    with SearchThreads(1, name="search") as executor:
        batcher: Batcher[str, int, int] = Batcher(
            run, executor, inline=lambda _: True, clock=clock, own_clock=clock.at_work, on_batch=told.append
        )
        assert await ask(batcher, "a", 1) == 10
        clock.passes(0.001, BUSY_SHARE - 0.05)
        alone = batcher.submit("a", 2, queries=1)
        with pytest.raises(StopIteration) as ended:
            alone.send(None)  # it does not wait for a turn of the event loop
        assert ended.value.value.result == 20
        clock.passes(0.001, BUSY_SHARE + 0.05)
        assert [*await asyncio.gather(*(ask(batcher, "a", n) for n in (3, 4, 5)))] == [30, 40, 50]
        await batcher.close()

    assert batches == [[1], [2], [3, 4, 5]]
    assert told == [(1, 0), (1, 0), (3, 0)]


async def test_a_request_of_several_queries_runs_on_the_event_loop_where_others_of_its_size_were_short() -> None:
    clock = Clock()
    threads: list[int] = []

    def run(key: str, requests: Sequence[int], abandoned: Callable[[], bool]) -> list[int]:
        threads.append(threading.get_ident())
        clock.passes(0.0001, 1.0)
        return [10 * request for request in requests]

    with SearchThreads(1, name="search") as executor:
        batcher = batcher_of(run, executor, clock)
        # What a query costs in company tells nothing of one by itself, and the other way round.
        for queries in (8, 8, 12, 1, 1):
            clock.passes(0.01, 0.1)
            await ask(batcher, "a", 1, queries=queries)
        await batcher.close()

    here = threading.get_ident()
    assert [thread == here for thread in threads] == [False, True, True, False, True]


async def test_one_that_took_much_longer_than_expected_keeps_the_next_ones_off_the_event_loop() -> None:
    clock = Clock()
    threads: list[int] = []

    def run(key: str, requests: Sequence[int], abandoned: Callable[[], bool]) -> list[int]:
        threads.append(threading.get_ident())
        clock.passes(0.02 if requests[0] == 99 else 0.0001, 1.0)
        return [10 * request for request in requests]

    with SearchThreads(1, name="search") as executor:
        batcher = batcher_of(run, executor, clock)
        for request in (1, 2, 99, 4, 5):
            clock.passes(0.01, 0.1)
            await ask(batcher, "a", request)
        await batcher.close()

    here = threading.get_ident()
    assert [thread == here for thread in threads] == [False, True, True, False, False]


async def test_a_request_that_fails_on_the_event_loop_fails_alone() -> None:
    def run(key: str, requests: Sequence[int], abandoned: Callable[[], bool]) -> list[int]:
        return [10 // request for request in requests]

    with SearchThreads(1, name="search") as executor:
        clock = Clock()
        batcher = batcher_of(run, executor, clock)
        assert await ask(batcher, "a", 1) == 10
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await ask(batcher, "a", 0)
            clock.passes(0.001, 0.5)  # the next one at once
        assert await ask(batcher, "a", 5) == 2
        await batcher.close()


def test_a_budget_is_spent_and_comes_back_with_time() -> None:
    budget = _Budget(0.25, most_s=1.0)

    assert budget.covers(0.9, 100.0)
    assert not budget.covers(0.2, 100.1)
    assert budget.covers(0.2, 101.0)
    assert not budget.covers(1.1, 1_000.0)
