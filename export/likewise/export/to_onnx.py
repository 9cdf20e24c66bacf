"""torch modules to ONNX graphs: raw features out, dynamic batch, fp32."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import onnx
import torch
from torch import Tensor, nn

OPSET: Final = 18
EXTERNAL_DATA_OVER: Final = 1 << 30
"""Bytes of weights from which they go into a file of their own: a protobuf message ends at 2 GiB, and the graph's
constants come on top of the weights."""

_LOG = logging.getLogger(__name__)


class ExportError(RuntimeError):
    """A module cannot be exported as it is, or its graph cannot be served."""


class StaticBatchError(ExportError):
    """A graph takes only the batch that it was made with."""


def export_graph(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    *,
    names: tuple[str, ...],
    output: str,
    external_data_over: int = EXTERNAL_DATA_OVER,
) -> None:
    """Write one graph whose first dimension is the batch.

    Args:
        module: In eval mode, on CPU, fp32.
        inputs: Example inputs with a batch of 2: a batch of 0 or 1 would be frozen into the graph
            (pytorch#149089).
        path: The .onnx file; weights are inside it, or in ``<path>.data`` beside it.
        names: Names of the inputs.
        output: Name of the output.
        external_data_over: Bytes of weights from which they go into the file beside it.

    Raises:
        ValueError: The module is in training mode, or the examples have another batch.
        StaticBatchError: The module works for one batch only.
        ExportError: The exporter does not understand the module.
    """
    if module.training:
        raise ValueError("the module is in training mode: dropout and batch statistics would be exported")
    if any(len(x) != 2 for x in inputs):
        raise ValueError(f"example inputs must have a batch of 2, got {[len(x) for x in inputs]}")
    batch = torch.export.Dim("batch")
    module = module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    size = sum(weight.numel() * weight.element_size() for weight in module.state_dict().values())
    with warnings.catch_warnings(), torch.no_grad(), _traceable_attention(), _errors_only():
        # The exporter warns of its own deprecations; what matters is checked numerically in parity.py.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                module,
                inputs,
                str(path),
                input_names=list(names),
                output_names=[output],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                external_data=size > external_data_over,
                verbose=False,
            )
        except Exception as error:
            # Whatever a module's own code raises under tracing comes wrapped, over several pages.
            raise _explained(error, type(module).__name__) from error
    try:
        check_dynamic_batch(path)
    except StaticBatchError as error:
        # The exporter does not fail on a batch that the code pins: it writes a graph of that batch.
        raise StaticBatchError(
            f"{type(module).__name__} works for a batch of 2 only: something in its forward() takes the batch for a "
            "constant (a reshape to a fixed size, a loop over the batch, a buffer with a batch of its own). Use -1 or "
            "x.shape[0] there"
        ) from error
    _LOG.info("wrote %s, %d bytes", path, sum(file.stat().st_size for file in graph_files(path)))


def graph_files(path: Path) -> list[Path]:
    """A graph's file and those of its external data, sorted."""
    return sorted(path.parent.glob(f"{path.name}*"))


def check_dynamic_batch(path: Path) -> None:
    """Check that the first dimension of all inputs and outputs of a graph is open.

    Raises:
        StaticBatchError: Naming the tensor and the fix.
    """
    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {one.name for one in graph.initializer}
    for what, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            if value.name in weights:
                continue
            dims = value.type.tensor_type.shape.dim
            if not dims or dims[0].HasField("dim_value"):
                size = dims[0].dim_value if dims else "no"
                raise StaticBatchError(
                    f"{path.name}: {what} {value.name!r} has a batch fixed at {size}; serving sends batches of any "
                    "size. "
                    "Export it anew with a dynamic first dimension, traced with a batch of 2 (a batch of 1 becomes a "
                    "constant)"
                )


@contextmanager
def _traceable_attention() -> Iterator[None]:
    """nn.MultiheadAttention's fused inference path has no ONNX form."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _errors_only() -> Iterator[None]:
    """The optimiser warns of each operator that it leaves as it is."""
    logger = logging.getLogger("onnxscript")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _explained(error: Exception, module: str) -> ExportError:
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__
    lines = [line.strip() for line in str(causes[-1]).splitlines() if line.strip()]
    reason = lines[0] if lines else type(causes[-1]).__name__
    return ExportError(f"{module} cannot be exported to ONNX: {type(causes[-1]).__name__}: {reason}")
