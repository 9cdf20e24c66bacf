"""Compares an exported graph with its module; exporters have been silently wrong (pytorch#166797)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from likewise.export.runtime import open_session, run_graph

BATCHES: Final = (1, 2, 3, 7)
ATOL: Final = 1e-4
MIN_COSINE: Final = 0.99999
GALLERY: Final = 128
"""Items of the golden gallery; half of them would let one neighbour in fifty change unnoticed."""
TOP: Final = 10

F64 = npt.NDArray[np.float64]


class ParityError(RuntimeError):
    """A graph's output differs from its module's; nothing may be published from it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a graph of one precision must keep.

    Attributes:
        difference: Largest difference of a number of two unit vectors.
        cosine: Lowest cosine of an item's two vectors.
        overlap: Lowest mean share of common items among the ten nearest of each item of the golden gallery; a limit on
            numbers alone misses changes of rank.
    """

    difference: float
    cosine: float
    overlap: float


LIMITS: Final[Mapping[str, Limits]] = {
    "fp32": Limits(ATOL, MIN_COSINE, 0.0),
    "fp16": Limits(np.inf, 0.999, 0.99),
    "int8": Limits(np.inf, 0.999, 0.99),
}


@dataclass(frozen=True, slots=True)
class Parity:
    """The worst of all batches: largest difference between unit vectors, lowest cosine; and neighbours kept.

    Attributes:
        largest_difference: Of a number of two unit vectors.
        lowest_cosine: Of an item's two vectors.
        overlap: Mean share of common items among the ten nearest of each item of the gallery; 1 if it holds no more
            than 11.
        gallery: Items of the gallery.
        batches: Sizes that were run.
    """

    largest_difference: float
    lowest_cosine: float
    overlap: float = 1.0
    gallery: int = 0
    batches: tuple[int, ...] = ()


def check_parity(
    module: nn.Module,
    path: Path,
    sample: Callable[[int], tuple[Tensor, ...]],
    *,
    max_batch: int = 64,
    precision: str = "fp32",
) -> Parity:
    """Run module and graph on the same inputs at batches 1, 2, 3, 7 and ``max_batch``, and compare neighbours.

    Args:
        module: In eval mode, fp32.
        path: The graph.
        sample: Inputs for a batch size; real ones, noise exercises other parts of a model than pictures and texts do.
        max_batch: Largest batch to try.
        precision: Of the graph; chooses the limits. The gallery has ``max_batch`` items for "fp32", whose neighbours
            cannot change within its limits, and 128 or more for the others.

    Raises:
        ParityError: Shapes differ, or a figure is beyond ``LIMITS[precision]``, or different inputs have one output.
    """
    limits = LIMITS[precision]
    session = open_session(path)

    def both(inputs: tuple[Tensor, ...]) -> tuple[F64, F64]:
        with torch.no_grad():
            expected = module(*inputs).double().numpy()
        actual = run_graph(session, *(x.numpy() for x in inputs)).astype(np.float64)
        if actual.shape != expected.shape:
            raise ParityError(
                f"{path.name}, batch {len(expected)}: shape {actual.shape}, the module gives {expected.shape}"
            )
        return _unit(actual), _unit(expected)

    difference, cosine = 0.0, 1.0

    def compare(actual: F64, expected: F64) -> None:
        nonlocal difference, cosine
        # numpy's, which keep a NaN that Python's max() and min() would lose; the comparison then fails with it.
        difference = float(np.maximum(difference, np.abs(actual - expected).max()))
        cosine = float(np.minimum(cosine, (actual * expected).sum(1).min()))
        if not (difference <= limits.difference and cosine >= limits.cosine):
            raise ParityError(
                f"{path.name} ({precision}), batch {len(actual)}: unit vectors differ by {difference:.2e} "
                f"(limit {limits.difference:.0e}), cosine {cosine:.7f} (limit {limits.cosine})"
            )

    for batch in BATCHES:
        compare(*both(sample(batch)))
    count = max_batch if precision == "fp32" else max(max_batch, GALLERY)
    inputs = sample(count)
    parts = []
    for start in range(0, count, max_batch):
        parts.append(both(tuple(x[start : start + max_batch] for x in inputs)))
        compare(*parts[-1])
    actual, expected = (np.concatenate(rows) for rows in zip(*parts, strict=True))
    _refuse_collapse(path.name, expected, inputs)
    overlap = neighbour_overlap(actual, expected)
    if not overlap >= limits.overlap:
        raise ParityError(
            f"{path.name} ({precision}): {overlap:.4f} of the {TOP} nearest neighbours in a gallery of {count} are "
            "kept, "
            f"the limit is {limits.overlap} (lowest cosine {cosine:.5f}); export with a higher precision"
        )
    return Parity(difference, cosine, overlap, count, (*BATCHES, max_batch))


def neighbour_overlap(actual: F64, expected: F64) -> float:
    """Mean share of the ten nearest that two embeddings of one gallery agree on.

    Args:
        actual: (n, d) unit vectors.
        expected: (n, d) unit vectors of the same items.

    Returns:
        A share; 1 where the gallery is too small to have an eleventh neighbour.
    """
    n = len(actual)
    if n <= TOP + 1:
        return 1.0
    found, right = (_nearest(vectors) for vectors in (actual, expected))
    return float(np.mean([len(np.intersect1d(a, b)) / TOP for a, b in zip(found, right, strict=True)]))


def figures(parity: Parity | None, precision: str) -> dict[str, Any]:
    """What a manifest's evaluation says about a check; empty without one."""
    if parity is None:
        return {}
    return {
        "precision": precision,
        "batches": list(parity.batches),
        "largest_difference": float(f"{parity.largest_difference:.3g}"),
        "lowest_cosine": round(parity.lowest_cosine, 8),
        "top_10_overlap": round(parity.overlap, 5),
        "gallery": parity.gallery,
    }


def _nearest(vectors: F64) -> npt.NDArray[np.int64]:
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return np.asarray(np.argsort(-scores, axis=1, kind="stable")[:, :TOP], np.int64)


def _unit(vectors: F64) -> F64:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float64)


def _refuse_collapse(name: str, vectors: F64, inputs: tuple[Tensor, ...]) -> None:
    """A text tower that pools at a token its tokenizer never writes gives all texts one vector (transformers#24650)."""
    different = any(bool((x[1:] != x[:1]).any()) for x in inputs)
    if different and float(np.abs(vectors - vectors[0]).max()) < 1e-6:
        raise ParityError(
            f"{name}: different inputs have one and the same output; is it pooled at a token that the tokenizer never "
            "writes, or is its input not used at all?"
        )
