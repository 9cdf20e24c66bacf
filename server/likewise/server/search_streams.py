"""Streams of searches: each message is a search, or one for each row of a matrix.

A message costs a fraction of what a call costs (docs/where-the-time-goes.md), so that clients that search much keep one
open.
"""

from collections.abc import AsyncIterator
from typing import Any, Final

from google.rpc import status_pb2

from likewise.server import access_log, failures
from likewise.server.errors import InvalidRequest, Overloaded, ServiceError
from likewise.server.message_calls import MessageCalls
from likewise.server.remote.message_server import MessageServer
from likewise.server.search import Searcher
from likewise.v1 import search_service_pb2 as pb

MAX_STREAMS: Final = 8_192
"""Open at a time. They are no calls in progress, and clients that leak them must not exhaust a server."""

_RETRY_S: Final = 60.0
_LONGEST_S: Final = 365 * 86_400.0  # of a message's time: more than timers hold is no limit


class SearchStreams:
    """Answers streams of searches, until it drains.

    Args:
        searcher: The pipeline.
        in_flight: Searches of one stream in work at the same time; reading pauses meanwhile.
        searches: Takes the messages that are searches.
        matrices: Takes those that are matrices.
    """

    def __init__(self, searcher: Searcher, *, in_flight: int, searches: MessageCalls, matrices: MessageCalls) -> None:
        self._searcher = searcher
        self._searches = searches
        self._matrices = matrices
        self._messages = MessageServer(self._answer, in_flight=in_flight)
        self._open = 0

    def drain(self) -> None:
        """See `MessageServer.drain`."""
        self._messages.drain()

    async def serve(self, requests: AsyncIterator[pb.StreamSearchRequest], context: Any) -> None:
        """Answer one stream; returns at its end, or when all is answered while draining.

        Raises:
            Overloaded: TOO_MANY_STREAMS.
        """
        if self._open >= MAX_STREAMS:
            raise Overloaded(
                f"{self._open:,} streams are open, the limit is {MAX_STREAMS:,}: make calls, or share a stream",
                reason="TOO_MANY_STREAMS",
                retry_after_s=_RETRY_S,
            )
        self._open += 1
        try:
            await self._serve(requests, context)
        finally:
            self._open -= 1

    async def _serve(self, requests: AsyncIterator[pb.StreamSearchRequest], context: Any) -> None:
        async def write(response: pb.StreamSearchResponse) -> None:
            try:
                await context.write(response)
            except ServiceError as error:  # an answer that does not fit one message
                refused = pb.StreamSearchResponse(correlation_id=response.correlation_id)
                refused.error.CopyFrom(failures.status_of(error, what="a search"))
                await context.write(refused)

        count = await self._messages.serve(requests, write, context)
        record = access_log.current()
        record.rows, record.hits, record.plan = count, None, ""

    async def _answer(self, message: pb.StreamSearchRequest) -> pb.StreamSearchResponse:
        response = pb.StreamSearchResponse(correlation_id=message.correlation_id)
        timeout_s = min(message.timeout_us / 1e6, _LONGEST_S) if message.HasField("timeout_us") else None
        if message.HasField("vectors"):
            rows = message.vectors
            table = await self._matrices.answer(
                lambda: self._searcher.search_vectors(rows, response.vectors),
                request_id=rows.search.request_id,
                timeout_s=timeout_s,
            )
            if isinstance(table, status_pb2.Status):
                response.error.CopyFrom(table)  # in place of the vectors, whatever there is of them
            return response
        found = await self._searches.answer(
            lambda: self._search(message), request_id=message.request.request_id, timeout_s=timeout_s
        )
        if isinstance(found, status_pb2.Status):
            response.error.CopyFrom(found)
        else:
            response.response.CopyFrom(found)
        return response

    async def _search(self, message: pb.StreamSearchRequest) -> pb.SearchResponse:
        if not message.HasField("request"):
            raise InvalidRequest("the message has neither a request nor vectors: set one of them", field="request")
        return await self._searcher.search(message.request)
