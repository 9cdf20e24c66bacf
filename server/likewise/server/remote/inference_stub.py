"""Encoders and composers behind the Open Inference Protocol: our own encoder actors, or any server that speaks it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from grpc import aio

from likewise.internal.inference.v1 import inference_pb2 as pb
from likewise.server.errors import InvalidRequest, Unavailable
from likewise.server.protocols import Encoded
from likewise.server.remote import tensors
from likewise.server.remote.channels import Route
from likewise.server.remote.inference_servicer import CONDITION, EMBEDDING, IMAGE, QUERY, REFERENCE, SERVICE, TEXT
from likewise.shards.protocols import F32
from likewise.v1 import common_pb2, search_service_pb2

MAX_INPUT_BYTES: Final = 48 << 20
"""Input bytes a message; more inputs go in several messages. Leaves room below the 64 MiB that other servers allow."""

_CONDITION_MODES: Final[dict[int, str]] = {
    search_service_pb2.CONDITION_MODE_UNSPECIFIED: "unspecified",
    search_service_pb2.CONDITION_MODE_FOCUS: "focus",
    search_service_pb2.CONDITION_MODE_CHANGE: "change",
}

_ROW_FIELD: Final = re.compile(r"\[(\d+)\](.*)", re.DOTALL)


class InferenceStub:
    """The one method that encoding needs, under the protocol's own service name."""

    def __init__(self, channel: aio.Channel) -> None:
        self.infer: aio.UnaryUnaryMultiCallable[pb.ModelInferRequest, pb.ModelInferResponse] = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )


InferenceRoute = Route[InferenceStub]


class RemoteImageEncoder:
    """`ImageEncoder` behind a channel."""

    def __init__(self, route: InferenceRoute, model: common_pb2.ModelRef) -> None:
        self._route = route
        self._model = model

    @property
    def model(self) -> common_pb2.ModelRef:
        """Name, version and space."""
        return self._model

    async def encode(self, images: Sequence[bytes]) -> Encoded:
        """See `ImageEncoder.encode`."""
        return await _encode(self._route, self._model, IMAGE, images)


class RemoteTextEncoder:
    """`TextEncoder` behind a channel."""

    def __init__(self, route: InferenceRoute, model: common_pb2.ModelRef) -> None:
        self._route = route
        self._model = model

    @property
    def model(self) -> common_pb2.ModelRef:
        """Name, version and space."""
        return self._model

    async def encode(self, texts: Sequence[str]) -> Encoded:
        """See `TextEncoder.encode`."""
        return await _encode(self._route, self._model, TEXT, [text.encode() for text in texts])


class RemoteComposer:
    """`Composer` behind a channel.

    Args:
        route: Where it is.
        model: Name, version and space.
        templates: Text frame of each condition mode, as in the model's manifest; "{}" stands for the text.
    """

    def __init__(self, route: InferenceRoute, model: common_pb2.ModelRef, *, templates: Mapping[str, str]) -> None:
        self._route = route
        self._model = model
        self._templates = {mode: templates.get(name, "{}") for mode, name in _CONDITION_MODES.items()}

    @property
    def model(self) -> common_pb2.ModelRef:
        """Name, version and space."""
        return self._model

    def condition_text(self, text: str, mode: int) -> str:
        """See `Composer.condition_text`.

        Raises:
            InvalidRequest: If the mode is none of ours.
        """
        if mode not in self._templates:
            raise InvalidRequest(
                f"a condition's mode must be one of {sorted(self._templates)}, got {mode}", field="mode"
            )
        return self._templates[mode].replace("{}", text)

    async def compose(self, references: F32, conditions: F32) -> F32:
        """See `Composer.compose`."""
        request = _request(self._model)
        tensors.add_floats(request, REFERENCE, references)
        tensors.add_floats(request, CONDITION, conditions)
        response = await self._route.call(lambda stub: stub.infer, request, unavailable=Unavailable)
        return tensors.floats_output(response, QUERY)


def _request(model: common_pb2.ModelRef) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(model_name=model.name, model_version=str(model.version))


async def _encode(route: InferenceRoute, model: common_pb2.ModelRef, name: str, elements: Sequence[bytes]) -> Encoded:
    parts: list[Encoded] = []
    start = 0
    for part in split(elements, MAX_INPUT_BYTES):
        request = _request(model)
        tensors.add_bytes(request, name, part)
        try:
            response = await route.call(lambda stub: stub.infer, request, unavailable=Unavailable)
        except InvalidRequest as error:
            raise _shifted(error, start) from error
        parts.append(_encoded(response))
        start += len(part)
    if len(parts) == 1:
        return parts[0]
    return Encoded(
        vectors=np.concatenate([part.vectors for part in parts]),
        decode_us=sum(part.decode_us for part in parts),
        encode_us=sum(part.encode_us for part in parts),
        warnings=tuple(warning for part in parts for warning in part.warnings),
    )


def split(elements: Sequence[bytes], limit: int) -> Iterator[Sequence[bytes]]:
    """Runs of elements of at most `limit` bytes together; an element over it is a run of its own."""
    start, size = 0, 0
    for i, element in enumerate(elements):
        framed = len(element) + 4
        if i > start and size + framed > limit:
            yield elements[start:i]
            start, size = i, 0
        size += framed
    yield elements[start:]


def _encoded(response: pb.ModelInferResponse) -> Encoded:
    parameters = response.parameters
    found = json.loads(parameters["warnings"].string_param) if "warnings" in parameters else []
    return Encoded(
        vectors=tensors.floats_output(response, EMBEDDING),
        decode_us=parameters["decode_us"].int64_param if "decode_us" in parameters else 0,
        encode_us=parameters["encode_us"].int64_param if "encode_us" in parameters else 0,
        warnings=tuple(common_pb2.Warning(code=code, message=message) for code, message in found),
    )


def _shifted(error: InvalidRequest, start: int) -> InvalidRequest:
    """The error with the row number that the caller knows, when the row was in a later message than the first."""
    match = _ROW_FIELD.fullmatch(error.field)
    if not start or match is None:
        return error
    row = f"[{start + int(match[1])}]"
    text = str(error).replace(f"[{match[1]}]", row, 1)
    return InvalidRequest(text, reason=error.reason, field=row + match[2], metadata=error.metadata)
