"""Calls go to a replica that can be reached, wherever the routing table says it is."""

import asyncio

import numpy as np
import pytest
from tests.unit.server.remote.loopback import SPEC, Loopback, NumpyShard
from tests.unit.server.waiting import until

from likewise.server.remote.shard_stub import ShardStub
from likewise.shards.protocols import Overloaded, SearchOptions, Unavailable

QUERY = np.eye(4, dtype=np.float32)[:1]
OPTIONS = SearchOptions(space="default", k=1)
NOBODY = "127.0.0.1:1"


async def test_a_replica_that_cannot_be_reached_is_passed_over(loopback: Loopback) -> None:
    route = await loopback.shard_route(NumpyShard())
    route.move([NOBODY, *route.addresses])
    stub = ShardStub(route, gallery_id=SPEC.gallery_id, shard=1)

    for _ in range(4):
        assert (await stub.search(QUERY, OPTIONS)).ids == []


async def test_replicas_take_turns(loopback: Loopback) -> None:
    replicas = [NumpyShard(), NumpyShard()]
    route = await loopback.shard_route(*replicas)
    stub = ShardStub(route, gallery_id=SPEC.gallery_id, shard=1)
    for version, replica in enumerate(replicas, start=1):
        replica.version = version

    versions = [(await stub.search(QUERY, OPTIONS)).version for _ in range(4)]

    assert versions == [1, 2, 1, 2]


async def test_an_answer_of_the_replica_itself_is_no_reason_to_ask_another(loopback: Loopback) -> None:
    busy, idle = NumpyShard(), NumpyShard()
    busy.failure = Overloaded("64 wait, the limit is 64", retry_after_s=1.0)
    stub = ShardStub(await loopback.shard_route(busy, idle), gallery_id=SPEC.gallery_id, shard=1)

    with pytest.raises(Overloaded):
        await stub.search(QUERY, OPTIONS)


async def test_without_a_reachable_replica_the_part_is_unavailable_by_name(loopback: Loopback) -> None:
    route = await loopback.shard_route(NumpyShard())
    stub = ShardStub(route, gallery_id=SPEC.gallery_id, shard=1)

    for addresses in ([NOBODY], []):
        route.move(addresses)
        with pytest.raises(Unavailable, match=r"^shard 1 of gallery 'shoes' is not up"):
            await stub.search(QUERY, OPTIONS)


async def test_a_moved_route_leads_to_the_new_place(loopback: Loopback) -> None:
    old, new = NumpyShard(), NumpyShard()
    new.version = 8
    route = await loopback.shard_route(old)
    stub = ShardStub(route, gallery_id=SPEC.gallery_id, shard=1)
    await stub.search(QUERY, OPTIONS)

    route.move((await loopback.shard_route(new)).addresses)

    assert (await stub.search(QUERY, OPTIONS)).version == 8


async def test_a_closed_channel_is_passed_over(loopback: Loopback) -> None:
    route = await loopback.shard_route(NumpyShard())
    stub = ShardStub(route, gallery_id=SPEC.gallery_id, shard=1)
    await loopback.channels.keep(set())

    with pytest.raises(Unavailable):
        await stub.search(QUERY, OPTIONS)


async def test_a_channel_closed_under_a_call_is_no_cancellation_of_the_caller(loopback: Loopback) -> None:
    shard = NumpyShard()
    shard.gate = asyncio.Event()
    stub = ShardStub(await loopback.shard_route(shard), gallery_id=SPEC.gallery_id, shard=1)
    call = asyncio.create_task(stub.search(QUERY, OPTIONS))
    await until(lambda: shard.running == 1)

    await loopback.channels.keep(set())

    with pytest.raises(Unavailable):
        await call
