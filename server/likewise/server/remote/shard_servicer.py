"""`ShardService` around one shard."""

from collections.abc import AsyncIterator
from typing import Final, TypeVar

from google.protobuf.message import Message

from likewise.internal.v1 import shard_service_pb2 as pb
from likewise.internal.v1 import shard_service_pb2_grpc as pb_grpc
from likewise.server.errors import FailedPrecondition
from likewise.server.remote import deadlines, shard_messages, statuses
from likewise.server.remote.channels import Context
from likewise.server.remote.message_server import MessageServer
from likewise.server.remote.statuses import MessageTooLarge
from likewise.shards.protocols import DeltaSink, ShardSearch, UnknownAttribute
from likewise.shards.spec import GallerySpec
from likewise.wire import MAX_MESSAGE_BYTES

ReplyT = TypeVar("ReplyT", bound=Message)

ANOTHER_SHARD: Final = "ANOTHER_SHARD"
"""Reason of a refusal: a shard is asked in the name of another, as after a move on reused ports."""

MAX_MESSAGES: Final = 256
"""Searches of one stream in work at a time; a router sends fewer."""


class ShardServicer(pb_grpc.ShardServiceServicer):
    """Answers calls that mean this shard and refuses all others.

    Args:
        shard: Who answers.
        sink: Who takes the committed changes.
        spec: The gallery.
        number: The shard's number.
    """

    def __init__(self, shard: ShardSearch, sink: DeltaSink, *, spec: GallerySpec, number: int) -> None:
        self._shard = shard
        self._sink = sink
        self._spec = spec
        self._number = number
        self._messages = MessageServer(self._answer, in_flight=MAX_MESSAGES)

    def drain(self) -> None:
        """See `MessageServer.drain`."""
        self._messages.drain()

    async def Search(self, request: pb.ShardServiceSearchRequest, context: Context) -> pb.ShardServiceSearchResponse:
        """See the proto."""
        return await self._search(request)

    # The type stubs know handlers that yield; gRPC takes those that write as well.
    async def StreamSearch(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.ShardServiceStreamSearchRequest], context: Context
    ) -> None:
        """See the proto."""
        await self._messages.serve(request_iterator, context.write, context)

    async def _answer(self, message: pb.ShardServiceStreamSearchRequest) -> pb.ShardServiceStreamSearchResponse:
        deadlines.set_deadline(message.timeout_us / 1e6 if message.HasField("timeout_us") else None)
        response = pb.ShardServiceStreamSearchResponse(correlation_id=message.correlation_id)
        try:
            response.answer.CopyFrom(await self._search(message.search))
        except Exception as error:
            response.error.CopyFrom(statuses.told(error, "likewise.internal.v1.ShardService/StreamSearch"))
        return response

    async def _search(self, request: pb.ShardServiceSearchRequest) -> pb.ShardServiceSearchResponse:
        self._check(request.address)
        queries = shard_messages.queries_matrix(request.vectors, dim=self._dim(request.space))
        hits = await self._shard.search(queries, shard_messages.search_options(request))
        return _fitting(shard_messages.search_response(hits))

    async def Fetch(self, request: pb.FetchRequest, context: Context) -> pb.FetchResponse:
        """See the proto."""
        self._check(request.address)
        rows = await self._shard.fetch(
            list(request.ids),
            space=request.space,
            attributes=tuple(request.attributes),
            vectors=request.bring_vectors,
            min_version=request.min_version,
        )
        return _fitting(shard_messages.rows_response(rows))

    async def Page(self, request: pb.PageRequest, context: Context) -> pb.PageResponse:
        """See the proto."""
        self._check(request.address)
        rows = await self._shard.page(
            after=request.after,
            limit=request.limit,
            filter=shard_messages.filter_bytes(request.filter if request.HasField("filter") else None),
            space=request.space,
            attributes=tuple(request.attributes),
            vectors=request.bring_vectors,
            min_version=request.min_version,
        )
        return _fitting(pb.PageResponse(rows=shard_messages.rows_response(rows)))

    async def Count(self, request: pb.ShardServiceCountRequest, context: Context) -> pb.ShardServiceCountResponse:
        """See the proto."""
        self._check(request.address)
        serialised = shard_messages.filter_bytes(request.filter if request.HasField("filter") else None)
        count, version = await self._shard.count(serialised, min_version=request.min_version)
        return pb.ShardServiceCountResponse(count=count, version=version)

    async def Apply(self, request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        """See the proto."""
        self._check(request.address)
        await self._sink.apply(shard_messages.delta(request, self._spec))
        stats = await self._shard.stats()
        return pb.ApplyResponse(version=stats.version)

    async def Stats(self, request: pb.ShardServiceStatsRequest, context: Context) -> pb.ShardServiceStatsResponse:
        """See the proto."""
        self._check(request.address)
        return pb.ShardServiceStatsResponse(stats=await self._shard.stats())

    def _check(self, address: pb.ShardAddress) -> None:
        mine = (self._spec.gallery_id, self._number)
        if (address.gallery_id, address.shard) != mine:
            raise FailedPrecondition(
                f"the call means shard {address.shard} of gallery {address.gallery_id!r}, "
                f"this is shard {mine[1]} of {mine[0]!r}",
                reason=ANOTHER_SHARD,
            )

    def _dim(self, space: str) -> int:
        try:
            return self._spec.space(space).dim
        except KeyError:
            known = [known.name for known in self._spec.spaces]
            raise UnknownAttribute("space", f"{space!r} is no space of the gallery, which has {known}") from None


def _fitting(reply: ReplyT) -> ReplyT:
    if (size := reply.ByteSize()) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"the answer has {size} bytes, the limit is {MAX_MESSAGE_BYTES}: ask for less at a time")
    return reply
