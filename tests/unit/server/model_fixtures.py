"""A model repository made in milliseconds: real ONNX graphs, small enough to compute by hand.

Images: the mean colour times a fixed matrix. Texts: the sum of their words' rows, where a colour's word has the row of
that colour, so "red" lies on a red image. Composer: unit((1 - g) reference + g condition) with a gate g made of the
reference's length.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from likewise.export.manifest import (
    Manifest,
    PreprocessingSpec,
    TensorSpec,
    TokenizerSpec,
    file_sha256,
    space_digest,
    write_manifest,
)
from likewise.export.tokenizer import write_word_tokenizer
from likewise.server.batcher import BatchLimits
from likewise.server.images import ImageLimits
from likewise.server.models import OnnxModels, read_repositories
from likewise.server.session import Runtime

F32 = npt.NDArray[np.float32]

DIM: Final = 8
SIZE: Final = 8
MAX_TOKENS: Final = 6
COLOURS: Final = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
WORDS: Final = ("the", "same", "another", "small", "large", "dog", *COLOURS)
TEMPLATES: Final = {"unspecified": "{}", "focus": "the same {}", "change": "another {}"}
PREPROCESSING: Final = PreprocessingSpec(SIZE, "shortest", "center", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

COLOUR_TO_SPACE: Final[F32] = np.random.default_rng(7).standard_normal((3, DIM)).astype(np.float32)


def colour_embedding(colour: tuple[int, int, int]) -> F32:
    """What the image encoder makes of a picture of one colour."""
    return np.asarray((np.asarray(colour, np.float32) / 127.5 - 1) @ COLOUR_TO_SPACE, np.float32)


def word_rows() -> F32:
    """(words + 2, DIM): the row of each token id; padding is zero."""
    rows = np.random.default_rng(8).standard_normal((len(WORDS) + 2, DIM)).astype(np.float32)
    rows[0] = 0
    for token, word in enumerate(sorted(WORDS), start=2):
        if word in COLOURS:
            rows[token] = colour_embedding(COLOURS[word])
    return rows


def text_embedding(text: str) -> F32:
    """What the text encoder makes of a text of known words."""
    rows = word_rows()
    known = sorted(WORDS)
    tokens = [known.index(word) + 2 if word in known else 1 for word in text.split()]
    return np.asarray(rows[tokens].sum(axis=0), np.float32)


def composed(reference: F32, condition: F32) -> F32:
    """What the composer makes of one pair."""
    gate = 1 / (1 + np.exp(-(np.linalg.norm(reference) - 1)))
    mixed = (1 - gate) * reference + gate * condition
    return np.asarray(mixed / np.linalg.norm(mixed), np.float32)


def png(colour: tuple[int, int, int], size: tuple[int, int] = (12, 10)) -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_repository(folder: Path, *, family: str = "tiny", version: int = 1, **changes: Any) -> Path:
    """Write one version of the family's three models; returns the folder.

    Args:
        folder: The repository; others' models in it stay.
        family: Its name, and the prefix of its models' names.
        version: Of all three.
        changes: Fields of a manifest to replace, by kind: ``composer={"condition_templates": {}}``.
    """
    image, text, composer = (
        _graph_folder(folder / f"{family}-{kind}" / str(version), graph)
        for kind, graph in (("image", image_graph()), ("text", text_graph()), ("composer", composer_graph()))
    )
    write_word_tokenizer(text / "tokenizer.json", WORDS)
    space = space_digest(model_sha256=file_sha256(image / "model.onnx"), preprocessing=PREPROCESSING, dim=DIM)
    common: dict[str, Any] = {"version": version, "family": family, "dim": DIM, "space": space, "max_batch": 16}
    _manifest(
        image,
        changes.get("image_encoder", {}),
        name=f"{family}-image",
        kind="image_encoder",
        inputs=(TensorSpec("image", "float32", (-1, 3, SIZE, SIZE)),),
        preprocessing=PREPROCESSING,
        **common,
    )
    _manifest(
        text,
        changes.get("text_encoder", {}),
        name=f"{family}-text",
        kind="text_encoder",
        inputs=(TensorSpec("tokens", "int32", (-1, MAX_TOKENS)),),
        tokenizer=TokenizerSpec("tokenizer.json", max_length=MAX_TOKENS),
        **common,
    )
    _manifest(
        composer,
        changes.get("composer", {}),
        name=f"{family}-composer",
        kind="composer",
        inputs=(TensorSpec("reference", "float32", (-1, DIM)), TensorSpec("condition", "float32", (-1, DIM))),
        condition_templates=TEMPLATES,
        **common,
    )
    return folder


def open_models(*folders: Path, max_batch: int = 8, max_items: int = 64) -> OnnxModels:
    """The models of repositories, without the built-in one."""
    return OnnxModels(
        read_repositories(folders, builtin=False),
        runtime=Runtime(threads=1),
        batch=BatchLimits(max_batch=max_batch, max_items=max_items),
        images=ImageLimits(),
        workers=2,
    )


def image_graph() -> onnx.ModelProto:
    """(n, 3, SIZE, SIZE) to (n, DIM)."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["embedding"]),
    ]
    return _model(nodes, {"image": (TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])}, {"matrix": COLOUR_TO_SPACE})


def text_graph() -> onnx.ModelProto:
    """(n, MAX_TOKENS) int32 to (n, DIM)."""
    nodes = [
        helper.make_node("Gather", ["rows", "tokens"], ["words"]),
        helper.make_node("ReduceSum", ["words", "axis"], ["embedding"], keepdims=0),
    ]
    constants: dict[str, npt.NDArray[Any]] = {"rows": word_rows(), "axis": np.array([1], np.int64)}
    return _model(nodes, {"tokens": (TensorProto.INT32, ["batch", MAX_TOKENS])}, constants)


def composer_graph() -> onnx.ModelProto:
    """Two (n, DIM) to (n, DIM)."""
    nodes = [
        helper.make_node("ReduceL2", ["reference", "axis"], ["length"], keepdims=1),
        helper.make_node("Sub", ["length", "one"], ["excess"]),
        helper.make_node("Sigmoid", ["excess"], ["gate"]),
        helper.make_node("Sub", ["one", "gate"], ["rest"]),
        helper.make_node("Mul", ["rest", "reference"], ["kept"]),
        helper.make_node("Mul", ["gate", "condition"], ["changed"]),
        helper.make_node("Add", ["kept", "changed"], ["mixed"]),
        helper.make_node("ReduceL2", ["mixed", "axis"], ["norm"], keepdims=1),
        # Zeros warm the model up and have to come out finite.
        helper.make_node("Max", ["norm", "least"], ["divisor"]),
        helper.make_node("Div", ["mixed", "divisor"], ["embedding"]),
    ]
    shape: tuple[int, list[str | int]] = (TensorProto.FLOAT, ["batch", DIM])
    constants: dict[str, npt.NDArray[Any]] = {
        "axis": np.array([1], np.int64),
        "one": np.array(1, np.float32),
        "least": np.array(1e-12, np.float32),
    }
    return _model(nodes, {"reference": shape, "condition": shape}, constants)


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[str | int]]],
    constants: Mapping[str, npt.NDArray[Any]],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in inputs.items()],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIM])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    # Old enough for every ONNX Runtime we allow, whatever the onnx package writes by default.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _graph_folder(folder: Path, graph: onnx.ModelProto) -> Path:
    folder.mkdir(parents=True)
    onnx.save(graph, folder / "model.onnx")
    return folder


def _manifest(folder: Path, changes: Mapping[str, Any], **values: Any) -> None:
    manifest = Manifest(
        outputs=(TensorSpec("embedding", "float32", (-1, DIM)),),
        files={file.name: file_sha256(file) for file in sorted(folder.iterdir())},
        **values,
    )
    write_manifest(folder / "manifest.json", replace(manifest, **changes))
