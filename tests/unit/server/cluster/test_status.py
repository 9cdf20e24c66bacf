"""A cluster says what each of its parts is doing. Nothing here runs on Ray."""

import dataclasses
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc import aio
from tests.unit.server.cluster.placement import MODEL, SPEC, FakeCatalogue, FakePart, FakePlacement
from tests.unit.server.remote.loopback import Loopback, NumpyShard
from tests.unit.server.waiting import until
from typer.testing import CliRunner

from likewise.cli import cluster as command
from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.internal.v1 import controller_service_pb2_grpc as pb_grpc
from likewise.internal.v1 import shard_service_pb2_grpc
from likewise.server.cluster import status, supervisor
from likewise.server.cluster.controller import Controller
from likewise.server.cluster.controller_servicer import ControllerServicer
from likewise.server.cluster.parts import Serving, ShardPart
from likewise.server.remote.channels import Endpoint
from likewise.server.remote.shard_servicer import ShardServicer


class Replicas:
    """Shards behind endpoints of their own, found by their part's name."""

    def __init__(self, loopback: Loopback) -> None:
        self._loopback = loopback
        self.shards: dict[tuple[int, int], NumpyShard] = {}

    async def serve(self, part: ShardPart) -> str:
        shard = self.shards.setdefault((part.shard, part.replica), NumpyShard())
        servicer = ShardServicer(shard, shard, spec=part.spec, number=part.shard)
        return await self._loopback.endpoint(
            lambda endpoint: shard_service_pb2_grpc.add_ShardServiceServicer_to_server(servicer, endpoint.server)
        )


@pytest.fixture
def placement() -> FakePlacement:
    return FakePlacement()


@pytest.fixture
def replicas(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> Replicas:
    replicas = Replicas(loopback)
    plain = FakePart.start

    async def start(self: FakePart) -> Serving:
        serving = await plain(self)
        if isinstance(self.part, ShardPart):
            return dataclasses.replace(serving, address=await replicas.serve(self.part))
        return serving

    monkeypatch.setattr(FakePart, "start", start)
    monkeypatch.setattr(supervisor, "BACKOFF_S", (0.0, 0.0))
    return replicas


@pytest.fixture
async def controller(placement: FakePlacement, replicas: Replicas) -> AsyncIterator[Controller]:
    controller = Controller(FakeCatalogue(), placement, models=[MODEL])
    await controller.start()
    await controller.create(dataclasses.replace(SPEC, replicas=2))
    yield controller
    await controller.close(stop_parts=True)


async def test_each_replica_is_shown_with_how_far_it_is_behind(controller: Controller, replicas: Replicas) -> None:
    for number, shard in replicas.shards.items():
        shard.version = 4 if number == (1, 0) else 7

    (gallery,) = (await status.status_of(controller)).galleries

    shown = [[(part.state, part.version, part.lag) for part in shard.replicas] for shard in gallery.shards]
    serving = pb.PART_STATE_SERVING
    assert shown == [[(serving, 7, 0), (serving, 7, 0)], [(serving, 4, 3), (serving, 7, 0)]]
    assert [list(shard.addresses) for shard in controller.board.table.galleries[0].shards] == [
        [part.address for part in shard.replicas] for shard in gallery.shards
    ]


async def test_a_part_that_does_not_answer_and_one_that_does_not_start_say_so(
    controller: Controller, placement: FakePlacement
) -> None:
    (lost,) = [part for part in placement.of(ShardPart) if part.part.name.endswith("shard-0-of-2-replica-1")]
    placement.broken.add(lost.part.name)
    lost.lose()
    await until(lambda: any(part.failure for _, _, shards in controller.parts_of_galleries() for part in shards[0]))

    (gallery,) = (await status.status_of(controller)).galleries

    down = gallery.shards[0].replicas[1]
    assert (down.state, down.address, down.message) == (pb.PART_STATE_STARTING, "", "no memory")
    assert gallery.writer.state == pb.PART_STATE_SILENT  # nobody listens at a fake writer's address
    assert gallery.writer.message


async def test_routers_that_follow_the_table_are_listed_while_they_do(
    controller: Controller, loopback: Loopback
) -> None:
    def register(endpoint: Endpoint) -> None:
        pb_grpc.add_ControllerServiceServicer_to_server(ControllerServicer(controller), endpoint.server)

    async with aio.insecure_channel(await loopback.endpoint(register)) as channel:
        stub = pb_grpc.ControllerServiceStub(channel)
        watch = stub.Watch(pb.WatchRequest())
        await watch.read()
        following = await stub.Status(pb.StatusRequest())
        watch.cancel()

        async def gone() -> bool:
            return not (await stub.Status(pb.StatusRequest())).routers

        while not await gone():
            pass

    (router,) = following.routers
    assert router.startswith("127.0.0.1:")
    (encoder,) = following.encoders
    assert (encoder.family, encoder.replica, encoder.part.state) == ("shapes", 0, pb.PART_STATE_SERVING)


def test_a_wrong_address_is_an_error_that_names_it() -> None:
    done = CliRunner().invoke(command.app, ["status", "--controller", "127.0.0.1:1"])
    malformed = CliRunner().invoke(command.app, ["status", "--controller", "here"])

    assert done.exit_code == command.UNREACHABLE
    assert "no controller answers at 127.0.0.1:1" in done.output
    assert malformed.exit_code == command.WRONG_OPTIONS
    assert "must be HOST:PORT, got 'here'" in malformed.output


async def test_an_address_of_something_else_is_told_apart(loopback: Loopback) -> None:
    address = await loopback.endpoint(lambda endpoint: None)

    async with aio.insecure_channel(address) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await pb_grpc.ControllerServiceStub(channel).Status(pb.StatusRequest())

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
