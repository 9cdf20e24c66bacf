"""What every call goes through: parse, admit, run, map errors, count and write one line.

Handlers are wrapped once, where gRPC asks for them, rather than by an interceptor of gRPC's: that is three coroutines
less for each call. The wrapper parses and serialises messages itself, because one that cannot be parsed or is too large
to send would otherwise end in a status of gRPC's own that says neither which nor why.
"""

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode, aio

from likewise.server import validate
from likewise.server.admission import Admission
from likewise.server.calls import Call, Method
from likewise.server.errors import InvalidRequest, ServiceError
from likewise.server.message_calls import MessageCalls
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

Headers = Sequence[tuple[str, str | bytes]] | None

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
# A stream that stays open is no work; the searches in it are counted, each as a call.
_UNCOUNTED: Final = frozenset({"likewise.v1.SearchService/StreamSearch"})

_OK: Final = StatusCode.OK.name
_ENDS: Final = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)
"""The call, or the process, is being ended: there is nobody to tell."""

_headers: ContextVar[Headers] = ContextVar("likewise_headers", default=None)


class ResponseTooLarge(ServiceError):
    """An answer that does not fit one message: ask for less at a time."""

    code = StatusCode.RESOURCE_EXHAUSTED
    default_reason = "RESPONSE_TOO_LARGE"


class CallHandlers(grpc.GenericRpcHandler):
    """All handlers of the server, each wrapped.

    Args:
        metrics: Where calls are counted.
        admit: Raises a `ServiceError` while calls are not to be taken (loading, draining).
        max_calls: Calls in progress, health and reflection aside, before further ones are refused.
    """

    def __init__(self, *, metrics: Metrics, admit: Callable[[], None], max_calls: int) -> None:
        self._metrics = metrics
        self._admit = admit
        self._admission = Admission(max_calls)
        self._services: list[grpc.GenericRpcHandler] = []
        self._wrapped: dict[str, Handler] = {}
        self._methods: dict[str, Method] = {}

    def add(self, services: Iterable[grpc.GenericRpcHandler]) -> None:
        """Add the handlers of services, before the server starts."""
        self._services.extend(services)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The wrapped handler of the method called; a method there is none of stays gRPC's to refuse."""
        path = handler_call_details.method
        wrapped = self._wrapped.get(path)
        if wrapped is None:
            handler = next(filter(None, (one.service(handler_call_details) for one in self._services)), None)
            if handler is None:
                return None
            wrapped = self._wrapped[path] = self._wrap(handler, path)
        # gRPC asks in the task that will run the handler; its context would put the same headers together once more.
        _headers.set(handler_call_details.invocation_metadata)
        return wrapped

    def _wrap(self, handler: Handler, path: str) -> Handler:
        method = self._method(path.removeprefix("/"))
        parse = _parser(handler.request_deserializer)
        behaviour: Any = handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary

        async def unary(call: _Rpc, data: Any, context: Context) -> bytes:
            return _serialised(await behaviour(call.parsed(data), context))

        async def streaming(call: _Rpc, data: Any, context: Context) -> None:
            writing = _Writing(context)
            outcome = behaviour(call.parsed(data), writing)
            if not inspect.isasyncgen(outcome):
                await outcome
                return
            async with contextlib.aclosing(outcome):
                async for response in outcome:
                    await writing.write(response)

        # A stream of answers is written by a coroutine rather than yielded by a generator: gRPC leaves the generator of
        # a cancelled call to the garbage collector, a coroutine is cancelled with all it awaits.
        run = streaming if handler.response_streaming else unary

        async def handle(data: Any, context: Context) -> bytes | None:
            call = _Rpc(method, parse, context)
            admitted = False
            error: BaseException | None = None
            try:
                admitted = self._enter(method, call)
                return await run(call, data, context)
            except _ENDS as caught:
                error = caught
                raise
            except BaseException as caught:
                # A panic of a Rust library is no `Exception`; without a status its caller would wait for ever.
                error = caught
                await call.refuse(caught)
                raise
            finally:
                call.end(error)
                if admitted:
                    self._admission.leave(time.perf_counter(), answered=error is None)

        # Both serialisers are left out: the wrappers take and give bytes.
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(handle)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(handle)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(handle)
        return grpc.unary_unary_rpc_method_handler(handle)

    def messages(self, name: str) -> MessageCalls:
        """Takes the calls of a method that come as messages of a stream."""
        return MessageCalls(self._method(name), admit=self._admit, admission=self._admission)

    def _method(self, name: str) -> Method:
        """The one of this name: a call that comes by itself and a message of a stream are counted as the same."""
        method = self._methods.get(name)
        if method is None:
            always = name.startswith(_ALWAYS_ADMITTED)
            counted = not always and name not in _UNCOUNTED
            method = self._methods[name] = Method(name, self._metrics, always_admitted=always, counted=counted)
        return method

    def _enter(self, method: Method, call: Call) -> bool:
        """Take the call or raise, before anything of it is read; whether it counts as one in progress."""
        if method.always_admitted:
            return False
        self._admit()
        if not method.counted:
            return False
        self._admission.enter(call.remaining_s, call.started)
        return True


class ByName:
    """A server as generated code adds services to it; the method of a call is found by its name alone.

    Generated code also registers each method, and for every call grpc.aio (1.85) then waits on a future of each
    registered method of the server: 34 Python calls for each of ours, 60 us, before a handler is even found.
    """

    def __init__(self, handlers: CallHandlers) -> None:
        self._handlers = handlers

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[Any]) -> None:
        """Add handlers that are found by the name of a method."""
        self._handlers.add(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: dict[str, Any]) -> None:
        """Leave them out: all of them are generic handlers too."""


class _Writing:
    """A context whose `write` takes messages, for handlers that write instead of yielding."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def write(self, message: Any) -> None:
        await self._context.write(_serialised(message))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class _Rpc(Call):
    """A call that came by itself, from its first byte to its status."""

    def __init__(self, method: Method, parse: Callable[[bytes], Any], context: Context) -> None:
        super().__init__(method, _given_request_id(_headers.get()), context.time_remaining())
        self._parse = parse
        self._context = context

    def parsed(self, data: Any) -> Any:
        """The request of a unary call, or the iterator over those of a stream."""
        if not isinstance(data, bytes):
            return _parsed_stream(self._parse, data)
        request = self._parse(data)
        # Of the messages with such a field the caller's own id is the one to log and echo.
        if given := getattr(request, "request_id", ""):
            self.record.request_id = validate.request_id(given)
        return request

    async def refuse(self, error: BaseException) -> None:
        """End the call with the status of an error."""
        if isinstance(error, aio.AbortError):
            return
        status = self.refusal(error)
        metadata = (REQUEST_ID_KEY, self.record.request_id), (DETAILS_KEY, status.SerializeToString())
        await self._context.abort(_CODES[status.code], status.message, trailing_metadata=metadata)

    def end(self, error: BaseException | None) -> None:
        """Count the call and write its line."""
        if error is None:
            self._context.set_trailing_metadata(((REQUEST_ID_KEY, self.record.request_id),))
        self.ended(self._code(error))

    def _code(self, error: BaseException | None) -> str:
        code = self._context.code()
        if isinstance(code, StatusCode):
            return code.name
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            remaining = deadlines.remaining_s()
            return StatusCode.DEADLINE_EXCEEDED.name if remaining == 0 else StatusCode.CANCELLED.name
        return _OK if error is None else StatusCode.INTERNAL.name


def _given_request_id(headers: Headers) -> str:
    for key, value in headers or ():
        if key == REQUEST_ID_KEY and isinstance(value, str):
            try:
                return validate.request_id(value)
            except InvalidRequest:
                log.warning("a caller's %s header of %d characters is not usable", REQUEST_ID_KEY, len(value))
    return ""


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
