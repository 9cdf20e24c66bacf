"""The best rows for each query, exactly: a blocked scan for candidates, then scores of these alone.

The scan is BLAS, block by block, in float32. Its rounding depends on the block and the batch, so it only chooses
candidates: all rows within its error of the k-th best. Their scores are then computed anew, which makes order and ties
the same for every batch, block and partition.

Rows may be there as reduced ones (`likewise.shards.reduction`), a sixteenth of the memory. What these tell is how near
a row can be at most, and at least: a row is a candidate if it can be nearer than k others are at least. That is exact
too, and of 50,000 embeddings leaves some 20 to be scored for the 10 best.

Measured on two cores, see docs/where-the-time-goes.md.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from likewise.shards.distance import Gather, Ranked, margin, rank, rank_table
from likewise.shards.protocols import F32, I64
from likewise.shards.reduction import Bounds
from likewise.shards.rows import Mask
from likewise.shards.scan_threads import scan_threads

COPIED_BYTES: Final = 32 << 20
"""Of rows that are copied to lie side by side for one product."""

STRIP_PRODUCTS: Final = 1 << 18
"""Products that are made and looked through at once: they stay in the cache of a core."""
STRIP_ROWS: Final = (1_024, 65_536)
"""Fewest and most rows of them."""

LINE_NUMBERS: Final = 256

SAMPLE_ROWS: Final = 2_048
"""Of the first strip, to have a floor under the k-th best."""

MAX_BATCH_HITS: Final = 1 << 18
"""Largest queries * k of one scan; bounds the candidates held."""

GEMV_QUERIES: Final = 3
"""Up to here a product per query beats one matrix product: 16,384 x 512 took 3, 5, 7 and 8 ms for 2, 3, 4 and 5 queries
and 7, 9, 9 and 10 as one."""

DENSE_SHARE_FEW: Final = 0.15
DENSE_SHARE_MANY: Final = 0.8
"""From this share of allowed rows on, a whole block is compared and masked, for few and for many queries: copying a row
out costs about as much as comparing six."""

LOOSE_SHARE: Final = 16
LOOSE_ROWS: Final = 1_024
"""Bounds that leave more than a sixteenth of the rows to be scored for a query, or more than so many, and 4 k, are of
no use to it: to score a row costs some ten times as much as to compare it."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows to scan.

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

    def slots_between(self, start: int, stop: int) -> I64:
        """Slots of the rows [start, stop)."""
        return np.arange(self.first + start, self.first + stop) if self.slots is None else self.slots[start:stop]

    def between(self, start: int, stop: int) -> "Part":
        """The rows [start, stop) as a part."""
        rows = self.rows
        if rows is not None:
            low, high = np.searchsorted(rows, (start, stop))
            rows = rows[low:high] - start
        slots = None if self.slots is None else self.slots[start:stop]
        return Part(self.vectors[start:stop], self.first + start, rows, slots, self.reduced)


class Abandoned(Exception):
    """Nobody waits for the scan any more."""


class Scanned(NamedTuple):
    """What a scan found.

    Attributes:
        ranked: The k best rows of each query; none of those whose bounds are loose.
        loose: (n,) queries of which the bounds of reduced rows tell so little that comparing the rows is faster.
    """

    ranked: Ranked
    loose: Mask


def scan(
    queries: F32,
    parts: Sequence[Part],
    k: int,
    *,
    ids: Sequence[str],
    gather: Gather,
    bounds: Bounds | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Scanned:
    """The k best rows of all parts for each of the (n, d) queries, exactly.

    Memory beside the parts is bounded by a strip and about 4 * n * k candidates for each thread, whatever the ties;
    with bounds by n * (4 * k + 1,024).

    Args:
        queries: (n, d) float32, unit length.
        parts: Where the rows are.
        k: Hits a query.
        ids: Id of every slot.
        gather: Copies vectors of slots.
        bounds: Of the queries, for parts that are reduced.
        stop: Whether to give up.

    Raises:
        Abandoned: As soon as `stop()` is true.
    """
    rows = sum(len(part.vectors) if part.rows is None else len(part.rows) for part in parts)

    def candidates(share: Sequence[Part]) -> _Pool:
        pool = _Pool(queries, k, rows, bounds, ids=ids, gather=gather)
        for part in share:
            for strip in _strips(bounds.queries if part.reduced and bounds is not None else queries, part):
                if stop():
                    raise Abandoned
                pool.add(strip)
        return pool

    shares = scan_threads.shares(parts, queries.size if bounds is None else bounds.queries.size)
    others = [scan_threads.submit(candidates, share) for share in shares[1:]]
    try:
        pool = candidates(shares[0])
        for other in others:
            pool.take(other.result())
    finally:
        for other in others:
            other.cancel()
    ranked = pool.best()
    return Scanned(ranked, pool.loose)


class _Strip(NamedTuple):
    """Rows compared with all queries.

    Attributes:
        slots: (rows,).
        products: (rows, n), overwritten by later strips.
        left_out: (rows,) what is left out of each, of rows that are reduced.
    """

    slots: I64
    products: F32
    left_out: F32 | None


def _strips(queries: F32, part: Part) -> Iterator[_Strip]:
    """The rows of a part, strip by strip; products are by rows, which BLAS makes in two thirds of the time."""
    vectors, rows = part.vectors, part.rows
    (total, dim), n = vectors.shape, len(queries)
    step = max(STRIP_ROWS[0], min(STRIP_ROWS[1], STRIP_PRODUCTS // n))
    dense_share = DENSE_SHARE_FEW if n <= GEMV_QUERIES else DENSE_SHARE_MANY
    if rows is not None and len(rows) < dense_share * total:
        yield from _copied_strips(queries, part, rows, min(step, max(256, COPIED_BYTES // (4 * dim))))
        return
    # Fresh pages for every strip would cost more than the products themselves.
    buffer = np.empty(n * min(step, total), dtype=np.float32)
    for start in range(0, total, step):
        block = vectors[start : start + step]
        products, left_out = _multiply(queries, block, buffer), block[:, -1] if part.reduced else None
        if rows is None:
            yield _Strip(part.slots_between(start, start + len(block)), products, left_out)
            continue
        low, high = np.searchsorted(rows, (start, start + len(block)))
        meant = rows[low:high]
        at = meant - start
        yield _Strip(meant + part.first, products[at], None if left_out is None else left_out[at])


def _copied_strips(queries: F32, part: Part, rows: I64, step: int) -> Iterator[_Strip]:
    step = min(step, len(rows))
    copied = np.empty((step, part.vectors.shape[1]), dtype=np.float32)
    buffer = np.empty(len(queries) * step, dtype=np.float32)
    for start in range(0, len(rows), max(step, 1)):
        meant = rows[start : start + step]
        block = np.take(part.vectors, meant, axis=0, out=copied[: len(meant)], mode="clip")
        yield _Strip(
            meant + part.first, _multiply(queries, block, buffer), block[:, -1].copy() if part.reduced else None
        )


def _multiply(queries: F32, block: F32, buffer: F32) -> F32:
    """(rows, n) products, in the front of `buffer`."""
    n, rows = len(queries), len(block)
    out = buffer[: rows * n].reshape(rows, n)
    if n == 1:
        np.dot(block, queries[0], out=buffer[:rows])
    elif n <= GEMV_QUERIES:
        for i, query in enumerate(queries):
            out[:, i] = block @ query
    else:
        np.matmul(block, queries.T, out=out)
    return out


def _reaching(products: F32, least: F32) -> I64:
    """Where the products (rows, n), row after row, are at least `least` (n,).

    Several rows at a time: numpy goes through short lines four times as slowly.
    """
    rows, n = products.shape
    together = max(1, LINE_NUMBERS // n)
    whole = rows - rows % together
    found = np.flatnonzero(products[:whole].reshape(-1, together * n) >= np.tile(least, together))
    if whole == rows:
        return found
    return np.concatenate((found, np.flatnonzero(products[whole:] >= least) + whole * n))


class _Pool:
    """Candidates of a batch, with a floor per query that only rises: k rows are at least as near, but for a margin."""

    def __init__(
        self, queries: F32, k: int, rows: int, bounds: Bounds | None, *, ids: Sequence[str], gather: Gather
    ) -> None:
        n = len(queries)
        self._queries, self._k, self._bounds, self._ids, self._gather = queries, k, bounds, ids, gather
        self._margins: F32 = np.full(n, margin(queries.shape[1]), dtype=np.float32)
        if bounds is not None:
            self._margins = np.maximum(self._margins, bounds.margins)
        self._floors = np.full(n, -np.inf, dtype=np.float32)
        self.loose: Mask = np.zeros(n, dtype=bool)
        self._most = 4 * k + min(rows // LOOSE_SHARE, LOOSE_ROWS)
        self._limit = max(4 * n * k, 1 << 12)
        self._owners: list[I64] = []
        self._slots: list[I64] = []
        self._uppers: list[F32] = []
        self._lowers: list[F32] = []
        self._held = 0

    def add(self, strip: _Strip) -> None:
        slots, products, left_out = strip
        rows, n = products.shape
        if rows == 0:
            return
        if rows > self._k and self._held == 0:
            self._floors = np.maximum(self._floors, self._floors_of(products, left_out))
        found = _reaching(products, self._floors - self._margins)
        if len(found) == 0:
            return
        at, owners = (found, np.zeros(len(found), dtype=np.int64)) if n == 1 else np.divmod(found, n)
        uppers = products.reshape(-1)[found]
        self._owners.append(owners)
        self._slots.append(slots[at])
        self._uppers.append(uppers)
        if left_out is None or self._bounds is None:
            self._lowers.append(uppers)
        else:
            self._lowers.append(uppers - self._bounds.spreads[owners] * left_out[at])
        self._held += len(found)
        if self._held > self._limit:
            self._compact()

    def take(self, other: "_Pool") -> None:
        """Add the candidates that another pool found among other rows."""
        self._owners += other._owners
        self._slots += other._slots
        self._uppers += other._uppers
        self._lowers += other._lowers
        self._held += other._held
        self._floors = np.maximum(self._floors, other._floors)
        self.loose |= other.loose

    def best(self) -> Ranked:
        self._raise_floors()
        n, (owners, slots) = len(self._queries), (self._owners[0], self._slots[0]) if self._owners else (_NONE, _NONE)
        counts = np.bincount(owners, minlength=n)
        width, least = int(counts.max()), int(counts.min())
        if least < min(self._k, width) or width == 0 or n * width > 2 * self._held:
            return self._ranked(owners, slots)
        # About as many for each: a table of them is scored in half the time.
        table = np.full((n, width), slots[0], dtype=np.int64)
        table[owners, np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]] = slots
        return rank_table(self._queries, table, self._k, counts=counts.tolist(), ids=self._ids, gather=self._gather)

    def _floors_of(self, products: F32, left_out: F32 | None) -> F32:
        """Floors from some of the rows of a strip: more than k of them."""
        sample = products[: max(SAMPLE_ROWS, 4 * self._k)]
        at = len(sample) - self._k
        floors: F32 = np.partition(np.ascontiguousarray(sample.T), at, axis=1)[:, at]
        if left_out is not None and self._bounds is not None:
            floors -= self._bounds.spreads * left_out[: len(sample)].max()
        return floors

    def _ranked(self, owners: I64, slots: I64) -> Ranked:
        return rank(self._queries, owners, slots, self._k, ids=self._ids, gather=self._gather)

    def _compact(self) -> None:
        self._raise_floors()
        if self._held <= self._limit // 2:
            return
        if self._bounds is not None:
            self._limit = 2 * self._held  # there are as many queries
            return
        # Ties: only their exact order can thin them out.
        ranked = self._ranked(self._owners[0], self._slots[0])
        self._owners = [np.repeat(np.arange(len(self._queries)), np.diff(ranked.offsets))]
        self._slots, self._uppers, self._lowers = [ranked.slots], [ranked.scores], [ranked.scores]
        self._held = len(ranked.slots)

    def _raise_floors(self) -> None:
        """Set each floor to the k-th best lower bound held, and drop what cannot reach it; in the order of queries."""
        if not self._owners:
            return
        owners, slots = np.concatenate(self._owners), np.concatenate(self._slots)
        uppers, lowers = np.concatenate(self._uppers), np.concatenate(self._lowers)
        order = np.lexsort((-lowers, owners))
        owners, slots, uppers, lowers = owners[order], slots[order], uppers[order], lowers[order]
        bounds = np.searchsorted(owners, np.arange(len(self._queries) + 1))
        full = np.flatnonzero(np.diff(bounds) >= self._k)
        self._floors[full] = np.maximum(self._floors[full], lowers[bounds[full] + self._k - 1])
        kept = uppers >= (self._floors - self._margins)[owners]
        if self._bounds is not None:
            self.loose |= np.bincount(owners[kept], minlength=len(self._queries)) > self._most
            self._floors[self.loose] = np.inf
            kept &= ~self.loose[owners]
        self._owners, self._slots = [owners[kept]], [slots[kept]]
        self._uppers, self._lowers = [uppers[kept]], [lowers[kept]]
        self._held = int(np.count_nonzero(kept))


_NONE: Final[I64] = np.zeros(0, dtype=np.int64)
