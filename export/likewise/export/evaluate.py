"""Recall at 1, 2 and 3 over small galleries, by the GeneCIS protocol, with confidence intervals; pure numpy.

Ranks are worst-case: a candidate that ties with the target counts as ahead of it. So a constant scorer gets
nothing, and slot order cannot matter (the original code's unstable sort can give an all-equal scorer 100 %).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

CUTOFFS: Final = (1, 2, 3)
_RESAMPLES: Final = 2000
_DRAWN_CELLS: Final = 1 << 22
_WEIGHTS: Final = tuple(round(0.05 * i, 2) for i in range(21))


@dataclass(frozen=True, slots=True)
class Features:
    """Features of one task's t templates with c candidates each.

    Attributes:
        references: (t, d) raw image features.
        candidates: (t, c, d) unit image features.
        targets: (t,) index of the right candidate.
        bare: (t, d) raw features of the condition's plain text ("colour", "blue").
        composed: (t, d) raw features of the text that the composer is given ("same colour", "now blue").
        clusters: (t,) templates with the same number share a reference and are resampled together.
    """

    references: F32
    candidates: F32
    targets: I64
    bare: F32
    composed: F32
    clusters: I64


@dataclass(frozen=True, slots=True)
class Interval:
    """A share in percent with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Recall:
    """R@1, R@2 and R@3 of one method on one task, in percent, and how it was set up ("weight 0.35, bare text")."""

    at: Mapping[int, Interval]
    setup: str = ""


def unit(x: F32) -> F32:
    """Rows (last axis) scaled to length one."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12), np.float32)


def worst_ranks(scores: npt.NDArray[np.floating], targets: I64) -> I64:
    """Rank of each row's target, 1 is best; every tie counts against it, and so does NaN.

    Args:
        scores: (t, c), larger is better.
        targets: (t,) column of the target.
    """
    own = np.take_along_axis(scores, targets[:, None], 1)
    return np.asarray((~(scores < own)).sum(1), np.int64)


def query_scores(queries: F32, candidates: F32) -> F32:
    """Inner products (t, c) of (t, d) queries with their own (t, c, d) candidates."""
    return np.asarray(np.einsum("td,tcd->tc", queries, candidates), np.float32)


def best_sum(features: Features) -> tuple[I64, str]:
    """Ranks of the best weighted sum of unit image and text features.

    The weight (21 steps) and the form of the text are chosen on these very templates: an advantage that only
    this baseline has.

    Returns:
        (t,) ranks and what was chosen.
    """
    best: tuple[float, I64, str] | None = None
    for form, texts in (("bare", features.bare), ("composed", features.composed)):
        image_scores = query_scores(unit(features.references), features.candidates)
        text_scores = query_scores(unit(texts), features.candidates)
        for weight in _WEIGHTS:
            # Normalising the sum would scale a row's scores alike and leave its ranks.
            scores = (1 - weight) * image_scores + weight * text_scores
            ranks = worst_ranks(scores, features.targets)
            hits = float((ranks <= 1).mean())
            if best is None or hits > best[0]:
                best = (hits, ranks, f"text weight {weight:.2f}, {form} text")
    if best is None:
        raise ValueError("no weights to choose from. This is a bug.")
    return best[1], best[2]


def one_weight_ranks(tasks: Sequence[Features]) -> tuple[list[I64], str]:
    """Ranks of the weighted sum under one weight for all tasks: what a user has who does not know the task.

    The weight and the form of the text are those with the best mean R@1 over these very templates.

    Returns:
        Per task, (t,) ranks; and what was chosen.
    """
    best: tuple[float, list[I64], str] = (-1.0, [], "")
    for form in ("bare", "composed"):
        image = [query_scores(unit(f.references), f.candidates) for f in tasks]
        texts = [f.bare if form == "bare" else f.composed for f in tasks]
        text = [query_scores(unit(x), f.candidates) for x, f in zip(texts, tasks, strict=True)]
        for weight in _WEIGHTS:
            ranks = [
                worst_ranks((1 - weight) * i + weight * t, f.targets)
                for i, t, f in zip(image, text, tasks, strict=True)
            ]
            mean = float(np.mean([(r <= 1).mean() for r in ranks]))
            if mean > best[0]:
                best = (mean, ranks, f"text weight {weight:.2f}, {form} text")
    return best[1], best[2]


def bootstrap_means(values: F64, clusters: I64, *, seed: int = 0) -> F64:
    """Means of cluster resamples: (t,) values, (t,) cluster numbers to (resamples,) means."""
    _, inverse = np.unique(clusters, return_inverse=True)
    count = int(inverse.max()) + 1
    sums = np.bincount(inverse, values, count)
    sizes = np.bincount(inverse, minlength=count)
    # The same seed for every method makes differences paired. Drawn in blocks of bounded size, which gives the same
    # numbers as all at once: a hundred thousand clusters would take gigabytes.
    rng, step = np.random.default_rng(seed), max(1, _DRAWN_CELLS // count)
    means = []
    for start in range(0, _RESAMPLES, step):
        picks = rng.integers(count, size=(min(step, _RESAMPLES - start), count))
        means.append(sums[picks].sum(1) / sizes[picks].sum(1))
    return np.asarray(np.concatenate(means), np.float64)


def interval(values: F64, clusters: I64, *, seed: int = 0) -> Interval:
    """Mean of (t,) shares in percent with its 95 % cluster-bootstrap interval."""
    means = bootstrap_means(values, clusters, seed=seed)
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(100 * float(values.mean()), 100 * float(low), 100 * float(high))


def recall(ranks: I64, clusters: I64, *, setup: str = "") -> Recall:
    """R@1/2/3 of (t,) ranks."""
    return Recall({k: interval((ranks <= k).astype(np.float64), clusters) for k in CUTOFFS}, setup)


def mean_interval(hits: Sequence[F64], clusters: Sequence[I64]) -> Interval:
    """Unweighted mean over tasks with its interval; tasks are resampled independently.

    Args:
        hits: Per task, (t,) shares (or differences of shares) in [-1, 1].
        clusters: Per task, (t,) cluster numbers.
    """
    means = np.mean([bootstrap_means(h, c, seed=i) for i, (h, c) in enumerate(zip(hits, clusters, strict=True))], 0)
    low, high = np.percentile(means, (2.5, 97.5))
    value = float(np.mean([h.mean() for h in hits]))
    return Interval(100 * value, 100 * float(low), 100 * float(high))
