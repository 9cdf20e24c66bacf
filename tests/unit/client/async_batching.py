# ruff: noqa: ASYNC109 - these timeouts are gRPC deadlines; asyncio.timeout is local
"""Searches of asyncio tasks that come at the same time, and a server that holds them as long as a test wants."""

import asyncio
from typing import Any

import pytest
from tests.unit.client.batching_answers import CONFIG, Answers, search

from likewise.client import search_batching
from likewise.client.hits import Hits
from likewise.client.rpc import Call
from likewise.client.search_batching import AsyncSearchBatcher


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


@pytest.fixture
def nobody_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call waits for those who were answered."""
    monkeypatch.setattr(search_batching, "FOLLOWING_S", -1.0)


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
