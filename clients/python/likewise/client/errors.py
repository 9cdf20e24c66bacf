"""What a call may raise: one tree, each with the gRPC status it came from.

    LikewiseError
    ├── InvalidArgument (ValueError)      INVALID_ARGUMENT, or refused here before anything was sent
    │   ├── InvalidType (TypeError)       an argument of the wrong type, refused here
    │   └── MessageTooLarge               a request over the message limit, refused here; nothing was sent
    ├── NotFound (LookupError)            NOT_FOUND: no such gallery, model or reference item
    ├── AlreadyExists                     ALREADY_EXISTS: the name is taken
    ├── FailedPrecondition                FAILED_PRECONDITION: the request contradicts the gallery or the models
    ├── ResourceExhausted                 RESOURCE_EXHAUSTED: a queue is full; come back after `retry_after_s`
    │   └── AnswerTooLarge                the answer is over the message limit; ask for less
    ├── Unavailable (ConnectionError)     UNAVAILABLE: nobody there, loading or draining; retried before it is raised
    ├── DeadlineExceeded (TimeoutError)   DEADLINE_EXCEEDED: `timeout` passed
    ├── Cancelled                         CANCELLED: the call was given up, or dropped by a server with too many
    ├── Unimplemented                     UNIMPLEMENTED: this server does not serve that
    ├── PermissionDenied                  UNAUTHENTICATED, PERMISSION_DENIED
    ├── DataLoss                          DATA_LOSS: stored bytes are not what was written
    ├── ServerError                       INTERNAL, UNKNOWN and the rest: the server's fault
    ├── ClientClosed (RuntimeError)       the client was closed
    └── BatchError                        queries of a batch failed; `results` has the answers of the others

`except LikewiseError` catches them all. Only UNAVAILABLE and the server's CANCELLED are retried by themselves.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

__all__ = [
    "AlreadyExists",
    "AnswerTooLarge",
    "BatchError",
    "Cancelled",
    "ClientClosed",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "InvalidArgument",
    "InvalidType",
    "LikewiseError",
    "MessageTooLarge",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "ServerError",
    "Unavailable",
    "Unimplemented",
    "UpsertFailure",
]

REQUEST_ID_KEY: Final = "x-request-id"
"""Metadata key under which a call's id travels, both ways."""

_STATUS_KEY: Final = "grpc-status-details-bin"
_TOO_LARGE: Final = re.compile(r"larger than max \((\d+) vs\.? (\d+)\)")
_CODES: Final[Mapping[int, StatusCode]] = {code.value[0]: code for code in StatusCode}


@dataclass(frozen=True, slots=True)
class UpsertFailure:
    """What became of an upsert that failed.

    Attributes:
        stored: Items that are stored all the same, chunks before and beside the refused one.
        refused: Ids of the chunk that the error is about, in order; nothing of it is stored.
        not_stored: Ids of every item that is not stored, the refused ones first.
        item: Id of the item that the server names as the cause; "" when it names none.
    """

    stored: int
    refused: tuple[str, ...]
    not_stored: tuple[str, ...]
    item: str


class LikewiseError(Exception):
    """Base of everything that the SDK raises on purpose.

    Attributes:
        code: gRPC status; OK never occurs.
        reason: Stable UPPER_SNAKE name of the cause ("DIMENSION_MISMATCH"); "" when the server gave none.
        details: The message's dynamic parts, as the server gave them.
        field: Path of the offending field or argument; "" for none.
        retry_after_s: When to come back, seconds; None when the server did not say.
        request_id: The call's id, as the server's log has it; "" for an error found here.
        upsert: For a failed upsert, what was stored and what was not; None otherwise.
    """

    default_code: ClassVar[StatusCode] = StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: StatusCode | None = None,
        reason: str = "",
        details: Mapping[str, str] | None = None,
        field: str = "",
        retry_after_s: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.reason = reason
        self.details = dict(details or {})
        self.field = field
        self.retry_after_s = retry_after_s
        self.request_id = request_id
        self.upsert: UpsertFailure | None = None


class InvalidArgument(LikewiseError, ValueError):
    """A field of the request is wrong, whatever the state of the server."""

    default_code = StatusCode.INVALID_ARGUMENT


class InvalidType(InvalidArgument, TypeError):
    """An argument has the wrong type."""


class MessageTooLarge(InvalidArgument):
    """A request is over the message limit and cannot be divided; nothing was sent."""

    default_code = StatusCode.RESOURCE_EXHAUSTED


class NotFound(LikewiseError, LookupError):
    """The gallery, model or reference item is not there."""

    default_code = StatusCode.NOT_FOUND


class AlreadyExists(LikewiseError):
    """The name is taken."""

    default_code = StatusCode.ALREADY_EXISTS


class FailedPrecondition(LikewiseError):
    """The request contradicts the state of the gallery or the models."""

    default_code = StatusCode.FAILED_PRECONDITION


class ResourceExhausted(LikewiseError):
    """A bounded queue or the disk is full; see `retry_after_s`."""

    default_code = StatusCode.RESOURCE_EXHAUSTED


class AnswerTooLarge(ResourceExhausted):
    """The answer is over the message limit."""


class Unavailable(LikewiseError, ConnectionError):
    """Nobody answers there, or the server is loading, draining or short of a shard."""

    default_code = StatusCode.UNAVAILABLE


class DeadlineExceeded(LikewiseError, TimeoutError):
    """The call's timeout passed."""

    default_code = StatusCode.DEADLINE_EXCEEDED


class Cancelled(LikewiseError):
    """The call was given up here, or dropped by a server where too many calls wait."""

    default_code = StatusCode.CANCELLED


class Unimplemented(LikewiseError):
    """The server does not serve that."""

    default_code = StatusCode.UNIMPLEMENTED


class PermissionDenied(LikewiseError):
    """The caller is unknown or may not do that."""

    default_code = StatusCode.PERMISSION_DENIED


class DataLoss(LikewiseError):
    """Stored bytes are not what was written."""

    default_code = StatusCode.DATA_LOSS


class ServerError(LikewiseError):
    """The server failed; its log says why under `request_id`."""

    default_code = StatusCode.INTERNAL


class ClientClosed(LikewiseError, RuntimeError):
    """The client was closed."""

    default_code = StatusCode.CANCELLED

    def __init__(self) -> None:
        super().__init__("the client is closed; make a new one")


class BatchError(LikewiseError):
    """Some queries of a batch failed.

    Attributes:
        results: One a query, in order: its `Hits`, or the error it met.
    """

    def __init__(self, results: Sequence[Any]) -> None:
        failed = [(index, result) for index, result in enumerate(results) if isinstance(result, LikewiseError)]
        index, first = failed[0]
        super().__init__(
            f"{len(failed)} of {len(results)} queries failed, the first is query {index}: {first}",
            code=first.code,
            reason=first.reason,
            details=first.details,
            field=first.field,
            retry_after_s=first.retry_after_s,
            request_id=first.request_id,
        )
        self.results = list(results)


_CLASSES: Final[Mapping[StatusCode, type[LikewiseError]]] = {
    StatusCode.INVALID_ARGUMENT: InvalidArgument,
    StatusCode.OUT_OF_RANGE: InvalidArgument,
    StatusCode.NOT_FOUND: NotFound,
    StatusCode.ALREADY_EXISTS: AlreadyExists,
    StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    StatusCode.ABORTED: FailedPrecondition,
    StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    StatusCode.UNAVAILABLE: Unavailable,
    StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    StatusCode.CANCELLED: Cancelled,
    StatusCode.UNIMPLEMENTED: Unimplemented,
    StatusCode.UNAUTHENTICATED: PermissionDenied,
    StatusCode.PERMISSION_DENIED: PermissionDenied,
    StatusCode.DATA_LOSS: DataLoss,
}


def too_late(request_id: str) -> DeadlineExceeded:
    """Of a caller whose time is over while what it waits for goes on, or before that began (no id then)."""
    message = "the search's time was over before its answer came"
    return DeadlineExceeded(message, reason="CLIENT_TIMEOUT", request_id=request_id)


def from_status(status: status_pb2.Status, *, request_id: str = "") -> LikewiseError:
    """The error of a google.rpc.Status, as it stands in a batch or in a call's trailing metadata."""
    return _build(_CODES.get(status.code, StatusCode.UNKNOWN), status.message, status, request_id)


def from_rpc(
    code: StatusCode, message: str, metadata: Iterable[tuple[str, str | bytes]], *, request_id: str = ""
) -> LikewiseError:
    """The error of a failed call.

    Args:
        code: The call's status.
        message: Its text; gRPC's own when the call never reached a server.
        metadata: Its trailing metadata.
        request_id: Id that was sent, used when the server did not send one back.
    """
    trailers = dict(metadata)
    sent_back = trailers.get(REQUEST_ID_KEY)
    if isinstance(sent_back, str):
        request_id = sent_back
    status = status_pb2.Status(message=message)
    packed = trailers.get(_STATUS_KEY)
    if isinstance(packed, bytes):
        try:
            status = status_pb2.Status.FromString(packed)
        except DecodeError:
            status = status_pb2.Status(message=message)
    elif code is StatusCode.RESOURCE_EXHAUSTED and (sizes := _TOO_LARGE.search(message)):
        return AnswerTooLarge(
            f"a message of {sizes[1]} bytes is over the limit of {sizes[2]} bytes: "
            "ask for less (k, ids, page_size, vectors=False) or send less at a time",
            reason="MESSAGE_TOO_LARGE",
            details={"size": sizes[1], "limit": sizes[2]},
            request_id=request_id,
        )
    return _build(code, status.message or message, status, request_id)


def _build(code: StatusCode, message: str, status: status_pb2.Status, request_id: str) -> LikewiseError:
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    request = error_details_pb2.RequestInfo()
    for detail in status.details:
        for wanted in (info, bad, retry, request):
            detail.Unpack(wanted)
    after_s = retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None
    return _CLASSES.get(code, ServerError)(
        message or code.name,
        code=code,
        reason=info.reason,
        details=info.metadata,
        field=bad.field_violations[0].field if bad.field_violations else "",
        retry_after_s=after_s,
        request_id=request.request_id or request_id,
    )
