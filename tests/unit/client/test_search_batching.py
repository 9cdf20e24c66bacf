"""Which searches of asyncio tasks travel together, and what becomes of each."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.client.async_batching import Async, nobody_returns, together, turns
from tests.unit.client.batching_answers import MEMORY, search
from tests.unit.client.fake_server import FakeServer

from likewise.client import InvalidArgument, Unavailable, search_batching
from likewise.client.errors import AnswerTooLarge
from likewise.client.hits import Hits
from likewise.client.vector_search import MAX_ROWS, vector_search


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


@pytest.mark.usefixtures(nobody_returns.__name__)
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


def test_callers_that_ask_again_one_after_the_other_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_batching, "FOLLOWING_S", math.inf)
    monkeypatch.setattr(search_batching, "returning_s", lambda *_: math.inf)

    async def run() -> None:
        server = Async()

        async def caller(number: int) -> None:
            for _ in range(3):
                assert (await server.batcher.search(search(number), None)).ids == [str(number)]
                await turns(3 * number)

        await asyncio.gather(*(caller(number) for number in range(4)))

        assert [sorted(call) for call in server.calls] == [[0, 1, 2, 3]] * 3

    asyncio.run(run())


def test_callers_that_stay_away_are_waited_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_batching, "FOLLOWING_S", 0.0)

    async def run() -> None:
        server = Async()
        gate, first, others = await together(server, 3)
        gate.set()

        assert (await first).ids == ["0"]
        assert [hits.ids for hits in await asyncio.gather(*others)] == [["1"], ["2"], ["3"]]
        assert (await server.ask(4)).ids == ["4"]

        assert server.calls == [[0], [1, 2, 3], [4]]
        while server.batcher.kinds:
            await turns()

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


@pytest.mark.usefixtures(nobody_returns.__name__)
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
