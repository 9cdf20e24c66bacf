"""Images to raw embeddings, by a graph that runs here or is asked for with tensors."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from likewise.export.preprocess import Preprocessing, to_tensor
from likewise.server.batched_graph import Array, BatchedGraph, Graph, Ready, Serving, spent, stacked
from likewise.server.errors import InvalidRequest
from likewise.server.images import TOO_LARGE, ImageLimits, decode
from likewise.server.protocols import Encoded
from likewise.shards.protocols import F32
from likewise.v1 import common_pb2

BATCH_BYTES: Final = 4 << 20
"""Of files that each thread decodes of a batch, so that searches do not wait long while photographs are stored: one of
12 megapixels has some 3 MB and takes a thread about 0.1 s."""

_FEW: Final = 2
"""Pictures that one thread decodes sooner than two of them meet."""


class _Picture(NamedTuple):
    """A file, and where it stands in its call."""

    data: bytes
    field: str


class OnnxImageEncoder:
    """Images to raw embeddings.

    Args:
        model: Name, version and space.
        graph: Takes (n, 3, size, size) float32, gives (n, dim) float32.
        serving: How it is served.
        input: The graph's input.
        output: Its output.
        dim: Its dimension.
        preprocessing: From picture to tensor.
        limits: What images are refused.
    """

    def __init__(
        self,
        model: common_pb2.ModelRef,
        graph: Graph,
        *,
        serving: Serving,
        input: str,
        output: str,
        dim: int,
        preprocessing: Preprocessing,
        limits: ImageLimits,
    ) -> None:
        self._model = model
        self._dim = dim
        self._preprocessing = preprocessing
        self._limits = limits
        self._serving = serving

        def infer(tensors: Array) -> F32:
            return np.asarray(graph.run({input: tensors})[output], np.float32)

        bounded = replace(serving, batch=replace(serving.batch, max_weight=BATCH_BYTES * serving.workers))
        self._graph: BatchedGraph[_Picture | F32] = BatchedGraph(
            model, bounded, prepare=self._prepare, infer=infer, weigh=_bytes_to_decode
        )

    @property
    def model(self) -> common_pb2.ModelRef:
        """Name, version and space."""
        return self._model

    async def encode(self, images: Sequence[bytes]) -> Encoded:
        """Encode JPEG, PNG or WebP files; see `protocols.ImageEncoder`.

        `decode_us` is what decoding its slowest batch took, `encode_us` the rest.
        """
        if not images:
            return Encoded(np.empty((0, self._dim), np.float32))
        began = time.perf_counter()
        rows = await self._graph.rows([_Picture(data, f"[{i}]") for i, data in enumerate(images)])
        decode_us, encode_us = spent(rows, began)
        return Encoded(stacked(rows, self._model), decode_us=decode_us, encode_us=encode_us)

    async def infer(self, tensors: Array) -> F32:
        """(n, dim) raw embeddings of prepared (n, 3, size, size) float32 tensors; errors as `encode`."""
        return await self._graph.vectors(list(tensors), self._dim)

    async def close(self) -> None:
        """Stop taking calls."""
        await self._graph.close()

    def _prepare(self, items: Sequence[_Picture | F32]) -> list[Ready | Exception]:
        """Decode a batch, on this thread and those of the pool."""
        shares = max(1, min(self._serving.workers, len(items) // _FEW))
        others = [self._serving.pool.submit(self._decode_all, items[i::shares]) for i in range(1, shares)]
        parts = [self._decode_all(items[::shares]), *(other.result() for other in others)]
        return [parts[i % shares][i // shares] for i in range(len(items))]

    def _decode_all(self, items: Sequence[_Picture | F32]) -> list[Ready | Exception]:
        return [self._decoded(item) for item in items]

    def _decoded(self, item: _Picture | F32) -> Ready | Exception:
        if not isinstance(item, _Picture):
            return Ready(item)
        try:
            return Ready(self._tensor(item))
        except Exception as error:
            return error

    def _tensor(self, picture: _Picture) -> F32:
        image = decode(picture.data, self._limits, field=picture.field)
        ratio = self._preprocessing.targetpad
        if ratio is not None:
            # Padding makes a long strip nearly square: as many pixels as its longer side has, squared.
            padded = max(image.size) * max(image.size) / ratio
            if padded > max(self._limits.max_pixels, image.width * image.height):
                raise InvalidRequest(
                    f"the image of {image.width:,} x {image.height:,} pixels would be padded to {padded:,.0f}, the "
                    f"limit is {self._limits.max_pixels:,}",
                    reason=TOO_LARGE,
                    field=picture.field,
                )
        return to_tensor(image, self._preprocessing)


def _bytes_to_decode(item: _Picture | F32) -> int:
    return len(item.data) if isinstance(item, _Picture) else 0
