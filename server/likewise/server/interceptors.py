"""What every call goes through: parse, admit, run, map errors, count and write one line.

`CallInterceptor` is the only one. It parses and serialises messages itself, because one that cannot be parsed or is too
large to send would otherwise end in a status of gRPC's own that says neither which nor why.
"""

import asyncio
import contextlib
import inspect
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode, aio

from likewise.server import access_log, failures, validate
from likewise.server.access_log import CallRecord
from likewise.server.errors import InvalidRequest, Overloaded, ServiceError
from likewise.server.metrics import Metrics
from likewise.server.remote import deadlines
from likewise.wire import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    # Generic for type checkers alone: at run time neither takes parameters.
    Context = aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Context = aio.ServicerContext
    Handler = grpc.RpcMethodHandler

log = logging.getLogger(__name__)

DETAILS_KEY: Final = "grpc-status-details-bin"
REQUEST_ID_KEY: Final = "x-request-id"

_CODES: Final = {code.value[0]: code for code in StatusCode}
# Answered in every state of the server: probes and tools have to reach one that loads or drains.
_ALWAYS_ADMITTED: Final = (
    "grpc.health.",
    "grpc.reflection.",
    "inference.GRPCInferenceService/ServerLive",
    "inference.GRPCInferenceService/ServerReady",
    "inference.GRPCInferenceService/ModelReady",
)


_RETRY_S: Final = 0.1


class ResponseTooLarge(ServiceError):
    """An answer that does not fit one message: ask for less at a time."""

    code = StatusCode.RESOURCE_EXHAUSTED
    default_reason = "RESPONSE_TOO_LARGE"


class CallInterceptor(aio.ServerInterceptor):
    """Wraps every handler of the server.

    Args:
        metrics: Where calls are counted.
        admit: Raises a `ServiceError` while calls are not to be taken (loading, draining).
        max_calls: Calls in progress, health and reflection aside, before further ones are refused.
    """

    def __init__(self, *, metrics: Metrics, admit: Callable[[], None], max_calls: int) -> None:
        self._metrics = metrics
        self._admit = admit
        self._max_calls = max_calls
        self._calls = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the handler of the method called; a method there is none of stays gRPC's to refuse."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method.removeprefix("/")
        parse = _parser(handler.request_deserializer)
        behaviour = handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary

        async def unary(data: Any, context: Context) -> Any:
            return await self._unary(behaviour, method, parse, data, context)

        async def streaming(data: Any, context: Context) -> None:
            await self._streaming(behaviour, method, parse, data, context)

        # Both serialisers are left out: the wrappers take and give bytes.
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(streaming)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(unary)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(streaming)
        return grpc.unary_unary_rpc_method_handler(unary)

    async def _unary(
        self, behaviour: Any, method: str, parse: Callable[[bytes], Any], data: Any, context: Context
    ) -> bytes:
        async with _Call(self._metrics, method, context) as call:
            with self._admitted(method):
                return _serialised(await behaviour(call.parsed(parse, data), context))
        raise AssertionError("a call that failed was aborted. This is a bug.")

    async def _streaming(
        self, behaviour: Any, method: str, parse: Callable[[bytes], Any], data: Any, context: Context
    ) -> None:
        # A coroutine that writes rather than a generator that yields: gRPC leaves the generator of a cancelled call to
        # the garbage collector, a coroutine is cancelled with all it awaits.
        async with _Call(self._metrics, method, context) as call:
            writing = _Writing(context)
            with self._admitted(method):
                outcome = behaviour(call.parsed(parse, data), writing)
                if inspect.isasyncgen(outcome):
                    async with contextlib.aclosing(outcome):
                        async for response in outcome:
                            await writing.write(response)
                else:
                    await outcome

    @contextlib.contextmanager
    def _admitted(self, method: str) -> Iterator[None]:
        if method.startswith(_ALWAYS_ADMITTED):
            yield
            return
        self._admit()
        if self._calls >= self._max_calls:
            raise Overloaded(
                f"{self._calls} calls are in progress, the limit is {self._max_calls}",
                reason="TOO_MANY_CALLS",
                retry_after_s=_RETRY_S,
            )
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1


class _Writing:
    """A context whose `write` takes messages, for handlers that write instead of yielding."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def write(self, message: Any) -> None:
        await self._context.write(_serialised(message))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class _Call:
    """One call from its first byte to its status."""

    def __init__(self, metrics: Metrics, method: str, context: Context) -> None:
        self._metrics = metrics
        self._context = context
        self._record = CallRecord(method=method, request_id=_given_request_id(context))
        self._started = time.perf_counter()

    def parsed(self, parse: Callable[[bytes], Any], data: Any) -> Any:
        """The request of a unary call, or the iterator over those of a stream."""
        if not isinstance(data, bytes):
            return _parsed_stream(parse, data)
        request = parse(data)
        # Of the messages with such a field the caller's own id is the one to log and echo.
        if given := getattr(request, "request_id", ""):
            self._record.request_id = validate.request_id(given)
        return request

    async def __aenter__(self) -> "_Call":
        deadlines.set_deadline(self._context.time_remaining())
        access_log.begin(self._record)
        self._metrics.rpc_in_flight.labels(self._record.method).inc()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        record = self._record
        try:
            if isinstance(error, Exception) and not isinstance(error, aio.AbortError):
                await self._abort(error)
            elif error is None:
                self._context.set_trailing_metadata(((REQUEST_ID_KEY, record.request_id),))
        finally:
            record.code = self._code(error)
            record.duration_ms = (time.perf_counter() - self._started) * 1e3
            self._metrics.rpc_in_flight.labels(record.method).dec()
            self._metrics.rpc_requests.labels(record.method, record.code).inc()
            self._metrics.rpc_duration.labels(record.method).observe(record.duration_ms / 1e3)
            access_log.write(record)

    async def _abort(self, error: Exception) -> None:
        status = failures.status_of(error, what=self._record.method)
        service_error = failures.known(error)
        self._record.error = service_error.reason if service_error else "INTERNAL"
        if status.code == StatusCode.RESOURCE_EXHAUSTED.value[0]:
            self._metrics.rejected.labels(self._record.error).inc()
        metadata = (REQUEST_ID_KEY, self._record.request_id), (DETAILS_KEY, status.SerializeToString())
        await self._context.abort(_CODES[status.code], status.message, trailing_metadata=metadata)

    def _code(self, error: BaseException | None) -> str:
        code = self._context.code()
        if isinstance(code, StatusCode):
            return code.name
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            remaining = deadlines.remaining_s()
            return StatusCode.DEADLINE_EXCEEDED.name if remaining == 0 else StatusCode.CANCELLED.name
        return StatusCode.OK.name if error is None else StatusCode.INTERNAL.name


def _given_request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str):
            try:
                return validate.request_id(value)
            except InvalidRequest:
                log.warning("a caller's %s header of %d characters is not usable", REQUEST_ID_KEY, len(value))
    return uuid.uuid4().hex


def _parser(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        if deserializer is None:
            return data
        try:
            return deserializer(data)
        except DecodeError as error:
            message = getattr(getattr(deserializer, "__self__", None), "DESCRIPTOR", None)
            name = message.full_name if message is not None else "message"
            raise InvalidRequest(
                f"{len(data)} bytes are no {name}: not protobuf, or a string in it is not valid UTF-8",
                reason="MALFORMED_MESSAGE",
            ) from error

    return parse


async def _parsed_stream(parse: Callable[[bytes], Any], stream: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for data in stream:
        yield parse(data)


def _serialised(response: Any) -> bytes:
    if isinstance(response, bytes):
        return response
    data: bytes = response.SerializeToString()
    if len(data) > MAX_MESSAGE_BYTES:
        raise ResponseTooLarge(
            f"the answer has {len(data):,} bytes, a message may have {MAX_MESSAGE_BYTES:,}: ask for less at a time",
            metadata={"bytes": str(len(data)), "limit": str(MAX_MESSAGE_BYTES)},
        )
    return data
