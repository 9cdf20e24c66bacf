"""The benchmarks' figures by plain loops over float64 numbers: slow, and independent of the code under test."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Vector = npt.NDArray[Any]


def unit(vector: Vector) -> F64:
    length = math.sqrt(sum(float(x) * float(x) for x in vector))
    return np.asarray(vector, np.float64) / length


def compose(kind: str, image: Vector, text: Vector, weight: float = 0.5) -> F64:
    image, text = np.asarray(image, np.float64), np.asarray(text, np.float64)
    if kind == "image":
        return unit(image)
    if kind == "text":
        return unit(text)
    return unit((1 - weight) * image + weight * text)


def ranked(
    query: F64, candidates: Iterable[str], features: Mapping[str, Vector], right: Collection[str] = ()
) -> list[str]:
    """Keys best first; at equal scores the wrong ones come first."""
    scored = [(-float(np.dot(query, unit(features[key]))), key in right, key) for key in candidates]
    return [key for *_, key in sorted(scored)]


def recall(ranking: Sequence[str], right: Collection[str], k: int) -> float:
    return float(any(key in right for key in ranking[:k]))


def average_precision(ranking: Sequence[str], right: Collection[str], k: int) -> float:
    found, total = 0, 0.0
    for place, key in enumerate(ranking[:k], start=1):
        if key in right:
            found += 1
            total += found / place
    return total / min(len(right), k)
