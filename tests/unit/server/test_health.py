"""Health, reflection and the life of a server: loading, serving, draining."""

import asyncio
import socket
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.unit.server.fakes import FakeGalleries, FakeModels, fake_server, info
from tests.unit.server.stubs import Stubs, by_vector, connected, shop, vectors
from tests.unit.server.waiting import until

from likewise.server.app import Server, ServerOptions, StartupError

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = [f"likewise.v1.{name}Service" for name in ("Search", "Item", "Gallery", "Model")]
QUERY = vectors(1)[0]


class _SlowPart:
    """Opens when it is told to."""

    def __init__(self) -> None:
        self.may_open = asyncio.Event()
        self.closed = False

    async def open(self) -> None:
        await self.may_open.wait()

    async def close(self) -> None:
        self.closed = True


def _server(part: _SlowPart) -> Server:
    return Server(ServerOptions(port=0), models=FakeModels(), galleries=FakeGalleries(), parts=(part,))


@pytest.mark.parametrize("service", ["", *SERVICES, "inference.GRPCInferenceService"])
async def test_every_service_is_serving_once_the_server_is(service: str) -> None:
    async with shop() as stubs:
        response = await stubs.health.Check(health_pb2.HealthCheckRequest(service=service))

    assert response.status == SERVING


async def test_an_unknown_service_is_not_found() -> None:
    async with shop() as stubs:
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.health.Check(health_pb2.HealthCheckRequest(service="nothing"))
        watched = await _first(stubs.health.Watch(health_pb2.HealthCheckRequest(service="nothing")))

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert watched == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def test_a_loading_server_answers_probes_and_refuses_the_rest() -> None:
    part = _SlowPart()
    server = _server(part)
    starting = asyncio.create_task(server.start())
    await until(lambda: server.listening)
    async with aio.insecure_channel(server.address) as channel:
        stubs = Stubs(channel, server.address)
        watch = stubs.health.Watch(health_pb2.HealthCheckRequest())
        loading = (await watch.read()).status
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(by_vector(QUERY))
        part.may_open.set()
        await starting
        ready = (await watch.read()).status
        watch.cancel()
    await server.stop()

    assert (loading, ready) == (NOT_SERVING, SERVING)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert info(caught.value).reason == "SERVER_LOADING"


async def test_draining_ends_watches_finishes_running_calls_and_refuses_new_ones() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=1) as other:
        await other.channel.close()
    server = fake_server(galleries)
    shard = galleries.shards("shop")[0]
    shard.gate = asyncio.Event()
    await server.start()
    async with aio.insecure_channel(server.address) as channel:
        stubs = Stubs(channel, server.address)
        first, second = (stubs.health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2))
        assert [(await watch.read()).status for watch in (first, second)] == [SERVING, SERVING]
        shard.batches.clear()
        running = stubs.search.Search(by_vector(QUERY))
        await until(lambda: bool(shard.batches))

        stopping = asyncio.create_task(server.stop())
        told = [await _rest(watch) for watch in (first, second)]
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(by_vector(QUERY))
        shard.gate.set()
        response = await running
        await stopping

    assert told == [[NOT_SERVING], [NOT_SERVING]]
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(response.hits.ids) == 10


async def test_a_watcher_who_leaves_does_not_silence_the_others() -> None:
    server = fake_server(FakeGalleries())
    await server.start()
    async with aio.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        leaving, staying = (stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2))
        await leaving.read()
        await staying.read()
        leaving.cancel()
        await asyncio.gather(leaving.read(), return_exceptions=True)
        stopping = asyncio.create_task(server.stop())
        told = await _rest(staying)
        await stopping

    assert told == [NOT_SERVING]


async def test_parts_close_when_another_cannot_open() -> None:
    class Broken:
        async def open(self) -> None:
            raise StartupError("no such store")

        async def close(self) -> None:
            pass

    part = _SlowPart()
    part.may_open.set()
    server = Server(ServerOptions(port=0), models=FakeModels(), galleries=FakeGalleries(), parts=(part, Broken()))

    with pytest.raises(StartupError, match="no such store"):
        await server.start()

    assert part.closed


async def test_a_port_in_use_is_told_before_anything_is_opened() -> None:
    part = _SlowPart()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Server(ServerOptions(port=port), models=FakeModels(), galleries=FakeGalleries(), parts=(part,))

        with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            await server.start()


async def test_reflection_names_every_service() -> None:
    async with connected(fake_server(FakeGalleries())) as stubs:
        stub = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = await _first_message(stub.ServerReflectionInfo(iter([request])))

    names = {service.name for service in answer.list_services_response.service}
    assert names >= {*SERVICES, "grpc.health.v1.Health"}


async def _first(call: Any) -> int:
    status: int = (await call.read()).status
    call.cancel()
    return status


async def _first_message(call: Any) -> reflection_pb2.ServerReflectionResponse:
    return await call.read()


async def _rest(watch: Any) -> list[int]:
    """What a watch still says until the server ends it."""
    states = []
    while (response := await watch.read()) is not aio.EOF:
        states.append(response.status)
    return states
