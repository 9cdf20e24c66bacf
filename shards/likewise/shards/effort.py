"""How hard to search for a recall: a ladder of efforts, and what was measured on each of its steps. Pure.

Every checked query is searched on all steps, so that one curve answers for any target and nothing has to be tried out
on live traffic. A step is twice the cost of the second one below it.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from likewise.shards.planner import DEFAULT_OVER_FETCH, LOSSY_OVER_FETCH, IndexTraits
from likewise.shards.recall import Interval, wilson

F64 = npt.NDArray[np.float64]

STEPS: Final = 14
EXACT: Final = STEPS
"""The step above the ladder: compare all rows."""

WINDOW: Final = 256
"""Queries remembered; older ones are of rows and traffic of long ago."""

ENOUGH: Final = 16
"""Queries from which on an estimate is used."""

_EXPECTED: Final = ((0.9, 6), (0.95, 7), (0.99, 9), (0.999, 11))
"""Steps by target where nothing was measured yet: generous, since a promise is worth more than the first second."""


def depth_of(k: int, index: IndexTraits) -> int:
    """Rows wanted from the index for k hits, as the planner has it without a filter."""
    over_fetch = LOSSY_OVER_FETCH if index.lossy else DEFAULT_OVER_FETCH
    return max(math.ceil(k * over_fetch), k + 4)


def ef(step: int, k: int, index: IndexTraits) -> int:
    """HNSW's list on a step: from the depth itself to 90 times it."""
    return math.ceil(depth_of(k, index) * 2 ** (step / 2))


def nprobe(step: int, index: IndexTraits) -> int:
    """IVF's lists on a step: from one to all of them."""
    return max(1, min(index.nlist, round(math.pow(index.nlist, step / (STEPS - 1)))))


def over_fetch(step: int) -> float:
    """Candidates re-scored on a step as a multiple of k, for an index that has nothing else to set: 1 to 90."""
    return float(2 ** (step / 2))


def expected(target: float) -> int:
    """The step for a target where nothing was measured."""
    return next((step for recall, step in _EXPECTED if target <= recall), EXACT)


class Curve:
    """Recall on each step over the last queries checked."""

    def __init__(self) -> None:
        self._recalls: F64 = np.zeros((WINDOW, STEPS))
        self._served: F64 = np.zeros(WINDOW)
        self._dimensions: F64 = np.full(WINDOW, np.nan)
        self._seen = 0

    @property
    def queries(self) -> int:
        """Queries remembered."""
        return min(self._seen, WINDOW)

    @property
    def enough(self) -> bool:
        """Whether an estimate rests on enough queries."""
        return self._seen >= ENOUGH

    def add(self, recalls: F64, served: float, dimension: float | None) -> None:
        """Note a checked query: (STEPS,) recalls, the one of the search as it was served, and its local dimension."""
        at = self._seen % WINDOW
        self._recalls[at], self._served[at] = recalls, served
        self._dimensions[at] = math.nan if dimension is None else dimension
        self._seen += 1

    def served(self) -> Interval:
        """Recall of the searches as they were served."""
        n = self.queries
        return wilson(float(self._served[:n].mean()) if n else 1.0, n)

    def dimension(self) -> float | None:
        """Median local dimension at the queries."""
        known = self._dimensions[: self.queries]
        known = known[~np.isnan(known)]
        return float(np.median(known)) if len(known) else None

    def on(self, step: int) -> Interval:
        """Recall on a step."""
        n = self.queries
        return wilson(float(self._recalls[:n, step].mean()) if n else 1.0, n)

    def step(self, target: float) -> int:
        """The cheapest step whose mean recall reaches the target; EXACT if none does.

        One more is taken where so few queries could have met the mean by luck.
        """
        means = self._recalls[: self.queries].mean(axis=0)
        # From here on all steps reach it: a lucky lower one does not count.
        short = np.flatnonzero(means < target)
        first = int(short[-1]) + 1 if len(short) else 0
        if first < STEPS and wilson(float(means[first]), self.queries).low < target:
            first = min(first + 1, STEPS - 1)
        return first
