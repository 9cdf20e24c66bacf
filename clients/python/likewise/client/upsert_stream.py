# ruff: noqa: ASYNC109 - these timeouts are the caller's own, for each answer
"""Upserts over one stream that is taken up again when it breaks: the same for threads and for asyncio.

A few messages are under way at a time; what was not answered when a stream broke is sent again under the same id and
numbers, so that the server applies nothing twice.
"""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc import StatusCode

from likewise.client.channel import ChannelConfig
from likewise.client.errors import (
    REQUEST_ID_KEY,
    ClientClosed,
    DeadlineExceeded,
    LikewiseError,
    Unavailable,
    from_status,
)
from likewise.client.rpc import UPSERT_STREAM, Call, new_request_id, read_answer, translated
from likewise.client.transport import IN_FLIGHT, AsyncTransport, Transport
from likewise.v1 import item_service_pb2 as pb

K = TypeVar("K")
T = TypeVar("T")

ATTEMPTS: Final = 5
"""Times in a row that a stream is opened without an answer coming of it; as calls that are retried by gRPC."""

_BROKEN: Final = "Internal error from Core"
"""What a write of grpc.aio says when the call is over; the status that ended it is lost then."""

_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 2.0


class Window(Generic[K, T]):
    """The messages of one stream that are not answered yet, and when the next may go.

    Args:
        gallery: Its name.
        stream_id: Of the stream; default a fresh one.
    """

    def __init__(self, gallery: str, stream_id: str | None) -> None:
        self.stream_id = stream_id or new_request_id()
        self._gallery = gallery
        self._pending: deque[tuple[int, K, Call[T]]] = deque()
        self._sequence = 0
        self._attempt = 0
        self._pause_until = 0.0

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def full(self) -> bool:
        """Whether nothing more should be sent before an answer."""
        return len(self._pending) >= IN_FLIGHT or (bool(self._pending) and self.pause_s > 0)

    @property
    def pause_s(self) -> float:
        """For how long the server asked to be sent nothing."""
        return max(0.0, self._pause_until - time.monotonic())

    def opening(self) -> list[Message]:
        """What a stream begins with: its id, and everything that is not answered."""
        opening = pb.StreamUpsertOpening(gallery=self._gallery, stream_id=self.stream_id)
        return [pb.StreamUpsertRequest(opening=opening), *(self._message(*entry) for entry in self._pending)]

    def add(self, key: K, call: Call[T]) -> pb.StreamUpsertRequest:
        """The message of one more call."""
        self._sequence += 1
        self._pending.append((self._sequence, key, call))
        return self._message(self._sequence, key, call)

    def answered(self, answer: pb.StreamUpsertResponse) -> tuple[K, T | LikewiseError] | None:
        """The outcome that an answer tells; None for the answer to an opening."""
        if answer.WhichOneof("outcome") == "opened":
            return None
        self._attempt = 0
        _, key, call = self._pending.popleft()
        if answer.HasField("back_off"):
            self._pause_until = time.monotonic() + answer.back_off.ToNanoseconds() / 1e9
        if answer.WhichOneof("outcome") == "error":
            return key, from_status(answer.error, request_id=self.stream_id)
        try:
            return key, read_answer(call, answer.response)
        except LikewiseError as error:
            return key, error

    def given_up(self, error: LikewiseError) -> tuple[K, LikewiseError] | None:
        """The outcome of a stream that ended with this error for good; None without anything unanswered."""
        return (self._pending[0][1], error) if self._pending else None

    def wait_s(self, error: LikewiseError) -> float | None:
        """When to open the stream again after this error; None: it is no use."""
        self._attempt += 1
        if not isinstance(error, Unavailable) or self._attempt >= ATTEMPTS:
            return None
        return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * float(2 ** (self._attempt - 1)))

    def _message(self, sequence: int, key: K, call: Call[T]) -> pb.StreamUpsertRequest:
        del key
        message = pb.StreamUpsertRequest(sequence=sequence, acknowledged=self._pending[0][0] - 1)
        message.request.CopyFrom(call.request)  # type: ignore[arg-type]  # the calls of upserts have such requests
        return message


def upsert_stream(
    transport: Transport, window: Window[K, T], source: Iterable[tuple[K, Call[T]]], timeout: float | None
) -> Iterator[tuple[K, T | LikewiseError]]:
    """Send calls as they come and yield outcomes in order; ends after the first that failed for good.

    Args:
        transport: How.
        window: A fresh one.
        source: What to send, read on the caller's thread.
        timeout: Longest wait for any one answer, seconds.
    """
    left = iter(source)
    while True:
        error: LikewiseError
        with _Duplex(transport, window.stream_id, timeout) as duplex:
            try:
                duplex.send(window.opening())
                while True:
                    while not window.full and (item := next(left, None)) is not None:
                        time.sleep(window.pause_s)
                        duplex.send([window.add(*item)])
                    if not len(window):
                        duplex.finish()
                        return
                    if (outcome := window.answered(duplex.answer())) is not None:
                        yield outcome
            except LikewiseError as caught:
                error = caught
        if (wait_s := window.wait_s(error)) is None:
            if (outcome := window.given_up(error)) is not None:
                yield outcome
            return
        time.sleep(wait_s)


async def async_upsert_stream(
    transport: AsyncTransport, window: Window[K, T], source: AsyncIterator[tuple[K, Call[T]]], timeout: float | None
) -> AsyncGenerator[tuple[K, T | LikewiseError]]:
    """As `upsert_stream`, for one event loop."""
    while True:
        error: LikewiseError
        stream: Any = None
        try:
            stream = transport.duplex(UPSERT_STREAM, metadata=_metadata(transport.config, window.stream_id))
            opening, *unanswered = window.opening()
            await _write(stream, transport.config, opening)
            window.answered(await _read(stream, transport.config, timeout))
            for message in unanswered:
                # One by one: what ends the stream now is read, and not lost in a write (see _BROKEN).
                await _write(stream, transport.config, message)
                if (outcome := window.answered(await _read(stream, transport.config, timeout))) is not None:
                    yield outcome
            while True:
                while not window.full and (item := await anext(source, None)) is not None:
                    await asyncio.sleep(window.pause_s)
                    await _write(stream, transport.config, window.add(*item))
                if not len(window):
                    await stream.done_writing()
                    with suppress(LikewiseError):
                        await _read(stream, transport.config, timeout)
                    return
                if (outcome := window.answered(await _read(stream, transport.config, timeout))) is not None:
                    yield outcome
        except (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as caught:
            error = await _error_of(stream, caught, window.stream_id, transport)
        except LikewiseError as caught:
            error = caught
        finally:
            if stream is not None:
                stream.cancel()
        if (wait_s := window.wait_s(error)) is None:
            if (outcome := window.given_up(error)) is not None:
                yield outcome
            return
        await asyncio.sleep(wait_s)


class _Duplex:
    """One attempt: gRPC's own thread takes the messages off a queue, answers are read on the caller's."""

    def __init__(self, transport: Transport, stream_id: str, timeout: float | None) -> None:
        self._transport = transport
        self._stream_id = stream_id
        self._deadline_s = transport.config.deadline_s(timeout)
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._late = False
        self._answers: Any = transport.duplex(
            UPSERT_STREAM, iter(self._outgoing.get, None), metadata=_metadata(transport.config, stream_id)
        )

    def __enter__(self) -> "_Duplex":
        return self

    def __exit__(self, *_: object) -> None:
        self._outgoing.put(None)
        self._answers.cancel()

    def send(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self._outgoing.put(self._transport.config.serialise(message))

    def finish(self) -> None:
        """Let the call end well; everything is answered, so that nothing depends on it."""
        self._outgoing.put(None)
        with suppress(LikewiseError):
            self.answer()

    def answer(self) -> pb.StreamUpsertResponse:
        timer = None if self._deadline_s is None else threading.Timer(self._deadline_s, self._give_up)
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            answer: pb.StreamUpsertResponse = next(self._answers)
        except StopIteration:
            raise Unavailable("the server ended the stream", request_id=self._stream_id) from None
        except grpc.RpcError as error:
            if self._late:
                raise _too_late(self._deadline_s, self._stream_id) from error
            if self._transport.closed:
                raise ClientClosed from error
            raise translated(error, self._stream_id, self._transport.config.target) from error
        finally:
            if timer is not None:
                timer.cancel()
        return answer

    def _give_up(self) -> None:
        self._late = True
        self._answers.cancel()


async def _write(stream: Any, config: ChannelConfig, message: Message) -> None:
    try:
        await stream.write(config.serialise(message))
    except grpc.aio.AioRpcError as error:
        if error.code() is StatusCode.INTERNAL and error.details() == _BROKEN:
            raise Unavailable("the stream broke while a message was sent") from error
        raise


async def _read(stream: Any, config: ChannelConfig, timeout: float | None) -> pb.StreamUpsertResponse:
    deadline_s = config.deadline_s(timeout)
    try:
        answer = await asyncio.wait_for(stream.read(), deadline_s)
    except TimeoutError as error:
        raise _too_late(deadline_s, "") from error
    if answer is grpc.aio.EOF:
        raise Unavailable("the server ended the stream")
    found: pb.StreamUpsertResponse = answer
    return found


async def _error_of(stream: Any, error: BaseException, stream_id: str, transport: AsyncTransport) -> LikewiseError:
    """What ended a stream: a write fails without saying why, the call's status does."""
    if transport.closed:
        return ClientClosed()
    if isinstance(error, grpc.aio.AioRpcError):
        return translated(error, stream_id, transport.config.target)
    code = await stream.code() if stream is not None else StatusCode.UNAVAILABLE
    if code is StatusCode.OK:
        return Unavailable("the server ended the stream", request_id=stream_id)
    made = grpc.aio.AioRpcError(
        code, await stream.initial_metadata(), await stream.trailing_metadata(), await stream.details()
    )
    return translated(made, stream_id, transport.config.target)


def _metadata(config: ChannelConfig, stream_id: str) -> tuple[tuple[str, str | bytes], ...]:
    return (*config.metadata, (REQUEST_ID_KEY, stream_id))


def _too_late(deadline_s: float | None, stream_id: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"no acknowledgement for {deadline_s} s", request_id=stream_id)
