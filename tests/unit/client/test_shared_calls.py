"""Searches that travel together, through a client and a real channel."""

import asyncio
from collections.abc import Sequence
from typing import Any

from grpc import StatusCode
from tests.unit.client.fake_failures import Failure
from tests.unit.client.fake_server import FakeServer

from likewise.client import AsyncClient, InvalidArgument
from likewise.client.hits import Hits
from likewise.wire import decode_vectors


def test_concurrent_searches_of_an_async_client_share_calls_and_keep_their_answers(server: FakeServer) -> None:
    async def run() -> Sequence[Hits]:
        async with AsyncClient(server.address) as client:
            gallery = await client.create_gallery("g", dim=2)
            await gallery.upsert(["a", "b"], vectors=[[1, 0], [0, 1]], progress=False)
            return await asyncio.gather(
                *(gallery.search(vector=[1, 0] if number % 3 else [0, 1], k=1) for number in range(60))
            )

    found = asyncio.run(run())

    assert [hits.ids for hits in found] == [["a"] if number % 3 else ["b"] for number in range(60)]
    assert [len(decode_vectors(call.request.vectors)) for call in server.calls("SearchVectors")] == [60]
    assert found[0].coverage.fraction == 1.0


def test_a_server_that_is_away_for_a_moment_is_asked_again(server: FakeServer) -> None:
    server.fail("SearchVectors", Failure(StatusCode.UNAVAILABLE, "draining"))

    async def run() -> Sequence[Hits]:
        async with AsyncClient(server.address) as client:
            gallery = await client.create_gallery("g", dim=2)
            return await asyncio.gather(*(gallery.search(vector=[1, 0]) for _ in range(5)))

    assert len(asyncio.run(run())) == 5


def test_a_wrong_vector_is_refused_before_it_meets_the_others(server: FakeServer) -> None:
    async def run() -> Sequence[Any]:
        async with AsyncClient(server.address) as client:
            gallery = await client.create_gallery("g", dim=2)
            wrong: Any = ["x", "y"]
            return await asyncio.gather(
                gallery.search(vector=[1, 0]), gallery.search(vector=wrong), return_exceptions=True
            )

    found = asyncio.run(run())

    assert isinstance(found[0], Hits)
    assert isinstance(found[1], InvalidArgument)
