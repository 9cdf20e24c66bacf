"""StreamUpsert: many upserts in work at once, acknowledged in the order they came.

Messages are encoded and committed side by side, but one that writes an id of an earlier message waits for that one's
commit: the stream's order decides which row stays. Bounded by messages and by bytes: a fast sender waits.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from likewise.server import failures
from likewise.server.errors import InvalidRequest
from likewise.v1 import item_service_pb2 as pb

MAX_BYTES: Final = 128 << 20
"""Of one stream's messages in work; two of the largest."""


class Upsert(Protocol):
    """Applies one upsert; begins its commit when the futures in `after` are done."""

    def __call__(
        self, request: pb.UpsertRequest, *, after: Sequence[asyncio.Future[None]]
    ) -> Awaitable[pb.UpsertResponse]:
        """The acknowledgement."""
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
        in_flight: Messages in work at the same time.
    """

    def __init__(self, upsert: Upsert, *, in_flight: int) -> None:
        self._upsert = upsert
        self._limit = in_flight
        self._in_flight: list[_InFlight] = []
        self._bytes = 0
        self._room = asyncio.Condition()
        self._last: int | None = None

    async def run(self, requests: AsyncIterator[pb.StreamUpsertRequest], write: Write) -> None:
        """Apply every message of `requests` and acknowledge each; returns after the last acknowledgement."""
        acknowledgements: asyncio.Queue[tuple[_InFlight, asyncio.Task[pb.StreamUpsertResponse]] | None] = (
            asyncio.Queue()
        )

        async def acknowledge() -> None:
            while (entry := await acknowledgements.get()) is not None:
                flight, task = entry
                await write(await task)
                async with self._room:
                    self._in_flight.remove(flight)
                    self._bytes -= flight.size
                    self._room.notify()

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(acknowledge())
                async for message in requests:
                    flight = await self._admit(message)
                    after = self._before(flight)
                    self._in_flight.append(flight)
                    task = tasks.create_task(self._apply(message, flight, after))
                    acknowledgements.put_nowait((flight, task))
                acknowledgements.put_nowait(None)
        except BaseExceptionGroup as group:
            # Messages report their own errors; what is left is the stream's, and the first one ended it.
            raise group.exceptions[0] from None

    async def _admit(self, message: pb.StreamUpsertRequest) -> _InFlight:
        size = message.ByteSize()
        async with self._room:
            await self._room.wait_for(
                lambda: not self._in_flight or (len(self._in_flight) < self._limit and self._bytes + size <= MAX_BYTES)
            )
        self._bytes += size
        return _InFlight(
            gallery=message.request.gallery,
            ids=frozenset(message.request.items.ids),
            size=size,
            done=asyncio.get_running_loop().create_future(),
        )

    def _before(self, flight: _InFlight) -> list[asyncio.Future[None]]:
        return [
            other.done
            for other in self._in_flight
            if not other.done.done() and other.gallery == flight.gallery and not other.ids.isdisjoint(flight.ids)
        ]

    async def _apply(
        self, message: pb.StreamUpsertRequest, flight: _InFlight, after: Sequence[asyncio.Future[None]]
    ) -> pb.StreamUpsertResponse:
        response = pb.StreamUpsertResponse(sequence=message.sequence)
        try:
            self._check_sequence(message.sequence)
            response.response.CopyFrom(await self._upsert(message.request, after=after))
        except Exception as error:
            response.error.CopyFrom(failures.status_of(error, what="an upsert of a stream"))
        finally:
            if not flight.done.done():
                flight.done.set_result(None)
        return response

    def _check_sequence(self, sequence: int) -> None:
        last, self._last = self._last, max(sequence, self._last or 0)
        if last is not None and sequence <= last:
            raise InvalidRequest(
                f"sequence must grow from message to message, got {sequence} after {last}", field="sequence"
            )
