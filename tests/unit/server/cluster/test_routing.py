"""Routers see galleries and models as the controller's table says, through changes and lost connections."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import numpy as np
import pytest
from tests.unit.server.cluster.placement import SPEC, FakeCatalogue, FakePlacement
from tests.unit.server.remote.loopback import Loopback
from tests.unit.server.waiting import until

from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.internal.v1 import controller_service_pb2_grpc as pb_grpc
from likewise.server import reshape
from likewise.server.cluster import follower as following
from likewise.server.cluster.controller import Controller
from likewise.server.cluster.controller_servicer import ControllerServicer
from likewise.server.cluster.router import Routing
from likewise.server.cluster.routing import Board
from likewise.server.errors import AlreadyExists, FailedPrecondition, NotFound, ServiceError
from likewise.server.remote.channels import Endpoint
from likewise.shards.protocols import SearchOptions, Unavailable


class Cluster:
    """A controller behind an endpoint that can be moved."""

    def __init__(self, loopback: Loopback) -> None:
        self._loopback = loopback
        self._endpoint: Endpoint | None = None
        self.placement = FakePlacement()
        self.controller = Controller(FakeCatalogue(), self.placement, connect=self.placement.connect)
        self.address = ""

    async def serve(self) -> None:
        """Serve at another address than before."""
        if self._endpoint is not None:
            await self._endpoint.stop(grace_s=0)

        def register(endpoint: Endpoint) -> None:
            self._endpoint = endpoint
            pb_grpc.add_ControllerServiceServicer_to_server(ControllerServicer(self.controller), endpoint.server)

        self.address = await self._loopback.endpoint(register)

    async def resolve(self) -> str:
        return self.address


@pytest.fixture
async def cluster(loopback: Loopback) -> AsyncIterator[Cluster]:
    cluster = Cluster(loopback)
    await cluster.controller.start()
    await cluster.serve()
    yield cluster
    await cluster.controller.close(stop_parts=True)


@pytest.fixture
async def routing(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Routing]:
    monkeypatch.setattr(following, "BACKOFF_S", (0.0, 0.01))
    routing = Routing(cluster.resolve)
    await routing.start(timeout_s=10)
    yield routing
    await routing.close()


async def test_a_gallery_made_through_a_router_can_be_used_at_once(routing: Routing) -> None:
    handle = await routing.galleries.create(SPEC)

    assert handle.spec.shards == len(handle.shards) == 2
    assert routing.galleries.get("shoes") is handle
    assert list(routing.galleries.handles()) == [handle]


async def test_errors_of_the_controller_reach_the_caller_typed(routing: Routing) -> None:
    await routing.galleries.create(SPEC)

    with pytest.raises(AlreadyExists, match="the gallery 'shoes' exists already"):
        await routing.galleries.create(SPEC)


async def test_an_unknown_gallery_is_not_found_and_the_known_ones_are_named(routing: Routing) -> None:
    await routing.galleries.create(SPEC)

    with pytest.raises(NotFound, match=r"no gallery 'hats', there are \['shoes'\]"):
        routing.galleries.get("hats")


async def test_a_deleted_gallery_is_gone_when_the_call_returns(routing: Routing) -> None:
    await routing.galleries.create(SPEC)

    await routing.galleries.delete("shoes")

    assert list(routing.galleries.handles()) == []


async def test_changes_made_through_another_router_are_seen(cluster: Cluster, routing: Routing) -> None:
    await cluster.controller.create(SPEC)

    await until(lambda: len(routing.galleries.handles()) == 1)


async def test_a_router_finds_a_controller_that_has_moved(cluster: Cluster, routing: Routing) -> None:
    await cluster.serve()

    async with asyncio.timeout(10):
        while True:
            try:
                handle = await routing.galleries.create(SPEC)
                break
            except ServiceError:  # not found yet
                await asyncio.sleep(0)

    assert handle.spec.name == "shoes"


async def test_a_router_follows_a_new_controller_whose_clock_is_behind_the_old_one(
    cluster: Cluster, routing: Routing
) -> None:
    known = cluster.controller.board.table.version
    old, cluster.controller = cluster.controller, Controller(FakeCatalogue(), FakePlacement())
    cluster.controller.board = Board(first_version=known - 3_600_000)  # an hour
    await cluster.controller.start()
    await cluster.controller.create(SPEC)

    await cluster.serve()

    await until(lambda: [handle.spec.name for handle in routing.galleries.handles()] == ["shoes"])
    await routing.galleries.delete("shoes")
    await old.close(stop_parts=True)


async def test_handles_stay_valid_while_parts_move(routing: Routing, cluster: Cluster) -> None:
    handle = await routing.galleries.create(SPEC)
    table = pb.RoutingTable()
    table.CopyFrom(cluster.controller.board.table)
    for shard in table.galleries[0].shards:
        shard.addresses[:] = []

    routing.galleries.take(table)

    assert routing.galleries.get("shoes") is handle
    with pytest.raises(Unavailable, match="shard 0 of gallery 'shoes' is not up"):
        await handle.shards[0].search(np.ones((1, 4), np.float32), SearchOptions(space="default", k=1))


async def test_channels_to_replaced_shards_stay_while_a_call_has_their_handle(
    routing: Routing, cluster: Cluster
) -> None:
    old = await routing.galleries.create(SPEC)
    before = {address for shard in cluster.controller.board.table.galleries[0].shards for address in shard.addresses}

    new = await routing.galleries.update(dataclasses.replace(SPEC, shards=4))

    assert (len(old.shards), len(new.shards)) == (2, 4)
    assert routing.galleries.lingering() == before
    del old
    assert routing.galleries.lingering() == set()


async def test_a_failed_check_reaches_the_caller_with_its_figures(routing: Routing, cluster: Cluster) -> None:
    handle = await routing.galleries.create(SPEC)
    cluster.placement.lacking.add(3)

    with pytest.raises(FailedPrecondition, match="check of counts") as caught:
        await routing.galleries.update(dataclasses.replace(SPEC, shards=4))

    assert caught.value.reason == reshape.CHECK_FAILED
    assert {key: caught.value.metadata[key] for key in ("check", "shard", "got", "expected")} == {
        "check": "counts",
        "shard": "3",
        "got": "0",
        "expected": "1",
    }
    assert routing.galleries.get("shoes") is handle


async def test_a_table_that_says_the_same_is_not_published() -> None:
    board = Board(first_version=7)
    route = pb.GalleryRoute(writer="127.0.0.1:1")

    board.publish([route], [])
    board.publish([route], [])

    assert board.table.version == 8


async def test_a_watcher_gets_the_newest_table_and_then_each_change() -> None:
    board = Board(first_version=7)
    watch = board.watch(7)
    board.publish([pb.GalleryRoute(writer="127.0.0.1:1")], [])
    board.publish([pb.GalleryRoute(writer="127.0.0.1:2")], [])

    assert (await anext(watch)).version == 9
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    assert not waiting.done()
    board.publish([], [])
    assert (await waiting).version == 10
