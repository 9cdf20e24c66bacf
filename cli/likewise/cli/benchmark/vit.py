"""A vision transformer with random weights, of the size of a well-known one: what it costs to run, not what it says.

The graph is that of CLIP's image tower (Radford et al., Learning transferable visual models from natural language
supervision, 2021): patches, a class token, pre-norm blocks with QuickGELU, a final projection of the class token.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from likewise.export.manifest import (
    MANIFEST,
    MODEL_FILE,
    Manifest,
    PreprocessingSpec,
    TensorSpec,
    file_sha256,
    space_digest,
    write_manifest,
)

_OPSET: Final = 18
_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_STD: Final = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class VitSize:
    """Sizes of a vision transformer.

    Attributes:
        image: Side of the picture, pixels.
        patch: Side of a patch, pixels.
        width: Numbers of a token.
        layers: Blocks.
        heads: Attention heads; divides width.
        dim: Numbers of the output.
    """

    image: int
    patch: int
    width: int
    layers: int
    heads: int
    dim: int

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image // self.patch) ** 2 + 1


SIZES: Final = {
    "vit-b-32": VitSize(image=224, patch=32, width=768, layers=12, heads=12, dim=512),
    "vit-tiny": VitSize(image=64, patch=16, width=64, layers=2, heads=2, dim=32),
}


def write_vit(repository: Path, name: str, *, max_batch: int = 64, seed: int = 0) -> Path:
    """Write a family of that name, an image encoder alone, into a model repository; returns the graph's file.

    Args:
        repository: Its folder, made if need be.
        name: One of `SIZES`.
        max_batch: The manifest's largest batch.
        seed: Of the weights.
    """
    size = SIZES[name]
    folder = repository / f"{name}-image" / "1"
    folder.mkdir(parents=True)
    graph = folder / MODEL_FILE
    onnx.save(vit(size, np.random.default_rng(seed)), graph)
    digest = file_sha256(graph)
    preprocessing = PreprocessingSpec(size.image, "shortest", "center", "bicubic", _MEAN, _STD)
    manifest = Manifest(
        name=f"{name}-image",
        version=1,
        kind="image_encoder",
        family=name,
        dim=size.dim,
        space=space_digest(model_sha256=digest, preprocessing=preprocessing, dim=size.dim),
        inputs=(TensorSpec("pixels", "float32", (-1, 3, size.image, size.image)),),
        outputs=(TensorSpec("features", "float32", (-1, size.dim)),),
        files={MODEL_FILE: digest},
        preprocessing=preprocessing,
        max_batch=max_batch,
        notes="Random weights, for measuring speed.",
    )
    write_manifest(folder / MANIFEST, manifest)
    return graph


def vit(size: VitSize, rng: np.random.Generator) -> onnx.ModelProto:
    """The graph: (n, 3, image, image) float32 "pixels" to (n, dim) float32 "features"."""
    return _Graph(size, rng).build()


class _Graph:
    """Nodes and weights as they are put together."""

    def __init__(self, size: VitSize, rng: np.random.Generator) -> None:
        self._size = size
        self._rng = rng
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._count = 0

    def build(self) -> onnx.ModelProto:
        size = self._size
        x = self._patches()
        x = self._norm(x)
        for _ in range(size.layers):
            x = self._op("Add", x, self._attention(self._norm(x)))
            x = self._op("Add", x, self._perceptron(self._norm(x)))
        first = self._op("Gather", x, self._constant(np.array(0, np.int64)), axis=1)
        self._op("MatMul", self._norm(first), self._random(size.width, size.dim), output="features")
        batch = helper.make_tensor_value_info
        graph = helper.make_graph(
            self._nodes,
            "vit",
            [batch("pixels", TensorProto.FLOAT, ["batch", 3, size.image, size.image])],
            [batch("features", TensorProto.FLOAT, ["batch", size.dim])],
            self._weights,
        )
        # Old enough for every ONNX Runtime that is allowed, whatever the onnx package writes by default.
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)

    def _patches(self) -> str:
        """(n, tokens, width): the class token stands first, added with the positions to a row of zeros."""
        size = self._size
        kernel = self._random(size.width, 3, size.patch, size.patch)
        grid = self._op("Conv", "pixels", kernel, strides=[size.patch, size.patch])
        rows = self._op("Transpose", self._reshape(grid, 0, size.width, size.tokens - 1), perm=[0, 2, 1])
        padded = self._op("Pad", rows, self._constant(np.array([0, 1, 0, 0, 0, 0], np.int64)))
        return self._op("Add", padded, self._random(size.tokens, size.width))

    def _attention(self, x: str) -> str:
        size = self._size
        each = size.width // size.heads
        heads = []
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            split = self._reshape(self._linear(x, size.width, size.width), 0, size.tokens, size.heads, each)
            heads.append(self._op("Transpose", split, perm=perm))
        query, key, value = heads
        scaled = self._op("Mul", query, self._constant(np.array(each**-0.5, np.float32)))
        weights = self._op("Softmax", self._op("MatMul", scaled, key), axis=-1)
        mixed = self._op("Transpose", self._op("MatMul", weights, value), perm=[0, 2, 1, 3])
        return self._linear(self._reshape(mixed, 0, size.tokens, size.width), size.width, size.width)

    def _perceptron(self, x: str) -> str:
        width = self._size.width
        wide = self._linear(x, width, 4 * width)
        gate = self._op("Sigmoid", self._op("Mul", wide, self._constant(np.array(1.702, np.float32))))
        return self._linear(self._op("Mul", wide, gate), 4 * width, width)

    def _norm(self, x: str) -> str:
        width = self._size.width
        one, zero = self._constant(np.ones(width, np.float32)), self._constant(np.zeros(width, np.float32))
        return self._op("LayerNormalization", x, one, zero, axis=-1, epsilon=1e-5)

    def _linear(self, x: str, rows: int, columns: int) -> str:
        return self._op("Add", self._op("MatMul", x, self._random(rows, columns)), self._random(columns))

    def _reshape(self, x: str, *shape: int) -> str:
        return self._op("Reshape", x, self._constant(np.array(shape, np.int64)))

    def _random(self, *shape: int) -> str:
        return self._constant(self._rng.standard_normal(shape, np.float32) * np.float32(0.02))

    def _constant(self, array: npt.NDArray[Any]) -> str:
        self._count += 1
        self._weights.append(numpy_helper.from_array(array, f"w{self._count}"))
        return f"w{self._count}"

    def _op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        self._count += 1
        name = output or f"x{self._count}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name
