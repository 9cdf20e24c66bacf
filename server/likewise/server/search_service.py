"""likewise.v1.SearchService: one search, many in a call, or as they come."""

from collections.abc import AsyncIterator
from typing import Any

from likewise.server import access_log, validate
from likewise.server.batch_search import answer_batch
from likewise.server.errors import InvalidRequest
from likewise.server.search import Searcher
from likewise.server.search_streams import SearchStreams
from likewise.server.validate_search import DEFAULT_K, MAX_BATCH, MAX_BATCH_HITS
from likewise.v1 import search_service_pb2 as pb
from likewise.v1 import search_service_pb2_grpc


class SearchService(search_service_pb2_grpc.SearchServiceServicer):
    """Searches.

    Args:
        searcher: The pipeline.
        batch_concurrency: Searches of one BatchSearch that wait for something at the same time.
        streams: Answers streams of searches.
    """

    def __init__(self, searcher: Searcher, *, batch_concurrency: int, streams: SearchStreams) -> None:
        self._searcher = searcher
        self._batch_concurrency = batch_concurrency
        self._streams = streams

    async def Search(self, request: pb.SearchRequest, context: Any) -> pb.SearchResponse:
        """See search_service.proto."""
        return await self._searcher.search(request)

    async def BatchSearch(self, request: pb.BatchSearchRequest, context: Any) -> pb.BatchSearchResponse:
        """See search_service.proto. Searches that share all but the query vector reach the shards as one call."""
        if len(request.requests) > MAX_BATCH:
            raise InvalidRequest(f"requests: at most {MAX_BATCH:,}, got {len(request.requests):,}", field="requests")
        hits = sum(search.k if search.HasField("k") else DEFAULT_K for search in request.requests)
        if hits > MAX_BATCH_HITS:
            raise InvalidRequest(
                f"requests ask for {hits:,} hits together, the limit is {MAX_BATCH_HITS:,}", field="requests"
            )
        outcomes = await answer_batch(self._searcher, request.requests, concurrency=self._batch_concurrency)
        response = pb.BatchSearchResponse()
        # Filled in place: built from messages, each result would be copied twice.
        for outcome in outcomes:
            result = response.results.add()
            if isinstance(outcome, pb.SearchResponse):
                result.response.CopyFrom(outcome)
            else:
                result.error.CopyFrom(outcome)
        record = access_log.current()
        record.rows, record.k = len(outcomes), None
        return response

    async def SearchVectors(self, request: pb.SearchVectorsRequest, context: Any) -> pb.SearchVectorsResponse:
        """See search_service.proto."""
        return await self._searcher.search_vectors(request, pb.SearchVectorsResponse())

    # The type stubs know handlers that yield; gRPC takes those that write as well.
    async def StreamSearch(self, request_iterator: AsyncIterator[pb.StreamSearchRequest], context: Any) -> None:  # type: ignore[override]
        """See search_service.proto."""
        await self._streams.serve(request_iterator, context)

    async def Compose(self, request: pb.ComposeRequest, context: Any) -> pb.ComposeResponse:
        """See search_service.proto."""
        return await self._searcher.compose(request)

    async def Explain(self, request: pb.ExplainRequest, context: Any) -> pb.ExplainResponse:
        """UNIMPLEMENTED: ranks beyond the hits need a count of better items that shards do not give yet."""
        raise validate.later("Explain", "explanations of searches are")
