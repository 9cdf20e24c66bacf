"""Which calls are taken: no more at a time than may be, and none whose answer would come after its deadline.

Under more load than the server can bear, a queue makes every answer late, and work on late answers is lost. So a call
is refused before anything of it is read when those before it, at the rate at which calls end now (Little's law), would
use up half of its time. Below a crowd nothing is refused: the rate then tells how much is asked, not how much can be
done.
"""

from typing import Final

from likewise.server.errors import Overloaded, to_status

CROWD: Final = 64
"""Calls in progress below which none is refused for its deadline."""

WINDOW_S: Final = 0.1
"""Time over which ends of calls are counted."""

STALE_S: Final = 1.0
"""How long a counted rate is believed."""

SHARE_OF_DEADLINE: Final = 0.5
"""Of a call's time that may go by in waiting for those before it; the rest is for what the estimate does not know."""

_RETRY_S: Final = 0.1


class TooManyCalls(Overloaded):
    """As many calls are in progress as may be; with the status it becomes, made once."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} calls are in progress, the limit is {limit}", reason="TOO_MANY_CALLS", retry_after_s=_RETRY_S
        )
        self.status = to_status(self)


class Admission:
    """Counts the calls in progress; use it from one event loop.

    Args:
        max_calls: Calls in progress before further ones are refused.
    """

    def __init__(self, max_calls: int) -> None:
        self._max_calls = max_calls
        self._too_many = TooManyCalls(max_calls)
        self._calls = 0
        self._ended = 0
        self._least = 0
        self._since = 0.0
        self._rate: float | None = None

    @property
    def calls(self) -> int:
        """Calls in progress."""
        return self._calls

    def enter(self, remaining_s: float | None, now: float) -> None:
        """Take a call, or raise.

        Args:
            remaining_s: Until its deadline; None without one.
            now: `time.perf_counter()`.

        Raises:
            Overloaded: TOO_MANY_CALLS, or DEADLINE_TOO_NEAR.
        """
        calls = self._calls
        if calls >= self._max_calls:
            # The same object each time: under overload most of the work is refusing, and it has to be little.
            raise self._too_many.with_traceback(None)
        if calls >= CROWD and remaining_s is not None and self._rate is not None and now - self._since <= STALE_S:
            wait_s = calls / self._rate
            if wait_s > SHARE_OF_DEADLINE * remaining_s:
                raise Overloaded(
                    f"{calls} calls are in progress and {self._rate:.0f} end in a second: this one would wait "
                    f"{wait_s:.3f} s of the {remaining_s:.3f} s that it has",
                    reason="DEADLINE_TOO_NEAR",
                    retry_after_s=wait_s,
                )
        self._calls = calls + 1

    def leave(self, now: float, *, answered: bool) -> None:
        """Let go of a call that was taken.

        Args:
            now: `time.perf_counter()`.
            answered: It ended with an answer: not refused, cancelled or late.
        """
        self._calls -= 1
        self._ended += answered
        self._least = min(self._least, self._calls)
        elapsed = now - self._since
        if elapsed < WINDOW_S:
            return
        # Only where a crowd waited all the time was it the server that set the pace.
        crowded = self._least >= CROWD // 2 and elapsed <= STALE_S
        self._rate = max(self._ended, 1) / elapsed if crowded else None
        self._ended, self._least, self._since = 0, self._calls, now
