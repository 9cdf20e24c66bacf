"""likewise.v1.ItemService: write, read, page and count items."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from likewise.server import access_log, read, validate
from likewise.server.errors import Unavailable
from likewise.server.metrics import Metrics
from likewise.server.protocols import Galleries, GalleryHandle, Models
from likewise.server.upsert import Packer
from likewise.server.upsert_stream import UpsertStream
from likewise.server.validate_items import MAX_GET_IDS, deletion, page_size
from likewise.server.validate_search import filter_bytes
from likewise.server.version_tokens import VersionTokens
from likewise.server.write_room import WriteRoom
from likewise.shards.columns import ColumnError
from likewise.shards.protocols import StreamPosition, WriteResult
from likewise.v1 import common_pb2, item_service_pb2_grpc
from likewise.v1 import item_service_pb2 as pb


class ItemService(item_service_pb2_grpc.ItemServiceServicer):
    """Items of the galleries.

    Args:
        galleries: Where they are.
        models: Encoders of images and texts.
        metrics: Where writes are counted.
        executor: Runs Arrow and numpy work on large requests.
        stream_in_flight: Messages of one stream in work at the same time.
        write_bytes: Bytes of upserts in work at the same time, of all calls and streams together.
        tokens: What is known of galleries' versions; by default nothing yet.
    """

    def __init__(
        self,
        *,
        galleries: Galleries,
        models: Models,
        metrics: Metrics,
        executor: Executor,
        stream_in_flight: int,
        write_bytes: int,
        tokens: VersionTokens | None = None,
    ) -> None:
        self._galleries = galleries
        self._metrics = metrics
        self._executor = executor
        self._packer = Packer(models=models, executor=executor)
        self._stream_in_flight = stream_in_flight
        self._room = WriteRoom(write_bytes)
        self._tokens = tokens or VersionTokens()

    async def Upsert(self, request: pb.UpsertRequest, context: Any) -> pb.UpsertResponse:
        """See item_service.proto."""
        with self._room.taken(request.ByteSize()):
            response, _ = await self._apply(request, after=())
            return response

    # The type stubs know handlers that yield; gRPC takes those that write as well.
    async def StreamUpsert(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        """See item_service.proto. Reading pauses while `stream_in_flight` messages are in work."""
        stream = UpsertStream(self._apply, self._progress, in_flight=self._stream_in_flight, room=self._room)
        await stream.run(request_iterator, context.write)

    async def Get(self, request: pb.ItemServiceGetRequest, context: Any) -> pb.ItemServiceGetResponse:
        """See item_service.proto."""
        handle = self._handle(request.gallery)
        ids = validate.item_ids(request.ids, "ids", most=MAX_GET_IDS)
        wanted = read.Wanted(
            attributes=validate.attribute_names(request.attributes, handle.spec, "attributes"),
            vectors=request.vectors,
            min_version=await self._min_version(request, handle),
        )
        found = await read.by_id(handle, ids, wanted)
        access_log.current().rows = len(ids)
        items = await self._packed(found, handle, wanted)
        present = set(items.ids)
        missing = [item_id for item_id in dict.fromkeys(ids) if item_id not in present]
        return pb.ItemServiceGetResponse(items=items, missing=missing, version=found.version)

    async def Delete(self, request: pb.ItemServiceDeleteRequest, context: Any) -> pb.ItemServiceDeleteResponse:
        """See item_service.proto."""
        handle = self._handle(request.gallery)
        chosen = deletion(request, handle.spec)
        result = await handle.writer.delete(ids=chosen.ids, filter=chosen.filter, request_id=request.request_id)
        self._tokens.note(handle.spec.gallery_id, result.version)
        access_log.current().rows = result.rows
        self._metrics.written.labels("delete").inc(result.rows)
        return pb.ItemServiceDeleteResponse(deleted=result.rows, version=_token(handle, result))

    async def List(self, request: pb.ItemServiceListRequest, context: Any) -> pb.ItemServiceListResponse:
        """See item_service.proto. A token is good for the same gallery, filter and columns, and any page size."""
        handle = self._handle(request.gallery)
        limit = page_size(request)
        chosen = filter_bytes(request.filter, request.HasField("filter"), handle.spec)
        wanted = read.Wanted(
            attributes=validate.attribute_names(request.attributes, handle.spec, "attributes"),
            vectors=request.vectors,
            min_version=await self._min_version(request, handle),
        )
        arguments = (handle.spec.gallery_id, chosen, ",".join(wanted.attributes), str(wanted.vectors))
        after = validate.page_start(request.page_token, arguments)
        found, more = await read.page(handle, after=after, limit=limit, filter=chosen, wanted=wanted)
        items = await self._packed(found, handle, wanted)
        access_log.current().rows = len(items.ids)
        token = validate.page_token(items.ids[-1], arguments) if more else ""
        return pb.ItemServiceListResponse(items=items, next_page_token=token, version=found.version)

    async def Count(self, request: pb.ItemServiceCountRequest, context: Any) -> pb.ItemServiceCountResponse:
        """See item_service.proto."""
        handle = self._handle(request.gallery)
        chosen = filter_bytes(request.filter, request.HasField("filter"), handle.spec)
        version = await self._min_version(request, handle)
        counts = await read.from_all(handle.shards, lambda shard: shard.count(chosen, min_version=version))
        return pb.ItemServiceCountResponse(
            count=sum(count for count, _ in counts), version=min(version for _, version in counts)
        )

    async def _apply(
        self,
        request: pb.UpsertRequest,
        *,
        after: Sequence[asyncio.Future[None]],
        position: StreamPosition | None = None,
    ) -> tuple[pb.UpsertResponse, float]:
        handle = self._handle(request.gallery)
        batch, warnings = await self._packer.pack(request.items, handle)
        if after:
            await asyncio.wait(after)
        try:
            result = await handle.writer.upsert(batch, request_id=request.request_id, position=position)
        except ColumnError as error:
            # It was packed for a description that has changed since.
            raise Unavailable(
                f"gallery {handle.spec.name!r} was changed meanwhile: {error}", reason="GALLERY_CHANGED"
            ) from error
        self._tokens.note(handle.spec.gallery_id, result.version)
        access_log.current().rows = result.rows
        self._metrics.written.labels("upsert").inc(result.rows)
        response = pb.UpsertResponse(upserted=result.rows, version=_token(handle, result), warnings=warnings)
        return response, result.back_off_s

    async def _progress(self, opening: pb.StreamUpsertOpening) -> int:
        handle = self._handle(opening.gallery)
        return await handle.writer.stream_progress(validate.request_id(opening.stream_id, "opening.stream_id"))

    def _handle(self, gallery: str) -> GalleryHandle:
        handle = self._galleries.get(validate.required(gallery, "gallery"))
        access_log.current().gallery = handle.spec.name
        return handle

    async def _min_version(
        self,
        request: pb.ItemServiceGetRequest | pb.ItemServiceListRequest | pb.ItemServiceCountRequest,
        handle: GalleryHandle,
    ) -> int:
        if not request.HasField("at_least"):
            return 0
        return await self._tokens.least(request.at_least, handle)

    async def _packed(self, found: read.Found, handle: GalleryHandle, wanted: read.Wanted) -> pb.Items:
        def work() -> pb.Items:
            return read.pack(found, handle.spec, wanted)

        small = found.rows * (1 + len(wanted.attributes) + wanted.vectors) <= read.OFF_LOOP_CELLS
        return work() if small else await asyncio.get_running_loop().run_in_executor(self._executor, work)


def _token(handle: GalleryHandle, result: WriteResult) -> common_pb2.VersionToken:
    return common_pb2.VersionToken(gallery_id=handle.spec.gallery_id, version=result.version)
