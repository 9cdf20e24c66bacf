"""Products of queries with rows, a strip of rows at a time: where rows lie in memory, and what BLAS is asked for.

Rows of a block lie one after the other. Reduced ones that a filter lets through are copied out anyway, and are kept
transposed: for a few queries BLAS multiplies these in half of the time, and numpy looks through the long lines that
come of it several times as fast as through short ones. Of whole rows it is the memory that takes the time.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from likewise.shards.protocols import F32, I64

COPIED_BYTES: Final = 32 << 20
"""Of rows that are copied to lie side by side for one product."""

STRIP_PRODUCTS: Final = 1 << 18
"""Products that are made and looked through at once: they stay in the cache of a core."""
STRIP_ROWS: Final = (1_024, 65_536)
"""Fewest and most rows of them."""

GEMV_QUERIES: Final = 3
"""Up to here a product per query beats one matrix product: 16,384 x 512 took 3, 5, 7 and 8 ms for 2, 3, 4 and 5 queries
and 7, 9, 9 and 10 as one."""

SMALL_PRODUCT: Final = 1_000_000
SMALL_ROWS: Final = 512
"""OpenBLAS copies nothing for a product of so few multiplications. 2, 4, 8, 16 queries with 16,384 rows of 32, kept
transposed, took 60, 56, 98 and 186 us in such pieces instead of 209, 221, 269 and 429; row by row it had been 105, 131,
183 and 223. Pieces of fewer rows gain nothing."""

TRANSPOSED_ROWS: Final = 1_024
"""Copied at a time when rows are transposed, so that they stay in the cache: all 200,000 of 32 numbers at once take 31
ms instead of 14."""

DENSE_SHARE_FEW: Final = 0.15
DENSE_SHARE_MANY: Final = 0.8
"""From this share of allowed rows on, a whole block is compared and masked, for few and for many queries: copying a row
out costs about as much as comparing six."""


class Strip(NamedTuple):
    """Rows compared with n queries.

    Attributes:
        products: (n, rows) float32, in either order of memory, overwritten by later strips; -inf where no row is meant.
        first: Slot of the first row.
        slots: (rows,) slot of each row where they do not follow each other from `first`.
        left_out: (rows,) what is left out of each, of rows that are reduced.
    """

    products: F32
    first: int
    slots: I64 | None
    left_out: F32 | None

    def slots_of(self, rows: I64) -> I64:
        """The slots of some of the rows."""
        return rows + self.first if self.slots is None else self.slots[rows]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a block, one after the other.

    Attributes:
        vectors: (rows, d) float32, unit length.
        first: Slot of the first row.
        rows: Rows to compare, ascending; None for all.
        slots: (rows,) slot of each row where they do not follow each other from `first`; all rows are compared then.
        reduced: The vectors are reduced ones.
    """

    vectors: F32
    first: int
    rows: I64 | None = None
    slots: I64 | None = None
    reduced: bool = False

    @property
    def total(self) -> int:
        """Rows there are."""
        return len(self.vectors)

    @property
    def compared(self) -> int:
        """Rows to compare."""
        return len(self.vectors) if self.rows is None else len(self.rows)

    def between(self, start: int, stop: int) -> "Part":
        """The rows [start, stop) as a part."""
        rows = self.rows
        if rows is not None:
            low, high = np.searchsorted(rows, (start, stop))
            rows = rows[low:high] - start
        slots = None if self.slots is None else self.slots[start:stop]
        return Part(self.vectors[start:stop], self.first + start, rows, slots, self.reduced)

    def strips(self, queries: F32) -> Iterator[Strip]:
        """Products of the (n, d) queries with the rows to compare."""
        n, step = len(queries), _strip_rows(len(queries))
        dense_share = DENSE_SHARE_FEW if n <= GEMV_QUERIES else DENSE_SHARE_MANY
        if self.rows is not None and len(self.rows) < dense_share * self.total:
            yield from self._copied_strips(queries, self.rows, step)
            return
        buffer = _room.of(n * min(step, self.total))
        for start in range(0, self.total, step):
            block = self.vectors[start : start + step]
            products, left_out = _multiply(queries, block, buffer), block[:, -1] if self.reduced else None
            if self.rows is None:
                slots = None if self.slots is None else self.slots[start : start + step]
                yield Strip(products, self.first + start, slots, left_out)
                continue
            low, high = np.searchsorted(self.rows, (start, start + len(block)))
            meant = self.rows[low:high]
            at = meant - start
            yield Strip(_chosen(products, at), 0, meant + self.first, None if left_out is None else left_out[at])

    def _copied_strips(self, queries: F32, rows: I64, step: int) -> Iterator[Strip]:
        step = min(step, len(rows), max(256, COPIED_BYTES // (4 * self.vectors.shape[1])))
        copied = np.empty((step, self.vectors.shape[1]), dtype=np.float32)
        buffer = _room.of(len(queries) * step)
        for start in range(0, len(rows), max(step, 1)):
            meant = rows[start : start + step]
            block = np.take(self.vectors, meant, axis=0, out=copied[: len(meant)], mode="clip")
            left_out = block[:, -1].copy() if self.reduced else None
            yield Strip(_multiply(queries, block, buffer), 0, meant + self.first, left_out)


@dataclass(frozen=True, slots=True)
class Transposed:
    """Reduced rows kept side by side, number by number.

    Attributes:
        numbers: (width, rows) float32; unit length, a column each.
        slots: (rows,) slot of each row, ascending.
        gone: Rows that are not meant any more, ascending; None for none.
    """

    numbers: F32
    slots: I64
    gone: I64 | None = None

    @classmethod
    def of(cls, block: F32, slots: I64) -> "Transposed":
        """A copy of some rows of a block, of which each slot names one."""
        numbers = np.empty((block.shape[1], len(slots)), dtype=np.float32)
        for start in range(0, len(slots), TRANSPOSED_ROWS):
            numbers[:, start : start + TRANSPOSED_ROWS] = block[slots[start : start + TRANSPOSED_ROWS]].T
        return cls(numbers, slots)

    @property
    def reduced(self) -> bool:
        """Always."""
        return True

    @property
    def total(self) -> int:
        """Rows there are."""
        return len(self.slots)

    @property
    def compared(self) -> int:
        """Rows to compare."""
        return len(self.slots) - (0 if self.gone is None else len(self.gone))

    def between(self, start: int, stop: int) -> "Transposed":
        """The rows [start, stop) as a part."""
        return Transposed(self.numbers[:, start:stop], self.slots[start:stop], self._gone_between(start, stop))

    def strips(self, queries: F32) -> Iterator[Strip]:
        """Products of the (n, d) queries with the rows."""
        n, step = len(queries), _strip_rows(len(queries))
        small = SMALL_PRODUCT // queries.size
        piece = small if small >= SMALL_ROWS else step
        buffer = _room.of(n * min(step, self.total))
        for start in range(0, self.total, step):
            end = min(start + step, self.total)
            products = buffer[: n * (end - start)].reshape(n, end - start)
            for first in range(start, end, piece):
                last = min(first + piece, end)
                np.matmul(queries, self.numbers[:, first:last], out=products[:, first - start : last - start])
            if (gone := self._gone_between(start, end)) is not None:
                products[:, gone] = -np.inf
            yield Strip(products, 0, self.slots[start:end], self.numbers[-1, start:end])

    def _gone_between(self, start: int, stop: int) -> I64 | None:
        return None if self.gone is None else self.gone[(self.gone >= start) & (self.gone < stop)] - start


def _chosen(products: F32, rows: I64) -> F32:
    """The products of some rows, in the order of memory that they have."""
    return products[:, rows] if products.flags.c_contiguous else products.T[rows].T


class _Room(threading.local):
    """Where the calling thread puts products: fresh pages for them would cost more than the products themselves."""

    def __init__(self) -> None:
        self._products: F32 = np.empty(STRIP_PRODUCTS, dtype=np.float32)

    def of(self, numbers: int) -> F32:
        """Room for so many numbers, with anything in it, until the next call."""
        if numbers > len(self._products):  # not kept: so many queries may never come again
            return np.empty(numbers, dtype=np.float32)
        return self._products[:numbers]


_room: Final = _Room()


def _strip_rows(queries: int) -> int:
    return max(STRIP_ROWS[0], min(STRIP_ROWS[1], STRIP_PRODUCTS // queries))


def _multiply(queries: F32, block: F32, buffer: F32) -> F32:
    """(n, rows) products in the front of `buffer`; row by row for more queries, which takes BLAS two thirds as long."""
    n, rows = len(queries), len(block)
    numbers = buffer[: n * rows]
    if n > GEMV_QUERIES:
        by_rows = numbers.reshape(rows, n)
        np.matmul(block, queries.T, out=by_rows)
        return by_rows.T
    by_queries = numbers.reshape(n, rows)
    for query, products in zip(queries, by_queries, strict=True):
        np.dot(block, query, out=products)
    return by_queries
