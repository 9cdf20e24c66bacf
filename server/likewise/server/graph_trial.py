"""The first runs of a graph: what any graph has to pass before it serves, wherever it runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from likewise.export.manifest import TensorSpec

Array = npt.NDArray[Any]

# Two sizes: a graph exported with a fixed batch passes one of them at most.
_BATCHES: Final = (1, 2)


class SessionError(Exception):
    """A model that cannot be served as asked: wrong provider or endpoint, wrong graph, or a first run that fails."""


def try_out(
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    batches: Sequence[int] = _BATCHES,
) -> None:
    """Run a graph on zeros, which also warms it up, and check what comes out.

    Args:
        run: The graph.
        inputs: What it takes; the first axis is the batch.
        outputs: What it gives.
        batches: Sizes to try.

    Raises:
        SessionError: If an output has another shape than `outputs` say, or is not finite; what `run` raises passes.
    """
    for batch in batches:
        feeds = {
            spec.name: np.zeros((batch, *(max(size, 1) for size in spec.shape[1:])), spec.dtype) for spec in inputs
        }
        values = run(feeds)
        for spec in outputs:
            value, expected = values[spec.name], (batch, *spec.shape[1:])
            if len(value.shape) != len(expected) or any(
                want not in (-1, got) for want, got in zip(expected, value.shape, strict=True)
            ):
                raise SessionError(
                    f"output {spec.name!r} of a batch of {batch} has the shape {value.shape}, not {expected}"
                )
            if not np.isfinite(value).all():
                raise SessionError(f"output {spec.name!r} of zeros is not finite")
