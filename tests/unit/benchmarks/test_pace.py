import itertools

import numpy as np
import pytest
from benchmarks.peers.driver.pace import GRACE_S, TIMER_SLACK_S, Pace, Ticket, Tickets, arrivals
from benchmarks.peers.driver.protocol import Question, as_rows
from hypothesis import given
from hypothesis import strategies as st


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(st.floats(1, 2_000), st.integers(0, 2**31))
def test_arrivals_ascend_within_the_time(rate: float, seed: int) -> None:
    times = arrivals(rate, 2.0, seed)

    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times < 2)).all()
    assert (arrivals(rate, 2.0, seed) == times).all()


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    times = arrivals(1_000, 50, seed=1)
    gaps = np.diff(times)

    assert len(times) == pytest.approx(50_000, rel=0.02)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.02)  # exponential: as wide as it is long
    assert times[-1] > 49


def test_one_pass_hands_out_every_call_once() -> None:
    tickets = Tickets(Pace("once", 3), 4, Clock())

    handed = [ticket.which for ticket in iter(tickets.take, None)]

    assert handed == [0, 1, 2, 3]


def test_a_closed_loop_goes_round_until_the_end() -> None:
    clock = Clock()
    tickets = Tickets(Pace("closed", 1, 1.0, 2.0), 2, clock)

    handed = [tickets.take() for _ in range(5)]
    clock.now += 3.0

    assert [ticket.which for ticket in handed if ticket] == [0, 1, 0, 1, 0]
    assert tickets.take() is None


def test_of_a_closed_loop_only_calls_wholly_within_the_measured_time_count() -> None:
    tickets = Tickets(Pace("closed", 1, 1.0, 2.0), 2, Clock())
    ticket = Ticket(0, None)

    assert tickets.counts(ticket, 101.0, 103.0)
    assert not tickets.counts(ticket, 100.9, 101.5)  # began in the warm-up
    assert not tickets.counts(ticket, 102.9, 103.1)  # ended after


def test_a_caller_that_was_kept_waiting_is_charged_from_the_arrival() -> None:
    tickets = Tickets(Pace("open", 1, 0.0, 1.0, rate=10), 2, Clock())
    ticket = Ticket(0, 100.5)

    assert tickets.began(ticket, woke=100.5 + TIMER_SLACK_S / 2) == 100.5 + TIMER_SLACK_S / 2
    assert tickets.began(ticket, woke=107.0) == 100.5 + TIMER_SLACK_S


def test_an_open_loop_hands_out_its_arrivals_and_counts_those_after_the_warm_up() -> None:
    clock = Clock()
    tickets = Tickets(Pace("open", 1, 0.5, 0.5, rate=100, seed=4), 7, clock)
    times = 100.0 + arrivals(100, 1.0, 4)

    handed = list(iter(tickets.take, None))

    assert [ticket.due for ticket in handed] == times.tolist()
    assert [ticket.which for ticket in handed] == list(itertools.islice(itertools.cycle(range(7)), len(times)))
    assert sum(tickets.counts(ticket, 0.0, 1e9) for ticket in handed) == tickets.offered() == (times >= 100.5).sum()


def test_an_open_loop_gives_up_arrivals_that_nobody_can_take_any_more() -> None:
    clock = Clock()
    tickets = Tickets(Pace("open", 1, 0.0, 1.0, rate=1_000), 7, clock)
    assert tickets.take() is not None

    clock.now += 1.0 + GRACE_S + 0.1

    assert tickets.take() is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "fast", "callers": 1}, "got 'fast'"),
        ({"kind": "once", "callers": 0}, "callers must be at least 1, got 0"),
        ({"kind": "open", "callers": 1, "measure_s": 1.0}, "rate must be positive, got 0"),
    ],
)
def test_a_pace_is_checked(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pace.of(dict(fields))


def test_answers_of_batches_are_told_apart_and_round_the_end() -> None:
    question = Question(np.zeros((3, 2), np.float32), k=2, batch=2)

    # Calls ask the queries (0, 1) and (2, 0).
    rows = as_rows([[10, 11, 20, -1], [30, 31, 12, 13]], question)

    assert question.calls == 2
    assert rows.tolist() == [[12, 13], [20, -1], [30, 31]]
    assert as_rows([None, [30, 31, 12, 13]], question)[1].tolist() == [-2, -2]
