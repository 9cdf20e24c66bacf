"""Composers without training, with the interface of a trained one: a weighted sum, and the two-block phrase basis.

The phrase basis is CRL's (NeurIPS 2025, appendix C: "same scene" is the cosine of two images' similarities to a list of
phrases, "has the condition" their text-image cosine), written as one inner product: the cosine in phrase space is the
cosine after multiplying by H = (T'T)^(1/2), so a gallery vector is [unit(g H); unit(g)] and a query
[unit(r H); beta unit(c)]. CRL's norms over the candidate list are left out: on a sharded gallery they would depend on
the shard.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from likewise.export.evaluate import Features, query_scores, unit, worst_ranks

F32 = npt.NDArray[np.float32]

WEIGHTS: Final = tuple(round(0.05 * i, 2) for i in range(21))
BETAS: Final = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
PHRASES: Final = 200


class WeightedSum(nn.Module):
    """unit((1 - w) unit(reference) + w unit(condition))."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(float(weight)))

    def forward(self, reference: Tensor, condition: Tensor) -> Tensor:
        """(b, d) raw image features and (b, d) raw text features to (b, d) unit queries."""
        weight: Tensor = self.weight  # type: ignore[assignment]
        summed = (1 - weight) * functional.normalize(reference, dim=1) + weight * functional.normalize(condition, dim=1)
        return functional.normalize(summed, dim=1)


class PhraseBasis(nn.Module):
    """Queries of the two-block space: unit([unit(r H); beta unit(c)]), from features that hold both blocks already."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.register_buffer("beta", torch.tensor(float(beta)))

    def forward(self, reference: Tensor, condition: Tensor) -> Tensor:
        """(b, 2d) raw two-block image and text features to (b, 2d) unit queries."""
        half = reference.shape[1] // 2
        beta: Tensor = self.beta  # type: ignore[assignment]
        scene = functional.normalize(reference[:, :half], dim=1)
        words = functional.normalize(condition[:, half:], dim=1)
        return functional.normalize(torch.cat([scene, beta * words], 1), dim=1)


def phrase_root(phrases: F32) -> F32:
    """H = (T'T)^(1/2), (d, d) symmetric, of (p, d) raw phrase features; T holds their unit vectors."""
    basis = unit(phrases).astype(np.float64)
    values, vectors = np.linalg.eigh(basis.T @ basis)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T, np.float32)


def two_block_images(features: F32, root: F32) -> F32:
    """(..., d) raw image features to (..., 2d): unit in phrase space, and unit."""
    return np.concatenate([unit(np.asarray(features @ root, np.float32)), unit(features)], -1)


def two_block_texts(features: F32) -> F32:
    """(..., d) raw text features to (..., 2d): a text says nothing of the scene, so its first block is zero."""
    return np.concatenate([np.zeros_like(features), unit(features)], -1)


def two_block_features(features: Features, root: F32) -> Features:
    """Features of templates in the two-block space."""
    return Features(
        two_block_images(features.references, root),
        unit(two_block_images(features.candidates, root)),
        features.targets,
        two_block_texts(features.bare),
        two_block_texts(features.composed),
        features.clusters,
    )


def add_blocks(source: bytes, root: F32 | None) -> bytes:
    """An encoder's graph with its output replaced by the two blocks.

    Args:
        source: The .onnx file; data outside it is not looked at.
        root: H for an image encoder, None for a text encoder.
    """
    model = onnx.load_from_string(source)
    graph = model.graph
    (output,) = graph.output
    name, inner = output.name, "before_blocks"
    taken = {edge for node in graph.node for edge in (*node.input, *node.output)}
    while inner in taken:
        inner += "_"
    for node in graph.node:
        for edges in (node.input, node.output):
            for i, edge in enumerate(edges):
                if edge == name:
                    edges[i] = inner
    dims = output.type.tensor_type.shape.dim
    half = dims[1].dim_value

    def new(suffix: str) -> str:
        return f"{inner}_{suffix}"

    nodes = [helper.make_node("LpNormalization", [inner], [new("unit")], axis=1, p=2)]
    if root is not None:
        graph.initializer.append(numpy_helper.from_array(root, new("root")))
        nodes += [
            helper.make_node("MatMul", [inner, new("root")], [new("phrases")]),
            helper.make_node("LpNormalization", [new("phrases")], [new("first")], axis=1, p=2),
        ]
    else:
        zero = helper.make_tensor(new("zero"), TensorProto.FLOAT, [], [0.0])
        graph.initializer.append(zero)
        nodes.append(helper.make_node("Mul", [inner, new("zero")], [new("first")]))
    nodes.append(helper.make_node("Concat", [new("first"), new("unit")], [name], axis=1))
    graph.node.extend(nodes)
    dims[1].dim_value = 2 * half
    return bytes(model.SerializeToString())


def tune(
    make: Callable[[float], nn.Module], values: Sequence[float], tasks: Mapping[str, Features]
) -> tuple[float, bool, float]:
    """The one number of a composer and the form of its texts, chosen for all tasks together.

    Args:
        make: A composer for a number.
        values: Numbers to try; of equals the first wins.
        tasks: Templates mined from the training and validation images, never the test's.

    Returns:
        The number with the best mean R@1, whether texts go into the frame of their mode (else they are taken as they
        are typed), and that mean in percent.
    """
    best = (values[0], True, -1.0)
    for framed in (True, False):
        for value in values:
            composer = make(value).eval()
            ranks = [compose_ranks(composer, f if framed else unframed(f)) for f in tasks.values()]
            mean = 100 * float(np.mean([(r <= 1).mean() for r in ranks]))
            if mean > best[2]:
                best = (value, framed, mean)
    return best


def unframed(features: Features) -> Features:
    """The same templates with the plain text of each condition given to the composer."""
    return replace(features, composed=features.bare)


@torch.no_grad()
def compose_ranks(composer: nn.Module, features: Features) -> npt.NDArray[np.int64]:
    """(t,) rank of each template's target under a composer in eval mode; ties count against it."""
    query = composer(torch.from_numpy(features.references), torch.from_numpy(features.composed)).numpy()
    return worst_ranks(query_scores(query, features.candidates), features.targets)
