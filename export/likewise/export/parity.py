"""Compares an exported graph with its module; exporters have been silently wrong (pytorch#166797)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from likewise.export.runtime import open_session, run_graph

BATCHES: Final = (1, 2, 3, 7)
ATOL: Final = 1e-4
MIN_COSINE: Final = 0.99999


class ParityError(RuntimeError):
    """A graph's output differs from its module's; nothing may be published from it."""


@dataclass(frozen=True, slots=True)
class Parity:
    """The worst of all batches: largest difference between unit vectors, and lowest cosine."""

    largest_difference: float
    lowest_cosine: float


def check_parity(
    module: nn.Module, path: Path, sample: Callable[[int], tuple[Tensor, ...]], *, max_batch: int = 64
) -> Parity:
    """Run module and graph on the same inputs at batches 1, 2, 3, 7 and ``max_batch``.

    Args:
        module: In eval mode.
        path: The graph.
        sample: Inputs for a batch size.
        max_batch: Largest batch to try.

    Raises:
        ParityError: Unit vectors differ by more than 1e-4, or a cosine is below 0.99999, or shapes differ.
    """
    session = open_session(path)
    difference, cosine = 0.0, 1.0
    for batch in (*BATCHES, max_batch):
        inputs = sample(batch)
        with torch.no_grad():
            expected = module(*inputs).double().numpy()
        actual = run_graph(session, *(x.numpy() for x in inputs)).astype(np.float64)
        if actual.shape != expected.shape:
            raise ParityError(f"{path.name}, batch {batch}: shape {actual.shape}, the module gives {expected.shape}")
        actual /= np.linalg.norm(actual, axis=1, keepdims=True)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        difference = max(difference, float(np.abs(actual - expected).max()))
        cosine = min(cosine, float((actual * expected).sum(1).min()))
        # Written so that NaN fails.
        if not (difference <= ATOL and cosine >= MIN_COSINE):
            raise ParityError(
                f"{path.name}, batch {batch}: unit vectors differ by {difference:.2e} (limit {ATOL:.0e}), "
                f"cosine {cosine:.7f} (limit {MIN_COSINE})"
            )
    return Parity(difference, cosine)
