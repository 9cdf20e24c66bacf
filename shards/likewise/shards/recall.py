"""Recall@k of an approximate answer against the exact one, how sure an estimate of it is, and what makes it hard."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from likewise.shards.protocols import F32


def recall_at_k(found: Sequence[Sequence[str]], exact: Sequence[Sequence[str]], k: int) -> float:
    """Mean share of each query's k exact neighbours that were found among its first k.

    A query with fewer than k exact neighbours counts those it has; one with none is left out. 1.0 if all are left out.

    Args:
        found: Ids of each query's answer, best first.
        exact: Ids of each query's exact answer, best first.
        k: Depth of the comparison, at least 1.

    Raises:
        ValueError: If the two have different numbers of queries, or k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    shares = [
        len(set(answer[:k]) & set(truth[:k])) / len(truth[:k])
        for answer, truth in zip(found, exact, strict=True)
        if len(truth)
    ]
    return sum(shares) / len(shares) if shares else 1.0


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean in [0, 1] and where its expectation lies with 95 % confidence."""

    mean: float
    low: float
    high: float


def wilson(mean: float, n: int, *, z: float = 1.96) -> Interval:
    """Wilson's score interval of the mean of `n` independent values in [0, 1].

    Made for shares of successes; a value between 0 and 1 varies less than a success of the same mean, so that for
    recalls of single queries the interval is on the safe side. [0, 1] for n = 0.
    """
    if n == 0:
        return Interval(mean, 0.0, 1.0)
    spread = z * z / n
    centre = (mean + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(max(mean * (1 - mean), 0.0) / n + spread / (4 * n))
    # Rounding must not push the mean itself out.
    return Interval(mean, max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)))


def local_dimension(scores: F32) -> float | None:
    """Local intrinsic dimension at a query, by maximum likelihood from its nearest rows.

    -1 / mean(ln(r_i / r_k)) over the distances r_i = sqrt(2 - 2 score) of its k nearest rows (Amsaleg et al., 2015);
    where it is high, an index of the same size finds less.

    Args:
        scores: (k,) inner products of unit vectors, best first; about 100 of them.

    Returns:
        None if they do not tell: fewer than 8 rows of distinct distances.
    """
    distances = np.sqrt(np.maximum(2.0 - 2.0 * scores.astype(np.float64), 0.0))
    furthest = distances[-1] if len(distances) else 0.0
    nearer = distances[(distances > 1e-6) & (distances < furthest)]
    if len(nearer) < 8:
        return None
    return float(-1.0 / np.mean(np.log(nearer / furthest)))
