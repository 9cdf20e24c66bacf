"""R@K, mAP@K and GAP exactly as the benchmarks define them; numpy."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def hit(positions: I64, k: int) -> float:
    """1 if the first of the ascending (m,) places is within the first k, else 0."""
    return float(positions[0] <= k)


def average_precision(positions: I64, k: int) -> float:
    """AP@K of ascending (m,) places of all m right items: sum over those within K of j / place, by min(m, K).

    CIRCO (src/evaluation.py) and Google Landmarks v2 (metrics.MeanAveragePrecision) both divide by min(m, K), so that a
    query with more right items than K can reach 1.

    Raises:
        ValueError: There is no right item.
    """
    if not len(positions):
        raise ValueError("average precision needs at least one right item")
    within = positions[positions <= k]
    return float((np.arange(1, len(within) + 1) / within).sum() / min(len(positions), k))


def average_precision_of(ranking: Sequence[str], right: Collection[str], k: int) -> float:
    """AP@K of a ranking as given; a repeated item is skipped but still takes a place (Google Landmarks v2).

    Raises:
        ValueError: There is no right item.
    """
    seen: set[str] = set()
    places = []
    for place, key in enumerate(ranking[:k], start=1):
        if key not in seen and key in right:
            places.append(place)
        seen.add(key)
    if not right:
        raise ValueError("average precision needs at least one right item")
    share = sum(number / place for number, place in enumerate(places, start=1))
    return share / min(len(right), k)


def chance_of_hit(candidates: int, right: int, k: int) -> float:
    """Probability that a random order has one of the right items within the first k."""
    within = min(k, candidates)
    return 1 - math.comb(candidates - right, within) / math.comb(candidates, within)


def chance_of_precision(candidates: int, right: int, k: int) -> float:
    """Expected AP@K of a random order."""
    places = np.arange(1, min(k, candidates) + 1)
    # A right item stands at a place with chance right / candidates; of those before it, (right - 1) / (candidates - 1).
    before = (places - 1) * (right - 1) / max(candidates - 1, 1)
    return float((right / candidates * (1 + before) / places).sum() / min(right, k))


def precision_order(ids: Sequence[str], classes: I64, scores: F64) -> I64:
    """Order of predictions for GAP, by Kaggle's convention: score descending, id ascending, class ascending."""
    return np.asarray(np.lexsort((classes, np.asarray(ids), -scores)), np.int64)


def global_average_precision(
    correct: npt.NDArray[np.bool_], order: I64, positives: int, weights: F64 | None = None
) -> float:
    """GAP, or micro-AP: sum over predictions in order of precision so far at correct ones, by the number of positives.

    Google Landmarks v2 (metrics.GlobalAveragePrecision). Predictions for queries without a landmark are wrong ones:
    they lower the precision of all that follow.

    Args:
        correct: (p,) whether each prediction is right.
        order: (p,) from `precision_order`.
        positives: Queries that have a landmark, answered or not.
        weights: (p,) how often each prediction counts, for resampling; 1 by default.

    Raises:
        ValueError: There are no positives.
    """
    if positives < 1:
        raise ValueError("GAP needs at least one query with a landmark")
    ordered = correct[order].astype(np.float64)
    counts = np.ones(len(order)) if weights is None else weights[order]
    answered, right = np.cumsum(counts), np.cumsum(counts * ordered)
    precision = np.divide(right, answered, out=np.zeros(len(order)), where=answered > 0)
    return float((precision * ordered * counts).sum() / positives)


def recognise(keys: Sequence[str], scores: F64, labels: Mapping[str, int]) -> tuple[int, float] | None:
    """A class and its confidence from neighbours: the class whose neighbours' similarities have the largest sum.

    Args:
        keys: (k) neighbours.
        scores: (k,) their similarities.
        labels: Key to class.

    Returns:
        The best class (the smaller number on a tie) and its sum; None without neighbours.
    """
    sums: dict[int, float] = {}
    for key, score in zip(keys, scores, strict=True):
        label = labels[key]
        sums[label] = sums.get(label, 0.0) + float(score)
    if not sums:
        return None
    label = min(sums, key=lambda one: (-sums[one], one))
    return label, sums[label]
