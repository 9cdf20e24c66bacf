"""Exceptions over a channel and back: what a part raises, its caller catches, with the fields kept.

A shard's errors (`shards.protocols`) and the server's (`server.errors`) become a google.rpc.Status whose
ErrorInfo.reason says which they were; the caller's side makes the same exception of it. What is of neither kind becomes
"internal error".
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode, aio

from likewise.server import errors, failures
from likewise.server.remote import deadlines
from likewise.shards import protocols

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler

_log = logging.getLogger(__name__)

DETAILS_KEY: Final = "grpc-status-details-bin"

UNKNOWN_ATTRIBUTE: Final = "UNKNOWN_ATTRIBUTE"
SHARD_OVERLOADED: Final = "SHARD_OVERLOADED"
SHARD_UNAVAILABLE: Final = "SHARD_UNAVAILABLE"
STORE_FAILURE: Final = "STORE_FAILURE"
MESSAGE_TOO_LARGE: Final = "MESSAGE_TOO_LARGE"

_CODES: Final = {code.value[0]: code for code in StatusCode}
_BY_CODE: Final[dict[StatusCode, type[errors.ServiceError]]] = {
    kind.code: kind
    for kind in (
        errors.InvalidRequest,
        errors.NotFound,
        errors.AlreadyExists,
        errors.FailedPrecondition,
        errors.Overloaded,
        errors.Unavailable,
        errors.DeadlinePassed,
        errors.Unimplemented,
        errors.DataLoss,
    )
}


class MessageTooLarge(errors.ServiceError):
    """An answer that does not fit one message; the caller's stub asks for less at a time."""

    code = StatusCode.RESOURCE_EXHAUSTED
    default_reason = MESSAGE_TOO_LARGE


def to_status(error: BaseException) -> status_pb2.Status:
    """The status that stands for an exception on the wire."""
    return errors.to_status(_as_service_error(error))


def _as_service_error(error: BaseException) -> errors.ServiceError:
    text = str(error)
    match error:
        case errors.ServiceError():
            return error
        case protocols.UnknownAttribute():
            return errors.InvalidRequest(text, reason=UNKNOWN_ATTRIBUTE, field=error.field)
        case protocols.Overloaded():
            return errors.Overloaded(text, reason=SHARD_OVERLOADED, retry_after_s=error.retry_after_s)
        case protocols.Unavailable():
            return errors.Unavailable(text, reason=SHARD_UNAVAILABLE)
        case protocols.StoreFailure():
            number = getattr(error.__cause__, "errno", None)
            return errors.ServiceError(
                text, reason=STORE_FAILURE, metadata={} if number is None else {"errno": str(number)}
            )
        case _:
            return failures.known(error) or errors.ServiceError("internal error")


def is_ours(error: aio.AioRpcError) -> bool:
    """Whether the other side's own code answered, rather than the transport between."""
    status = _status(error)
    return status is not None and _details(status)[0] is not None


def from_rpc(error: aio.AioRpcError, *, what: str, unavailable: type[Exception] = protocols.Unavailable) -> Exception:
    """The exception that the other side raised, or what the transport's failure means.

    Args:
        error: As gRPC raised it.
        what: Who was called, for messages of failures that no side worded.
        unavailable: Error that stands for "cannot be reached" at the caller's seam.
    """
    status = _status(error)
    if status is None or (found := from_status(status)) is None:
        return _of_transport(error.code(), error.details() or "", what=what, unavailable=unavailable)
    return found


def from_status(status: status_pb2.Status) -> Exception | None:
    """The exception that a status stands for; None if it is none of ours."""
    info, bad_request, retry = _details(status)
    if info is None:
        return None
    text = status.message
    retry_after_s = None if retry is None else retry.retry_delay.ToNanoseconds() / 1e9
    field = bad_request.field_violations[0].field if bad_request is not None and bad_request.field_violations else ""
    if info.reason == UNKNOWN_ATTRIBUTE:
        return protocols.UnknownAttribute(field, text.removeprefix(f"{field}: "))
    if info.reason == SHARD_OVERLOADED:
        return protocols.Overloaded(text, retry_after_s=retry_after_s or 0.0)
    if info.reason == SHARD_UNAVAILABLE:
        return protocols.Unavailable(text)
    if info.reason == STORE_FAILURE:
        failure = protocols.StoreFailure(text)
        if "errno" in info.metadata:  # a full disk is told apart from other failures by it
            failure.__cause__ = OSError(int(info.metadata["errno"]), text)
        return failure
    kind = errors.ServiceError
    if info.reason == MESSAGE_TOO_LARGE:
        kind = MessageTooLarge
    elif (code := _CODES.get(status.code)) is not None:
        kind = _BY_CODE.get(code, errors.ServiceError)
    return kind(text, reason=info.reason, field=field, retry_after_s=retry_after_s, metadata=dict(info.metadata))


def _of_transport(code: StatusCode, text: str, *, what: str, unavailable: type[Exception]) -> Exception:
    if code in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED):
        return unavailable(f"{what} does not answer")
    if code == StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlinePassed(f"the deadline passed while {what} worked")
    if code == StatusCode.RESOURCE_EXHAUSTED:
        return errors.Overloaded(f"{what} refused the call: {text}", retry_after_s=0.1)
    kind = _BY_CODE.get(code)
    return errors.ServiceError("internal error") if kind is None else kind(f"{what}: {text}")


def _status(error: aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return None


def _details(
    status: status_pb2.Status,
) -> tuple[error_details_pb2.ErrorInfo | None, error_details_pb2.BadRequest | None, error_details_pb2.RetryInfo | None]:
    info: error_details_pb2.ErrorInfo | None = None
    bad_request: error_details_pb2.BadRequest | None = None
    retry: error_details_pb2.RetryInfo | None = None
    for packed in status.details:
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            candidate = error_details_pb2.ErrorInfo.FromString(packed.value)
            info = candidate if candidate.domain == errors.DOMAIN else info
        elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad_request = error_details_pb2.BadRequest.FromString(packed.value)
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo.FromString(packed.value)
    return info, bad_request, retry


class StatusInterceptor(aio.ServerInterceptor):
    """Sets the call's deadline and turns what a servicer raises into its status."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the handler; only the kinds of calls that our parts have."""
        handler = await continuation(handler_call_details)
        if handler is not None and handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                _guarded(handler.unary_unary, handler_call_details.method),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        if handler is not None and handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                _guarded_stream(handler.unary_stream, handler_call_details.method),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return handler


def _guarded(behaviour: Callable[[Any, Any], Any], method: str) -> Callable[[Any, Any], Awaitable[Any]]:
    async def answer(request: Any, context: Any) -> Any:
        deadlines.set_deadline(context.time_remaining())
        try:
            return await behaviour(request, context)
        except Exception as error:
            await _refuse(error, context, method)

    return answer


def _guarded_stream(behaviour: Callable[[Any, Any], Any], method: str) -> Callable[[Any, Any], Awaitable[None]]:
    async def answer(request: Any, context: Any) -> None:
        # A coroutine that writes rather than a generator that yields: gRPC leaves the generator of a cancelled call to
        # the garbage collector.
        deadlines.set_deadline(context.time_remaining())
        try:
            async with contextlib.aclosing(behaviour(request, context)) as answers:
                async for message in answers:
                    await context.write(message)
        except Exception as error:
            await _refuse(error, context, method)

    return answer


def told(error: Exception, method: str) -> status_pb2.Status:
    """The status of an error of a servicer; what is of neither kind is logged as a failure of the method."""
    if not isinstance(error, errors.ServiceError | protocols.ShardError):
        _log.error("%s failed", method, exc_info=error)
    return to_status(error)


async def _refuse(error: Exception, context: Any, method: str) -> NoReturn:
    if isinstance(error, aio.AbortError):
        raise error
    status = told(error, method)
    code = next(code for code in StatusCode if code.value[0] == status.code)
    await context.abort(code, status.message, trailing_metadata=((DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("abort raises. This is a bug.")
