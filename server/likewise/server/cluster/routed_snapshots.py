"""Snapshots, exports and imports of a cluster's galleries, as a router serves them.

The controller, which has the store, makes them.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.server.cluster.follower import Follower
from likewise.server.errors import Unavailable
from likewise.server.protocols import GalleryHandle
from likewise.server.snapshot_messages import progress_of, snapshot_of
from likewise.server.transfers import Done
from likewise.shards import spec as specs
from likewise.shards.copying import Progress
from likewise.shards.snapshots import Snapshot
from likewise.shards.spec import GallerySpec
from likewise.v1 import gallery_service_pb2


class Home(Protocol):
    """Where the galleries are."""

    def controller(self) -> Follower:
        """Who leads to the controller."""
        ...

    async def shown(self, gallery_id: str, spec: GallerySpec) -> GalleryHandle:
        """The handle of a gallery, once the router's table has it."""
        ...


class RoutedSnapshots:
    """`snapshot_service.Snapshots` of a cluster."""

    def __init__(self, home: Home) -> None:
        self._home = home

    async def create(self, gallery: str, name: str, *, version: int | None, note: str) -> Snapshot:
        """See `snapshot_service.Snapshots.create`."""
        request = pb.CreateSnapshotRequest(gallery=gallery, snapshot=name, version=version, note=note)
        controller = self._home.controller().controller
        response = await controller.call(lambda stub: stub.CreateSnapshot, request, unavailable=Unavailable)
        return snapshot_of(response.snapshot)

    async def list(self, gallery: str) -> Sequence[Snapshot]:
        """See `snapshot_service.Snapshots.list`."""
        request = pb.ListSnapshotsRequest(gallery=gallery)
        controller = self._home.controller().controller
        response = await controller.call(lambda stub: stub.ListSnapshots, request, unavailable=Unavailable)
        return [snapshot_of(message) for message in response.snapshots]

    async def delete(self, gallery: str, name: str) -> None:
        """See `snapshot_service.Snapshots.delete`."""
        request = pb.DeleteSnapshotRequest(gallery=gallery, snapshot=name)
        controller = self._home.controller().controller
        await controller.call(lambda stub: stub.DeleteSnapshot, request, unavailable=Unavailable)

    async def restore(self, gallery: str, snapshot: str, name: str, *, read_only: bool) -> GalleryHandle:
        """See `snapshot_service.Snapshots.restore`."""
        request = pb.RestoreSnapshotRequest(gallery=gallery, snapshot=snapshot, name=name, read_only=read_only)
        controller = self._home.controller().controller
        response = await controller.call(lambda stub: stub.RestoreSnapshot, request, unavailable=Unavailable)
        return await self._home.shown(response.gallery.gallery_id, specs.from_message(response.gallery))

    async def export(
        self, gallery: str, snapshot: str, folder: str
    ) -> AsyncGenerator[Progress | Done[gallery_service_pb2.Export]]:
        """See `snapshot_service.Snapshots.export`."""
        request = pb.ExportGalleryRequest(gallery=gallery, snapshot=snapshot, folder=folder)
        controller = self._home.controller().controller
        answers = controller.stream(lambda stub: stub.ExportGallery, request, unavailable=Unavailable)
        async with aclosing(answers):
            async for answer in answers:
                progress = progress_of(answer.progress)
                yield Done(answer.export, progress) if answer.HasField("export") else progress

    async def load(self, folder: str, name: str, *, read_only: bool) -> AsyncGenerator[Progress | Done[GalleryHandle]]:
        """See `snapshot_service.Snapshots.load`."""
        request = pb.ImportGalleryRequest(folder=folder, name=name, read_only=read_only)
        controller = self._home.controller().controller
        answers = controller.stream(lambda stub: stub.ImportGallery, request, unavailable=Unavailable)
        async with aclosing(answers):
            async for answer in answers:
                progress = progress_of(answer.progress)
                if answer.HasField("gallery"):
                    spec = specs.from_message(answer.gallery)
                    yield Done(await self._home.shown(answer.gallery.gallery_id, spec), progress)
                else:
                    yield progress
