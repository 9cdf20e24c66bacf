"""How long the calls of a shard take, as running quantiles in constant memory.

A histogram with logarithmic buckets gives any quantile to within a few per cent of its value, whatever that is
(DDSketch: Masson, Rim and Lee, VLDB 2019). Its counts are halved whenever they reach a bound, so that old answers fade
and a quantile follows the load.
"""

import math
from typing import Final, NamedTuple

import numpy as np

GROWTH: Final = 1.05
"""Ratio of a bucket's bounds. A quantile is its bucket's upper bound: never too low and at most 5 % too high."""

SHORTEST_S: Final = 50e-6
LONGEST_S: Final = 60.0
MIN_SAMPLES: Final = 20
"""Answers before there is a quantile: the 95th percentile of fewer is their maximum."""

FADE_SAMPLES: Final = 512
"""Weight of all samples at which it is halved."""

REFRESH_SAMPLES: Final = 16

_LOG_GROWTH: Final = math.log(GROWTH)
_BUCKETS: Final = math.ceil(math.log(LONGEST_S / SHORTEST_S) / _LOG_GROWTH)
_LARGEST_MAGNITUDE: Final = 8


class CallKind(NamedTuple):
    """Calls that take about as long as each other.

    Attributes:
        method: Of `ShardSearch`.
        magnitude: The call asks for at most 4 ** magnitude rows; the largest magnitude has no bound.
    """

    method: str
    magnitude: int = 0


def kind_of(method: str, rows: int) -> CallKind:
    """The kind of a call that asks for so many rows."""
    return CallKind(method, min(((max(rows, 1) - 1).bit_length() + 1) // 2, _LARGEST_MAGNITUDE))


class Latencies:
    """Running median and one high quantile of a stream of durations.

    Args:
        quantile: The high one, in (0, 1).

    Attributes:
        typical_s: Median, seconds; None before `MIN_SAMPLES`.
        late_s: High quantile, seconds; None before `MIN_SAMPLES`.
    """

    __slots__ = ("_counts", "_quantiles", "_since_refresh", "_total", "late_s", "typical_s")

    def __init__(self, quantile: float) -> None:
        self.typical_s: float | None = None
        self.late_s: float | None = None
        self._quantiles = np.array([0.5, quantile])
        self._counts = np.zeros(_BUCKETS, dtype=np.float32)
        self._total = 0.0
        self._since_refresh = 0

    def observe(self, duration_s: float) -> None:
        """Take one duration, in seconds; what is out of range counts as the range's end."""
        bucket = int(math.log(max(duration_s, SHORTEST_S) / SHORTEST_S) / _LOG_GROWTH)
        self._counts[min(bucket, _BUCKETS - 1)] += 1
        self._total += 1
        self._since_refresh += 1
        known = self.typical_s is not None
        if self._since_refresh >= REFRESH_SAMPLES if known else self._total >= MIN_SAMPLES:
            self._refresh()

    def _refresh(self) -> None:
        ranks = np.cumsum(self._counts)
        buckets = np.searchsorted(ranks, self._quantiles * ranks[-1])
        self.typical_s, self.late_s = (float(SHORTEST_S * GROWTH ** (bucket + 1)) for bucket in buckets)
        self._since_refresh = 0
        if self._total >= FADE_SAMPLES:
            self._counts *= 0.5
            self._total *= 0.5
