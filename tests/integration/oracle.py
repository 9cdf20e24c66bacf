"""Vectors with structure, and what a perfect search would answer."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

LATENT = 24
"""Intrinsic dimension: about what image embeddings have."""


@dataclass(frozen=True)
class Clustered:
    """Clustered unit vectors: `vectors` (n, d), `clusters` (n,), `queries` (m, d) with `query_clusters` (m,)."""

    vectors: F32
    clusters: I64
    queries: F32
    query_clusters: I64


def clustered(n: int, dim: int, *, queries: int, clusters: int = 100, seed: int = 0) -> Clustered:
    """Points around cluster centres in a latent space of 24 dimensions, mapped to `dim` and normalised."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, LATENT))
    lift = rng.normal(size=(LATENT, dim)) / np.sqrt(LATENT)
    labels = rng.integers(clusters, size=n + queries)
    latent = centres[labels] + 0.5 * rng.normal(size=(n + queries, LATENT))
    points = latent @ lift + 0.02 * rng.normal(size=(n + queries, dim))
    unit = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    return Clustered(unit[:n], labels[:n], unit[n:], labels[n:])


class Oracle:
    """What a perfect search would answer; queries that come again are not scored again.

    Args:
        vectors: (n, d).
    """

    def __init__(self, vectors: F32) -> None:
        self._vectors = vectors.astype(np.float64)
        self._scores: dict[bytes, F32] = {}

    def best(self, query: F32, k: int, *, allowed: npt.NDArray[np.bool_] | None = None) -> tuple[I64, F32]:
        """Rows and scores of the k best by (score descending, row ascending), computed in float64."""
        scores = self._scores.get(query.tobytes())
        if scores is None:
            scores = self._scores[query.tobytes()] = (self._vectors @ query.astype(np.float64)).astype(np.float32)
        rows = np.arange(len(scores)) if allowed is None else np.flatnonzero(allowed)
        if len(rows) > k:
            rows = rows[scores[rows] >= np.partition(scores[rows], -k)[-k]]
        order = rows[np.lexsort((rows, -scores[rows]))][:k]
        return order, scores[order]
