"""Which calls are taken, at times that the test sets."""

import pytest

from likewise.server.admission import CROWD, STALE_S, WINDOW_S, Admission
from likewise.server.errors import Overloaded

START = 100.0


def crowded(*, calls: int, rate: float) -> tuple[Admission, float]:
    """An admission with so many calls in progress, of which so many have ended in each second; and the time."""
    admission, now = Admission(100_000), START
    for _ in range(calls):
        admission.enter(None, now)
    # Three windows: the first began with nobody there and says nothing.
    for _ in range(round(3 * WINDOW_S * rate)):
        now += 1 / rate
        admission.leave(now, answered=True)
        admission.enter(None, now)
    return admission, now


def test_one_call_more_than_there_may_be_is_refused_until_another_has_ended() -> None:
    admission = Admission(2)
    admission.enter(None, START)
    admission.enter(None, START)

    with pytest.raises(Overloaded, match="2 calls are in progress, the limit is 2") as caught:
        admission.enter(None, START)
    admission.leave(START, answered=True)
    admission.enter(None, START)

    assert caught.value.reason == "TOO_MANY_CALLS"
    assert caught.value.retry_after_s
    assert admission.calls == 2


def test_in_a_crowd_a_call_that_would_wait_half_its_time_is_refused() -> None:
    admission, now = crowded(calls=500, rate=1_000)

    with pytest.raises(Overloaded, match="this one would wait") as caught:
        admission.enter(0.9, now)
    admission.enter(1.2, now)
    admission.enter(None, now)

    assert caught.value.reason == "DEADLINE_TOO_NEAR"
    assert caught.value.retry_after_s == pytest.approx(0.5, rel=0.05)


def test_without_a_crowd_nothing_is_refused_however_rarely_calls_end() -> None:
    admission, now = crowded(calls=CROWD // 4, rate=10)

    admission.enter(0.001, now)

    assert admission.calls == CROWD // 4 + 1


def test_calls_that_were_refused_or_late_do_not_count_as_served() -> None:
    admission, now = crowded(calls=500, rate=1_000)
    for _ in range(400):
        now += 0.001
        admission.leave(now, answered=False)

    with pytest.raises(Overloaded, match="100 calls are in progress"):
        admission.enter(5.0, now)


def test_a_rate_of_long_ago_refuses_nobody() -> None:
    admission, now = crowded(calls=500, rate=1_000)

    admission.enter(0.1, now + 2 * STALE_S)
