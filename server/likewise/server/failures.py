"""Any exception to what the caller may know of it.

The one table from the errors of the parts below to `ServiceError`. What is in no table is logged with its stack and
becomes "internal error": nothing of it is for the caller.
"""

import errno
import logging
from typing import Final

from google.rpc import status_pb2

from likewise.server.errors import (
    DeadlinePassed,
    FailedPrecondition,
    InvalidRequest,
    Overloaded,
    ServiceError,
    Unavailable,
    internal_status,
    to_status,
)
from likewise.shards import protocols
from likewise.shards.fence import GalleryReadOnly
from likewise.shards.spec import SpecError
from likewise.shards.spec_change import SpecChange
from likewise.wire import WireError

log = logging.getLogger(__name__)

# As `likewise.shards.failures` words them; over a channel the words are all that arrives.
_FULL: Final = ("no space left", "disk quota")

DISK_RETRY_S: Final = 30.0
"""When to come back after a full disk: somebody has to make room first."""


MAX_TEXT_BYTES: Final = 1200
"""Of an error: it travels as one header, percent-encoded, and twice in the details; clients take 8 KiB of headers."""


def known(error: BaseException) -> ServiceError | None:
    """The error as callers see it; None for one that is not meant for them."""
    match error:
        case ServiceError():
            return error
        case protocols.UnknownAttribute():
            return InvalidRequest(str(error), reason="UNKNOWN_ATTRIBUTE", field=error.field)
        case protocols.Overloaded():
            return Overloaded(str(error), retry_after_s=error.retry_after_s)
        case protocols.Unavailable():
            return Unavailable(str(error), reason="PART_UNAVAILABLE")
        case GalleryReadOnly():
            return FailedPrecondition(str(error), reason="GALLERY_READ_ONLY")
        case protocols.StoreFailure():
            return _store_failure(error)
        case SpecChange():
            return FailedPrecondition(str(error), reason="SPEC_CHANGE")
        case SpecError():
            return InvalidRequest(str(error), field=error.field)
        case WireError():
            return InvalidRequest(str(error))
        case TimeoutError():
            return DeadlinePassed("the deadline of the call passed")
        case _:
            return None


def status_of(error: BaseException, *, what: str) -> status_pb2.Status:
    """The status of any exception; a foreign one is logged as a failure of `what`."""
    service_error = known(error)
    if service_error is None:
        log.error("%s failed", what, exc_info=error)
        return internal_status()
    if service_error.code == ServiceError.code:
        log.error("%s failed: %s", what, error, exc_info=error)
    return to_status(_short(service_error))


def _short(error: ServiceError) -> ServiceError:
    """The error with a text that fits the headers of a reply, cut at the end where it has to be."""
    text = str(error).encode()
    if len(text) <= MAX_TEXT_BYTES:
        return error
    return type(error)(
        text[: MAX_TEXT_BYTES - 3].decode(errors="ignore") + "...",
        reason=error.reason,
        field=error.field,
        retry_after_s=error.retry_after_s,
        metadata=error.metadata,
    )


def _store_failure(error: protocols.StoreFailure) -> ServiceError:
    text = str(error)
    full = _errno(error) in (errno.ENOSPC, errno.EDQUOT) or any(sign in text for sign in _FULL)
    if full:
        return Overloaded(text, reason="DISK_FULL", retry_after_s=DISK_RETRY_S)
    return ServiceError(text, reason="STORE_FAILURE")


def _errno(error: BaseException) -> int | None:
    cause = error.__cause__
    return cause.errno if isinstance(cause, OSError) else None
