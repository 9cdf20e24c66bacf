"""fp32 graphs to fp16 and int8 ones. What is lost is measured by the parity gate, never assumed.

fp16 arithmetic ends at 65,504. A LayerNorm squares its input and has given finite but wrong output there
(onnxruntime#31626), a softmax sums exponentials, a norm sums squares: these stay float32. So does every node that
touches a tensor which comes near the limit on real inputs, because the CPU, on which graphs are checked, computes fp16
graphs in float32 and would not show an overflow.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import onnx
import onnx_ir
from onnx_ir.passes.common import TopologicalSortPass

from likewise.export.manifest import PRECISIONS
from likewise.export.runtime import float16_model, quantized_model, tensor_peaks

KEPT_OPS: Final = (
    "LayerNormalization",
    "RMSNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "BatchNormalization",
    "Softmax",
    "LogSoftmax",
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "ReduceL2",
    "Pow",
    "Sqrt",
    "Reciprocal",
)

_PEAK: Final = 65_504 / 8
"""A tensor that gets so far on the inputs at hand may get to the end of float16 on others."""

# Between a sum of squares and the graph's output these are parts of a normalisation.
_ELEMENTWISE: Final = frozenset(
    ("Div", "Mul", "Clip", "Max", "Expand", "Identity", "Unsqueeze", "Squeeze", "Cast", "Abs")
)
_NORMS: Final = frozenset(("ReduceL2", "ReduceSumSquare", "ReduceSum", "Sqrt", "Pow"))


def convert(path: Path, precision: str, inputs: Sequence[npt.NDArray[Any]]) -> dict[str, Any]:
    """Rewrite a float32 graph in a precision; its inputs and outputs stay as they are.

    Args:
        path: The graph, replaced; external data stays external.
        precision: "fp32" (nothing is done), "fp16", or "int8": weights of MatMul and Gemm are int8 with a scale for
            each output channel, activations are quantised as they come.
        inputs: A few real rows, in the graph's order.

    Returns:
        What is worth keeping about it: for fp16, how many nodes were kept float32 for their range.

    Raises:
        ValueError: There is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    if precision == "fp16":
        return _to_float16(path, inputs)
    if precision == "int8":
        _save(quantized_model(path), path)
    return {}


def normalising_nodes(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes that bring the output to unit length, if the graph does so; empty for raw features."""
    producers = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    seen: set[str] = set()
    norm = False
    waiting = [value.name for value in graph.output]
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.name in seen or node.op_type not in _ELEMENTWISE | _NORMS:
            continue
        seen.add(node.name)
        found.add(node.name)
        norm = norm or node.op_type in _NORMS
        waiting.extend(node.input)
    return found if norm else set()


def _to_float16(path: Path, inputs: Sequence[npt.NDArray[Any]]) -> dict[str, Any]:
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False)).graph
    wide = _wide_nodes(path, graph, inputs)
    model = float16_model(path, kept_ops=KEPT_OPS, kept_nodes=sorted(wide | normalising_nodes(graph)))
    _save(without_detours(model), path)
    return {"nodes_kept_fp32_for_range": len(wide)}


def _wide_nodes(path: Path, graph: onnx.GraphProto, inputs: Sequence[npt.NDArray[Any]]) -> set[str]:
    peaks = tensor_peaks(path, list(_float_tensors(graph)), inputs)
    wide = {name for name, peak in peaks.items() if peak > _PEAK}
    # Its producer computes it, its consumers would have it cast to float16.
    return {node.name for node in graph.node if not wide.isdisjoint((*node.input, *node.output))}


def _float_tensors(graph: onnx.GraphProto) -> Iterator[str]:
    floats = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    for node in graph.node:
        if node.op_type not in KEPT_OPS and node.op_type != "Constant":
            yield from (name for name in node.output if name in floats)


def without_detours(model: onnx.ModelProto) -> onnx.ModelProto:
    """A converted graph, in order, without casts from float32 to float16 and back.

    The converter appends its casts out of order, which the standard forbids, and casts between two nodes that both stay
    float32, the graph's output among them: that would round what they were kept for.
    """
    model = onnx_ir.to_proto(TopologicalSortPass()(onnx_ir.from_proto(model)).model)
    # Types as they are now: the recorded ones are of the graph before.
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    narrowed = {node.output[0]: node.input[0] for node in model.graph.node if _casts(node, onnx.TensorProto.FLOAT16)}
    outputs = {value.name for value in model.graph.output} | set(_names_in_branches(model.graph))
    direct: dict[str, str] = {}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = direct.get(name, name)
        if _casts(node, onnx.TensorProto.FLOAT) and narrowed.get(node.input[0], "") in floats:
            source = direct.get(narrowed[node.input[0]], narrowed[node.input[0]])
            node.input[0] = source
            if node.output[0] not in outputs:
                direct[node.output[0]] = source
    used = outputs | {name for node in model.graph.node for name in node.input if node.output[0] not in direct}
    kept = [node for node in model.graph.node if node.op_type != "Cast" or node.output[0] in used]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def _names_in_branches(graph: onnx.GraphProto) -> Iterator[str]:
    """Tensors that the bodies of If and Loop read: they name them without taking them as inputs."""
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from (name for inner in body.node for name in inner.input)
                yield from _names_in_branches(body)


def _casts(node: onnx.NodeProto, to: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == to for a in node.attribute)


def _save(model: onnx.ModelProto, path: Path) -> None:
    # Types of the tensors as they were before.
    del model.graph.value_info[:]
    data = path.with_name(f"{path.name}.data")
    external = data.exists()
    data.unlink(missing_ok=True)
    if external:
        onnx.save(model, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=data.name)
    else:
        onnx.save(model, str(path))
