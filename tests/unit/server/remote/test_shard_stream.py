"""Searches of a remote shard as messages: when they go that way, and what becomes of those that a stream loses."""

import asyncio

import numpy as np
from tests.unit.server.remote.loopback import SPEC, Loopback, NumpyShard, rows
from tests.unit.server.waiting import until

from likewise.internal.v1 import shard_service_pb2_grpc
from likewise.server.remote.channels import Endpoint
from likewise.server.remote.shard_servicer import ShardServicer
from likewise.server.remote.shard_stub import ShardRoute, ShardStub, search_stream
from likewise.shards.protocols import Delta, SearchOptions

OPTIONS = SearchOptions(space="default", k=1)
UNIT = np.eye(4, dtype=np.float32)


async def _filled(shard: NumpyShard) -> None:
    await shard.apply(Delta(base_version=0, version=7, upserts=rows(["a", "b", "c", "d"], UNIT), deleted_ids=[]))


class Serving:
    """A shard behind an endpoint that can be stopped."""

    def __init__(self, shard: NumpyShard) -> None:
        self.endpoint = Endpoint("127.0.0.1")
        self.servicer = ShardServicer(shard, shard, spec=SPEC, number=1)
        shard_service_pb2_grpc.add_ShardServiceServicer_to_server(self.servicer, self.endpoint.server)


async def test_searches_go_by_the_stream_once_it_is_there(loopback: Loopback, numpy_shard: NumpyShard) -> None:
    await _filled(numpy_shard)
    route = await loopback.shard_route(numpy_shard)
    stream = search_stream(loopback.channels, route.addresses[0])
    stub = ShardStub(route, gallery_id=SPEC.gallery_id, shard=1, stream=stream)
    first = await stub.search(UNIT[:1], OPTIONS)  # a call, beside which the stream is opened
    await until(lambda: stream.ready)
    route.move([])  # calls lead nowhere now

    later = await asyncio.gather(*(stub.search(UNIT[i : i + 1], OPTIONS) for i in range(4)))

    assert [list(hits.ids) for hits in (first, *later)] == [["a"], ["a"], ["b"], ["c"], ["d"]]


async def test_a_shard_that_stops_answers_what_it_has_read_and_idle_streams_do_not_hold_it_up(
    loopback: Loopback, numpy_shard: NumpyShard
) -> None:
    await _filled(numpy_shard)
    serving = Serving(numpy_shard)
    address = await serving.endpoint.start()
    idle, busy = (search_stream(loopback.channels, address) for _ in range(2))
    await until(lambda: idle.ready and busy.ready)
    nowhere: ShardRoute = ShardRoute("shard 1", loopback.channels, shard_service_pb2_grpc.ShardServiceStub)
    numpy_shard.gate = asyncio.Event()
    stub = ShardStub(nowhere, gallery_id=SPEC.gallery_id, shard=1, stream=busy)
    waiting = asyncio.create_task(stub.search(UNIT[:1], OPTIONS))
    await until(lambda: numpy_shard.running == 1)

    serving.servicer.drain()
    stopping = asyncio.create_task(serving.endpoint.stop(grace_s=600.0))
    numpy_shard.gate.set()

    assert list((await waiting).ids) == ["a"]
    await asyncio.wait_for(stopping, 60)


async def test_what_a_lost_stream_left_unanswered_is_asked_again(loopback: Loopback, numpy_shard: NumpyShard) -> None:
    other = NumpyShard()
    await _filled(numpy_shard)
    await _filled(other)
    numpy_shard.gate = asyncio.Event()
    serving = Serving(numpy_shard)
    stream = search_stream(loopback.channels, await serving.endpoint.start())
    await until(lambda: stream.ready)
    route = await loopback.shard_route(other)
    stub = ShardStub(route, gallery_id=SPEC.gallery_id, shard=1, stream=stream)
    waiting = asyncio.create_task(stub.search(UNIT[1:2], OPTIONS))
    await until(lambda: numpy_shard.running == 1)

    await serving.endpoint.stop(grace_s=0)

    assert list((await waiting).ids) == ["b"]


async def test_a_server_without_such_streams_is_called(loopback: Loopback, numpy_shard: NumpyShard) -> None:
    await _filled(numpy_shard)

    class Old(ShardServicer):
        StreamSearch = shard_service_pb2_grpc.ShardServiceServicer.StreamSearch  # type: ignore[assignment]

    def register(endpoint: Endpoint) -> None:
        servicer = Old(numpy_shard, numpy_shard, spec=SPEC, number=1)
        shard_service_pb2_grpc.add_ShardServiceServicer_to_server(servicer, endpoint.server)

    address = await loopback.endpoint(register)
    stream = search_stream(loopback.channels, address)
    route: ShardRoute = ShardRoute(
        "shard 1", loopback.channels, shard_service_pb2_grpc.ShardServiceStub, addresses=[address]
    )
    stub = ShardStub(route, gallery_id=SPEC.gallery_id, shard=1, stream=stream)

    found = [await stub.search(UNIT[i : i + 1], OPTIONS) for i in (0, 1, 2, 3)]

    assert [list(hits.ids) for hits in found] == [["a"], ["b"], ["c"], ["d"]]
    assert not stream.ready
