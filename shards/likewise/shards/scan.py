"""The best rows for each query, exactly: a blocked scan for candidates, then scores of these alone.

The scan is BLAS, block by block, in float32. Its rounding depends on the block and the batch, so it only chooses
candidates: all rows within its error of the k-th best. Their scores are then computed anew, which makes order and ties
the same for every batch, block and partition.

Rows may be there as reduced ones (`likewise.shards.reduction`), a sixteenth of the memory. What these tell is how near
a row can be at most, and at least: a row is a candidate if it can be nearer than k others are at least. That is exact
too, and of 50,000 embeddings leaves some 20 to be scored for the 10 best.

Measured on two cores, see docs/where-the-time-goes.md.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from likewise.shards.distance import Gather, Ranked, margin, rank, rank_table
from likewise.shards.protocols import F32, I64
from likewise.shards.reduction import Bounds
from likewise.shards.rows import Mask
from likewise.shards.scan_threads import scan_threads
from likewise.shards.strips import Part, Strip, Transposed

GROUPS: Final = 256
"""Of the rows of the first strip, or 8 k of them: the k-th best of the best of each is a floor under the k-th best."""

MAX_BATCH_HITS: Final = 1 << 18
"""Largest queries * k of one scan; bounds the candidates held."""

LINE_NUMBERS: Final = 256

SCORED_PER_HIT: Final = 4
"""Candidates a query, as a multiple of k, that are scored as they are: to sort out those that others are nearer than
takes as long."""

LOOSE_SHARE: Final = 16
LOOSE_ROWS: Final = 1_024
"""Bounds that leave more than a sixteenth of the rows to be scored for a query, or more than so many, and 4 k, are of
no use to it: to score a row costs some ten times as much as to compare it."""

_BELOW_ALL: Final = np.float32(-4.0)
"""No product of unit vectors is as low, nor a lower bound of one."""


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
    parts: Sequence[Part | Transposed],
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
    rows = sum(part.compared for part in parts)

    def candidates(share: Sequence[Part | Transposed]) -> _Pool:
        pool = _Pool(queries, k, rows, bounds, ids=ids, gather=gather)
        for part in share:
            for strip in part.strips(bounds.queries if part.reduced and bounds is not None else queries):
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


def _reaching(products: F32, least: F32) -> tuple[I64, I64]:
    """Queries and rows of the products (n, rows) that are at least `least` (n,)."""
    n, rows = products.shape
    if products.flags.c_contiguous:
        found = np.flatnonzero(products >= least[:, np.newaxis])
        return (np.zeros(len(found), dtype=np.int64), found) if n == 1 else np.divmod(found, rows)
    # Several rows at a time: numpy goes through short lines four times as slowly.
    by_rows, together = np.ascontiguousarray(products.T), max(1, LINE_NUMBERS // n)
    whole = rows - rows % together
    found = np.flatnonzero(by_rows[:whole].reshape(-1, together * n) >= np.tile(least, together))
    if whole < rows:
        found = np.concatenate((found, np.flatnonzero(by_rows[whole:] >= least) + whole * n))
    at, owners = np.divmod(found, n)
    return owners, at


def _best_of_groups(products: F32, groups: int) -> F32:
    """(n, groups) the best of each group of products (n, rows), row i being of group i modulo `groups`.

    A last few rows, fewer than there are groups, are of none.
    """
    n, rows = products.shape
    each = rows // groups
    if products.flags.c_contiguous:
        best: F32 = products[:, : each * groups].reshape(n, each, groups).max(axis=1)
        return best
    by_rows: F32 = np.ascontiguousarray(products.T)[: each * groups].reshape(each, groups * n).max(axis=0)
    return by_rows.reshape(groups, n).T


class _Found(NamedTuple):
    """Candidates, as columns: their queries, their slots, and how near they are at most and at least."""

    owners: I64
    slots: I64
    uppers: F32
    lowers: F32

    def of(self, which: I64 | Mask) -> "_Found":
        """Some of them."""
        return _Found(self.owners[which], self.slots[which], self.uppers[which], self.lowers[which])


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
        self._floors: F32 = np.full(n, _BELOW_ALL)
        self.loose: Mask = np.zeros(n, dtype=bool)
        self._most = SCORED_PER_HIT * k + min(rows // LOOSE_SHARE, LOOSE_ROWS)
        self._limit = max(4 * n * k, 1 << 12)
        self._found: list[_Found] = []
        self._held = 0

    def add(self, strip: Strip) -> None:
        products, left_out = strip.products, strip.left_out
        rows = products.shape[1]
        if rows == 0:
            return
        if rows > self._k and self._held == 0:
            self._floors = np.maximum(self._floors, self._floors_of(products, left_out))
        owners, at = _reaching(products, self._floors - self._margins)
        if len(at) == 0:
            return
        uppers = lowers = products[owners, at]
        if left_out is not None and self._bounds is not None:
            lowers = uppers - self._bounds.spreads[owners] * left_out[at]
        self._found.append(_Found(owners, strip.slots_of(at), uppers, lowers))
        self._held += len(at)
        if self._held > self._limit:
            self._compact()

    def take(self, other: "_Pool") -> None:
        """Add the candidates that another pool found among other rows."""
        self._found += other._found
        self._held += other._held
        self._floors = np.maximum(self._floors, other._floors)
        self.loose |= other.loose

    def best(self) -> Ranked:
        n, k = len(self._queries), self._k
        owners, slots, *_ = self._joined()
        counts = np.bincount(owners, minlength=n)
        if int(counts.max()) > SCORED_PER_HIT * k or self.loose.any():
            owners, slots = self._nearest()[:2]
            counts = np.bincount(owners, minlength=n)
        width, least = int(counts.max()), int(counts.min())
        if least < min(k, width) or width == 0 or n * width > 2 * len(owners):
            return self._ranked(owners, slots)
        # About as many for each: a table of them is scored in half the time.
        if n > 1:
            order = np.argsort(owners, kind="stable")
            starts = np.cumsum(counts) - counts
            # Where a line ends sooner than the table, what follows is the next one's.
            filled = np.minimum(starts[:, np.newaxis] + np.arange(width), len(slots) - 1)
            slots = slots[order[filled]]
        return rank_table(
            self._queries, slots.reshape(n, width), k, counts=counts.tolist(), ids=self._ids, gather=self._gather
        )

    def _floors_of(self, products: F32, left_out: F32 | None) -> F32:
        """Floors from the rows of a strip: more than k of them."""
        rows = products.shape[1]
        groups = min(rows, max(GROUPS, 8 * self._k))
        lowers = _best_of_groups(products, groups)
        if left_out is not None and self._bounds is not None:
            lowers = lowers - self._bounds.spreads[:, np.newaxis] * _best_of_groups(left_out[np.newaxis], groups)
        at = groups - self._k
        floors: F32 = np.partition(lowers, at, axis=1)[:, at]
        return floors

    def _ranked(self, owners: I64, slots: I64) -> Ranked:
        return rank(self._queries, owners, slots, self._k, ids=self._ids, gather=self._gather)

    def _compact(self) -> None:
        self._found = [nearest := self._nearest()]
        self._held = len(nearest.slots)
        if self._held <= self._limit // 2:
            return
        if self._bounds is not None:
            self._limit = 2 * self._held  # there are as many queries
            return
        # Ties: only their exact order can thin them out.
        ranked = self._ranked(nearest.owners, nearest.slots)
        owners = np.repeat(np.arange(len(self._queries)), np.diff(ranked.offsets))
        self._found = [_Found(owners, ranked.slots, ranked.scores, ranked.scores)]
        self._held = len(ranked.slots)

    def _joined(self) -> _Found:
        """All candidates, which are held as one from then on."""
        found = self._found
        if len(found) != 1:
            joined = _Found(
                np.concatenate([_NONE, *(one.owners for one in found)]),
                np.concatenate([_NONE, *(one.slots for one in found)]),
                np.concatenate([_NO_SCORES, *(one.uppers for one in found)]),
                np.concatenate([_NO_SCORES, *(one.lowers for one in found)]),
            )
            self._found = [joined]
        return self._found[0]

    def _nearest(self) -> _Found:
        """Those of the candidates that can be among the k best of their query, in the order of queries.

        Floors are set to the k-th best lower bound held.
        """
        found = self._joined()
        found = found.of(np.lexsort((-found.lowers, found.owners)))
        starts = np.searchsorted(found.owners, np.arange(len(self._queries) + 1))
        full = np.flatnonzero(np.diff(starts) >= self._k)
        self._floors[full] = np.maximum(self._floors[full], found.lowers[starts[full] + self._k - 1])
        kept = found.uppers >= (self._floors - self._margins)[found.owners]
        if self._bounds is not None:
            self.loose |= np.bincount(found.owners[kept], minlength=len(self._queries)) > self._most
            self._floors[self.loose] = np.inf
            kept &= ~self.loose[found.owners]
        return found.of(kept)


_NONE: Final[I64] = np.zeros(0, dtype=np.int64)
_NO_SCORES: Final[F32] = np.zeros(0, dtype=np.float32)
