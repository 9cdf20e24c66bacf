"""torch modules to ONNX graphs: raw features out, dynamic batch, fp32."""

import logging
import warnings
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

OPSET: Final = 18

_LOG = logging.getLogger(__name__)


def export_graph(
    module: nn.Module, inputs: tuple[Tensor, ...], path: Path, *, names: tuple[str, ...], output: str
) -> None:
    """Write one graph whose first dimension is the batch.

    Args:
        module: In eval mode, on CPU, fp32.
        inputs: Example inputs with a batch of 2: a batch of 0 or 1 would be frozen into the graph
            (pytorch#149089).
        path: The .onnx file; weights are inside it.
        names: Names of the inputs.
        output: Name of the output.
    """
    if module.training:
        raise ValueError("the module is in training mode: dropout and batch statistics would be exported")
    if any(len(x) != 2 for x in inputs):
        raise ValueError(f"example inputs must have a batch of 2, got {[len(x) for x in inputs]}")
    batch = torch.export.Dim("batch")
    module = module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter warns of its own deprecations; what matters is checked numerically in parity.py.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            inputs,
            str(path),
            input_names=list(names),
            output_names=[output],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            external_data=False,
            verbose=False,
        )
    _LOG.info("wrote %s, %d bytes", path, path.stat().st_size)
