"""The caller's deadline, carried beside the call instead of through every signature.

Whoever receives a call sets it from `context.time_remaining()`; every stub below sends what is left of it along, so
that no part works for a caller who has stopped waiting. It lives in a context variable: tasks made within the call
inherit it.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Final

_DEADLINE: Final[ContextVar[float | None]] = ContextVar("likewise_deadline", default=None)


def set_deadline(timeout_s: float | None) -> None:
    """Let the current call (this task and those it makes) end in `timeout_s` seconds; None: never."""
    _DEADLINE.set(None if timeout_s is None else time.monotonic() + timeout_s)


def deadline() -> float:
    """When the current call ends, `time.monotonic()`; infinity without a deadline."""
    at = _DEADLINE.get()
    return math.inf if at is None else at


def set_at(deadline: float) -> None:
    """Let the current call end at `deadline`, as `deadline()` gives it."""
    _DEADLINE.set(None if deadline == math.inf else deadline)


def remaining_s() -> float | None:
    """Seconds left, at least 0; None without a deadline."""
    deadline = _DEADLINE.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def shorten(timeout_s: float | None) -> "Token[float | None]":
    """As `set_deadline`, to be taken back by `restore` in the same task."""
    return _DEADLINE.set(None if timeout_s is None else time.monotonic() + timeout_s)


def restore(token: "Token[float | None]") -> None:
    """Go back to the deadline there was before `shorten`."""
    _DEADLINE.reset(token)


@contextmanager
def limited(timeout_s: float) -> Iterator[None]:
    """Let the calls of the block end in `timeout_s` seconds, or with the current deadline if that is sooner."""
    left = remaining_s()
    token = _DEADLINE.set(time.monotonic() + (timeout_s if left is None else min(timeout_s, left)))
    try:
        yield
    finally:
        _DEADLINE.reset(token)
