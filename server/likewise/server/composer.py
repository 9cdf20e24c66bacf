"""Reference and condition embeddings to query vectors, by a graph that runs here or at an endpoint."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from likewise.server.batched_graph import Array, BatchedGraph, Graph, Ready, Serving
from likewise.server.errors import InvalidRequest
from likewise.shards.protocols import F32
from likewise.v1 import common_pb2, search_service_pb2

_CONDITION_MODES: Final = {
    search_service_pb2.CONDITION_MODE_UNSPECIFIED: "unspecified",
    search_service_pb2.CONDITION_MODE_FOCUS: "focus",
    search_service_pb2.CONDITION_MODE_CHANGE: "change",
}
"""Names of the modes in a manifest's condition templates."""


class OnnxComposer:
    """Raw reference and condition embeddings to unit query vectors.

    Args:
        model: Name, version and space.
        graph: Takes two (n, dim) float32 arrays, gives one.
        serving: How it is served.
        reference_input: The graph's input for references.
        condition_input: Its input for conditions.
        output: Its output.
        dim: Its dimension.
        templates: Text frame of each condition mode ("unspecified", "focus", "change"); "{}" stands for the text.
    """

    def __init__(
        self,
        model: common_pb2.ModelRef,
        graph: Graph,
        *,
        serving: Serving,
        reference_input: str,
        condition_input: str,
        output: str,
        dim: int,
        templates: Mapping[str, str],
    ) -> None:
        self._model = model
        self._dim = dim
        self._templates: dict[int, str] = {mode: templates[name] for mode, name in _CONDITION_MODES.items()}

        def infer(pairs: Array) -> F32:
            feeds = {
                reference_input: np.ascontiguousarray(pairs[:, 0]),
                condition_input: np.ascontiguousarray(pairs[:, 1]),
            }
            return np.asarray(graph.run(feeds)[output], np.float32)

        self._graph: BatchedGraph[F32] = BatchedGraph(model, serving, prepare=_as_they_are, infer=infer)

    @property
    def model(self) -> common_pb2.ModelRef:
        """Name, version and space."""
        return self._model

    def condition_text(self, text: str, mode: int) -> str:
        """The text in the frame of its mode.

        Raises:
            InvalidRequest: If the mode is none of ours.
        """
        if mode not in self._templates:
            raise InvalidRequest(
                f"a condition's mode must be one of {sorted(self._templates)}, got {mode}", field="mode"
            )
        return self._templates[mode].replace("{}", text)

    async def compose(self, references: F32, conditions: F32) -> F32:
        """(n, dim) unit vectors of n pairs of raw embeddings.

        Raises:
            InvalidRequest: If a pair's numbers are too large for the model.
            Overloaded: If the queue is full.
        """
        if references.shape != conditions.shape or references.shape[1:] != (self._dim,):
            raise ValueError(f"expected two (n, {self._dim}) arrays, got {references.shape} and {conditions.shape}")
        if not len(references):
            return np.empty((0, self._dim), np.float32)
        vectors = await self.infer(references, conditions)
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        if not (np.isfinite(norms).all() and norms.all()):
            raise InvalidRequest(
                f"the composer {self._model.name}/{self._model.version} cannot combine these vectors: their numbers "
                "are too large or too small for it",
                reason="NOT_FINITE",
            )
        return np.asarray(vectors / norms, np.float32)

    async def infer(self, references: F32, conditions: F32) -> F32:
        """(n, dim) outputs of the graph as they are, of n pairs of raw embeddings; errors as `compose`."""
        return await self._graph.vectors(list(np.stack([references, conditions], axis=1)), self._dim)

    async def close(self) -> None:
        """Stop taking calls."""
        await self._graph.close()


def _as_they_are(pairs: Sequence[F32]) -> list[Ready | Exception]:
    return [Ready(pair) for pair in pairs]
