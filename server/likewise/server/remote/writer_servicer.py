"""`WriterService` around the writer of one gallery."""

from typing import Final

from likewise.internal.v1 import writer_service_pb2 as pb
from likewise.internal.v1 import writer_service_pb2_grpc as pb_grpc
from likewise.server.errors import FailedPrecondition, InvalidRequest
from likewise.server.remote import arrow_ipc
from likewise.server.remote.channels import Context
from likewise.shards.protocols import BulkWriter, FragmentsUnusable, StreamPosition, Writer

FRAGMENTS_COMMITTED: Final = "FRAGMENTS_COMMITTED"
FRAGMENTS_MISSING: Final = "FRAGMENTS_MISSING"


class WriterServicer(pb_grpc.WriterServiceServicer):
    """Answers calls that mean this gallery and refuses all others."""

    def __init__(self, writer: Writer, bulk: BulkWriter, *, gallery_id: str) -> None:
        self._writer = writer
        self._bulk = bulk
        self._gallery_id = gallery_id

    async def Upsert(self, request: pb.WriterServiceUpsertRequest, context: Context) -> pb.WriterServiceUpsertResponse:
        """See the proto."""
        self._check(request.gallery_id)
        position = None
        if request.HasField("position"):
            given = request.position
            position = StreamPosition(given.stream_id, given.sequence, given.settled)
        result = await self._writer.upsert(
            arrow_ipc.decode(request.rows), request_id=request.request_id, position=position
        )
        return pb.WriterServiceUpsertResponse(
            upserted=result.rows, version=result.version, back_off_s=result.back_off_s
        )

    async def Delete(self, request: pb.WriterServiceDeleteRequest, context: Context) -> pb.WriterServiceDeleteResponse:
        """See the proto."""
        self._check(request.gallery_id)
        result = await self._writer.delete(
            ids=list(request.ids),
            filter=request.filter if request.HasField("filter") else None,
            request_id=request.request_id,
        )
        return pb.WriterServiceDeleteResponse(deleted=result.rows, version=result.version)

    async def Stage(self, request: pb.StageRequest, context: Context) -> pb.StageResponse:
        """See the proto."""
        self._check(request.gallery_id)
        stage = await self._bulk.stage(request.rows)
        return pb.StageResponse(uri=stage.uri, first_stamps=stage.first_stamps)

    async def CommitFragments(self, request: pb.CommitFragmentsRequest, context: Context) -> pb.CommitFragmentsResponse:
        """See the proto."""
        self._check(request.gallery_id)
        try:
            result = await self._bulk.commit_fragments(request.fragments, request_id=request.request_id)
        except FragmentsUnusable as error:
            reason = FRAGMENTS_COMMITTED if error.committed else FRAGMENTS_MISSING
            raise FailedPrecondition(str(error), reason=reason) from error
        return pb.CommitFragmentsResponse(upserted=result.rows, version=result.version)

    async def StreamProgress(self, request: pb.StreamProgressRequest, context: Context) -> pb.StreamProgressResponse:
        """See the proto."""
        self._check(request.gallery_id)
        return pb.StreamProgressResponse(settled=await self._writer.stream_progress(request.stream_id))

    async def Version(self, request: pb.VersionRequest, context: Context) -> pb.VersionResponse:
        """See the proto."""
        self._check(request.gallery_id)
        return pb.VersionResponse(version=await self._writer.version())

    async def LiveRows(self, request: pb.LiveRowsRequest, context: Context) -> pb.LiveRowsResponse:
        """See the proto."""
        self._check(request.gallery_id)
        if request.shard >= request.shards:
            raise InvalidRequest(f"shard must be below shards, got {request.shard} of {request.shards}", field="shard")
        return pb.LiveRowsResponse(rows=await self._writer.live_rows(request.shard, request.shards))

    def _check(self, gallery_id: str) -> None:
        if gallery_id != self._gallery_id:
            raise FailedPrecondition(
                f"the call means the writer of gallery {gallery_id!r}, this is that of {self._gallery_id!r}",
                reason="ANOTHER_WRITER",
            )
