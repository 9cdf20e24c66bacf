"""When searches go together, and which of them go first."""

import math
from typing import NamedTuple

import pytest
from tests.unit.client.batching_answers import search

from likewise.client.batching_policy import (
    MAX_WAITING,
    NOBODY,
    WARY_CALLS,
    is_full,
    next_together,
    patience_s,
    returning_s,
    time_of_each,
)
from likewise.client.vector_search import VectorSearch


class Entry(NamedTuple):
    """A search and when its time is over."""

    search: VectorSearch
    deadline: float


def test_who_would_be_late_is_not_sent_unless_all_would() -> None:
    entries = [Entry(search(number), deadline) for number, deadline in enumerate((10.5, 11.0, 12.0, 13.0))]

    assert next_together(entries, 0.0, 10.0) == (entries, [])
    assert next_together(entries, 1.0, 10.0) == ([entries[3], entries[2]], [])  # with a margin
    assert next_together(entries, 9.0, 10.0) == (entries, [])
    assert next_together([], 1.0, 10.0) == ([], [])


def test_where_not_all_can_go_those_go_first_whom_a_slower_call_would_not_make_late() -> None:
    # Two of them fit into one call.
    risky, safe, safer, last = (
        Entry(search(number, k=2000, vectors=True), deadline)
        for number, deadline in enumerate((11.5, 12.5, 15.0, 15.0))
    )

    assert next_together([risky, safe], 1.0, 10.0) == ([safe, risky], [])
    assert next_together([risky, safe, safer, last], 1.0, 10.0) == ([safe, safer], [risky, last])
    assert next_together([safe, safer, last], 1.0, 10.0) == ([safe, safer], [last])
    assert next_together([risky, risky, safe], 1.0, 10.0) == ([safe, risky], [risky])


def test_patience_grows_with_the_last_call_and_doubles_with_each_under_way() -> None:
    assert [patience_s(took, 1, 60) for took in (0.0, 0.01, 9.0)] == [0.005, 0.02, 0.05]
    assert [patience_s(0.01, under_way, 60) for under_way in (1, 2, 3)] == [0.02, 0.04, 0.08]
    assert patience_s(0.01, 1_000_000, math.inf) < 60


def test_who_has_little_time_waits_for_a_tenth_of_it() -> None:
    waits = [patience_s(9.0, 1, timeout_s) for timeout_s in (0.05, 0.2, 0.5, 2.0)]

    assert waits == pytest.approx([0.005, 0.02, 0.05, 0.05])


def test_no_more_wait_than_are_answered_in_their_time() -> None:
    asked = search(0, k=2000, vectors=True)  # two of them fit into one call
    each_s = time_of_each(asked, 1.0, 1)

    assert [is_full(waiting, each_s, asked, 10.0) for waiting in (0, 16, 17)] == [False, False, True]
    assert [is_full(waiting, time_of_each(asked, 1.0, 4), asked, 10.0) for waiting in (64, 65)] == [False, True]


def test_what_goes_in_the_next_call_may_wait_whatever_that_takes() -> None:
    asked = search(0, k=2000, vectors=True)

    assert [is_full(waiting, 1e9, asked, 10.0) for waiting in (0, 1, 2)] == [False, False, True]


def test_there_is_an_end_to_those_that_wait_without_a_limit_or_for_the_first_call() -> None:
    for each_s, timeout_s in ((1.0, math.inf), (0.0, 10.0)):
        found = [is_full(waiting, each_s, search(0), timeout_s) for waiting in (0, MAX_WAITING - 1, MAX_WAITING)]

        assert found == [False, False, True]


def test_who_was_answered_or_waits_is_expected_in_the_next_call_as_far_as_all_of_them_fit() -> None:
    assert NOBODY.are_back(0)
    assert NOBODY.after(answered=1, waiting=0, most=256) == NOBODY

    three = NOBODY.after(answered=2, waiting=1, most=256)
    assert [three.are_back(waiting) for waiting in (0, 2, 3)] == [False, False, True]

    assert NOBODY.after(answered=200, waiting=100, most=256).are_back(256)


def test_the_next_call_goes_at_once_only_where_somebody_was_expected_and_all_of_them_wait() -> None:
    three = NOBODY.after(answered=2, waiting=1, most=256)

    assert [three.all_back(waiting) for waiting in (0, 2, 3, 4)] == [False, False, True, True]
    assert not NOBODY.all_back(1)
    assert [three.in_vain().all_back(waiting) for waiting in (2, 3)] == [False, True]


def test_some_calls_after_one_that_waited_in_vain_wait_for_nobody() -> None:
    returning = NOBODY.after(answered=3, waiting=0, most=256).in_vain()

    for _ in range(WARY_CALLS):
        assert returning.are_back(1)
        returning = returning.after(answered=3, waiting=0, most=256)

    assert [returning.are_back(waiting) for waiting in (1, 3)] == [False, True]


def test_callers_are_waited_for_no_longer_than_the_call_took_nor_than_a_tenth_of_a_searchs_time() -> None:
    assert [returning_s(took_s, 60.0) for took_s in (0.0, 0.002, 9.0)] == [0.0, 0.002, 0.005]
    assert returning_s(9.0, 0.03) == pytest.approx(0.003)
    assert returning_s(9.0, math.inf) == 0.005
