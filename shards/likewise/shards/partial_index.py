"""An index of its own for one filter: the sealed rows that the filter lets through, and no others.

Beside an index of all rows whose list is filtered afterwards, its list is shorter by what the filter leaves out, and
nothing has to be filtered. Databases call it a partial index. It is an HNSW graph over the reduced rows, of the same
make as the index of all of them, and only stands in for that where it is as good: the planner says for which searches,
and `far` says for which queries.

A graph finds what is near to queries that lie where its rows do. A query out of their distribution, for which the
filter lets through nothing that is near, say a picture of a dress among shoes, does not: among a third of 200 tight
clusters, without the query's own, a list of 15 found 0.67 of the 10 nearest. Its nearest rows are then farther from it
than the rows are from each other, so such a query is known by its answer, and is answered as if there were no such
index. Of 1,000 queries like the rows it was 0 to 8.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from likewise.shards import index_build
from likewise.shards.index import Found, SealedIndex, use_large_pages
from likewise.shards.masks import Allowed
from likewise.shards.planner import IndexTraits
from likewise.shards.protocols import F32, I64
from likewise.shards.rows import Mask, Snapshot
from likewise.shards.spec import IndexSpec

PLACE: Final = 10
"""Which of a query's nearest rows tells whether it is far: not the first ones, which may be copies."""

SAMPLED: Final = 1_024
"""Rows that are looked up to learn how near they are to each other."""

UNLIKE: Final = 2
"""How many of these are farther from the others than a query may be."""

FOUND_SHARE: Final = 0.95
"""Rows that must find themselves, or a copy, for a graph to be used."""

GONE_SHARE: Final = 8
"""It is used until an eighth of its rows has been deleted or replaced."""

_SAMPLE_EF: Final = 64
_ROUNDING: Final = 1e-3


@dataclass(frozen=True, slots=True)
class PartialIndex:
    """The index of one filter over one numbering of slots.

    Attributes:
        index: Over the reduced rows, by position.
        slots: (rows + 1,) slot of each position, ascending; the last is -1, for empty places.
        nearness: Score of the place `PLACE` below which a query is far from all rows.
        traits: What the planner has to know of it.
    """

    index: SealedIndex
    slots: I64
    nearness: float
    traits: IndexTraits

    @property
    def memory_bytes(self) -> int:
        """Estimate of what it takes."""
        return self.index.core_bytes + self.slots.nbytes

    def serves(self, allowed: Allowed) -> bool:
        """Whether most of its rows are alive still; those that are not are filtered out as ever."""
        rows = self.traits.rows  # FAISS takes its time to say
        return GONE_SHARE * (rows - allowed.sealed) <= rows

    def search(self, queries: F32, depth: int, *, ef: int) -> Found:
        """As `SealedIndex.search`, at least `PLACE` deep; positions are slots."""
        found = self.index.search(queries, max(depth, PLACE), ef=ef, nprobe=0)
        return found._replace(positions=self.slots[found.positions])

    def far(self, found: Found) -> Mask:
        """(n,) queries that the answer shows to be far from all rows."""
        far: Mask = found.scores[:, PLACE - 1] < self.nearness
        return far


def expected_bytes(index: SealedIndex, rows: int) -> int:
    """What one over so many of an index's rows would take."""
    return rows * (index.core_bytes // max(index.rows, 1) + 8)


def build(
    snapshot: Snapshot,
    allowed: Allowed,
    space: str,
    *,
    stop: Callable[[], bool] = lambda: False,
    busy: Callable[[], bool] = lambda: False,
) -> PartialIndex | None:
    """Build one over the sealed rows that are allowed.

    Args:
        snapshot: The rows; the space has an HNSW index of reduced ones.
        allowed: Which of them.
        space: Name of the space.
        stop: See `index_build.build`.
        busy: Likewise.

    Returns:
        None where there are not rows enough, or too many of them do not find themselves.

    Raises:
        BuildStopped: If `stop()` was true.
        ValueError: If the space has no such index.
    """
    whole = snapshot.spaces[space].index
    if whole is None or whole.reduction is None or whole.reduced is None:
        raise ValueError(f"the space {space!r} has no index of reduced rows")
    if allowed.sealed <= PLACE:
        return None
    slots, reduced = np.flatnonzero(allowed.mask[: snapshot.sealed]), whole.reduced
    built = index_build.build(
        len(slots),
        reduced.shape[1],
        replace(whole.recipe, reduced=False),
        IndexSpec(kind=whole.recipe.factory, ef=whole.ef or None),
        gather=lambda positions: reduced[slots[positions]],
        stop=stop,
        busy=busy,
    )
    nearness = _nearness(built)
    if nearness is None:
        return None
    index = replace(built, reduction=whole.reduction, vectors=None)
    use_large_pages(index, stop)
    return PartialIndex(index, np.append(slots, -1), nearness, index.traits._replace(partial=True))


def _nearness(index: SealedIndex) -> float | None:
    """Score of the place `PLACE` that nearly all rows reach among the others; None where too many miss themselves."""
    if index.vectors is None:
        raise AssertionError("a graph over rows that it does not hold. This is a bug.")
    sample = np.random.default_rng(0).permutation(index.rows)[:SAMPLED]
    rows = index.vectors[sample]
    scores = index.search(rows, PLACE + 1, ef=_SAMPLE_EF, nprobe=0).scores
    if np.mean(scores[:, 0] >= np.vecdot(rows, rows) - _ROUNDING) < FOUND_SHARE:
        return None
    return float(np.sort(scores[:, PLACE])[min(UNLIKE, len(sample) - 1)])
