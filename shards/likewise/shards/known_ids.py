"""Which ids a gallery may hold, at eight bytes an id.

A writer needs to know whether an id is new (its row is simply appended) or may be there (its old row has to be found
and retired). The hash of the id answers that well enough: a wrong "may be there" costs a look into the store, and a
wrong "new" cannot happen while nothing is forgotten.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from likewise.shards.protocols import I64

RECENT: Final = 65_536
"""Hashes kept in a set (about 60 bytes each, 4 MB) before they are merged into the sorted array."""

STALE: Final = 1_000_000
"""Deleted ids still remembered (8 MB) at which it pays to read the store again."""


class KnownIds:
    """A growing set of 63-bit id hashes; a sorted array with a small set in front.

    Attributes:
        stale: Hashes still in the set whose ids were deleted.
    """

    def __init__(self, hashes: I64) -> None:
        """Start from the hashes in the store, (n,) int64 in any order."""
        self._sorted: I64 = np.sort(hashes)
        self._recent: set[int] = set()
        self.stale = 0

    @property
    def wants_rebuild(self) -> bool:
        """Whether so many deleted ids are remembered that a fresh start saves memory."""
        return self.stale > max(STALE, len(self._sorted) // 2)

    def may_contain(self, hashes: I64) -> npt.NDArray[np.bool_]:
        """(n,) booleans; False means certainly not."""
        found = np.zeros(len(hashes), dtype=bool)
        if len(self._sorted):
            at = np.searchsorted(self._sorted, hashes)
            found = self._sorted[np.minimum(at, len(self._sorted) - 1)] == hashes
        if self._recent:
            recent = self._recent
            found |= np.fromiter((value in recent for value in hashes.tolist()), dtype=bool, count=len(hashes))
        return found

    def add(self, hashes: I64) -> None:
        """Remember hashes of ids that are now in the store."""
        if len(hashes) <= RECENT:
            self._recent.update(hashes.tolist())
        if len(hashes) > RECENT or len(self._recent) > RECENT:
            recent = np.fromiter(self._recent, dtype=np.int64, count=len(self._recent))
            recent = np.unique(np.concatenate([recent, hashes]) if len(hashes) > RECENT else recent)
            self._recent = set()
            recent = recent[~self.may_contain(recent)]
            # Copies once instead of sorting everything again.
            self._sorted = np.insert(self._sorted, np.searchsorted(self._sorted, recent), recent)
