"""Which replica to ask: the better of two drawn at random, by how busy and how slow they are.

Two random choices come within a constant of the least loaded of all, and many routers with the same stale picture do
not all fall upon one replica (Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001).
"""

import math
import random
from collections.abc import Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

HALF_LIFE_S: Final = 3.0
"""A replica that was slow is taken for half as slow after so long without an answer: it gets another chance."""

_SMOOTHING: Final = 0.2
_SLOWEST: Final = 10.0
"""More would change no choice, and take longer to be forgotten."""

_NOISE: Final = 1.25
"""Less slowness is as good as any: neither a small difference nor a shard that becomes faster is to send all calls to
the replica that was asked first."""


class Outstanding(Protocol):
    """A call that is not answered yet; hashable."""

    @property
    def began_s(self) -> float:
        """When it was made."""
        ...

    @property
    def typical_s(self) -> float | None:
        """The median of such calls at the shard, seconds, if it is known."""
        ...


CallT = TypeVar("CallT", bound=Outstanding)


class Load(Generic[CallT]):
    """How busy and how slow one replica is, as its callers here see it.

    Slowness is time taken over the median of such calls at this shard, smoothed: 1 for a replica like the others.

    Attributes:
        outstanding: Calls it has not answered, as keys, the oldest first.
    """

    __slots__ = ("_slowness", "_updated_s", "outstanding")

    def __init__(self) -> None:
        self.outstanding: dict[CallT, None] = {}
        self._slowness = 1.0
        self._updated_s = 0.0

    @property
    def oldest(self) -> CallT | None:
        """The call that waits longest."""
        return next(iter(self.outstanding), None)

    def observe(self, elapsed_s: float, typical_s: float | None, now_s: float) -> None:
        """Take note of how long a call took."""
        if typical_s is not None:
            known = self.slowness(now_s)
            self._slowness = known + _SMOOTHING * (min(elapsed_s / typical_s, _SLOWEST) - known)
            self._updated_s = now_s

    def slowness(self, now_s: float) -> float:
        """Smoothed time over the median; it fades towards 1."""
        return 1.0 + (self._slowness - 1.0) * math.exp2(-(now_s - self._updated_s) / HALF_LIFE_S)

    def cost(self, now_s: float) -> float:
        """What another call would wait for, in medians: outstanding calls times slowness.

        The oldest outstanding call speaks too: a replica that is stuck gives no answers to learn from.
        """
        slowness = self.slowness(now_s)
        oldest = self.oldest
        if oldest is not None and oldest.typical_s is not None:
            slowness = max(slowness, min((now_s - oldest.began_s) / oldest.typical_s, _SLOWEST))
        return max(1.0, slowness / _NOISE) * (len(self.outstanding) + 1)


class Loaded(Protocol):
    """What has a load."""

    @property
    def load(self) -> Load[Any]:
        """Of it."""
        ...


R = TypeVar("R", bound=Loaded)


def less_loaded(candidates: Sequence[R], now_s: float, draw: random.Random) -> R:
    """The better of two of the candidates, at least one, drawn at random; equal costs are a draw."""
    if len(candidates) == 1:
        return candidates[0]
    one, other = draw.sample(candidates, 2)
    # The order of the sample is random: a draw goes to the first.
    return other if other.load.cost(now_s) < one.load.cost(now_s) else one
