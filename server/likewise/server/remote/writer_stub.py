"""A writer that lives behind a channel."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from likewise.internal.v1 import writer_service_pb2 as pb
from likewise.internal.v1 import writer_service_pb2_grpc as pb_grpc
from likewise.server.errors import FailedPrecondition, InvalidRequest
from likewise.server.remote import arrow_ipc
from likewise.server.remote.channels import MAX_REQUEST_BYTES, Route
from likewise.server.remote.writer_servicer import FRAGMENTS_COMMITTED, FRAGMENTS_MISSING
from likewise.shards.protocols import FragmentsUnusable, Stage, StreamPosition, WriteResult
from likewise.v1 import common_pb2

if TYPE_CHECKING:
    WriterRoute = Route[pb_grpc.WriterServiceAsyncStub]
else:
    WriterRoute = Route


class WriterStub:
    """`Writer` and `BulkWriter` over `WriterService`.

    A call whose connection breaks ends with `Unavailable` although its commit may have happened; sent again with the
    same request id it is committed at most once.
    """

    def __init__(self, route: WriterRoute, *, gallery_id: str) -> None:
        self._route = route
        self._gallery_id = gallery_id

    async def upsert(
        self, rows: pa.RecordBatch, *, request_id: str = "", position: StreamPosition | None = None
    ) -> WriteResult:
        """See `Writer.upsert`.

        Raises:
            InvalidRequest: If the rows do not fit one message, which no public message of float32 vectors reaches.
        """
        data = arrow_ipc.encode(rows)
        if len(data) > MAX_REQUEST_BYTES - (1 << 20):
            raise InvalidRequest(f"{rows.num_rows} rows have {len(data)} bytes, the limit is {MAX_REQUEST_BYTES}")
        request = pb.WriterServiceUpsertRequest(gallery_id=self._gallery_id, rows=data, request_id=request_id)
        if position is not None:
            request.position.stream_id = position.stream_id
            request.position.sequence = position.sequence
            request.position.settled = position.settled
        response = await self._route.call(lambda stub: stub.Upsert, request)
        return WriteResult(rows=response.upserted, version=response.version, back_off_s=response.back_off_s)

    async def delete(
        self, *, ids: Sequence[str] = (), filter: common_pb2.Filter | None = None, request_id: str = ""
    ) -> WriteResult:
        """See `Writer.delete`."""
        request = pb.WriterServiceDeleteRequest(
            gallery_id=self._gallery_id, ids=ids, filter=filter, request_id=request_id
        )
        response = await self._route.call(lambda stub: stub.Delete, request)
        return WriteResult(rows=response.deleted, version=response.version)

    async def stage(self, rows: int) -> Stage:
        """See `BulkWriter.stage`."""
        request = pb.StageRequest(gallery_id=self._gallery_id, rows=rows)
        response = await self._route.call(lambda stub: stub.Stage, request)
        return Stage(response.uri, tuple(response.first_stamps))

    async def commit_fragments(self, fragments: Sequence[str], *, request_id: str) -> WriteResult:
        """See `BulkWriter.commit_fragments`."""
        request = pb.CommitFragmentsRequest(gallery_id=self._gallery_id, fragments=fragments, request_id=request_id)
        try:
            response = await self._route.call(lambda stub: stub.CommitFragments, request)
        except FailedPrecondition as error:
            if error.reason not in (FRAGMENTS_COMMITTED, FRAGMENTS_MISSING):
                raise
            raise FragmentsUnusable(str(error), committed=error.reason == FRAGMENTS_COMMITTED) from error
        return WriteResult(rows=response.upserted, version=response.version)

    async def stream_progress(self, stream_id: str) -> int:
        """See `Writer.stream_progress`."""
        request = pb.StreamProgressRequest(gallery_id=self._gallery_id, stream_id=stream_id)
        response = await self._route.call(lambda stub: stub.StreamProgress, request)
        return response.settled

    async def version(self) -> int:
        """See `Writer.version`."""
        response = await self._route.call(lambda stub: stub.Version, pb.VersionRequest(gallery_id=self._gallery_id))
        return response.version

    async def live_rows(self, shard: int, shards: int) -> int:
        """See `Writer.live_rows`."""
        request = pb.LiveRowsRequest(gallery_id=self._gallery_id, shard=shard, shards=shards)
        response = await self._route.call(lambda stub: stub.LiveRows, request)
        return response.rows
