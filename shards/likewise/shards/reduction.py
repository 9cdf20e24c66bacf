"""Fewer numbers a row for the walk of an index: the directions in which rows vary, and how much of each is left out.

Embeddings of 512 numbers lie near a surface of some dozens of dimensions. HNSW compares a query with hundreds of rows
on its way; in those directions it reads an eighth of the memory for it, and the few rows that it finds are scored
exactly afterwards. LeanVec walks a graph likewise (Tepper et al. 2023, arXiv 2312.16335).

A unit vector v is held as (Pv, |v - Pv|), its coordinates in the directions and the length of what they leave out: a
unit vector again. The inner product of two such is the largest that the one of the vectors themselves can be (Cauchy
and Schwarz), so a row that lies where few others do is not overlooked: at worst it is scored in vain.

Whether directions do, and how many, is tried out on the rows themselves, so that nothing has to be set: random vectors
are not reduced at all. What was measured is in docs/where-the-time-goes.md. Pure functions.
"""

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from likewise.shards.distance import margin
from likewise.shards.protocols import F32, I64

WIDTHS: Final = (32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Numbers a row that are tried, the length of what is left out among them; at most half of what the row has."""

MAX_DIM: Final = 4_096
"""Directions of larger vectors take longer to find, and more memory, than an index should need beside its rows."""

SAMPLE_BYTES: Final = 32 << 20
SAMPLE_ROWS: Final = 16_384
"""Rows that directions are made of and tried on."""

_QUERIES: Final = 128
_K: Final = 10
_EXTRA: Final = 5
"""Rows that may have to be scored beside the k best, for 95 of 100 queries."""

_U: Final = 2.0**-24
"""Largest relative error of a float32 rounding."""

_SAFETY: Final = 1.5
_ROUNDS: Final = 6
_SPARE: Final = 16


class Bounds(NamedTuple):
    """How near reduced rows are to n queries, at most and at least.

    The product u of a row with `queries` is an upper bound, u - spread * (what is left out of the row) a lower one,
    each but for half of the margin.

    Attributes:
        queries: (n, width) float32.
        spreads: (n,) float32.
        margins: (n,) float32.
    """

    queries: F32
    spreads: F32
    margins: F32


@dataclass(frozen=True, slots=True)
class Reduction:
    """How vectors are reduced.

    Attributes:
        directions: (width - 1, dim) float32 orthonormal rows.
        slack: How far below the k-th best a true hit may be found, for a query all of which the directions leave out.
    """

    directions: F32
    slack: float

    @property
    def width(self) -> int:
        """Numbers of a reduced vector."""
        return len(self.directions) + 1

    def of(self, vectors: F32) -> F32:
        """(n, width) unit vectors in place of (n, dim) ones."""
        # Not by a product of matrices, whose last bits depend on how many vectors there are, and with them the walk and
        # now and then an answer; nor has this to take a lock of BLAS, see `recall_check`.
        inside = np.vecdot(self.directions, vectors[:, np.newaxis])
        return np.concatenate((inside, _left_out(inside)), axis=1)

    def bounds(self, queries: F32) -> Bounds:
        """What reduced rows tell of their inner products with unit vectors (n, dim), whatever float32 loses.

        With the exact coordinates P and lengths r of what they leave out, |qv - (Pq Pv)| <= r(q) r(v) (Cauchy and
        Schwarz). A coordinate of float32 is off by at most (dim + 2) u, u = 2**-24, of it 2 u because directions are
        rounded too (Higham, 3.5), so all coordinates by e = (dim + 2) u sqrt(width), the inner product of two by
        2 e + e**2, the square of r by that and some roundings, below `loss` in either case, and r by sqrt(loss).
        So r(q) r(v) <= a (r'(v) + sqrt(loss)) for the computed r' and a = r'(q) + sqrt(loss).
        """
        off = (queries.shape[1] + 2) * _U * math.sqrt(self.width)
        loss = 2 * off + off * off + (self.width + 16) * _U
        reduced = self.of(queries)
        left_out = reduced[:, -1] + np.float32(math.sqrt(loss))
        reduced[:, -1] = left_out
        margins = np.float32(2.0) * (left_out * np.float32(math.sqrt(loss)) + np.float32(loss))
        return Bounds(reduced, np.float32(2.0) * left_out, margins)

    def margins(self, reduced: F32) -> F32:
        """(n, 1) how far below the k-th best score a row has to be found to be no hit, for reduced queries."""
        margins: F32 = np.float32(self.slack) * reduced[:, -1:] + margin(self.directions.shape[1])
        return margins


def fit(sample: F32) -> Reduction | None:
    """The fewest directions that find what is found without; None where half as many as a vector has do not.

    Args:
        sample: (n, dim) unit vectors, in no particular order; see `sample_positions`.
    """
    dim, queries = sample.shape[1], sample[:_QUERIES]
    rows = sample[_QUERIES:]
    if not may_reduce(dim) or len(rows) < 2 * WIDTHS[0]:
        return None
    widths = [width for width in WIDTHS if width <= dim // 2]
    directions = _directions(rows, widths[-1] - 1)
    scores = queries @ rows.T
    nearest = np.argpartition(-scores, _K, axis=1)[:, :_K]
    ties = np.count_nonzero(scores >= _kth_best(scores), axis=1)
    inside, asked = rows @ directions, queries @ directions
    for width in widths:
        there, here = inside[:, : width - 1], asked[:, : width - 1]
        left_out = _left_out(here)
        bounds = here @ there.T + left_out * _left_out(there).T
        best = _kth_best(bounds)
        lowest = np.take_along_axis(bounds, nearest, axis=1).min(axis=1, keepdims=True)
        slack = _SAFETY * float(np.max((best - lowest) / np.maximum(left_out, np.float32(1e-3))).clip(min=0.0))
        scored = np.count_nonzero(bounds >= best - np.float32(slack) * left_out - margin(dim), axis=1)
        if np.quantile(scored - ties, 0.95) <= _EXTRA:
            return Reduction(np.ascontiguousarray(directions[:, : width - 1].T), slack)
    return None


def may_reduce(dim: int) -> bool:
    """Whether vectors of so many numbers are worth a try."""
    return 2 * WIDTHS[0] <= dim <= MAX_DIM


def sample_positions(rows: int, dim: int) -> I64:
    """Which of so many rows to try directions on; always the same ones, so that a build can be repeated."""
    wanted = min(rows, SAMPLE_ROWS, SAMPLE_BYTES // (4 * dim)) if may_reduce(dim) else 0
    return np.random.default_rng(0).permutation(rows)[:wanted]


def _left_out(inside: F32) -> F32:
    """(n, 1) length of what directions leave out of unit vectors that have the coordinates `inside` in them."""
    squares = np.vecdot(inside, inside)[:, np.newaxis]
    lengths: F32 = np.sqrt(np.maximum(np.float32(1.0) - squares, np.float32(0.0)))
    return lengths


def _kth_best(scores: F32) -> F32:
    kth: F32 = np.partition(scores, -_K, axis=1)[:, -_K, np.newaxis]
    return kth


def _directions(rows: F32, count: int) -> F32:
    """(dim, count) directions of the largest second moment, largest first.

    Not of the variance: inner products change when a mean is taken away. By subspace iteration (Halko, Martinsson and
    Tropp 2011, arXiv 0909.4061), since all directions of long vectors would take seconds.
    """
    moment = (rows.T @ rows).astype(np.float64) / len(rows)
    basis: npt.NDArray[np.float64] = np.random.default_rng(0).standard_normal((rows.shape[1], count + _SPARE))
    for _ in range(_ROUNDS):
        basis, _ = np.linalg.qr(moment @ basis)
    _, turned = np.linalg.eigh(basis.T @ moment @ basis)
    return np.ascontiguousarray((basis @ turned[:, ::-1])[:, :count], dtype=np.float32)
