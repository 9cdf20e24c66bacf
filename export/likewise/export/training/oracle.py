"""A graph as a torch module, so that the parity check can compare a changed graph with what it was made from."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from likewise.export.manifest import Manifest
from likewise.export.runtime import open_session, run_graph

F32 = npt.NDArray[np.float32]


class GraphModule(nn.Module):
    """Runs a graph, and then a function of numpy arrays on its first output."""

    def __init__(self, graph: Path, after: Callable[[F32], F32]) -> None:
        super().__init__()
        self._session = open_session(graph)
        self._after = after

    def forward(self, *inputs: Tensor) -> Tensor:
        """The graph's inputs in order to the function's result."""
        return torch.from_numpy(self._after(run_graph(self._session, *(x.numpy() for x in inputs))))


def sample_inputs(manifest: Manifest) -> Callable[[int], tuple[Tensor, ...]]:
    """Random inputs of a graph for a batch size: noise for pixels, small ids for tokens."""
    generator = torch.Generator().manual_seed(0)

    def sample(batch: int) -> tuple[Tensor, ...]:
        drawn = []
        for spec in manifest.inputs:
            shape = (batch, *spec.shape[1:])
            if spec.dtype == "int32":
                # Low ids exist in every vocabulary.
                drawn.append(torch.randint(1, 3, shape, generator=generator, dtype=torch.int32))
            else:
                drawn.append(2 * torch.rand(shape, generator=generator) - 1)
        return tuple(drawn)

    return sample
