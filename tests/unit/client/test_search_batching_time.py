"""What time each of the searches that travel together has, and what becomes of those that have too little."""

import asyncio
import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.client.async_batching import Async, nobody_returns, together, turns

from likewise.client import DeadlineExceeded, ResourceExhausted, batching_policy, search_batching


def test_a_search_with_little_time_waits_for_no_other() -> None:
    async def run() -> None:
        server = Async()

        await asyncio.gather(*(server.ask(number, timeout=0.04) for number in range(3)))

        assert server.calls == [[0], [1], [2]]
        assert server.left_s == [0.04] * 3

    asyncio.run(run())


def test_a_call_has_what_its_newest_search_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(
        search_batching, "time", SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    )

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


@pytest.mark.usefixtures(nobody_returns.__name__)
def test_a_caller_behind_more_than_its_time_is_enough_for_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(
        search_batching, "time", SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    )
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

        assert sorted(server.calls) == [[0, 1, 2], [3]]
        assert sorted(round(left or 0) for left in server.left_s) == [60, 64]

    asyncio.run(run())


def test_searches_without_a_limit_go_together_and_without_one() -> None:
    async def run() -> None:
        server = Async()

        await asyncio.gather(*(server.ask(number, timeout=math.inf) for number in range(3)))

        assert server.calls == [[0, 1, 2]]
        assert server.left_s == [math.inf]

    asyncio.run(run())
