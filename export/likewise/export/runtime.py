"""ONNX Runtime on CPU for export checks, conversions and evaluation; the export side's one door to it."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from likewise.export.manifest import ManifestError
from likewise.export.model_repository import Family, load_repository
from likewise.export.preprocess import preprocessing_of
from likewise.export.tokenizer import tokenizer_of

if TYPE_CHECKING:
    import onnx  # at run time only where graphs are rewritten: evaluation does without it

F32 = npt.NDArray[np.float32]


def open_session(path: Path, *, threads: int = 0) -> ort.InferenceSession:
    """A CPU session of a graph; ``threads`` 0 uses every core."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_graph(session: ort.InferenceSession, *inputs: npt.NDArray[Any]) -> F32:
    """The first output for inputs in the graph's order."""
    names = [node.name for node in session.get_inputs()]
    (output,) = session.run(None, dict(zip(names, inputs, strict=True)))
    return np.asarray(output, np.float32)


def tensor_peaks(path: Path, names: Sequence[str], inputs: Sequence[npt.NDArray[Any]]) -> dict[str, float]:
    """Largest finite absolute value of tensors inside a graph; attention masks are infinite by design.

    Args:
        path: The graph; one with these tensors as outputs is written beside it for the while.
        names: Tensors, float32 ones.
        inputs: In the graph's order; run two rows at a time, for all these tensors are held at once.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    probe = path.with_name(f".probe-{path.name}")
    onnx.save(model, str(probe))
    try:
        options = ort.SessionOptions()
        # Optimised away, a tensor cannot be looked at.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = ort.InferenceSession(str(probe), options, providers=["CPUExecutionProvider"])
    finally:
        probe.unlink()
    wanted = [node.name for node in session.get_inputs()]
    peaks = dict.fromkeys(names, 0.0)
    for start in range(0, len(inputs[0]), 2):
        feeds = {name: value[start : start + 2] for name, value in zip(wanted, inputs, strict=True)}
        for name, value in zip(names, session.run(list(names), feeds), strict=True):
            peaks[name] = max(peaks[name], float(np.abs(value[np.isfinite(value)]).max(initial=0)))
    return peaks


def float16_model(path: Path, *, kept_ops: Sequence[str], kept_nodes: Sequence[str]) -> "onnx.ModelProto":
    """A graph with float16 weights and arithmetic, float32 inputs and outputs.

    Args:
        path: A float32 graph.
        kept_ops: Operators that stay float32, besides those that ONNX Runtime itself keeps.
        kept_nodes: Names of further nodes that stay float32.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    converted: onnx.ModelProto = convert_float_to_float16(
        str(path),
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *kept_ops],
        node_block_list=list(kept_nodes),
    )
    return converted


def quantized_model(path: Path) -> "onnx.ModelProto":
    """A graph whose weight multiplications are int8, the activations quantised as they come.

    Weights are unsigned, a scale for each output channel: signed ones saturate on x86 without VNNI (16-bit sums of
    8-bit products), so that a graph that passed its checks on one machine would be wrong on another.

    Args:
        path: A float32 graph, with external data beside it or without.

    Returns:
        The new one, with its weights.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    external = path.with_name(f"{path.name}.data").exists()
    # A folder of their own: with external data both steps leave files of names that they make up.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quiet_root_logger():
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        # The runtime asks for this step: it infers the shapes by which weights are told from activations.
        quant_pre_process(
            str(path),
            str(prepared),
            skip_symbolic_shape=True,
            save_as_external_data=external,
            all_tensors_to_one_file=True,
        )
        quantize_dynamic(
            str(prepared),
            str(quantized),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QUInt8,
            use_external_data_format=external,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(str(quantized))


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """The quantiser logs its advice to the root logger, whatever the caller configured."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


class OnnxFamily:
    """Image encoder, text encoder and composer of one family on CPU; a ``benchmark.Model``."""

    def __init__(self, family: Family) -> None:
        image, text, composer = family.image_encoder, family.text_encoder, family.composer
        if text is None or composer is None:
            raise ManifestError(f"family {family.name!r} has no text encoder or no composer")
        self.preprocessing = preprocessing_of(image)
        self._tokenizer = tokenizer_of(text)
        self._image, self._text, self._composer = (open_session(m.file()) for m in (image, text, composer))

    def encode_images(self, images: F32) -> F32:
        """(n, 3, size, size) to (n, d) raw features."""
        return run_graph(self._image, images)

    def encode_texts(self, texts: Sequence[str]) -> F32:
        """Texts to (n, d) raw features."""
        return run_graph(self._text, self._tokenizer(texts).ids)

    def compose(self, references: F32, conditions: F32) -> F32:
        """(n, d) raw image and (n, d) raw text features to (n, d) unit queries."""
        return run_graph(self._composer, references, conditions)


def load_family(repository: Path | None, name: str) -> OnnxFamily:
    """Open a family of a repository (the built-in one by default).

    Raises:
        ManifestError: The repository is damaged or holds no such family.
    """
    return OnnxFamily(load_repository(repository).family(name))
