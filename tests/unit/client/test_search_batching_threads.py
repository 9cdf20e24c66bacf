"""Which searches of threads travel together, and what becomes of each."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.unit.client.batching_answers import CONFIG, Answers, search
from tests.unit.client.fake_server import FakeServer

from likewise.client import (
    Client,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    batching_policy,
    search_batching_threads,
)
from likewise.client.hits import Hits
from likewise.client.rpc import Call
from likewise.client.search_batching_threads import SearchBatcher


class Threads(Answers):
    """For threads: a call waits for its gate, if it has one; `entered` counts the calls that have begun, `refused` the
    callers that were told to come back."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[int, threading.Event] = {}
        self.entered = threading.Semaphore(0)
        self.refused = threading.Semaphore(0)
        self._lock = threading.Lock()
        self.batcher = SearchBatcher(self.call, CONFIG)

    def call(self, call: Call[Any], timeout: float | None) -> Any:
        with self._lock:
            index = self.enter(call, timeout)
        self.entered.release()
        if gate := self.gates.get(index):
            assert gate.wait(30)
        return self.of(call, index)


class Caller(threading.Thread):
    """Searches in a thread of its own and keeps what came of it."""

    def __init__(self, server: Threads, number: int, *, timeout: float | None = None) -> None:
        super().__init__(daemon=True)
        self._server, self._number, self._timeout = server, number, timeout
        self.outcome: Hits | BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._server.batcher.search(search(self._number), self._timeout)
        except BaseException as error:
            self.outcome = error
            if isinstance(error, ResourceExhausted):
                self._server.refused.release()

    def result(self) -> Any:
        self.join(30)
        return self.outcome


def waiting_threads(server: Threads, count: int) -> tuple[threading.Event, Caller, list[Caller]]:
    """One search under way behind the gate, and `count` that wait for it or have lost their patience."""
    gate = server.gates[0] = threading.Event()
    first = Caller(server, 0)
    assert server.entered.acquire(timeout=30)
    return gate, first, [Caller(server, number) for number in range(1, count + 1)]


@pytest.fixture
def arrived(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Counts the searches that have come, while none loses its patience."""
    for name in ("MIN_PATIENCE_S", "MAX_PATIENCE_S", "PATIENT_SHARE"):
        monkeypatch.setattr(batching_policy, name, 1e9)
    came = threading.Semaphore(0)
    is_full: Callable[..., bool] = batching_policy.is_full

    def counted(*given: Any) -> bool:
        came.release()  # with the lock, which whoever looks for it has to wait for
        return is_full(*given)

    monkeypatch.setattr(search_batching_threads, "is_full", counted)
    return came


def expect_returns(monkeypatch: pytest.MonkeyPatch, *, following_s: float) -> None:
    """Callers who were answered are expected back for ever, each so long after the one before it."""
    monkeypatch.setattr(search_batching_threads, "FOLLOWING_S", following_s)
    monkeypatch.setattr(search_batching_threads, "returning_s", lambda *_: 1e9)


def one_and_three(server: Threads, arrived: threading.Semaphore) -> list[Caller]:
    """Callers of a search that is answered and of three that have come while it was under way."""
    gate, first, others = waiting_threads(server, 3)
    for _ in range(4):
        assert arrived.acquire(timeout=30)
    gate.set()
    assert first.result().ids == ["0"]
    return others


def test_threads_wait_for_those_who_were_answered_with_them(
    monkeypatch: pytest.MonkeyPatch, arrived: threading.Semaphore
) -> None:
    expect_returns(monkeypatch, following_s=threading.TIMEOUT_MAX)
    server = Threads()
    waiting = one_and_three(server, arrived)
    assert not server.entered.acquire(blocking=False)  # the three wait for the one to come again

    callers = [*waiting, Caller(server, 4)]
    assert [caller.result().ids for caller in callers] == [["1"], ["2"], ["3"], ["4"]]
    callers = [Caller(server, number) for number in (5, 6, 7, 8)]
    assert [caller.result().ids for caller in callers] == [["5"], ["6"], ["7"], ["8"]]

    assert [sorted(call) for call in server.calls] == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert server.batcher.kinds == 0


def test_threads_do_not_wait_for_those_who_stay_away(
    monkeypatch: pytest.MonkeyPatch, arrived: threading.Semaphore
) -> None:
    expect_returns(monkeypatch, following_s=0.0)
    server = Threads()
    waiting = one_and_three(server, arrived)

    assert [caller.result().ids for caller in waiting] == [["1"], ["2"], ["3"]]
    assert Caller(server, 4).result().ids == ["4"]  # of four that were expected

    assert [sorted(call) for call in server.calls] == [[0], [1, 2, 3], [4]]
    assert server.batcher.kinds == 0


def test_a_thread_by_itself_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    expect_returns(monkeypatch, following_s=threading.TIMEOUT_MAX)
    server = Threads()

    for number in range(3):
        assert Caller(server, number).result().ids == [str(number)]

    assert server.calls == [[0], [1], [2]]


def test_a_thread_that_is_interrupted_while_it_looks_out_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, arrived: threading.Semaphore
) -> None:
    expect_returns(monkeypatch, following_s=threading.TIMEOUT_MAX)
    server = Threads()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server.batcher, "_look_out", interrupted)
    found = [caller.result() for caller in one_and_three(server, arrived)]

    assert [type(one) for one in found].count(KeyboardInterrupt) == 1
    answered = [str(number) for number, one in enumerate(found, start=1) if isinstance(one, Hits)]
    assert len(answered) == 2
    assert [one.ids for one in found if isinstance(one, Hits)] == [[number] for number in answered]
    assert server.batcher.kinds == 0


def test_a_thread_whose_time_is_over_when_it_is_to_look_out_is_told_so(
    monkeypatch: pytest.MonkeyPatch, arrived: threading.Semaphore
) -> None:
    server = Threads()

    def late(_key: Any, bench: Any, seat: Any) -> None:
        while bench.lookout is not seat and not seat.members:
            assert seat.woken.wait(30)

    monkeypatch.setattr(server.batcher, "_await", late)
    gate, first, (other,) = waiting_threads(server, 1)
    for _ in range(2):
        assert arrived.acquire(timeout=30)
    gate.set()

    assert first.result().ids == ["0"]
    assert isinstance(other.result(), DeadlineExceeded)
    assert server.batcher.kinds == 0


def test_threads_that_find_a_call_under_way_all_get_their_answers() -> None:
    server = Threads()
    gate, first, others = waiting_threads(server, 40)
    gate.set()

    found = [caller.result() for caller in (first, *others)]

    assert [hits.ids for hits in found] == [[str(number)] for number in range(41)]
    assert sorted(number for call in server.calls for number in call) == list(range(41))
    assert len(server.calls) < 41
    assert server.batcher.kinds == 0


def test_threads_do_not_wait_for_a_call_that_does_not_come_back() -> None:
    server = Threads()
    gate, first, others = waiting_threads(server, 3)

    assert [caller.result().ids for caller in others] == [["1"], ["2"], ["3"]]  # the gate is still shut

    gate.set()
    assert first.result().ids == ["0"]
    assert server.batcher.kinds == 0


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), SystemExit()])
def test_a_thread_that_is_interrupted_leaves_nobody_waiting(failure: BaseException) -> None:
    server = Threads()
    server.failures[1] = failure
    gate, first, others = waiting_threads(server, 10)
    gate.set()

    found = [caller.result() for caller in (first, *others)]

    # Whoever made that call was interrupted; those it made the call for asked again.
    assert [type(one) for one in found if not isinstance(one, Hits)] == [type(failure)]
    assert len([one for one in found if isinstance(one, Hits)]) == 10


def test_a_thread_whose_time_is_over_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_batching_threads, "MIN_TIMEOUT_S", 0.0)
    for name in ("MIN_PATIENCE_S", "MAX_PATIENCE_S", "PATIENT_SHARE"):
        monkeypatch.setattr(batching_policy, name, 1e9)
    server = Threads()
    gate = server.gates[0] = threading.Event()
    first = Caller(server, 0, timeout=0.05)
    assert server.entered.acquire(timeout=30)

    late = [caller.result() for caller in [Caller(server, number, timeout=0.05) for number in (1, 2)]]
    gate.set()

    assert [type(one) for one in late] == [DeadlineExceeded] * 2
    assert first.result().ids == ["0"]  # the server's word, which this one has brought over gRPC's own deadline
    assert server.calls == [[0]]
    assert server.batcher.kinds == 0


def test_a_thread_behind_as_many_as_may_wait_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MIN_PATIENCE_S", "MAX_PATIENCE_S", "PATIENT_SHARE"):
        monkeypatch.setattr(batching_policy, name, 1e9)
    monkeypatch.setattr(batching_policy, "MAX_WAITING", 2)
    server = Threads()
    gate, first, others = waiting_threads(server, 8)

    for _ in range(6):
        assert server.refused.acquire(timeout=30)
    gate.set()

    found = [caller.result() for caller in (first, *others)]
    refused = [one for one in found if isinstance(one, ResourceExhausted)]
    assert [one.reason for one in refused] == ["CLIENT_QUEUE_FULL"] * 6
    assert [number for number, one in enumerate(found) if one not in refused and one.ids == [str(number)]] == sorted(
        number for call in server.calls for number in call
    )
    assert server.batcher.kinds == 0


def test_threads_share_an_error_and_keep_their_own() -> None:
    server = Threads()
    server.errors = {number: InvalidArgument("a row") for number in range(1, 21)}
    server.alone = {number: NotFound("no such thing") for number in range(1, 21)}
    server.failures[0] = Unavailable("gone")
    gate, first, others = waiting_threads(server, 20)
    gate.set()

    assert isinstance(first.result(), Unavailable)
    outcomes = [caller.result() for caller in others]
    # Whoever had company then was asked again alone.
    assert outcomes == [server.alone[number] for number in range(1, 21)]
    assert sorted(call[0] for call in server.calls if len(call) == 1) == list(range(21))


def test_threads_share_calls_to_a_server_and_keep_their_answers(server: FakeServer) -> None:
    with Client(server.address) as client:
        gallery = client.create_gallery("g", dim=2)
        gallery.upsert(["a", "b"], vectors=[[1, 0], [0, 1]], progress=False)
        found: dict[int, list[str]] = {}

        def ask(number: int) -> None:
            for _ in range(5):
                found[number] = gallery.search(vector=np.eye(2)[number % 2], k=1).ids

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    assert found == {number: [["a"], ["b"]][number % 2] for number in range(12)}
