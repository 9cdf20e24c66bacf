"""As `likewise.client.search_batching`, for threads: one of those that wait makes the call for all."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from likewise.client.batching_outcomes import (
    Outcome,
    answered,
    call_of,
    failed,
    left_s,
    queue_full,
    returned,
    seconds_of,
)
from likewise.client.batching_policy import (
    MIN_TIMEOUT_S,
    Key,
    is_full,
    key_of,
    latest,
    next_together,
    patience_s,
    shortest_s,
    time_of_each,
)
from likewise.client.channel import ChannelConfig
from likewise.client.errors import too_late
from likewise.client.hits import Hits
from likewise.client.rpc import Call
from likewise.client.vector_search import VectorSearch


@dataclass(slots=True, eq=False)
class _Seat:
    """A thread's search: it waits until it is answered, or has to make the call for `members`, itself the last."""

    search: VectorSearch
    deadline: float
    woken: threading.Event = field(default_factory=threading.Event)
    members: "Sequence[_Seat]" = ()
    outcome: Outcome = None
    request_id: str = ""


@dataclass(slots=True, eq=False)
class _Bench:
    """As `_Lane`, for threads."""

    under_way: int = 0
    waiting: list[_Seat] = field(default_factory=list)
    took_s: float = 0.0
    each_s: float = 0.0


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
        self._lock = threading.Lock()

    def search(self, search: VectorSearch, timeout: float | None) -> Hits:
        """As `AsyncSearchBatcher.search`."""
        timeout_s = seconds_of(self._config, timeout)
        if timeout_s < MIN_TIMEOUT_S:
            alone: Hits = self._call(search.call(), timeout)
            return alone
        key, seat = key_of(search, timeout_s), _Seat(search, time.monotonic() + timeout_s)
        with self._lock:
            bench = self._benches.setdefault(key, _Bench())
            if is_full(len(bench.waiting), bench.each_s, search, timeout_s):
                raise queue_full(len(bench.waiting), timeout_s, bench.took_s)
            bench.waiting.append(seat)
            if not bench.under_way:
                self._appoint(bench)
        try:
            patient_s = patience_s(bench.took_s, bench.under_way, shortest_s(key))
            if patient_s < timeout_s and not seat.woken.wait(patient_s):
                with self._lock:
                    if seat in bench.waiting:
                        self._appoint(bench)
            if not seat.woken.is_set():
                seat.woken.wait(min(max(seat.deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX))
            with self._lock:
                if seat in bench.waiting:
                    bench.waiting.remove(seat)
        except BaseException:  # Ctrl-C: nobody may be left waiting for this thread
            with self._lock:
                if seat in bench.waiting:
                    bench.waiting.remove(seat)
            if seat.members:
                self._give_out(key, bench, seat.members, [None] * len(seat.members))
            raise
        if seat.members:
            self._lead(key, bench, seat.members)
        if not seat.woken.is_set():
            raise too_late(seat.request_id)
        if seat.outcome is None:
            again: Hits = self._call(search.call(), left_s(seat.deadline, time.monotonic()))
            return again
        return returned(seat.outcome)

    @property
    def kinds(self) -> int:
        """As `AsyncSearchBatcher.kinds`."""
        return len(self._benches)

    def _appoint(self, bench: _Bench) -> None:
        """Have one of those that wait make the next call; to be called with the lock."""
        members, bench.waiting = next_together(bench.waiting, bench.took_s, time.monotonic())
        leader = latest(members)  # it may wait as long as any of them
        leader.members = members
        bench.under_way += 1
        leader.woken.set()

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
        """Hand out the outcomes, and the lead to the next that waits."""
        for member, outcome in zip(members, outcomes, strict=True):
            member.outcome = outcome
            member.woken.set()
        with self._lock:
            bench.each_s = time_of_each(members[0].search, bench.took_s, bench.under_way)
            bench.under_way -= 1
            if bench.waiting:
                self._appoint(bench)
            elif not bench.under_way:
                del self._benches[key]
