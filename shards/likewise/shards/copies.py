"""Rows of equal content, found without looking at all rows: searches leave copies of their reference out."""

from dataclasses import dataclass

import numpy as np

from likewise.shards.protocols import I64


@dataclass(frozen=True, slots=True)
class ContentOrder:
    """The first rows of a partition in the order of their content. Rows that came since are looked at one by one.

    Attributes:
        slots: (rows,) their slots, content ascending.
    """

    slots: I64

    @classmethod
    def of(cls, content: I64) -> "ContentOrder":
        """The order of rows with such digests; some 0.1 us a row."""
        return cls(np.argsort(content))

    def equal(self, content: I64, digest: int) -> I64:
        """Slots, ascending, of the rows whose content is this.

        Args:
            content: (size,) digests: those that the order was made of, and of rows that came since.
            digest: The one looked for.
        """
        ordered = len(self.slots)
        first, last = (
            np.searchsorted(content[:ordered], np.int64(digest), side=side, sorter=self.slots)
            for side in ("left", "right")
        )
        later = np.flatnonzero(content[ordered:] == digest) + ordered
        return np.concatenate((np.sort(self.slots[first:last]), later))
