"""Exact inner products, and the best of given candidates by them: scores that depend on nothing but the two vectors.

They are computed row by row in float64, which makes order and ties the same for every batch, block and partition.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from likewise.shards.protocols import F32, I64

RESCORE_BYTES: Final = 1 << 19
"""Of float64 rows at a time when candidates are scored: they stay in the cache of a core."""

F64 = npt.NDArray[np.float64]
Gather = Callable[[I64, F32], object]
"""Writes the vectors of slots (m,) to (m, d)."""


class _Room(threading.local):
    """Where the calling thread puts rows to score: fresh pages for a few of them take as long as to score them."""

    def __init__(self) -> None:
        self._narrow: F32 = np.empty(RESCORE_BYTES // 8, dtype=np.float32)
        self._wide: F64 = np.empty(RESCORE_BYTES // 8)

    def of(self, rows: int, dim: int) -> tuple[F32, F64]:
        """Two (rows, dim) matrices with anything in them, until the next call."""
        numbers = rows * dim
        if numbers > len(self._wide):  # not kept: a search for very many hits may never come again
            return np.empty((rows, dim), dtype=np.float32), np.empty((rows, dim))
        return self._narrow[:numbers].reshape(rows, dim), self._wide[:numbers].reshape(rows, dim)


_room: Final = _Room()


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


@functools.cache
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
        gather: Copies vectors of slots.
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
        scores = _piece_scores(queries, flat, gather)
        found = scores.tolist()
        if len(set(found)) == candidates:
            first = sorted(range(candidates), key=found.__getitem__, reverse=True)[:k]
            return Ranked(slots=flat[first], scores=scores[first], offsets=np.array((0, k)))
        return select(np.zeros(candidates, dtype=np.int64), flat, scores, k, n=1, ids=ids)
    table = _table_scores(queries, slots, gather)
    if counts is not None and min(counts) < candidates:
        table[np.arange(candidates) >= np.array(counts)[:, np.newaxis]] = -np.inf
    order, lines = (-table).argsort(axis=1), np.arange(n)[:, np.newaxis]
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
        return _piece_scores(queries, slots, gather)
    scores = np.empty(len(slots), dtype=np.float32)
    wide = queries.astype(np.float64)
    for start in range(0, len(slots), rows):
        piece = slice(start, start + rows)
        scores[piece] = _piece_scores(wide[owners[piece]], slots[piece], gather)
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
        scores[start : start + step] = _piece_scores(wide[start : start + step], slots[start : start + step], gather)
    return scores


def _piece_scores(left: F32 | F64, slots: I64, gather: Gather) -> F32:
    """Scores of slots (...,), each with its row of `left` (..., d), which is broadcast."""
    dim = left.shape[-1]
    narrow, wide = _room.of(slots.size, dim)
    gather(slots.reshape(-1), narrow)
    np.copyto(wide, narrow)
    return _sums(left.astype(np.float64, copy=False), wide.reshape(*slots.shape, dim))


def inner_products(left: F32 | F64, right: F32) -> F32:
    """(m,) float32 inner products of the rows of two (m, d) arrays, or of one row with all of the other's.

    Further dimensions before the last are broadcast.

    A float64 product of two float32 is exact, and a row is summed by itself, always in the same order. So a result
    depends on its two rows alone.
    """
    return _sums(left.astype(np.float64, copy=False), right.astype(np.float64))


def _sums(left: F64, right: F64) -> F32:
    sums: F32 = np.vecdot(left, right).astype(np.float32)
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
