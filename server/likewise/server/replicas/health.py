"""Whether a replica gets calls: a value that changes with each outcome, by functions without side effects.

A replica that fails, or is outdone, several times in a row is ejected. After a time that doubles from ejection to
ejection it is due: one call tries it, and brings it back or ejects it again (a circuit breaker with a half-open state).
Who else serves is not known here; `pool` never ejects the last one.
"""

from dataclasses import dataclass, replace
from enum import Enum

from likewise.server.replicas.policy import EjectionPolicy

_GOOD_TIME = 2.0
"""Ejections back so many times the last one's length are forgotten."""


class EjectionReason(Enum):
    """Why a replica was ejected."""

    FAILING = "failing"
    LATE = "late"


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of a replica's health. Times are seconds of one monotonic clock.

    Attributes:
        failures: Failed calls in a row.
        late: Late calls in a row that another replica would have answered in time.
        ejections: In a row, without a good time between.
        ejected_until_s: When it is due to be tried; None while it serves.
        changed_s: When it was last ejected or came back; what began earlier says nothing about it now.
    """

    failures: int = 0
    late: int = 0
    ejections: int = 0
    ejected_until_s: float | None = None
    changed_s: float = float("-inf")

    @property
    def serving(self) -> bool:
        """Whether it is not ejected."""
        return self.ejected_until_s is None

    def due(self, now_s: float) -> bool:
        """Whether it is ejected and its time is over."""
        return self.ejected_until_s is not None and now_s >= self.ejected_until_s


def answered(health: Health, now_s: float, policy: EjectionPolicy) -> Health:
    """After an answer in time; it brings an ejected replica back."""
    if not health.serving:
        return replace(health, failures=0, late=0, ejected_until_s=None, changed_s=now_s)
    good = now_s - health.changed_s >= _GOOD_TIME * policy.duration_s(max(health.ejections, 1))
    return replace(health, failures=0, late=0, ejections=0 if good else health.ejections)


def failed(health: Health) -> Health:
    """After a call that failed; an ejected replica stays as it is."""
    return replace(health, failures=health.failures + 1) if health.serving else health


def late(health: Health) -> Health:
    """After a late call that another would have answered in time; an ejected replica stays as it is."""
    return replace(health, late=health.late + 1) if health.serving else health


def ejected(health: Health, now_s: float, policy: EjectionPolicy) -> Health:
    """Ejected, or ejected again, from now on."""
    ejections = health.ejections + 1
    return replace(
        health,
        failures=0,
        late=0,
        ejections=ejections,
        ejected_until_s=now_s + policy.duration_s(ejections),
        changed_s=now_s,
    )


def deserved(health: Health, policy: EjectionPolicy) -> EjectionReason | None:
    """Why the replica is to be ejected, None while it is not."""
    if not health.serving:
        return None
    if health.failures >= policy.failures:
        return EjectionReason.FAILING
    return EjectionReason.LATE if health.late >= policy.late else None
