"""The part of likewise.v1.GalleryService about snapshots, exports and imports."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Protocol, runtime_checkable

from likewise.server import access_log, validate
from likewise.server.errors import Unimplemented
from likewise.server.gallery_message import described
from likewise.server.protocols import Galleries, GalleryHandle
from likewise.server.snapshot_messages import progress_message, snapshot_message
from likewise.server.transfers import Done
from likewise.server.validate_galleries import page_size
from likewise.shards.copying import Progress
from likewise.shards.snapshots import Snapshot
from likewise.v1 import gallery_service_pb2 as pb


class Snapshots(Protocol):
    """Named versions of galleries, and whole galleries as folders."""

    async def create(self, gallery: str, name: str, *, version: int | None, note: str) -> Snapshot:
        """Name a version, the newest if None; durable when it returns."""
        ...

    async def list(self, gallery: str) -> Sequence[Snapshot]:
        """All of a gallery, by name."""
        ...

    async def delete(self, gallery: str, name: str) -> None:
        """Forget one."""
        ...

    async def restore(self, gallery: str, snapshot: str, name: str, *, read_only: bool) -> GalleryHandle:
        """Make a gallery of one and serve it."""
        ...

    def export(self, gallery: str, snapshot: str, folder: str) -> AsyncGenerator[Progress | Done[pb.Export]]:
        """Write a gallery to a folder of the export root; "" is the newest version."""
        ...

    def load(self, folder: str, name: str, *, read_only: bool) -> AsyncGenerator[Progress | Done[GalleryHandle]]:
        """Make a gallery of such a folder and serve it; "" is the exported one's name."""
        ...


@runtime_checkable
class HasSnapshots(Protocol):
    """Galleries that have them."""

    @property
    def snapshots(self) -> Snapshots:
        """Theirs."""
        ...


class SnapshotCalls:
    """Methods of `GalleryService`."""

    _galleries: Galleries

    async def CreateSnapshot(
        self, request: pb.GalleryServiceCreateSnapshotRequest, context: Any
    ) -> pb.GalleryServiceCreateSnapshotResponse:
        """See gallery_service.proto."""
        version = request.version if request.HasField("version") else None
        made = await self._snapshots(request.gallery).create(
            request.gallery,
            validate.required(request.snapshot, "snapshot"),
            version=version,
            note=request.note,
        )
        return pb.GalleryServiceCreateSnapshotResponse(snapshot=snapshot_message(made))

    async def ListSnapshots(
        self, request: pb.GalleryServiceListSnapshotsRequest, context: Any
    ) -> pb.GalleryServiceListSnapshotsResponse:
        """See gallery_service.proto."""
        limit = page_size(request)
        key = ("snapshots", request.gallery)
        after = validate.page_start(request.page_token, key)
        found = [one for one in await self._snapshots(request.gallery).list(request.gallery) if one.name > after]
        chosen = found[:limit]
        return pb.GalleryServiceListSnapshotsResponse(
            snapshots=[snapshot_message(one) for one in chosen],
            next_page_token=validate.page_token(chosen[-1].name, key) if len(found) > limit else "",
        )

    async def DeleteSnapshot(
        self, request: pb.GalleryServiceDeleteSnapshotRequest, context: Any
    ) -> pb.GalleryServiceDeleteSnapshotResponse:
        """See gallery_service.proto."""
        snapshots = self._snapshots(request.gallery)
        await snapshots.delete(request.gallery, validate.required(request.snapshot, "snapshot"))
        return pb.GalleryServiceDeleteSnapshotResponse()

    async def RestoreSnapshot(
        self, request: pb.GalleryServiceRestoreSnapshotRequest, context: Any
    ) -> pb.GalleryServiceRestoreSnapshotResponse:
        """See gallery_service.proto."""
        handle = await self._snapshots(request.gallery).restore(
            request.gallery,
            validate.required(request.snapshot, "snapshot"),
            validate.required(request.name, "name"),
            read_only=request.read_only,
        )
        return pb.GalleryServiceRestoreSnapshotResponse(gallery=await described(handle))

    async def ExportGallery(
        self, request: pb.GalleryServiceExportGalleryRequest, context: Any
    ) -> AsyncIterator[pb.GalleryServiceExportGalleryResponse]:
        """See gallery_service.proto."""
        snapshots = self._snapshots(request.gallery)
        folder = validate.required(request.folder, "folder")
        async with aclosing(snapshots.export(request.gallery, request.snapshot, folder)) as steps:
            async for step in steps:
                if isinstance(step, Done):
                    progress = progress_message(step.progress)
                    yield pb.GalleryServiceExportGalleryResponse(progress=progress, export=step.result)
                else:
                    yield pb.GalleryServiceExportGalleryResponse(progress=progress_message(step))

    async def ImportGallery(
        self, request: pb.GalleryServiceImportGalleryRequest, context: Any
    ) -> AsyncIterator[pb.GalleryServiceImportGalleryResponse]:
        """See gallery_service.proto."""
        folder = validate.required(request.folder, "folder")
        access_log.current().gallery = request.name
        async with aclosing(self._served().load(folder, request.name, read_only=request.read_only)) as steps:
            async for step in steps:
                if isinstance(step, Done):
                    gallery = await described(step.result)
                    yield pb.GalleryServiceImportGalleryResponse(
                        progress=progress_message(step.progress), gallery=gallery
                    )
                else:
                    yield pb.GalleryServiceImportGalleryResponse(progress=progress_message(step))

    def _snapshots(self, gallery: str) -> Snapshots:
        self._galleries.get(validate.required(gallery, "gallery"))
        access_log.current().gallery = gallery
        return self._served()

    def _served(self) -> Snapshots:
        if not isinstance(self._galleries, HasSnapshots):
            raise Unimplemented("snapshots, exports and imports are not served here")
        return self._galleries.snapshots
