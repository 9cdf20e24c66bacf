"""A SearchService in this event loop that says what came as a message of a stream and what as a call."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.rpc import status_pb2
from grpc import aio

from likewise.client import AsyncClient, AsyncGallery
from likewise.v1 import search_service_pb2 as pb
from likewise.v1 import search_service_pb2_grpc
from likewise.wire import decode_vectors, pack


class StreamServer(search_service_pb2_grpc.SearchServiceServicer):
    """Answers each search with one hit, whose id is its reference, or the first number of its vector.

    Attributes:
        streams: Streams opened.
        calls: Searches that came as calls, by number.
        messages: Searches that came on streams, by number.
        cancelled: Those given up, by number.
        gate: While it is not set, messages wait.
        headers: While it is not set, streams have no headers.
        code: What streams end with at once, if it is not None.
        refuse: By number: a status instead of an answer, on streams.
        drop: Numbers at which a stream breaks.
        ended: Streams that have.
        drain: Ends the streams there are with OK when set.
    """

    def __init__(self) -> None:
        self.streams = 0
        self.calls: list[int] = []
        self.messages: list[int] = []
        self.cancelled: list[int] = []
        self.gate, self.headers, self.drain = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.headers.set()
        self.code: grpc.StatusCode | None = None
        self.refuse: dict[int, status_pb2.Status] = {}
        self.drop: set[int] = set()
        self.ended = 0

    async def Search(self, request: Any, context: Any) -> pb.SearchResponse:
        self.calls.append(number := _number(request))
        return _hit(number)

    async def SearchVectors(self, request: Any, context: Any) -> pb.SearchVectorsResponse:
        numbers = [int(row[0]) for row in decode_vectors(request.vectors)]
        self.calls += numbers
        return _hits(numbers)

    async def StreamSearch(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        self.streams += 1
        if self.code is not None:
            await context.abort(self.code, "no streams")
        await self.headers.wait()
        await context.send_initial_metadata(())
        lock = asyncio.Lock()
        numbers: dict[int, int] = {}

        async def answer(message: pb.StreamSearchRequest) -> None:
            await self.gate.wait()
            reply = pb.StreamSearchResponse(correlation_id=message.correlation_id)
            if message.HasField("vectors"):
                reply.vectors.CopyFrom(_hits([int(row[0]) for row in decode_vectors(message.vectors.vectors)]))
            elif refusal := self.refuse.get(number := numbers[message.correlation_id]):
                reply.error.CopyFrom(refusal)
            else:
                reply.response.CopyFrom(_hit(number))
            async with lock:
                await context.write(reply)

        async def read() -> None:
            async for message in request_iterator:
                if message.cancel:
                    self.cancelled.append(numbers[message.correlation_id])
                    continue
                if message.HasField("vectors"):
                    asked = [int(row[0]) for row in decode_vectors(message.vectors.vectors)]
                else:
                    asked = [_number(message.request)]
                self.messages += asked
                numbers[message.correlation_id] = asked[0]
                if self.drop.intersection(asked):
                    self.drop.difference_update(asked)
                    await context.abort(grpc.StatusCode.INTERNAL, "broken")
                tasks.add(asyncio.create_task(answer(message)))

        tasks: set[asyncio.Task[None]] = set()
        reading, draining = asyncio.create_task(read()), asyncio.create_task(self.drain.wait())
        try:
            await asyncio.wait((reading, draining), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
                await asyncio.gather(*tasks)
        finally:
            self.ended += 1
            for task in (reading, draining, *tasks):
                task.cancel()


@asynccontextmanager
async def streaming(**options: Any) -> AsyncIterator[tuple[StreamServer, AsyncGallery]]:
    """The server and a client's gallery on it; the client is closed, and whatever streams it has with it."""
    server, service = aio.server(), StreamServer()  # type: ignore[abstract]  # the others are not called
    search_service_pb2_grpc.add_SearchServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with AsyncClient(f"127.0.0.1:{port}", **options) as client:
            yield service, client.gallery("g")
    finally:
        await server.stop(0)


async def found(gallery: AsyncGallery, number: int, **query: Any) -> int:
    """Ask by a number and read it in the answer."""
    hits = await gallery.search(vector=[number, 1.0], **query)
    return int(hits.ids[0])


def _number(request: pb.SearchRequest) -> int:
    reference = request.reference
    kind = reference.WhichOneof("kind")
    return int(decode_vectors(reference.vector)[0, 0] if kind == "vector" else getattr(reference, kind or ""))


def _hit(number: int) -> pb.SearchResponse:
    return pb.SearchResponse(hits=pb.Hits(ids=[str(number)], scores=pack([1.0], "<f4")))


def _hits(numbers: list[int]) -> pb.SearchVectorsResponse:
    hits = pb.Hits(ids=map(str, numbers), scores=pack([1.0] * len(numbers), "<f4"))
    return pb.SearchVectorsResponse(
        answer=pb.SearchResponse(hits=hits), offsets=pack(list(range(len(numbers) + 1)), "<i4")
    )
