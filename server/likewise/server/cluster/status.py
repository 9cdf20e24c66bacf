"""What a cluster is doing, for people: every part with its state, and how far each replica is behind. No Ray here."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.internal.v1 import shard_service_pb2_grpc, writer_service_pb2_grpc
from likewise.server.cluster.controller import Controller
from likewise.server.cluster.parts import EncoderPart
from likewise.server.cluster.supervisor import Supervisor
from likewise.server.remote import deadlines
from likewise.server.remote.channels import Channels
from likewise.server.remote.shard_stub import ShardRoute, ShardStub
from likewise.server.remote.writer_stub import WriterRoute, WriterStub
from likewise.shards import spec as specs
from likewise.shards.spec import GallerySpec

ANSWER_S: Final = 1.0
"""Longest wait for a part's own word; all are asked at once."""


async def status_of(controller: Controller, *, routers: Sequence[str] = ()) -> pb.StatusResponse:
    """Every part of the cluster now.

    Args:
        controller: Who keeps them up.
        routers: Where those that follow its table connect from.
    """
    channels = Channels()
    try:
        galleries = await asyncio.gather(
            *(_gallery(spec, writer, shards, channels) for spec, writer, shards in controller.parts_of_galleries())
        )
    finally:
        await channels.close()
    table = controller.board.table
    return pb.StatusResponse(
        galleries=galleries,
        encoders=[_encoder(encoder, table.models) for encoder in controller.models.supervisors],
        routers=sorted(routers),
        families=table.families,
    )


async def _gallery(
    spec: GallerySpec, writer: Supervisor, shards: Sequence[Sequence[Supervisor]], channels: Channels
) -> pb.GalleryStatus:
    async def shard_version(address: str, shard: int) -> int:
        route: ShardRoute = ShardRoute("", channels, shard_service_pb2_grpc.ShardServiceStub, addresses=[address])
        return (await ShardStub(route, gallery_id=spec.gallery_id, shard=shard).stats()).version

    async def writer_version(address: str) -> int:
        route: WriterRoute = WriterRoute("", channels, writer_service_pb2_grpc.WriterServiceStub, addresses=[address])
        return await WriterStub(route, gallery_id=spec.gallery_id).version()

    def asking(shard: int) -> Callable[[str], Awaitable[int]]:
        return lambda address: shard_version(address, shard)

    writing, *replicas = await asyncio.gather(
        _part(writer, writer_version),
        *(_part(replica, asking(number)) for number, copies in enumerate(shards) for replica in copies),
    )
    # The shards were asked beside the writer, and one of them may have heard of a version that it had not yet told.
    newest = max(part.version for part in (writing, *replicas))
    for part in replicas:
        if part.state == pb.PART_STATE_SERVING:
            part.lag = newest - part.version
    found = iter(replicas)
    return pb.GalleryStatus(
        gallery=specs.to_message(spec, version=newest),
        writer=writing,
        shards=[
            pb.ShardStatus(shard=number, replicas=[next(found) for _ in copies]) for number, copies in enumerate(shards)
        ],
    )


async def _part(part: Supervisor, version: Callable[[str], Awaitable[int]]) -> pb.PartStatus:
    status = _placed(part)
    if status.address:
        try:
            with deadlines.limited(ANSWER_S):
                async with asyncio.timeout(ANSWER_S):
                    status.version = await version(status.address)
        except Exception as error:
            status.state = pb.PART_STATE_SILENT
            status.message = str(error) or f"no answer in {ANSWER_S:.0f} s"
    return status


def _placed(part: Supervisor) -> pb.PartStatus:
    if part.serving is None:
        return pb.PartStatus(state=pb.PART_STATE_STARTING, message=part.failure)
    return pb.PartStatus(state=pb.PART_STATE_SERVING, address=part.serving.address)


def _encoder(encoder: Supervisor, models: Sequence[pb.ModelRoute]) -> pb.EncoderStatus:
    assert isinstance(encoder.part, EncoderPart)
    status = pb.EncoderStatus(family=encoder.part.family, replica=encoder.part.replica, part=_placed(encoder))
    for route in models:
        if status.part.address and status.part.address in route.addresses:
            status.models.add(name=route.model.name, version=route.model.version)
    return status
