"""StreamUpsert: many upserts in work at once, acknowledged in the order they came.

Messages are encoded and committed side by side, but one that writes an id of an earlier message waits for that one's
commit: the stream's order decides which row stays. Bounded by messages and by bytes: a fast sender waits.

A stream with an id can be taken up again. Its messages are known to the writer by their place in it, so that what is
sent again is not applied again; and since an acknowledgement settles a message, one that may go well the next time is
not acknowledged at all: it ends the stream, before anything that depends on it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from likewise.server import failures
from likewise.server.errors import InvalidRequest, Overloaded, Unavailable
from likewise.server.write_room import WriteRoom
from likewise.shards.protocols import StreamPosition
from likewise.v1 import item_service_pb2 as pb

MAX_BYTES: Final = 128 << 20
"""Of one stream's messages in work; two of the largest."""


class Upsert(Protocol):
    """Applies one upsert; begins its commit when the futures in `after` are done."""

    def __call__(
        self, request: pb.UpsertRequest, *, after: Sequence[asyncio.Future[None]], position: StreamPosition | None
    ) -> Awaitable[tuple[pb.UpsertResponse, float]]:
        """The acknowledgement, and for how many seconds the caller should send nothing more."""
        ...


class Write(Protocol):
    """Sends one response."""

    def __call__(self, message: pb.StreamUpsertResponse, /) -> Awaitable[None]:
        """Return when it is handed to the transport."""
        ...


@dataclass(slots=True, eq=False)
class _InFlight:
    gallery: str
    ids: frozenset[str]
    size: int
    done: asyncio.Future[None]


class UpsertStream:
    """One stream.

    Args:
        upsert: Applies one message.
        progress: Sequence up to which the stream of an opening is settled.
        in_flight: Messages in work at the same time.
        room: Shared by all streams and calls.
    """

    def __init__(
        self,
        upsert: Upsert,
        progress: Callable[[pb.StreamUpsertOpening], Awaitable[int]],
        *,
        in_flight: int,
        room: WriteRoom,
    ) -> None:
        self._upsert = upsert
        self._progress = progress
        self._limit = in_flight
        self._shared = room
        self._in_flight: list[_InFlight] = []
        self._bytes = 0
        self._room = asyncio.Condition()
        self._opening: pb.StreamUpsertOpening | None = None
        self._sending: asyncio.Future[None] | None = None
        self._began = False
        self._last: int | None = None

    async def run(self, requests: AsyncIterator[pb.StreamUpsertRequest], write: Write) -> None:
        """Apply every message of `requests` and acknowledge each; returns after the last acknowledgement.

        Raises:
            InvalidRequest: If an opening is wrong or comes late, or a stream with an id leaves a sequence out.
            Overloaded: If the writer's queue is full, on a stream with an id.
            Unavailable: If the writer is away, on a stream with an id.
        """
        acknowledgements: asyncio.Queue[tuple[_InFlight, asyncio.Task[pb.StreamUpsertResponse]] | None] = (
            asyncio.Queue()
        )

        async def acknowledge() -> None:
            while (entry := await acknowledgements.get()) is not None:
                flight, task = entry
                await self._send(write, await task)
                async with self._room:
                    self._let_go(flight)
                    self._room.notify()

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(acknowledge())
                async for message in requests:
                    if message.HasField("opening"):
                        await self._send(write, await self._open(message))
                        continue
                    position = self._position(message)
                    flight = await self._admit(message)
                    after = self._before(flight)
                    self._in_flight.append(flight)
                    task = tasks.create_task(self._apply(message, flight, after, position))
                    acknowledgements.put_nowait((flight, task))
                acknowledgements.put_nowait(None)
        except asyncio.CancelledError:
            if self._sending is not None:
                self._sending.cancel()
            raise
        except BaseExceptionGroup as group:
            if self._sending is not None and not self._sending.done():
                # gRPC never sends the status of a call in which a message was given up half-way.
                await asyncio.wait([self._sending])
            # Messages report their own errors; what is left is the stream's, and the first one ended it.
            raise group.exceptions[0] from None
        finally:
            for flight in list(self._in_flight):
                self._let_go(flight)

    async def _send(self, write: Write, response: pb.StreamUpsertResponse) -> None:
        self._sending = asyncio.ensure_future(write(response))
        await asyncio.shield(self._sending)

    async def _open(self, message: pb.StreamUpsertRequest) -> pb.StreamUpsertResponse:
        if self._began or self._opening is not None or message.HasField("request"):
            raise InvalidRequest(
                "a stream is opened once, by its first message, and that has no request", field="opening"
            )
        settled = await self._progress(message.opening)
        self._opening = message.opening
        return pb.StreamUpsertResponse(opened=pb.StreamUpsertOpened(acknowledged=settled))

    def _position(self, message: pb.StreamUpsertRequest) -> StreamPosition | None:
        """Where in its stream the message stands; None on a stream without an id."""
        self._began = True
        if (opening := self._opening) is None:
            return None
        sequence, expected = message.sequence, (self._last or 0) + 1
        if sequence < 1 or (self._last is not None and sequence != expected):
            raise InvalidRequest(
                f"sequence must grow by 1 on a stream with an id: expected {expected}, got {sequence}", field="sequence"
            )
        if message.acknowledged >= sequence:
            raise InvalidRequest(
                f"acknowledged must be below the message's own sequence {sequence}, got {message.acknowledged}",
                field="acknowledged",
            )
        self._last = sequence
        return StreamPosition(opening.stream_id, sequence, message.acknowledged)

    async def _admit(self, message: pb.StreamUpsertRequest) -> _InFlight:
        size = message.ByteSize()
        async with self._room:
            await self._room.wait_for(
                lambda: not self._in_flight or (len(self._in_flight) < self._limit and self._bytes + size <= MAX_BYTES)
            )
        await self._shared.take(size)
        self._bytes += size
        return _InFlight(
            gallery=message.request.gallery,
            ids=frozenset(message.request.items.ids),
            size=size,
            done=asyncio.get_running_loop().create_future(),
        )

    def _let_go(self, flight: _InFlight) -> None:
        self._in_flight.remove(flight)
        self._bytes -= flight.size
        self._shared.give_back(flight.size)

    def _before(self, flight: _InFlight) -> list[asyncio.Future[None]]:
        return [
            other.done
            for other in self._in_flight
            if not other.done.done() and other.gallery == flight.gallery and not other.ids.isdisjoint(flight.ids)
        ]

    async def _apply(
        self,
        message: pb.StreamUpsertRequest,
        flight: _InFlight,
        after: Sequence[asyncio.Future[None]],
        position: StreamPosition | None,
    ) -> pb.StreamUpsertResponse:
        response = pb.StreamUpsertResponse(sequence=message.sequence)
        try:
            if self._opening is None:
                self._check_sequence(message.sequence)
            elif message.request.gallery != self._opening.gallery:
                raise InvalidRequest(
                    f"the stream was opened for gallery {self._opening.gallery!r}, got {message.request.gallery!r}",
                    field="request.gallery",
                )
            answer, back_off_s = await self._upsert(message.request, after=after, position=position)
            response.response.CopyFrom(answer)
            if back_off_s > 0:
                response.back_off.FromNanoseconds(int(back_off_s * 1e9))
        except Exception as error:
            if position is not None and isinstance(failures.known(error), Unavailable | Overloaded):
                raise
            response.error.CopyFrom(failures.status_of(error, what="an upsert of a stream"))
        finally:
            # When this one ends the stream, those that wait for it are cancelled before they go on.
            if not flight.done.done():
                flight.done.set_result(None)
        return response

    def _check_sequence(self, sequence: int) -> None:
        last, self._last = self._last, max(sequence, self._last or 0)
        if last is not None and sequence <= last:
            raise InvalidRequest(
                f"sequence must grow from message to message, got {sequence} after {last}", field="sequence"
            )
