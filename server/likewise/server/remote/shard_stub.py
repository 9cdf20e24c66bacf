"""A shard that lives behind a channel: it behaves as one in process, answers over a message's size come in parts."""

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, TypeVar

from likewise.internal.v1 import shard_service_pb2 as pb
from likewise.internal.v1 import shard_service_pb2_grpc as pb_grpc
from likewise.server.errors import FailedPrecondition
from likewise.server.remote import shard_messages
from likewise.server.remote.channels import MAX_REQUEST_BYTES, Route
from likewise.server.remote.shard_servicer import ANOTHER_SHARD
from likewise.server.remote.statuses import MessageTooLarge
from likewise.shards.protocols import F32, Delta, Rows, SearchOptions, ShardHits, Unavailable
from likewise.v1 import gallery_service_pb2

if TYPE_CHECKING:
    ShardRoute = Route[pb_grpc.ShardServiceAsyncStub]
else:
    ShardRoute = Route
ReplyT = TypeVar("ReplyT")


class ShardStub:
    """`ShardSearch` and `DeltaSink` over `ShardService`.

    Sends at once: concurrent queries are put into batches by the shard, where all routers' queries meet.
    """

    def __init__(self, route: ShardRoute, *, gallery_id: str, shard: int) -> None:
        self._route = route
        self._address = pb.ShardAddress(gallery_id=gallery_id, shard=shard)

    async def search(self, queries: F32, options: SearchOptions) -> ShardHits:
        """See `ShardSearch.search`."""
        request = shard_messages.search_request(self._address, queries, options)
        try:
            if len(queries) > 1 and request.ByteSize() > MAX_REQUEST_BYTES:
                raise MessageTooLarge(f"{len(queries)} queries do not fit a message")
            response = await self._guard(self._route.call(lambda stub: stub.Search, request))
        except MessageTooLarge:
            if len(queries) <= 1:
                raise
            half = len(queries) // 2
            first = await self.search(queries[:half], options)
            return shard_messages.join_hits(first, await self.search(queries[half:], options))
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
            if rows.batch.num_rows < limit // 2:
                return rows
            rest = await self.page(
                after=shard_messages.ids_of(rows)[-1],
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

    async def _guard(self, call: Awaitable[ReplyT]) -> ReplyT:
        try:
            return await call
        except FailedPrecondition as error:
            if error.reason != ANOTHER_SHARD:
                raise
            raise Unavailable(f"{self._route.what} has moved: {error}") from error
