"""Encoders at an Open Inference Protocol endpoint that takes encoded images and UTF-8 texts itself.

Calls are not put into batches here: one unreadable image would fail the others of its batch. The endpoint batches.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from likewise.server.errors import ServiceError
from likewise.server.protocols import Encoded
from likewise.server.remote.channels import Channels
from likewise.server.remote.inference_stub import InferenceRoute, InferenceStub, Target, encode_elements
from likewise.server.remote.remote_graph import RemoteGraph
from likewise.v1 import common_pb2

MISMATCH: Final = "MODEL_OUTPUT_MISMATCH"


class _EndpointEncoder:
    def __init__(self, model: common_pb2.ModelRef, opened: Callable[[], RemoteGraph], *, dim: int) -> None:
        self._model = model
        self._opened = opened
        self._dim = dim
        self._channels = Channels()
        self._route: InferenceRoute | None = None
        self._target: Target | None = None

    @property
    def model(self) -> common_pb2.ModelRef:
        """Name, version and space."""
        return self._model

    async def close(self) -> None:
        """Close the connection."""
        await self._channels.close()

    async def _encode(self, elements: Sequence[bytes]) -> Encoded:
        if not elements:
            return Encoded(np.empty((0, self._dim), np.float32))
        route, target = await self._reached()
        what = f"the endpoint of the model {self._model.name}/{self._model.version}"
        try:
            encoded = await encode_elements(route, target, elements)
        except ValueError as error:
            raise ServiceError(f"{what} gave what the manifest does not say: {error}", reason=MISMATCH) from error
        if encoded.vectors.shape[1] != self._dim:
            raise ServiceError(
                f"{what} gave vectors of {encoded.vectors.shape[1]} numbers, the manifest says {self._dim}",
                reason=MISMATCH,
            )
        if not np.isfinite(encoded.vectors).all():
            raise ServiceError(f"{what} gave numbers that are not finite", reason="MODEL_OUTPUT_NOT_FINITE")
        return encoded

    async def _reached(self) -> tuple[InferenceRoute, Target]:
        """Where and how to call; the model is opened, and so proven, by the first caller."""
        if self._route is None or self._target is None:
            graph = await asyncio.to_thread(self._opened)
            of, agreed = graph.endpoint, graph.agreement
            self._target = Target(
                of.model,
                of.version,
                graph.inputs[0].name,
                output=graph.outputs[0].name,
                axes=agreed.axes,
                max_batch=agreed.max_batch,
            )
            what = f"the endpoint of the model {self._model.name}/{self._model.version}"
            self._route = InferenceRoute(what, self._channels, InferenceStub, addresses=[of.address])
        return self._route, self._target


class EndpointImageEncoder(_EndpointEncoder):
    """`ImageEncoder` at an endpoint.

    Args:
        model: Name, version and space of our own.
        opened: Gives the proven graph; may block the first time, and is called on a thread.
        dim: Numbers of a vector.
    """

    async def encode(self, images: Sequence[bytes]) -> Encoded:
        """See `ImageEncoder.encode`; what is no image is the endpoint's to refuse."""
        return await self._encode(images)


class EndpointTextEncoder(_EndpointEncoder):
    """`TextEncoder` at an endpoint; arguments as of `EndpointImageEncoder`."""

    async def encode(self, texts: Sequence[str]) -> Encoded:
        """See `TextEncoder.encode`."""
        return await self._encode([text.encode() for text in texts])
