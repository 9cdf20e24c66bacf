"""What can be seen of a shard's replicas: counters and states, as values for metrics and statistics."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from likewise.server.replicas.health import EjectionReason
from likewise.server.replicas.verdicts import Verdict


class ReplicaState(Enum):
    """Whether a replica gets calls."""

    SERVING = "serving"
    EJECTED = "ejected"
    PROBING = "probing"
    """Ejected, and one call tries it."""


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """One replica.

    Attributes:
        name: Its address.
        state: Whether it gets calls.
        outstanding: Calls it has not answered.
        chosen: Calls it got, hedges and retries included.
        answered: Calls it answered, in time or not.
        late: Late calls, given up or not, that another replica would have answered in time.
        failed: Calls that failed by its fault.
        slowness: Time it takes over the median of the shard; 1 is like the others.
        version: Newest store version it is known to have reached.
        ejected_for_s: Seconds until it is due to be tried, 0 if it is or serves.
    """

    name: str
    state: ReplicaState
    outstanding: int
    chosen: int
    answered: int
    late: int
    failed: int
    slowness: float
    version: int
    ejected_for_s: float


@dataclass(frozen=True, slots=True)
class ReplicaSetReport:
    """The replicas of one shard; counters since this router knows it.

    Attributes:
        what: The shard's name for people.
        calls: Calls made of the shard.
        hedges: Second requests beside a late one, out of the budget.
        hedges_won: How many of them answered first.
        hedges_refused: Calls that were late with no hedge left in the budget.
        rescues: Second requests on credit: beside a replica that was ejected meanwhile, is being tried or gone silent.
        retries: Requests made anew after a failure, by its verdict.
        ejections: By reason.
        returns: Ejected replicas that came back.
        hedge_tokens: Hedges allowed now; below 0 while rescues are paid back.
        late_s: After how long a call is late, seconds, by method, the smallest of its sizes; methods not seen lack.
        replicas: By name.
    """

    what: str
    calls: int
    hedges: int
    hedges_won: int
    hedges_refused: int
    rescues: int
    retries: Mapping[Verdict, int]
    ejections: Mapping[EjectionReason, int]
    returns: int
    hedge_tokens: float
    late_s: Mapping[str, float]
    replicas: tuple[ReplicaReport, ...]


@dataclass(slots=True)
class Counts:
    """The counters of one shard, as they run."""

    calls: int = 0
    hedges: int = 0
    hedges_won: int = 0
    hedges_refused: int = 0
    rescues: int = 0
    returns: int = 0
    retries: Counter[Verdict] = field(default_factory=Counter)
    ejections: Counter[EjectionReason] = field(default_factory=Counter)
