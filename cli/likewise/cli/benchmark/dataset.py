"""Clustered unit vectors with exact answers, the same for the same numbers on every machine.

Real image embeddings lie near a low-dimensional surface; uniformly random vectors in 512 dimensions do not, and make
every index look bad. So points are drawn around cluster centres in a latent space of 24 dimensions and embedded by a
random orthonormal map with a little noise.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

LATENT_DIM: Final = 24
CLUSTERS: Final = 256
_WITHIN: Final = 0.6  # spread around a centre, relative to the spread of the centres
_NOISE: Final = 0.02  # spread off the surface, a coordinate
_BLOCK: Final = 8_192
_ROWS, _QUERIES, _WORLD = 0, 1, 2  # streams of the generator


@dataclass(frozen=True, slots=True)
class Dataset:
    """Vectors to store and vectors to ask with.

    Attributes:
        base: (n, dim) float32 unit vectors; row i is the item `item_id(i)`.
        queries: (m, dim) float32 unit vectors of the same distribution, none of them in `base`.
        share: (n,) float64 in [0, 1), uniform and independent of the vectors: `share < 0.01` leaves 1 %.
        cluster_share: (n,) float64 in [0, 1), uniform but the same order as the clusters: `< 0.01` leaves 1 % that lies
            in a few clusters.
        seed: What it was made from.
    """

    base: F32
    queries: F32
    share: F64
    cluster_share: F64
    seed: int

    @property
    def name(self) -> str:
        """What a result line calls it."""
        return f"clustered(latent={min(LATENT_DIM, self.base.shape[1])}, clusters={CLUSTERS}, seed={self.seed})"


def item_id(row: int) -> str:
    """The id of a row; ids sort as rows do."""
    return f"item-{row:09d}"


def clustered(n: int, dim: int = 512, *, queries: int = 1_000, seed: int = 7) -> Dataset:
    """Draw `n` unit vectors and `queries` further ones.

    The first rows do not depend on `n`: a smaller data set is a prefix of a larger one.

    Raises:
        ValueError: If a number is not positive.
    """
    if n < 1 or dim < 2 or queries < 1:
        raise ValueError(
            f"n and queries must be at least 1 and dim at least 2, got n={n}, queries={queries}, dim={dim}"
        )
    world = np.random.default_rng((seed, _WORLD))
    latent = min(LATENT_DIM, dim)
    centres = world.standard_normal((CLUSTERS, latent))
    embedding = np.linalg.qr(world.standard_normal((dim, latent)))[0].T
    base, clusters, share = _draw(n, (seed, _ROWS), centres, embedding)
    asked, _, _ = _draw(queries, (seed, _QUERIES), centres, embedding)
    order = np.lexsort((share, clusters))
    cluster_share = np.empty(n)
    cluster_share[order] = np.arange(n) / n
    return Dataset(base, asked, share, cluster_share, seed)


def _draw(rows: int, stream: tuple[int, int], centres: F64, embedding: F64) -> tuple[F32, I64, F64]:
    vectors = np.empty((rows, embedding.shape[1]), np.float32)
    clusters = np.empty(rows, np.int64)
    share = np.empty(rows)
    for block, start in enumerate(range(0, rows, _BLOCK)):
        rng = np.random.default_rng((*stream, block))
        stop = min(start + _BLOCK, rows)
        # Whole blocks are drawn even when fewer rows are wanted: that is what makes prefixes agree.
        which = rng.integers(len(centres), size=_BLOCK)
        uniform = rng.random(_BLOCK)
        points = centres[which] + _WITHIN * rng.standard_normal((_BLOCK, centres.shape[1]))
        full = points @ embedding + _NOISE * rng.standard_normal((_BLOCK, embedding.shape[1]))
        full /= np.linalg.norm(full, axis=1, keepdims=True)
        vectors[start:stop] = full[: stop - start]
        clusters[start:stop] = which[: stop - start]
        share[start:stop] = uniform[: stop - start]
    return vectors, clusters, share


def exact_topk(base: F32, queries: F32, k: int, *, allowed: Mask | None = None) -> tuple[I64, F32]:
    """The true best rows by inner product, compared block by block so that memory stays bounded.

    Args:
        base: (n, dim).
        queries: (m, dim).
        k: Rows a query.
        allowed: (n,) which rows may be answers; all of them by default.

    Returns:
        (m, k) rows and scores, best first, equal scores by row; -1 and -inf where fewer than k rows are allowed.
    """
    rows = np.arange(len(base)) if allowed is None else np.flatnonzero(allowed)
    best_rows = np.full((len(queries), k), -1, np.int64)
    best_scores = np.full((len(queries), k), -np.inf, np.float32)
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        block_rows, block_scores = _best(np.broadcast_to(part, (len(queries), len(part))), queries @ base[part].T, k)
        best_rows, best_scores = _best(
            np.concatenate([best_rows, block_rows], axis=1), np.concatenate([best_scores, block_scores], axis=1), k
        )
    return best_rows, best_scores


def _best(rows: I64, scores: F32, k: int) -> tuple[I64, F32]:
    """The k best columns of each line by (score descending, row ascending)."""
    kept = 4 * k
    if scores.shape[1] > 2 * kept:
        chosen = np.argpartition(-scores, kept, axis=1)[:, :kept]
        narrow = np.take_along_axis(scores, chosen, axis=1)
        # Where the k-th score reaches the worst kept one, equal scores may have been dropped that come first by row.
        if (np.partition(narrow, -k, axis=1)[:, -k] > narrow.min(axis=1)).all():
            rows, scores = np.take_along_axis(rows, chosen, axis=1), narrow
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def as_ids(rows: I64) -> list[list[str]]:
    """Truth as ids, a list a query; places without a row are left out."""
    return [[item_id(row) for row in query if row >= 0] for query in rows.tolist()]
