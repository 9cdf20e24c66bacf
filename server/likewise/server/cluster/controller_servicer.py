"""`ControllerService` around a controller."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from urllib.parse import unquote

from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.internal.v1 import controller_service_pb2_grpc as pb_grpc
from likewise.server.cluster.controller import Controller
from likewise.server.cluster.model_messages import recorded_of, versions_of
from likewise.server.cluster.status import status_of
from likewise.server.remote.channels import Context
from likewise.server.snapshot_messages import progress_message, snapshot_message
from likewise.server.transfers import Done
from likewise.shards import spec as specs
from likewise.v1 import gallery_service_pb2


class ControllerServicer(pb_grpc.ControllerServiceServicer):
    """Answers routers."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._watching: Counter[str] = Counter()

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        """See the proto."""
        peer = context.peer()
        self._watching[peer] += 1
        try:
            async for table in self._controller.board.watch(request.known_version):
                yield pb.WatchResponse(table=table)
        finally:
            self._watching[peer] -= 1
            if not self._watching[peer]:
                del self._watching[peer]

    async def CreateGallery(self, request: pb.CreateGalleryRequest, context: Context) -> pb.CreateGalleryResponse:
        """See the proto."""
        return pb.CreateGalleryResponse(gallery=await self._controller.create(_spec(request.spec)))

    async def UpdateGallery(self, request: pb.UpdateGalleryRequest, context: Context) -> pb.UpdateGalleryResponse:
        """See the proto."""
        min_recall = request.min_recall if request.HasField("min_recall") else None
        gallery = await self._controller.update(_spec(request.spec), min_recall=min_recall)
        return pb.UpdateGalleryResponse(gallery=gallery)

    async def DeleteGallery(self, request: pb.DeleteGalleryRequest, context: Context) -> pb.DeleteGalleryResponse:
        """See the proto."""
        await self._controller.delete(request.name)
        return pb.DeleteGalleryResponse()

    async def CreateSnapshot(self, request: pb.CreateSnapshotRequest, context: Context) -> pb.CreateSnapshotResponse:
        """See the proto."""
        version = request.version if request.HasField("version") else None
        made = await self._controller.create_snapshot(
            request.gallery, request.snapshot, version=version, note=request.note
        )
        return pb.CreateSnapshotResponse(snapshot=snapshot_message(made))

    async def ListSnapshots(self, request: pb.ListSnapshotsRequest, context: Context) -> pb.ListSnapshotsResponse:
        """See the proto."""
        found = await self._controller.snapshots_of(request.gallery)
        return pb.ListSnapshotsResponse(snapshots=[snapshot_message(one) for one in found])

    async def DeleteSnapshot(self, request: pb.DeleteSnapshotRequest, context: Context) -> pb.DeleteSnapshotResponse:
        """See the proto."""
        await self._controller.delete_snapshot(request.gallery, request.snapshot)
        return pb.DeleteSnapshotResponse()

    async def RestoreSnapshot(self, request: pb.RestoreSnapshotRequest, context: Context) -> pb.RestoreSnapshotResponse:
        """See the proto."""
        gallery = await self._controller.restore(
            request.gallery, request.snapshot, request.name, read_only=request.read_only
        )
        return pb.RestoreSnapshotResponse(gallery=gallery)

    async def ExportGallery(
        self, request: pb.ExportGalleryRequest, context: Context
    ) -> AsyncIterator[pb.ExportGalleryResponse]:
        """See the proto."""
        exporting = self._controller.transfers.export(request.gallery, request.snapshot, request.folder)
        async with aclosing(exporting) as steps:
            async for step in steps:
                if isinstance(step, Done):
                    yield pb.ExportGalleryResponse(progress=progress_message(step.progress), export=step.result)
                else:
                    yield pb.ExportGalleryResponse(progress=progress_message(step))

    async def ImportGallery(
        self, request: pb.ImportGalleryRequest, context: Context
    ) -> AsyncIterator[pb.ImportGalleryResponse]:
        """See the proto."""
        importing = self._controller.transfers.load(request.folder, request.name, read_only=request.read_only)
        async with aclosing(importing) as steps:
            async for step in steps:
                if isinstance(step, Done):
                    yield pb.ImportGalleryResponse(progress=progress_message(step.progress), gallery=step.result)
                else:
                    yield pb.ImportGalleryResponse(progress=progress_message(step))

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        """See the proto."""
        version = request.version if request.HasField("version") else None
        return pb.LoadModelResponse(model=await self._controller.models.load(request.name, version))

    async def SwitchModels(self, request: pb.SwitchModelsRequest, context: Context) -> pb.SwitchModelsResponse:
        """See the proto."""
        expected = versions_of(request.expected) if request.HasField("expected") else None
        await self._controller.models.switch(request.family.name, recorded_of(request.family), expected=expected)
        return pb.SwitchModelsResponse()

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        """See the proto."""
        await self._controller.models.unload(request.name, request.version)
        return pb.UnloadModelResponse()

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        """See the proto."""
        # "ipv4:10.0.0.7:41234" and "ipv6:%5B::1%5D:41234", as gRPC names peers.
        routers = [unquote(peer.partition(":")[2]) for peer in self._watching]
        return await status_of(self._controller, routers=routers)


def _spec(message: gallery_service_pb2.GallerySpec) -> specs.GallerySpec:
    return specs.from_message(gallery_service_pb2.Gallery(spec=message))
