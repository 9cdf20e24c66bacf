"""Exact inner products: a blocked scan for candidates, then scores that depend on nothing but the two vectors.

The scan is BLAS, block by block, in float32. Its rounding depends on the block and the batch, so it only chooses
candidates: all rows within its error of the k-th best. Their scores are then computed anew, row by row in float64,
which makes order and ties the same for every batch, block and partition.

Measured on two free cores, 50,000 x 512, k = 26, in ms a batch of 1 / 8 / 32 / 256: this scan, re-scoring included,
2.1 / 6.8 / 14.4 / 84.7; faiss.IndexFlatIP 7.7 / 14.6 / 57.6 / 58.2, and 5.0 / 13.1 / 13.4 / 58.5 with its
`distance_compute_blas_threshold` at 1. So FAISS is ahead only in full batches, and does not settle ties.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from likewise.shards.protocols import F32, I64
from likewise.shards.scan_threads import scan_threads

BLOCK_BYTES: Final = 32 << 20
"""Products, or copied rows, of one BLAS call, in bytes. Large, because a call on several threads waits for all of them
to be scheduled: beside another busy process, 25 small calls took 270 ms where one took 7."""

STRIP_ROWS: Final = 4_096
"""Rows whose products are looked through at once."""

MAX_BATCH_HITS: Final = 1 << 18
"""Largest queries * k of one scan; bounds the candidates held."""

GEMV_QUERIES: Final = 4
"""Up to here a product per query beats one matrix product (2 queries: 3 ms against 7)."""

DENSE_SHARE_FEW: Final = 0.15
DENSE_SHARE_MANY: Final = 0.8
"""From this share of allowed rows on, a whole block is compared and masked, for few and for many queries: copying a row
out costs about as much as comparing six."""

RESCORE_BYTES: Final = 1 << 19
"""Of float64 rows at a time when candidates are scored: they stay in the cache of a core and in memory that the process
has. Larger pieces came from fresh pages each time, 480 rows of 512 took 4.3 ms instead of 0.3."""

F64 = npt.NDArray[np.float64]
Gather = Callable[[I64], F32]
"""Vectors (m, d) of slots (m,)."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows to scan.

    Attributes:
        vectors: (rows, d) float32, unit length.
        first: Slot of the first row.
        rows: Rows to compare, ascending; None for all.
        slots: (rows,) slot of each row where they do not follow each other from `first`; all rows are compared then.
    """

    vectors: F32
    first: int
    rows: I64 | None = None
    slots: I64 | None = None

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
        return Part(self.vectors[start:stop], self.first + start, rows, slots)


class Ranked(NamedTuple):
    """Best rows of n queries, one query after the other, each (score descending, id ascending).

    Attributes:
        slots: (hits,) slots.
        scores: (hits,) float32.
        offsets: (n + 1,); query i has hits offsets[i] to offsets[i + 1].
    """

    slots: I64
    scores: F32
    offsets: I64


class Abandoned(Exception):
    """Nobody waits for the scan any more."""


def scan(
    queries: F32,
    parts: Sequence[Part],
    k: int,
    *,
    ids: Sequence[str],
    gather: Gather,
    stop: Callable[[], bool] = lambda: False,
) -> Ranked:
    """The k best rows of all parts for each of the (n, d) queries, exactly.

    Memory beside the parts is bounded by a block, its products and about 4 * n * k candidates for each thread, whatever
    the ties.

    Raises:
        Abandoned: As soon as `stop()` is true.
    """

    def candidates(share: Sequence[Part]) -> _Pool:
        pool = _Pool(queries, k, ids=ids, gather=gather)
        for part in share:
            for slots, products in _products(queries, part):
                if stop():
                    raise Abandoned
                pool.add(slots, products)
        return pool

    shares = scan_threads.shares(parts, queries.size)
    others = [scan_threads.submit(candidates, share) for share in shares[1:]]
    try:
        pool = candidates(shares[0])
        for other in others:
            pool.take(other.result())
    finally:
        for other in others:
            other.cancel()
    return pool.best()


def margin(dim: int) -> np.float32:
    """How far apart two float32 scores of unit vectors have to be for their exact ones to be in the same order.

    Two float32 sums of d products of unit vectors differ by at most 2 * d * 2**-24 (Higham, Accuracy and Stability of
    Numerical Algorithms, 3.5); a candidate and the k-th best may each be off by half of that. This is twice as much.
    """
    return np.float32(dim * 2.0**-22)


def rank(queries: F32, owners: I64, slots: I64, k: int, *, ids: Sequence[str], gather: Gather) -> Ranked:
    """The k best of given candidates by their exact scores.

    Args:
        queries: (n, d) float32.
        owners: (candidates,) query of each candidate.
        slots: (candidates,) slots, distinct within a query.
        k: Hits a query.
        ids: Id of every slot.
        gather: Vectors of slots.
    """
    scores = _scores(queries, owners, slots, gather)
    return select(owners, slots, scores, k, n=len(queries), ids=ids)


def rank_table(
    queries: F32,
    slots: I64,
    k: int,
    *,
    ids: Sequence[str],
    gather: Gather,
    counts: Sequence[int] | None = None,
) -> Ranked:
    """As `rank`, where every query has as many candidates: (n, candidates) slots.

    Of those of a query the first count only, as many as `counts` says, at least k; None for all.
    """
    n, candidates = slots.shape
    k = min(k, candidates)
    flat = np.ascontiguousarray(slots).reshape(-1)
    if n == 1:
        # By itself, without what lines of a table need: many searches come alone, and each call of numpy counts then.
        scores = inner_products(queries, gather(flat))
        found = scores.tolist()
        if len(set(found)) == candidates:
            first = sorted(range(candidates), key=found.__getitem__, reverse=True)[:k]
            return Ranked(slots=flat[first], scores=scores[first], offsets=np.array((0, k)))
        return select(np.zeros(candidates, dtype=np.int64), flat, scores, k, n=1, ids=ids)
    table = _table_scores(queries, slots, gather)
    if counts is not None and min(counts) < candidates:
        table[np.arange(candidates) >= np.array(counts)[:, np.newaxis]] = -np.inf
    order, lines = np.argsort(-table, axis=1), np.arange(n)[:, np.newaxis]
    best = table[lines, order]
    # Most answers have no ties, and then sorting each line is all there is to do.
    if (best[:, 1 : k + 1] == best[:, :k][:, : candidates - 1]).any():
        return select(np.repeat(np.arange(n), candidates), flat, table.reshape(-1), k, n=n, ids=ids)
    return Ranked(
        slots=slots[lines, order[:, :k]].reshape(-1),
        scores=best[:, :k].reshape(-1),
        offsets=np.arange(0, n * k + 1, k),
    )


def _scores(queries: F32, owners: I64, slots: I64, gather: Gather) -> F32:
    """(candidates,) float32 scores, in pieces of bounded size."""
    rows = max(1, RESCORE_BYTES // (8 * max(1, queries.shape[1])))
    if len(queries) == 1 and len(slots) <= rows:
        return inner_products(queries, gather(slots))
    scores = np.empty(len(slots), dtype=np.float32)
    wide = queries.astype(np.float64)
    for start in range(0, len(slots), rows):
        piece = slice(start, start + rows)
        scores[piece] = inner_products(wide[owners[piece]], gather(slots[piece]))
    return scores


def _table_scores(queries: F32, slots: I64, gather: Gather) -> F32:
    """(n, candidates) float32 scores of n queries with as many slots each, in pieces of bounded size.

    To the bit those of `_scores`, which copies a query for each of its candidates.
    """
    (n, candidates), dim = slots.shape, queries.shape[1]
    scores = np.empty((n, candidates), dtype=np.float32)
    wide = queries.astype(np.float64)[:, np.newaxis]
    step = max(1, RESCORE_BYTES // (8 * max(1, candidates * dim)))
    for start in range(0, n, step):
        piece = slots[start : start + step]
        rows = gather(piece.reshape(-1)).reshape(*piece.shape, dim)
        scores[start : start + step] = inner_products(wide[start : start + step], rows)
    return scores


def inner_products(left: F32 | F64, right: F32) -> F32:
    """(m,) float32 inner products of the rows of two (m, d) arrays, or of one row with all of the other's.

    Further dimensions before the last are broadcast.

    A float64 product of two float32 is exact, and a row is summed by itself, always in the same order. So a result
    depends on its two rows alone.
    """
    sums: F32 = np.vecdot(left.astype(np.float64, copy=False), right.astype(np.float64)).astype(np.float32)
    return sums + np.float32(0)  # -0 and 0 are one score


def select(owners: I64, slots: I64, scores: F32, k: int, *, n: int, ids: Sequence[str]) -> Ranked:
    """The k best candidates of each of n queries by (score descending, id ascending)."""
    order = np.lexsort((-scores, owners)) if n > 1 else np.argsort(-scores, kind="stable")
    owners, slots, scores = owners[order], slots[order], scores[order]
    bounds = np.searchsorted(owners, np.arange(n + 1))
    ties = np.flatnonzero((scores[1:] == scores[:-1]) & (owners[1:] == owners[:-1]))
    if len(ties):
        slots = slots.copy()
        for start, stop in _runs(ties):
            first = int(bounds[owners[start]])
            if start - first < k:  # a tie below the k-th decides nothing
                slots[start:stop] = sorted(slots[start:stop].tolist(), key=ids.__getitem__)
    counts = np.minimum(np.diff(bounds), k)
    offsets = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    kept = np.repeat(bounds[:-1] - offsets[:-1], counts) + np.arange(offsets[-1])
    return Ranked(slots=slots[kept], scores=scores[kept], offsets=offsets)


def _runs(ties: I64) -> Iterator[tuple[int, int]]:
    """[start, stop) of each run of equal neighbours; `ties` are the first of each equal pair."""
    breaks = np.flatnonzero(np.diff(ties) > 1)
    starts = [0, *(breaks + 1).tolist()]
    stops = [*breaks.tolist(), len(ties) - 1]
    for first, last in zip(starts, stops, strict=True):
        yield int(ties[first]), int(ties[last]) + 2


def _products(queries: F32, part: Part) -> Iterator[tuple[I64, F32]]:
    """Strips of (slots (rows,), products (n, rows)); the products are overwritten by later strips."""
    total = len(part.vectors)
    n = len(queries)
    few = n <= GEMV_QUERIES
    step = min(total, max(STRIP_ROWS, BLOCK_BYTES // (4 * n)))
    if part.rows is not None and len(part.rows) < (DENSE_SHARE_FEW if few else DENSE_SHARE_MANY) * total:
        yield from _sparse_products(queries, part, part.rows)
        return
    # Fresh pages for every block would cost more than the products themselves.
    products = np.empty(n * step, dtype=np.float32)
    for start in range(0, total, max(step, 1)):
        block = part.vectors[start : start + step]
        out = _multiply(queries, block, products)
        for left in range(0, len(block), STRIP_ROWS):
            right = min(left + STRIP_ROWS, len(block))
            if part.rows is None:
                yield part.slots_between(start + left, start + right), out[:, left:right]
            else:
                low, high = np.searchsorted(part.rows, (start + left, start + right))
                rows = part.rows[low:high]
                yield rows + part.first, out[:, rows - start]


def _sparse_products(queries: F32, part: Part, rows: I64) -> Iterator[tuple[I64, F32]]:
    dim = part.vectors.shape[1]
    step = min(len(rows), max(256, BLOCK_BYTES // (4 * max(dim, len(queries)))))
    copied = np.empty((step, dim), dtype=np.float32)
    products = np.empty(len(queries) * step, dtype=np.float32)
    for start in range(0, len(rows), max(step, 1)):
        slots = rows[start : start + step]
        block = np.take(part.vectors, slots, axis=0, out=copied[: len(slots)], mode="clip")
        out = _multiply(queries, block, products)
        for left in range(0, len(slots), STRIP_ROWS):
            yield slots[left : left + STRIP_ROWS] + part.first, out[:, left : left + STRIP_ROWS]


def _multiply(queries: F32, block: F32, buffer: F32) -> F32:
    """(n, rows) products, in the front of `buffer`."""
    out = buffer[: len(queries) * len(block)].reshape(len(queries), len(block))
    if len(queries) > GEMV_QUERIES:
        np.matmul(queries, block.T, out=out)
    else:
        for query, row in zip(queries, out, strict=True):
            np.dot(block, query, out=row)
    return out


class _Pool:
    """Candidates of a batch, with a floor per query that only rises."""

    def __init__(self, queries: F32, k: int, *, ids: Sequence[str], gather: Gather) -> None:
        self._queries, self._k, self._ids, self._gather = queries, k, ids, gather
        self._margin = margin(queries.shape[1])
        self._floors = np.full(len(queries), -np.inf, dtype=np.float32)
        self._limit = max(4 * len(queries) * k, 1 << 12)
        self._owners: list[I64] = []
        self._slots: list[I64] = []
        self._products: list[F32] = []
        self._held = 0

    def add(self, slots: I64, products: F32) -> None:
        n, rows = products.shape
        if rows == 0:
            return
        if rows > self._k and self._held == 0:
            at = rows - self._k
            self._floors = np.maximum(self._floors, np.partition(products, at, axis=1)[:, at])
        if n == 1:
            columns = np.flatnonzero(products[0] >= self._floors[0] - self._margin)
            owners = np.zeros(len(columns), dtype=np.int64)
        else:
            owners, columns = np.nonzero(products >= (self._floors - self._margin)[:, np.newaxis])
        if len(columns) == 0:
            return
        self._owners.append(owners)
        self._slots.append(slots[columns])
        self._products.append(products[owners, columns])
        self._held += len(columns)
        if self._held > self._limit:
            self._compact()

    def take(self, other: "_Pool") -> None:
        """Add the candidates that another pool found among other rows."""
        self._owners += other._owners
        self._slots += other._slots
        self._products += other._products
        self._held += other._held
        self._floors = np.maximum(self._floors, other._floors)

    def best(self) -> Ranked:
        self._raise_floors()
        owners, slots, _ = self._columns()
        return rank(self._queries, owners, slots, self._k, ids=self._ids, gather=self._gather)

    def _columns(self) -> tuple[I64, I64, F32]:
        if not self._owners:
            empty = np.zeros(0, dtype=np.int64)
            return empty, empty, np.zeros(0, dtype=np.float32)
        if len(self._owners) > 1:
            self._owners = [np.concatenate(self._owners)]
            self._slots = [np.concatenate(self._slots)]
            self._products = [np.concatenate(self._products)]
        return self._owners[0], self._slots[0], self._products[0]

    def _compact(self) -> None:
        self._raise_floors()
        if self._held > self._limit // 2:  # ties: only their exact order can thin them out
            owners, slots, _ = self._columns()
            ranked = rank(self._queries, owners, slots, self._k, ids=self._ids, gather=self._gather)
            self._owners = [np.repeat(np.arange(len(self._queries)), np.diff(ranked.offsets))]
            self._slots, self._products = [ranked.slots], [ranked.scores]
            self._held = len(ranked.slots)

    def _raise_floors(self) -> None:
        """Set each floor to the k-th best product held and drop what is below it by more than the margin."""
        owners, slots, products = self._columns()
        if len(owners) == 0:
            return
        order = np.lexsort((-products, owners))
        owners, slots, products = owners[order], slots[order], products[order]
        bounds = np.searchsorted(owners, np.arange(len(self._queries) + 1))
        full = np.flatnonzero(np.diff(bounds) >= self._k)
        self._floors[full] = np.maximum(self._floors[full], products[bounds[full] + self._k - 1])
        kept = products >= (self._floors - self._margin)[owners]
        self._owners, self._slots, self._products = [owners[kept]], [slots[kept]], [products[kept]]
        self._held = int(kept.sum())
