"""Hedged requests: when a second replica is asked, and how often that is allowed.

Asking a second replica once a call takes longer than the shard's 95th percentile costs 5 % more calls and takes most
of the tail away (Dean and Barroso, The Tail at Scale, CACM 2013). When a whole fleet is slow every call would be
hedged, so hedges come out of a token bucket that calls fill.
"""

from typing import Final

from likewise.server.replicas.policy import HedgePolicy

UNKNOWN_S: Final = 0.1
"""After how long a call is late before the shard's quantile is known."""

SOONEST_S: Final = 0.001
"""Below it a late answer says more about this process than about the replica."""

SILENT_FACTOR: Final = 20.0
"""A call that is late so many times over may be one that never ends."""


def patience_s(late_s: float | None) -> float:
    """After how many seconds a call is late, from the shard's high quantile, if that is known."""
    return UNKNOWN_S if late_s is None else max(late_s, SOONEST_S)


def delay_s(late_s: float | None, remaining_s: float | None) -> float:
    """When to ask a second replica, seconds from now: once the call is late, and with half of its time left."""
    delay = patience_s(late_s)
    return delay if remaining_s is None else min(delay, remaining_s / 2)


def overdue_s(late_s: float | None, remaining_s: float | None) -> float:
    """From when on a call to a replica gone silent is made anew, seconds: many times late, or half of its time."""
    overdue = SILENT_FACTOR * patience_s(late_s)
    return overdue if remaining_s is None else min(overdue, remaining_s / 2)


class HedgeBudget:
    """Token bucket of hedges: at most `burst` + `share` * calls of them, whatever the calls do.

    Attributes:
        tokens: Hedges allowed now; below 0 while calls pay back what had to be asked twice.
    """

    __slots__ = ("_burst", "_share", "tokens")

    def __init__(self, policy: HedgePolicy) -> None:
        self._share = policy.share
        self._burst = float(policy.burst)
        self.tokens = self._burst

    def earn(self) -> None:
        """Take note of a call."""
        self.tokens = min(self._burst, self.tokens + self._share)

    def take(self) -> bool:
        """Whether a hedge is allowed; it is paid for."""
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True

    def owe(self) -> None:
        """Pay for a second request that had to be made, on credit if need be; debts end at one burst."""
        self.tokens = max(-self._burst, self.tokens - 1.0)
