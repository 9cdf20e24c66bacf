"""How a router treats the replicas of a shard: every bound in one place."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HedgePolicy:
    """When a second replica is asked beside the first.

    Attributes:
        quantile: Of the shard's recent answers; a call that takes longer is hedged. In (0, 1).
        share: Hedges earned by each call, the most that a slow fleet gets in addition: 0.1 allows 10 % more calls. In
            [0, 1]. At 1 - `quantile` as many would be earned as sound replicas call for, and a bucket that is as often
            empty as full refuses those that matter: twice that costs no more calls (docs/scale.md).
        burst: Hedges that may be saved up, and that a new shard starts with.
    """

    quantile: float = 0.95
    share: float = 0.1
    burst: int = 10

    def __post_init__(self) -> None:
        if not 0.0 < self.quantile < 1.0:
            raise ValueError(f"quantile must be in (0, 1), got {self.quantile}")
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share must be in [0, 1], got {self.share}")
        if self.burst < 0:
            raise ValueError(f"burst must not be negative, got {self.burst}")


@dataclass(frozen=True, slots=True)
class EjectionPolicy:
    """When a replica gets no calls for a while.

    Attributes:
        failures: Failed calls in a row, at least 1.
        late: Late calls in a row, at least 1, that another replica would have answered in time.
        first_s: Length of the first ejection, seconds; each that follows without a good time between is twice as long.
        longest_s: Longest ejection, seconds, at least `first_s`.
    """

    failures: int = 3
    late: int = 5
    first_s: float = 0.25
    longest_s: float = 15.0

    def __post_init__(self) -> None:
        if self.failures < 1 or self.late < 1:
            raise ValueError(f"failures and late must be at least 1, got {self.failures} and {self.late}")
        if not 0.0 < self.first_s <= self.longest_s:
            raise ValueError(f"first_s must be in (0, longest_s], got {self.first_s} and {self.longest_s}")

    def duration_s(self, ejections: int) -> float:
        """Length of the ejection number `ejections` (1, 2, ...) in a row, seconds."""
        return float(min(self.longest_s, self.first_s * 2.0 ** min(ejections - 1, 30)))


@dataclass(frozen=True, slots=True)
class ReplicaPolicy:
    """Everything that can be set about the replicas of a shard.

    Attributes:
        max_attempts: Replicas asked for one call, hedges and retries included, at least 1. It bounds what a query that
            brings its shard down can do.
        hedge: When a second replica is asked beside the first.
        ejection: When a replica gets no calls for a while.
    """

    max_attempts: int = 3
    hedge: HedgePolicy = field(default_factory=HedgePolicy)
    ejection: EjectionPolicy = field(default_factory=EjectionPolicy)

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, got {self.max_attempts}")
