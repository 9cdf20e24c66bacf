"""A few recent live queries, kept in memory so that the next version of a model can be tried on them before it serves.

What is kept is the input (image, text, vector of the reference; conditions), never the answer, and nothing of it is
written anywhere. The sample follows the stream: a new query takes the place of a random older one, so that the chance
to be in it decays exponentially with age (Aggarwal, On biased reservoir sampling in the presence of stream evolution,
VLDB 2006, algorithm 3.1: every arrival enters with a fixed probability).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from likewise.server.query import ConditionInput, ImageReference, ReferenceInput, TextReference

MAX_QUERIES: Final = 64
"""A family; the standard error of a mean overlap of 64 queries is below 0.063."""

MAX_BYTES: Final = 16 << 20
"""A family, of inputs."""

MAX_QUERY_BYTES: Final = 1 << 20
"""Larger inputs are not kept: sixteen photographs would push out everything else."""

KEPT_SHARE: Final = 1 / 16
"""Of the arrivals, once the sample is full: it then spans about the last thousand queries."""


@dataclass(frozen=True, slots=True)
class LiveQuery:
    """What one query was made of.

    Attributes:
        family: Models that composed it.
        gallery: Gallery searched.
        space: Name of its space.
        reference: As it came; None without one.
        conditions: As they came.
    """

    family: str
    gallery: str
    space: str
    reference: ReferenceInput | None
    conditions: tuple[ConditionInput, ...]

    @property
    def size(self) -> int:
        """Bytes of the input, about."""
        match self.reference:
            case None:
                size = 0
            case ImageReference(data):
                size = len(data)
            case TextReference(text):
                size = len(text)
            case vector:
                size = vector.vector.nbytes
        return size + sum(len(condition.text) for condition in self.conditions)


class RecentQueries:
    """Samples of live queries, one a family. Used on the event loop alone.

    Args:
        seed: Of the choice; None for another each time.
    """

    def __init__(self, *, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self._samples: dict[str, list[LiveQuery]] = {}
        self._bytes: dict[str, int] = {}

    def add(self, query: LiveQuery) -> None:
        """Maybe keep a query that was composed."""
        sample = self._samples.setdefault(query.family, [])
        if len(sample) >= MAX_QUERIES and self._random.random() >= KEPT_SHARE:
            return
        size = query.size
        if size > MAX_QUERY_BYTES:
            return
        held = self._bytes.get(query.family, 0) + size
        while sample and (len(sample) >= MAX_QUERIES or held > MAX_BYTES):
            # Order means nothing, so the last one fills the gap.
            i = self._random.randrange(len(sample))
            sample[i], sample[-1] = sample[-1], sample[i]
            held -= sample.pop().size
        sample.append(query)
        self._bytes[query.family] = held

    def of(self, family: str) -> Sequence[LiveQuery]:
        """The sample of a family as it is now."""
        return tuple(self._samples.get(family, ()))
