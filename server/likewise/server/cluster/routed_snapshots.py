"""Snapshots of a cluster's galleries, as a router serves them: the controller, which has the store, makes them."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.server.cluster.follower import Follower
from likewise.server.errors import Unavailable, Unimplemented
from likewise.server.protocols import GalleryHandle
from likewise.server.snapshot_messages import snapshot_of
from likewise.server.transfers import Done
from likewise.shards import spec as specs
from likewise.shards.copying import Progress
from likewise.shards.snapshots import Snapshot
from likewise.shards.spec import GallerySpec
from likewise.shards.transfer import Manifest


class Home(Protocol):
    """Where the galleries are."""

    def controller(self) -> Follower:
        """Who leads to the controller."""
        ...

    async def shown(self, gallery_id: str, spec: GallerySpec) -> GalleryHandle:
        """The handle of a gallery, once the router's table has it."""
        ...


class RoutedSnapshots:
    """`snapshot_service.Snapshots` of a cluster; exports and imports are not among them."""

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

    def export(self, gallery: str, snapshot: str, folder: str) -> AsyncGenerator[Progress | Done[Manifest]]:
        """Not in a cluster."""
        raise _embedded_only()

    def load(self, folder: str, name: str, *, read_only: bool) -> AsyncGenerator[Progress | Done[GalleryHandle]]:
        """Not in a cluster."""
        raise _embedded_only()


def _embedded_only() -> Unimplemented:
    return Unimplemented(
        "exports and imports of galleries in a cluster are not served by this release; stop it and serve the store "
        "embedded, without --ray, for as long as that takes",
        reason="CLUSTER",
    )
