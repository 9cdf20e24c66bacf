"""likewise.internal.v1.BulkService: where bulk ingest's workers write, and the one commit at the end."""

from collections.abc import Callable
from typing import Any, Final

from likewise.internal.v1 import bulk_service_pb2 as pb
from likewise.internal.v1 import bulk_service_pb2_grpc as pb_grpc
from likewise.server import access_log, validate
from likewise.server.errors import FailedPrecondition, InvalidRequest
from likewise.server.metrics import Metrics
from likewise.server.protocols import Galleries, GalleryHandle
from likewise.server.remote.writer_servicer import FRAGMENTS_COMMITTED, FRAGMENTS_MISSING
from likewise.shards import spec as specs
from likewise.shards.protocols import BulkWriter, FragmentsUnusable
from likewise.shards.spec import GallerySpec

MAX_ROWS: Final = 10_000_000_000


class BulkService(pb_grpc.BulkServiceServicer):
    """Bulk ingest into the galleries.

    Args:
        galleries: Where they are.
        metrics: Where writes are counted.
        controller: Says where the cluster's controller is; "" without a cluster.
    """

    def __init__(self, *, galleries: Galleries, metrics: Metrics, controller: Callable[[], str]) -> None:
        self._galleries = galleries
        self._metrics = metrics
        self._controller = controller

    async def Begin(self, request: pb.BeginBulkRequest, context: Any) -> pb.BeginBulkResponse:
        """See bulk_service.proto."""
        handle, writer = self._target(request.gallery)
        if request.rows > MAX_ROWS:
            raise InvalidRequest(f"rows must be at most {MAX_ROWS:,}, got {request.rows:,}", field="rows")
        stage = await writer.stage(request.rows)
        return pb.BeginBulkResponse(
            gallery=specs.to_message(handle.spec, version=await handle.writer.version()),
            uri=stage.uri,
            first_stamps=stage.first_stamps,
            controller=self._controller(),
        )

    async def Commit(self, request: pb.CommitBulkRequest, context: Any) -> pb.CommitBulkResponse:
        """See bulk_service.proto."""
        handle, writer = self._target(request.gallery)
        ingest_id = validate.request_id(request.ingest_id, "ingest_id")
        _check_same(specs.from_message(request.written_for), handle.spec)
        try:
            result = await writer.commit_fragments(request.fragments, request_id=ingest_id)
        except FragmentsUnusable as error:
            reason = FRAGMENTS_COMMITTED if error.committed else FRAGMENTS_MISSING
            raise FailedPrecondition(str(error), reason=reason) from error
        access_log.current().rows = result.rows
        self._metrics.written.labels("bulk").inc(result.rows)
        return pb.CommitBulkResponse(upserted=result.rows, version=result.version)

    def _target(self, gallery: str) -> tuple[GalleryHandle, BulkWriter]:
        handle = self._galleries.get(validate.required(gallery, "gallery"))
        access_log.current().gallery = handle.spec.name
        if handle.bulk is None:
            raise FailedPrecondition(
                f"gallery {handle.spec.name!r} takes no writes: it is a snapshot, read-only", reason="GALLERY_READ_ONLY"
            )
        return handle, handle.bulk


def _check_same(then: GallerySpec, now: GallerySpec) -> None:
    """Refuse files whose rows mean something else now; attributes that were added since are null in them."""
    kept = {attribute.name: attribute.type for attribute in now.attributes}
    gone = [attribute.name for attribute in then.attributes if kept.get(attribute.name) != attribute.type]
    if then.gallery_id != now.gallery_id or then.spaces != now.spaces or gone:
        raise FailedPrecondition(
            f"gallery {now.name!r} is another than the rows were written for "
            f"(id {now.gallery_id}, then {then.gallery_id}; attributes gone: {gone}): begin again",
            reason="GALLERY_CHANGED",
        )
