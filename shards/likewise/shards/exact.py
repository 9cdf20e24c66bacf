"""Exact search over one space of a snapshot: which rows are compared, and as what.

The allowed rows of a filter are kept side by side where they are not too many; reduced ones are compared in place of
the rows where the index has them.
"""

from collections.abc import Callable, Sequence

import numpy as np

from likewise.shards.distance import Ranked
from likewise.shards.masks import Allowed, FilterCache
from likewise.shards.protocols import F32
from likewise.shards.reduction import Bounds
from likewise.shards.rows import Mask, Snapshot
from likewise.shards.scan import Scanned, scan
from likewise.shards.strips import Part, Transposed


class ExactSearch:
    """Compares allowed rows with queries.

    Args:
        snapshot: The rows.
        space: Name of the space.
        masks: Keeps the rows of filters.
        stop: Whether to give up; what is under way then raises `Abandoned`.
    """

    def __init__(self, snapshot: Snapshot, space: str, masks: FilterCache, stop: Callable[[], bool]) -> None:
        self._snapshot = snapshot
        self._name = space
        self._space = snapshot.spaces[space]
        self._masks = masks
        self._stop = stop

    def by_bounds(self, queries: F32, k: int, allowed: Allowed) -> Scanned | None:
        """The k best allowed rows by what reduced ones tell; None where there are no reduced ones."""
        reduced, index = self._space.reduced, self._space.index
        if reduced is None or index is None or index.reduction is None or not allowed.sealed:
            return None
        part = self._gathered(allowed) or _part(reduced, allowed.mask[: len(reduced)], allowed.sealed, reduced=True)
        return self._scan(queries, k, [part, *self._fresh(allowed)], index.reduction.bounds(queries))

    def whole(self, queries: F32, k: int, allowed: Allowed) -> Ranked:
        """The k best allowed rows, by the rows as they are."""
        gathered = self._gathered(allowed) if self._space.reduced is None else None
        if gathered is not None:
            return self._scan(queries, k, [gathered]).ranked
        block = self._space.sealed
        sealed = [_part(block, allowed.mask[: len(block)], allowed.sealed)] if allowed.sealed else []
        return self._scan(queries, k, [*sealed, *self._fresh(allowed)]).ranked

    def fresh(self, queries: F32, k: int, allowed: Allowed) -> Ranked:
        """The k best allowed rows that are in no index yet."""
        return self._scan(queries, k, self._fresh(allowed)).ranked

    def _gathered(self, allowed: Allowed) -> Part | Transposed | None:
        return self._masks.gathered(self._snapshot, allowed, self._name) if allowed.filtered else None

    def _fresh(self, allowed: Allowed) -> list[Part]:
        sealed, count = self._snapshot.sealed, allowed.count - allowed.sealed
        return [_part(self._space.fresh, allowed.mask[sealed:], count, first=sealed)] if count else []

    def _scan(self, queries: F32, k: int, parts: Sequence[Part | Transposed], bounds: Bounds | None = None) -> Scanned:
        ids, gather = self._snapshot.ids, self._space.copy
        return scan(queries, parts, k, ids=ids, gather=gather, bounds=bounds, stop=self._stop)


def _part(vectors: F32, mask: Mask, count: int, *, first: int = 0, reduced: bool = False) -> Part:
    """The rows of a block that a mask, with so many of them, allows."""
    return Part(vectors, first, None if count == len(vectors) else np.flatnonzero(mask), reduced=reduced)
