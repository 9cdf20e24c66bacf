"""likewise.v1.SearchService: one search, many in a call, or as they come."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.rpc import status_pb2

from likewise.server import access_log, failures, validate
from likewise.server.batch_search import answer_batch
from likewise.server.errors import InvalidRequest
from likewise.server.search import Searcher
from likewise.server.validate_search import DEFAULT_K, MAX_BATCH, MAX_BATCH_HITS
from likewise.v1 import search_service_pb2 as pb
from likewise.v1 import search_service_pb2_grpc


class SearchService(search_service_pb2_grpc.SearchServiceServicer):
    """Searches.

    Args:
        searcher: The pipeline.
        batch_concurrency: Searches of one BatchSearch that wait for something at the same time.
        stream_in_flight: Searches of one stream in work at the same time.
    """

    def __init__(self, searcher: Searcher, *, batch_concurrency: int, stream_in_flight: int) -> None:
        self._searcher = searcher
        self._batch_concurrency = batch_concurrency
        self._stream_in_flight = stream_in_flight

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
        return await self._searcher.search_vectors(request)

    # The type stubs know handlers that yield; gRPC takes those that write as well.
    async def StreamSearch(self, request_iterator: AsyncIterator[pb.StreamSearchRequest], context: Any) -> None:  # type: ignore[override]
        """See search_service.proto. Reading pauses while `stream_in_flight` searches are in work."""
        slots = asyncio.Semaphore(self._stream_in_flight)
        writing = asyncio.Lock()
        count = 0

        async def answer(message: pb.StreamSearchRequest) -> None:
            try:
                response = pb.StreamSearchResponse(correlation_id=message.correlation_id)
                try:
                    response.response.CopyFrom(await self._searcher.search(message.request))
                except Exception as error:
                    response.error.CopyFrom(_status(error))
                async with writing:
                    await context.write(response)
            finally:
                slots.release()

        try:
            async with asyncio.TaskGroup() as tasks:
                async for message in request_iterator:
                    count += 1
                    await slots.acquire()
                    tasks.create_task(answer(message))
        except BaseExceptionGroup as group:
            # Searches report their own errors; what is left is the stream's, and the first one ended it.
            raise group.exceptions[0] from None
        record = access_log.current()
        record.rows, record.hits, record.plan = count, None, ""

    async def Compose(self, request: pb.ComposeRequest, context: Any) -> pb.ComposeResponse:
        """See search_service.proto."""
        return await self._searcher.compose(request)

    async def Explain(self, request: pb.ExplainRequest, context: Any) -> pb.ExplainResponse:
        """UNIMPLEMENTED: ranks beyond the hits need a count of better items that shards do not give yet."""
        raise validate.later("Explain", "explanations of searches are")


def _status(error: Exception) -> status_pb2.Status:
    return failures.status_of(error, what="a search")
