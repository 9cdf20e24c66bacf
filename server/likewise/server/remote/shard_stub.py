"""A shard that lives behind a channel: it behaves as one in process, answers over a message's size come in parts."""

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from likewise.internal.v1 import shard_service_pb2 as pb
from likewise.internal.v1 import shard_service_pb2_grpc as pb_grpc
from likewise.message_stream import MessageStream
from likewise.server.errors import DeadlinePassed, FailedPrecondition, ServiceError
from likewise.server.remote import deadlines, shard_messages, statuses
from likewise.server.remote.channels import MAX_REQUEST_BYTES, Channels, Route
from likewise.server.remote.shard_servicer import ANOTHER_SHARD
from likewise.server.remote.statuses import MessageTooLarge
from likewise.shards.protocols import F32, Delta, Rows, SearchOptions, ShardHits, Unavailable
from likewise.v1 import gallery_service_pb2

if TYPE_CHECKING:
    ShardRoute = Route[pb_grpc.ShardServiceAsyncStub]
else:
    ShardRoute = Route
SearchStream = MessageStream[pb.ShardServiceStreamSearchResponse]
ReplyT = TypeVar("ReplyT")

MOST: Final = 64
"""Searches that one stream carries at a time; others are calls."""

_STREAM_SEARCH: Final = "/likewise.internal.v1.ShardService/StreamSearch"


def search_stream(channels: Channels, address: str) -> SearchStream:
    """Carries searches as messages to the shard at an address."""

    def connect() -> Any:
        method: Any = channels.get(address).stream_stream(
            _STREAM_SEARCH, None, pb.ShardServiceStreamSearchResponse.FromString
        )
        return method()

    return MessageStream(connect, _withdraw, most=MOST)


class ShardStub:
    """`ShardSearch` and `DeltaSink` over `ShardService`.

    Sends at once: concurrent queries are put into batches by the shard, where all routers' queries meet.

    Args:
        route: Where it is.
        gallery_id: Of its gallery.
        shard: Its number.
        stream: Carries searches as messages to the one address of the route; None to make calls of them.
    """

    def __init__(self, route: ShardRoute, *, gallery_id: str, shard: int, stream: SearchStream | None = None) -> None:
        self._route = route
        self._stream = stream
        self._address = pb.ShardAddress(gallery_id=gallery_id, shard=shard)

    async def search(self, queries: F32, options: SearchOptions) -> ShardHits:
        """See `ShardSearch.search`."""
        request = shard_messages.search_request(self._address, queries, options)
        try:
            if len(queries) > 1 and request.ByteSize() > MAX_REQUEST_BYTES:
                raise MessageTooLarge(f"{len(queries)} queries do not fit a message")
            response = await self._guard(self._searched(request))
        except MessageTooLarge:
            if len(queries) <= 1:
                raise
            half = len(queries) // 2
            earlier, later = shard_messages.halves(options, half)
            first = await self.search(queries[:half], earlier)
            return shard_messages.join_hits(first, await self.search(queries[half:], later))
        return shard_messages.shard_hits(response, dim=queries.shape[1], options=options)

    async def fetch(
        self,
        ids: Sequence[str],
        *,
        space: str,
        attributes: Sequence[str] = (),
        vectors: bool = False,
        min_version: int = 0,
    ) -> Rows:
        """See `ShardSearch.fetch`."""
        request = pb.FetchRequest(
            address=self._address,
            ids=ids,
            space=space,
            attributes=attributes,
            bring_vectors=vectors,
            min_version=min_version,
        )
        try:
            response = await self._guard(self._route.call(lambda stub: stub.Fetch, request))
        except MessageTooLarge:
            if len(ids) <= 1:
                raise
            half = len(ids) // 2
            parts = [
                await self.fetch(part, space=space, attributes=attributes, vectors=vectors, min_version=min_version)
                for part in (ids[:half], ids[half:])
            ]
            return shard_messages.join_rows(*parts)
        return shard_messages.shard_rows(response, vectors=vectors)

    async def page(
        self,
        *,
        after: str,
        limit: int,
        filter: bytes,
        space: str,
        attributes: Sequence[str] = (),
        vectors: bool = False,
        min_version: int = 0,
    ) -> Rows:
        """See `ShardSearch.page`."""
        request = pb.PageRequest(
            address=self._address,
            after=after,
            limit=limit,
            filter=shard_messages.filter_message(filter),
            space=space,
            attributes=attributes,
            bring_vectors=vectors,
            min_version=min_version,
        )
        try:
            response = await self._guard(self._route.call(lambda stub: stub.Page, request))
        except MessageTooLarge:
            if limit <= 1:
                raise
            rows = await self.page(
                after=after,
                limit=limit // 2,
                filter=filter,
                space=space,
                attributes=attributes,
                vectors=vectors,
                min_version=min_version,
            )
            if len(rows.ids) < limit // 2:
                return rows
            rest = await self.page(
                after=rows.ids[-1],
                limit=limit - limit // 2,
                filter=filter,
                space=space,
                attributes=attributes,
                vectors=vectors,
                min_version=min_version,
            )
            return shard_messages.join_rows(rows, rest)
        return shard_messages.shard_rows(response.rows, vectors=vectors)

    async def count(self, filter: bytes, *, min_version: int = 0) -> tuple[int, int]:
        """See `ShardSearch.count`."""
        request = pb.ShardServiceCountRequest(
            address=self._address, filter=shard_messages.filter_message(filter), min_version=min_version
        )
        response = await self._guard(self._route.call(lambda stub: stub.Count, request))
        return response.count, response.version

    async def stats(self) -> gallery_service_pb2.ShardStats:
        """See `ShardSearch.stats`."""
        request = pb.ShardServiceStatsRequest(address=self._address)
        response = await self._guard(self._route.call(lambda stub: stub.Stats, request))
        return response.stats

    async def apply(self, delta: Delta) -> None:
        """See `DeltaSink.apply`."""
        await self._guard(self._route.call(lambda stub: stub.Apply, shard_messages.apply_request(self._address, delta)))

    async def _searched(self, request: pb.ShardServiceSearchRequest) -> pb.ShardServiceSearchResponse:
        """The answer by the stream; where there is none, or it ended before, by a call, which knows what that means."""
        if self._stream is not None and self._stream.ready:
            remaining_s = deadlines.remaining_s()

            def pack(number: int) -> bytes:
                message = pb.ShardServiceStreamSearchRequest(correlation_id=number)
                message.search.CopyFrom(request)
                if remaining_s is not None:
                    message.timeout_us = round(remaining_s * 1e6)
                return message.SerializeToString()

            message = await self._stream.ask(pack, remaining_s, self._too_late)
            if message is not None and message.HasField("error"):
                raise statuses.from_status(message.error) or ServiceError("internal error")
            if message is not None:
                return message.answer
        return await self._route.call(lambda stub: stub.Search, request)

    def _too_late(self) -> Exception:
        return DeadlinePassed(f"the deadline passed while {self._route.what} worked")

    async def _guard(self, call: Awaitable[ReplyT]) -> ReplyT:
        try:
            return await call
        except FailedPrecondition as error:
            if error.reason != ANOTHER_SHARD:
                raise
            raise Unavailable(f"{self._route.what} has moved: {error}") from error


def _withdraw(number: int) -> bytes:
    return pb.ShardServiceStreamSearchRequest(correlation_id=number, cancel=True).SerializeToString()
