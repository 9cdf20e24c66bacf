"""What a failed call says about the replica, and what a caller is told when all of them failed."""

from collections.abc import Sequence
from enum import Enum
from typing import Final

from likewise.server import errors, failures
from likewise.server.remote.statuses import MessageTooLarge
from likewise.shards.protocols import Unavailable


class Verdict(Enum):
    """What to make of an exception."""

    ANSWERED = "answered"
    """The caller's own fault: the replica did its part, and any other would say the same."""

    OVERLOADED = "overloaded"
    """A bounded queue is full: another replica may have room, once."""

    UNAVAILABLE = "unavailable"
    """The replica is gone, loading or draining, nothing was done: another one serves."""

    TIMED_OUT = "timed_out"
    """The replica gave up while the caller still waits."""

    BROKEN = "broken"
    """A defect of the replica or of the query: another one is tried once."""


_CALLERS_FAULT: Final = (
    errors.InvalidRequest,
    errors.NotFound,
    errors.AlreadyExists,
    errors.FailedPrecondition,
    errors.Unimplemented,
    MessageTooLarge,
)


def verdict(error: BaseException) -> Verdict:
    """What an exception of a replica's call means."""
    match failures.known(error):
        case known if isinstance(known, _CALLERS_FAULT):
            return Verdict.ANSWERED
        case errors.Overloaded():
            return Verdict.OVERLOADED
        case errors.Unavailable():
            return Verdict.UNAVAILABLE
        case errors.DeadlinePassed():
            return Verdict.TIMED_OUT
        case _:
            return Verdict.BROKEN


def told(failed: Sequence[Exception], *, replicas: int) -> Exception:
    """What a caller is told about the failures of a call, at least one, in the order they came.

    A full queue before all else, with the soonest time to come back: there the shard will serve. What is a defect comes
    last, because others say more about what to do.
    """
    overloaded = [error for error in failed if verdict(error) is Verdict.OVERLOADED]
    if overloaded:
        return min(overloaded, key=_retry_after_s)
    for wanted in (Verdict.UNAVAILABLE, Verdict.TIMED_OUT):
        of_kind = [error for error in failed if verdict(error) is wanted]
        if of_kind and wanted is Verdict.UNAVAILABLE and len(failed) > 1:
            error = Unavailable(f"{len(failed)} of {replicas} replicas were asked and none answers: {of_kind[-1]}")
            error.__cause__ = of_kind[-1]
            return error
        if of_kind:
            return of_kind[-1]
    return failed[-1]


def _retry_after_s(error: Exception) -> float:
    retry_after_s: float | None = getattr(error, "retry_after_s", None)
    return float("inf") if retry_after_s is None else retry_after_s
