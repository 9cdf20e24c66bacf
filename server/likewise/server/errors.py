"""Errors that a caller may see, and the gRPC status and google.rpc details each becomes.

Domain code raises these; one interceptor turns them into statuses. A message says what was wrong, the value got and the
limit, and never shows a path or a stack.
"""

from collections.abc import Mapping
from typing import ClassVar, Final

from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import StatusCode

DOMAIN: Final = "likewise"


class ServiceError(Exception):
    """Base of every error whose message may be shown to a caller.

    Attributes:
        code: gRPC status.
        reason: UPPER_SNAKE, stable, at most 63 characters: google.rpc.ErrorInfo.reason.
        metadata: The message's dynamic parts: google.rpc.ErrorInfo.metadata.
        field: Path of the offending field, for google.rpc.BadRequest; "" for none.
        retry_after_s: When to come back, for google.rpc.RetryInfo; None for none.
    """

    code: ClassVar[StatusCode] = StatusCode.INTERNAL
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason or self.default_reason
        self.field = field
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})


class InvalidRequest(ServiceError):
    """A field of the request is wrong whatever the state of the server."""

    code = StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_ARGUMENT"


class NotFound(ServiceError):
    """A gallery, model or reference item that is not there."""

    code = StatusCode.NOT_FOUND
    default_reason = "NOT_FOUND"


class AlreadyExists(ServiceError):
    """The name is taken."""

    code = StatusCode.ALREADY_EXISTS
    default_reason = "ALREADY_EXISTS"


class FailedPrecondition(ServiceError):
    """The request contradicts the state of the gallery or the models."""

    code = StatusCode.FAILED_PRECONDITION
    default_reason = "FAILED_PRECONDITION"


class Overloaded(ServiceError):
    """A bounded queue or the disk is full."""

    code = StatusCode.RESOURCE_EXHAUSTED
    default_reason = "QUEUE_FULL"


class Unavailable(ServiceError):
    """A part is loading, draining or gone; the only status that clients retry by themselves."""

    code = StatusCode.UNAVAILABLE
    default_reason = "UNAVAILABLE"


class DeadlinePassed(ServiceError):
    """The caller's deadline passed while the request waited or ran."""

    code = StatusCode.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class Unimplemented(ServiceError):
    """Part of the contract that this release does not serve."""

    code = StatusCode.UNIMPLEMENTED
    default_reason = "UNIMPLEMENTED"


class DataLoss(ServiceError):
    """Stored bytes that are not what was written."""

    code = StatusCode.DATA_LOSS
    default_reason = "CHECKSUM_MISMATCH"


def to_status(error: ServiceError) -> status_pb2.Status:
    """The google.rpc.Status of an error, details included."""
    number: int = code_pb2.Code.Value(error.code.name)
    status = status_pb2.Status(code=number, message=str(error))
    details: list[any_pb2.Any] = []
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details.append(_packed(info))
    if error.field:
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field=error.field, description=str(error))
        details.append(_packed(bad))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(_packed(retry))
    status.details.extend(details)
    return status


def internal_status() -> status_pb2.Status:
    """What a caller sees of an error that is none of ours: nothing but that there was one."""
    return to_status(ServiceError("internal error"))


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
