"""Threads that do what they are given, whatever becomes of it."""

import asyncio
import logging
import threading
from collections.abc import Iterator

import pytest

from likewise.shards.search_threads import SearchThreads


@pytest.fixture
def threads() -> Iterator[SearchThreads]:
    with SearchThreads(1, name="search") as threads:
        yield threads


def test_work_is_done_in_the_order_in_which_it_was_given(threads: SearchThreads) -> None:
    done: list[int] = []
    for number in range(100):
        threads.start(done.append, number)
    threads.shutdown()

    assert done == list(range(100))


def test_as_many_pieces_are_worked_on_at_a_time_as_there_are_threads() -> None:
    together = threading.Barrier(3)
    with SearchThreads(3, name="search") as threads:
        arrived = [threads.submit(together.wait, 60) for _ in range(3)]

        assert sorted(one.result() for one in arrived) == [0, 1, 2]


def test_submitted_work_has_its_result_or_its_error(threads: SearchThreads) -> None:
    assert threads.submit(int, "11", base=2).result() == 3
    with pytest.raises(ValueError, match="invalid literal"):
        threads.submit(int, "three").result()


async def test_the_event_loop_can_wait_for_it(threads: SearchThreads) -> None:
    here = threading.get_ident()

    assert await asyncio.get_running_loop().run_in_executor(threads, threading.get_ident) != here


def test_work_that_fails_is_told_of_and_costs_no_thread(
    threads: SearchThreads, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        threads.start(int, "three")
        assert threads.submit(int, "3").result() == 3

    assert "work of a search thread failed" in caplog.text


def test_what_was_given_is_done_before_they_end_and_nothing_is_taken_after() -> None:
    held, done = threading.Event(), list[int]()
    threads = SearchThreads(1, name="search")
    threads.start(held.wait, 60)
    threads.start(done.append, 1)

    threads.shutdown(wait=False)

    with pytest.raises(RuntimeError, match="'search' were shut down"):
        threads.start(done.append, 2)
    held.set()
    threads.shutdown()
    assert done == [1]


def test_futures_that_nobody_works_on_can_be_cancelled_at_the_end() -> None:
    entered, held, done = threading.Event(), threading.Event(), list[int]()
    threads = SearchThreads(1, name="search")

    def work() -> bool:
        entered.set()
        return held.wait(60)

    running = threads.submit(work)
    assert entered.wait(60)
    waiting = threads.submit(int, "3")
    threads.start(done.append, 1)

    threads.shutdown(wait=False, cancel_futures=True)
    held.set()
    threads.shutdown()

    assert running.result()
    assert waiting.cancelled()
    assert done == [1]
