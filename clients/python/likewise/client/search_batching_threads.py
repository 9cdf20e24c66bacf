"""As `likewise.client.search_batching`, for threads: one of those that wait makes the call for all.

Threads that were answered together ask again one after the other, as each is given the interpreter; so one of those
that wait looks out for them.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from likewise.client.batching_outcomes import (
    Outcome,
    answered,
    call_of,
    failed,
    left_s,
    queue_full,
    returned,
    time_of,
)
from likewise.client.batching_policy import (
    FOLLOWING_S,
    MIN_TIMEOUT_S,
    NOBODY,
    Key,
    Returning,
    is_full,
    latest,
    next_together,
    patience_s,
    returning_s,
    shortest_s,
    time_of_each,
)
from likewise.client.channel import ChannelConfig
from likewise.client.errors import too_late
from likewise.client.hits import Hits
from likewise.client.rpc import Call
from likewise.client.vector_search import VectorSearch

_ANSWERED_KEPT: Final = 64


@dataclass(slots=True, eq=False)
class _Seat:
    """A thread's search.

    Attributes:
        search: It.
        deadline: When its caller's time is over, by the monotonic clock.
        woken: Says that something has changed here: its part, or that it is answered.
        members: Whom it has to make a call for, itself among them.
        answered: Whether `outcome` is what became of it.
        outcome: See `Outcome`.
        request_id: Of the call that carries it.
    """

    search: VectorSearch
    deadline: float
    woken: threading.Event = field(default_factory=threading.Event)
    members: "Sequence[_Seat]" = ()
    answered: bool = False
    outcome: Outcome = None
    request_id: str = ""


@dataclass(slots=True, eq=False)
class _Bench:
    """As `_Lane`, for threads.

    Attributes:
        returning: Who is waited for.
        lookout: Which of those that wait starts the next call when no more come.
    """

    under_way: int = 0
    waiting: list[_Seat] = field(default_factory=list)
    took_s: float = 0.0
    each_s: float = 0.0
    returning: Returning = NOBODY
    lookout: _Seat | None = None


class _Answered(NamedTuple):
    """What a bench had learned when nobody was left on it: whom to wait for, and how long the last call took, when."""

    returning: Returning
    took_s: float
    at_s: float


class SearchBatcher:
    """As `AsyncSearchBatcher`, for threads: one of those that wait makes the call for all.

    Args:
        call: Carries a call, as `Transport.call`.
        config: Deadlines.
    """

    def __init__(self, call: Callable[[Call[Any], float | None], Any], config: ChannelConfig) -> None:
        self._call = call
        self._config = config
        self._benches: dict[Key, _Bench] = {}
        self._answered: OrderedDict[Key, _Answered] = OrderedDict()
        self._lock = threading.Lock()

    def search(self, search: VectorSearch, timeout: float | None) -> Hits:
        """As `AsyncSearchBatcher.search`."""
        timeout_s, octave = time_of(self._config, timeout)
        if timeout_s < MIN_TIMEOUT_S:
            alone: Hits = self._call(search.call(), timeout)
            return alone
        key, seat = (search.form.kind, octave), _Seat(search, time.monotonic() + timeout_s)
        with self._lock:
            bench = self._benches.get(key) or self._new(key)
            if is_full(len(bench.waiting), bench.each_s, search, timeout_s):
                raise queue_full(len(bench.waiting), timeout_s, bench.took_s)
            bench.waiting.append(seat)
            if not bench.under_way:
                self._next(bench)
        try:
            self._await(key, bench, seat)
        except BaseException:  # Ctrl-C: nobody may be left waiting for this thread
            self._leave(key, bench, seat)
            if seat.members:
                self._give_out(key, bench, seat.members, [None] * len(seat.members))
            raise
        self._leave(key, bench, seat)
        if seat.members:
            self._lead(key, bench, seat.members)
        if not seat.answered:
            raise too_late(seat.request_id)
        if seat.outcome is None:
            again: Hits = self._call(search.call(), left_s(seat.deadline, time.monotonic()))
            return again
        return returned(seat.outcome)

    @property
    def kinds(self) -> int:
        """As `AsyncSearchBatcher.kinds`."""
        return len(self._benches)

    def _new(self, key: Key) -> _Bench:
        """A bench where none is; to be called with the lock, as the two below."""
        bench = self._benches[key] = _Bench()
        last = self._answered.pop(key, None)
        if last is not None and time.monotonic() < last.at_s + returning_s(last.took_s, shortest_s(key)):
            bench.returning, bench.took_s = last.returning, last.took_s
        return bench

    def _next(self, bench: _Bench) -> None:
        """Have those that wait go, or one of them look out for more."""
        if bench.returning.are_back(len(bench.waiting)):
            self._appoint(bench)
        elif bench.lookout is None:
            bench.lookout = bench.waiting[0]
            bench.lookout.woken.set()

    def _appoint(self, bench: _Bench) -> None:
        """Have one of those that wait make the next call."""
        bench.lookout = None
        members, bench.waiting = next_together(bench.waiting, bench.took_s, time.monotonic())
        leader = latest(members)  # it may wait as long as any of them
        leader.members = members
        bench.under_way += 1
        leader.woken.set()

    def _await(self, key: Key, bench: _Bench, seat: _Seat) -> None:
        """Wait until the search is answered or is to be led, or its time is over."""
        while not (seat.answered or seat.members) and (left := seat.deadline - time.monotonic()) > 0:
            wait_s = min(left, threading.TIMEOUT_MAX)
            if seat in bench.waiting:
                wait_s = min(wait_s, patience_s(bench.took_s, max(bench.under_way, 1), shortest_s(key)))
            if seat.woken.wait(wait_s):
                seat.woken.clear()
                if bench.lookout is seat:
                    self._look_out(key, bench, seat)
                continue
            with self._lock:
                if seat in bench.waiting and time.monotonic() < seat.deadline:
                    self._appoint(bench)  # the calls under way have taken too long

    def _look_out(self, key: Key, bench: _Bench, seat: _Seat) -> None:
        """Wait for more searches as long as one follows the other, then have them go."""
        until_s = time.monotonic() + returning_s(bench.took_s, shortest_s(key))
        while bench.lookout is seat:
            count = len(bench.waiting)
            if seat.woken.wait(FOLLOWING_S):
                return
            with self._lock:
                if bench.lookout is seat and (len(bench.waiting) == count or time.monotonic() > until_s):
                    bench.returning = bench.returning.in_vain()
                    self._appoint(bench)

    def _leave(self, key: Key, bench: _Bench, seat: _Seat) -> None:
        """Wait no longer."""
        with self._lock:
            if seat in bench.waiting:
                bench.waiting.remove(seat)
            if bench.lookout is seat:
                bench.lookout = None
                if bench.waiting:
                    self._appoint(bench)
                else:
                    del self._benches[key]

    def _lead(self, key: Key, bench: _Bench, members: Sequence[_Seat]) -> None:
        started = time.monotonic()
        outcomes: Sequence[Outcome] = [None] * len(members)
        try:
            call = call_of([member.search for member in members])
            for member in members:
                member.request_id = call.request_id
            outcomes = answered(self._call(call, left_s(latest(members).deadline, time.monotonic())))
        except Exception as error:
            outcomes = failed(error, len(members))
        finally:
            bench.took_s = time.monotonic() - started
            self._give_out(key, bench, members, outcomes)

    def _give_out(self, key: Key, bench: _Bench, members: Sequence[_Seat], outcomes: Sequence[Outcome]) -> None:
        """Hand the lead to the next that waits, and hand out the outcomes."""
        # In this order: who asks again at once would be counted twice.
        with self._lock:
            bench.each_s = time_of_each(members[0].search, bench.took_s, bench.under_way)
            bench.under_way -= 1
            bench.returning = bench.returning.after(len(members), len(bench.waiting), members[0].search.form.most)
            if not bench.under_way:  # else those that wait go when all are back, or when they have waited for too long
                self._all_back(key, bench)
        for member, outcome in zip(members, outcomes, strict=True):
            member.outcome = outcome
            member.answered = True
            member.woken.set()

    def _all_back(self, key: Key, bench: _Bench) -> None:
        """Go on with those that wait, or forget the bench but for what it has learned; with the lock."""
        if bench.waiting:
            self._next(bench)
            return
        del self._benches[key]
        if bench.returning != NOBODY:
            self._answered[key] = _Answered(bench.returning, bench.took_s, time.monotonic())
            if len(self._answered) > _ANSWERED_KEPT:
                self._answered.popitem(last=False)
