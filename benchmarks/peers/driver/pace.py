"""When calls are made: once for each query, in a closed loop, or at Poisson arrivals whatever the peer does.

Each caller takes a ticket, waits until it is due, calls, and takes the next. In the closed loop a ticket is due at
once. In the open loop the arrival times are drawn beforehand; a caller that comes late to a ticket because the peer
kept it is charged the wait, so that latency is counted from the arrival (no coordinated omission).
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from benchmarks.peers.driver.protocol import F64

TIMER_SLACK_S: Final = 0.001
"""A sleeping caller wakes up to this much late by the resolution of the event loop's timer; that is not the peer's."""
GRACE_S: Final = 2.0
"""Arrivals that no caller has taken this long after the last one was due are given up."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How calls follow each other.

    Attributes:
        kind: "once", "closed" or "open".
        callers: Calls in progress at any time; for "open", at most.
        warm_up_s: Seconds that do not count.
        measure_s: Seconds that do.
        rate: Arrivals a second, for "open".
        seed: Of the arrivals.
    """

    kind: str
    callers: int
    warm_up_s: float = 0.0
    measure_s: float = 0.0
    rate: float = 0.0
    seed: int = 0

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Pace":
        """From a message.

        Raises:
            ValueError: If a value makes no sense.
        """
        pace = cls(**fields)
        if pace.kind not in ("once", "closed", "open"):
            raise ValueError(f"pace must be once, closed or open, got {pace.kind!r}")
        if pace.callers < 1:
            raise ValueError(f"callers must be at least 1, got {pace.callers}")
        if pace.kind != "once" and pace.measure_s <= 0:
            raise ValueError(f"measure_s must be positive, got {pace.measure_s}")
        if pace.kind == "open" and pace.rate <= 0:
            raise ValueError(f"rate must be positive, got {pace.rate}")
        return pace


@dataclass(frozen=True, slots=True)
class Ticket:
    """Number of a call, and when it is due on the clock; None for at once."""

    which: int
    due: float | None


def arrivals(rate: float, seconds: float, seed: int) -> F64:
    """Times in [0, seconds) at which calls arrive, ascending: a Poisson process of `rate` a second."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, size=int(rate * seconds + 6 * (rate * seconds) ** 0.5 + 10)))
    return times[times < seconds]


class Tickets:
    """Hands out a run's calls, safely from several threads, and says which of them count.

    Args:
        pace: How.
        calls: Numbers of calls there are; they are handed out in turn, over and over.
        clock: Seconds.
    """

    def __init__(self, pace: Pace, calls: int, clock: Callable[[], float]) -> None:
        self._pace, self._calls, self._clock = pace, calls, clock
        self._numbers = itertools.count()  # next() on it is atomic
        self.begin = clock() + pace.warm_up_s
        self.end = self.begin + pace.measure_s
        self._due = arrivals(pace.rate, pace.warm_up_s + pace.measure_s, pace.seed) if pace.kind == "open" else None
        self._first = clock()

    def take(self) -> Ticket | None:
        """The next call; None when the run is over."""
        if self._pace.kind == "closed":
            return Ticket(next(self._numbers) % self._calls, None) if self._clock() < self.end else None
        number = next(self._numbers)
        if self._due is None:
            return Ticket(number, None) if number < self._calls else None
        if number >= len(self._due) or self._clock() > self.end + GRACE_S:
            return None
        return Ticket(number % self._calls, self._first + float(self._due[number]))

    def began(self, ticket: Ticket, woke: float) -> float:
        """From when a call's latency counts: when it was due, but for the timer's slack."""
        return woke if ticket.due is None else min(woke, ticket.due + TIMER_SLACK_S)

    def counts(self, ticket: Ticket, began: float, came: float) -> bool:
        """Whether a call belongs to the measured time: in the closed loop, all of it; in the open one, its arrival."""
        if self._pace.kind == "once":
            return True
        if ticket.due is not None:
            return ticket.due >= self.begin
        return began >= self.begin and came <= self.end

    def offered(self) -> int:
        """Arrivals of the measured time; 0 unless the loop is open."""
        if self._due is None:
            return 0
        return int((self._due >= self.begin - self._first).sum())
