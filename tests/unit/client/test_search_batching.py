# ruff: noqa: ASYNC109 - these timeouts are gRPC deadlines; asyncio.timeout is local
"""Which searches of asyncio tasks travel together, and what becomes of each."""

import asyncio
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.client.batching_answers import CONFIG, MEMORY, Answers, search
from tests.unit.client.fake_server import FakeServer

from likewise.client import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    batching_policy,
    search_batching,
)
from likewise.client.errors import AnswerTooLarge
from likewise.client.hits import Hits
from likewise.client.rpc import Call
from likewise.client.search_batching import AsyncSearchBatcher
from likewise.client.vector_search import MAX_ROWS, vector_search


class Async(Answers):
    """For asyncio: a call waits for its gate, if it has one."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[int, asyncio.Event] = {}
        self.cancelled = 0
        self.batcher = AsyncSearchBatcher(self.call, CONFIG)

    async def call(self, call: Call[Any], timeout: float | None) -> Any:
        index = self.enter(call, timeout)
        try:
            if gate := self.gates.get(index):
                await gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.of(call, index)

    def hold(self, index: int) -> asyncio.Event:
        return self.gates.setdefault(index, asyncio.Event())

    def ask(self, number: int, timeout: float | None = None, **query: Any) -> asyncio.Task[Hits]:
        return asyncio.create_task(self.batcher.search(search(number, **query), timeout))


async def turns(count: int = 6) -> None:
    """Let everything go on that can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def together(server: Async, count: int) -> tuple[asyncio.Event, asyncio.Task[Hits], list[asyncio.Task[Hits]]]:
    """One search under way behind the gate, and `count` that wait for it."""
    gate = server.hold(0)
    first = server.ask(0)
    await turns()
    others = [server.ask(number) for number in range(1, count + 1)]
    await turns()
    assert server.calls == [[0]]
    return gate, first, others


def test_a_search_that_meets_no_other_is_a_call_of_its_own(connect: Callable[..., Any], server: FakeServer) -> None:
    gallery = connect().create_gallery("g", dim=2)
    gallery.upsert(["a", "b"], vectors=[[1, 0], [0, 1]])

    found = [gallery.search(vector=vector, k=1) for vector in ([1, 0], [0, 1])]

    assert [hits.ids for hits in found] == [["a"], ["b"]]
    assert [call.method for call in server.received if "Search" in call.method] == ["Search", "Search"]


def test_searches_of_one_moment_and_those_that_find_one_under_way_go_together() -> None:
    async def run() -> None:
        server = Async()
        gate = server.hold(0)
        burst = [server.ask(number) for number in range(3)]
        await turns()
        later = [server.ask(number) for number in range(3, 8)]
        await turns()
        assert server.calls == [[0, 1, 2]]

        gate.set()

        found = await asyncio.gather(*burst, *later)
        assert server.calls == [[0, 1, 2], [3, 4, 5, 6, 7]]
        assert [hits.ids for hits in found] == [[str(number)] for number in range(8)]

    asyncio.run(run())


def test_callers_that_ask_again_at_once_stay_together() -> None:
    async def run() -> None:
        server = Async()

        async def caller(number: int) -> None:
            for _ in range(3):
                assert (await server.batcher.search(search(number), None)).ids == [str(number)]

        await asyncio.gather(*(caller(number) for number in range(4)))

        assert server.calls == [[0, 1, 2, 3]] * 3
        assert server.batcher.kinds == 0

    asyncio.run(run())


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"k": 3}, id="k"),
        pytest.param({"ef": 99}, id="ef"),
        pytest.param({"vectors": True}, id="mask"),
        pytest.param({"timeout": 7.0}, id="timeout"),
        pytest.param({"space": "other"}, id="space"),
    ],
)
def test_searches_that_differ_in_more_than_the_vector_go_apart(other: dict[str, Any]) -> None:
    async def run() -> None:
        server = Async()

        await asyncio.gather(server.ask(0), server.ask(1, **other), server.ask(2), server.ask(3, **other))

        assert server.calls == [[0, 2], [1, 3]]

    asyncio.run(run())


@pytest.mark.parametrize(
    "query",
    [
        pytest.param({"text": "a star"}, id="text"),
        pytest.param({"id": "a"}, id="id"),
        pytest.param({"vector": [1.0, 0.0], "condition": "in red"}, id="condition"),
        pytest.param({"vector": [1.0, 0.0], "request_id": "mine"}, id="request id"),
        pytest.param({"vector": [[1.0, 0.0], [0.0, 1.0]]}, id="multi-vector"),
        pytest.param({"vector": [1.0, 0.0], "id": "a"}, id="two references"),
        pytest.param({"vector": [1.0, 0.0], "kk": 3}, id="unknown argument"),
        pytest.param({"vector": None}, id="no vector"),
    ],
)
def test_what_is_no_plain_search_by_a_vector_goes_its_own_way(query: Any) -> None:
    assert vector_search(MEMORY, query) is None


def test_a_search_with_little_time_waits_for_no_other() -> None:
    async def run() -> None:
        server = Async()

        await asyncio.gather(*(server.ask(number, timeout=0.04) for number in range(3)))

        assert server.calls == [[0], [1], [2]]
        assert server.left_s == [0.04] * 3

    asyncio.run(run())


def test_a_call_has_what_its_newest_search_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(search_batching, "time", SimpleNamespace(monotonic=lambda: now[0]))

    async def run() -> None:
        server = Async()
        gate, first, (second,) = await together(server, 1)
        now[0] = 130.0
        third = server.ask(2)
        await turns()
        now[0] = 140.0
        gate.set()
        await asyncio.gather(first, second, third)

        assert server.calls == [[0], [1, 2]]
        assert server.left_s == [60.0, 50.0]

    asyncio.run(run())


def test_a_caller_whose_time_is_over_is_told_so_whatever_the_others_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_batching, "MIN_TIMEOUT_S", 0.0)

    async def run() -> None:
        server = Async()
        gates = server.hold(0), server.hold(1)
        under_way = [server.ask(number, timeout=0.02) for number in range(2)]
        await turns()
        waiting = server.ask(2, timeout=0.02)

        found = await asyncio.gather(*under_way, waiting, return_exceptions=True)

        assert [type(error) for error in found] == [DeadlineExceeded] * 3
        assert all(error.request_id for error in found if isinstance(error, DeadlineExceeded))
        for gate in gates:
            gate.set()
        await turns()
        assert server.cancelled == len(server.calls)  # nobody waited for them any more
        assert server.batcher.kinds == 0

    asyncio.run(run())


def test_a_caller_behind_more_than_its_time_is_enough_for_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(search_batching, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for name in ("MIN_PATIENCE_S", "MAX_PATIENCE_S", "PATIENT_SHARE"):
        monkeypatch.setattr(batching_policy, name, 1e9)
    query: Any = {"k": 2000, "vectors": True, "timeout": 10.0}  # two of them fit into one call

    async def run() -> None:
        server = Async()
        gates = server.hold(0), server.hold(1)
        under_way = [server.ask(number, **query) for number in range(3)]
        await turns()
        now[0] += 1.0
        gates[0].set()
        await turns()
        assert server.calls == [[0, 1], [2]]

        waiting = [server.ask(number, **query) for number in range(3, 20)]
        refused = server.ask(20, **query)
        with pytest.raises(ResourceExhausted, match=r"17 searches .* answered within the 10 s") as caught:
            await refused

        assert (caught.value.reason, caught.value.retry_after_s) == ("CLIENT_QUEUE_FULL", 1.0)
        gates[1].set()
        found = await asyncio.gather(*under_way, *waiting)
        assert [hits.ids for hits in found] == [[str(number)] for number in range(20)]
        assert server.batcher.kinds == 0

    asyncio.run(run())


def test_searches_with_about_the_same_time_go_together_and_have_the_longest_of_it() -> None:
    async def run() -> None:
        server = Async()
        gate = server.hold(0)
        # Never twice the time of another: one that is asked on behalf of others has what these have left.
        asked = [server.ask(number, timeout=timeout) for number, timeout in enumerate((33.0, 60.0, 40.0, 64.0))]
        await turns()
        gate.set()
        await asyncio.gather(*asked)

        assert server.calls == [[0, 1, 2], [3]]
        assert [round(left or 0) for left in server.left_s] == [60, 64]

    asyncio.run(run())


def test_searches_without_a_limit_go_together_and_without_one() -> None:
    async def run() -> None:
        server = Async()

        await asyncio.gather(*(server.ask(number, timeout=math.inf) for number in range(3)))

        assert server.calls == [[0, 1, 2]]
        assert server.left_s == [math.inf]

    asyncio.run(run())


def test_no_more_go_together_than_an_answer_may_bring() -> None:
    async def run() -> None:
        server = Async()

        await asyncio.gather(*(server.ask(number) for number in range(MAX_ROWS + 1)))
        await asyncio.gather(*(server.ask(number, k=2000, vectors=True) for number in range(5)))
        await asyncio.gather(*(server.ask(number, k=10_000, vectors=True) for number in range(2)))

        assert list(map(len, server.calls)) == [MAX_ROWS, 1, 2, 2, 1, 1, 1]

    asyncio.run(run())


def test_a_call_that_does_not_come_back_is_not_waited_for() -> None:
    async def run() -> None:
        server = Async()
        gate, first, others = await together(server, 2)

        found = await asyncio.gather(*others)  # the gate is still shut

        assert server.calls == [[0], [1, 2]]
        assert [hits.ids for hits in found] == [["1"], ["2"]]
        gate.set()
        assert (await first).ids == ["0"]

    asyncio.run(run())


def test_an_error_of_one_search_is_its_own_and_tells_what_it_tells_of_a_search_alone() -> None:
    async def run() -> None:
        server = Async()
        server.errors[2] = InvalidArgument("vectors[1] is all zeros")
        server.alone[2] = InvalidArgument("reference.vector is all zeros", request_id="its own")
        gate, first, others = await together(server, 3)
        gate.set()

        found = await asyncio.gather(first, *others, return_exceptions=True)

        assert [hits.ids for hits in (found[0], found[1], found[3]) if isinstance(hits, Hits)] == [["0"], ["1"], ["3"]]
        assert found[2] is server.alone[2]
        assert server.calls == [[0], [1, 2, 3], [2]]

    asyncio.run(run())


def test_searches_that_are_refused_together_are_each_told_so_of_their_own() -> None:
    async def run() -> None:
        server = Async()
        server.failures[1] = InvalidArgument("vectors: 2 dimensions, the space has 3")
        server.alone = {number: InvalidArgument(f"reference.vector of search {number}") for number in (1, 2)}
        gate, first, others = await together(server, 2)
        gate.set()

        found = await asyncio.gather(first, *others, return_exceptions=True)

        assert found[1:] == [server.alone[1], server.alone[2]]
        assert server.calls == [[0], [1, 2], [1], [2]]

    asyncio.run(run())


def test_what_fails_in_company_may_be_answered_alone() -> None:
    async def run() -> None:
        server = Async()
        server.errors[2] = Unavailable("shard 1 is loading")
        gate, first, others = await together(server, 3)
        gate.set()

        found = await asyncio.gather(first, *others)

        assert server.calls == [[0], [1, 2, 3], [2]]
        assert found[2].ids == ["2"]

    asyncio.run(run())


def test_an_answer_too_large_for_all_is_asked_for_one_by_one() -> None:
    async def run() -> None:
        server = Async()
        server.failures[1] = AnswerTooLarge("70 MiB")
        gate, first, others = await together(server, 3)
        gate.set()

        found = await asyncio.gather(first, *others)

        assert server.calls == [[0], [1, 2, 3], [1], [2], [3]]
        assert [hits.ids for hits in found] == [["0"], ["1"], ["2"], ["3"]]

    asyncio.run(run())


@pytest.mark.parametrize("failure", [Unavailable("gone", reason="DRAINING"), RuntimeError("a bug")])
def test_a_call_that_fails_fails_for_each_of_its_searches(failure: Exception) -> None:
    async def run() -> None:
        server = Async()
        server.failures[1] = failure
        gate, first, others = await together(server, 3)
        gate.set()

        found = await asyncio.gather(first, *others, return_exceptions=True)

        assert isinstance(found[0], Hits)
        assert [(type(error), str(error)) for error in found[1:]] == [(type(failure), str(failure))] * 3
        assert [getattr(error, "reason", "") for error in found[1:]] == [getattr(failure, "reason", "")] * 3
        assert len(server.calls) == 2

    asyncio.run(run())


def test_the_last_caller_to_leave_takes_the_call_along() -> None:
    async def run() -> None:
        server = Async()
        server.hold(1)
        gate, first, others = await together(server, 3)
        gone = server.ask(9)
        await turns()
        gone.cancel()  # before it was sent
        gate.set()
        await first
        await turns()
        assert server.calls[1] == [1, 2, 3]

        others[0].cancel()
        others[1].cancel()
        await turns()
        assert server.cancelled == 0
        others[2].cancel()
        await turns()

        assert server.cancelled == 1
        assert [task.cancelled() for task in (gone, *others)] == [True] * 4
        assert server.batcher.kinds == 0

    asyncio.run(run())


def test_one_that_leaves_does_not_take_the_others_answers() -> None:
    async def run() -> None:
        server = Async()
        gate, _, others = await together(server, 3)
        others[1].cancel()
        gate.set()

        found = await asyncio.gather(*others, return_exceptions=True)

        assert server.calls[1] == [1, 3]
        assert isinstance(found[1], asyncio.CancelledError)
        assert [hits.ids for hits in found if isinstance(hits, Hits)] == [["1"], ["3"]]

    asyncio.run(run())
