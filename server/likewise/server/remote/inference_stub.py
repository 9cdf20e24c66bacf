"""Encoders and composers behind the Open Inference Protocol: our own encoder actors, or any server that speaks it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from grpc import aio

from likewise.internal.inference.v1 import inference_pb2 as pb
from likewise.server.errors import InvalidRequest, Unavailable
from likewise.server.protocols import Encoded
from likewise.server.remote import tensors
from likewise.server.remote.channels import Route
from likewise.server.remote.inference_servicer import SERVICE
from likewise.server.remote.inference_tensors import CONDITION, IMAGE, REFERENCE, TEXT
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


@dataclass(frozen=True, slots=True)
class Target:
    """A model of the other side that takes byte strings.

    Attributes:
        model: Its name there.
        version: Its version there; "" for the other side's choice.
        input: Name of the input.
        output: Name of the output; "" for the only one.
        axes: 1 for an input of shape [n], 2 for [n, 1].
        max_batch: Most elements of one message; 0 for any number.
    """

    model: str
    version: str
    input: str
    output: str = ""
    axes: int = 1
    max_batch: int = 0


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
        return await encode_elements(self._route, _target(self._model, IMAGE), images)


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
        return await encode_elements(self._route, _target(self._model, TEXT), [text.encode() for text in texts])


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
        request = pb.ModelInferRequest(model_name=self._model.name, model_version=str(self._model.version))
        tensors.add_array(request, REFERENCE, references)
        tensors.add_array(request, CONDITION, conditions)
        response = await self._route.call(lambda stub: stub.infer, request, unavailable=Unavailable)
        return tensors.only_output(response)


async def encode_elements(route: InferenceRoute, target: Target, elements: Sequence[bytes]) -> Encoded:
    """Embeddings of encoded images or UTF-8 texts, row i of element i, in as many messages as the limits ask for.

    Raises:
        ServiceError: What the other side raised; `field` of an InvalidRequest is "[i]" where it names a row.
        ValueError: If the answer is no array of as many rows as were sent.
    """
    parts: list[Encoded] = []
    start = 0
    for part in split(elements, MAX_INPUT_BYTES, target.max_batch):
        request = pb.ModelInferRequest(model_name=target.model, model_version=target.version)
        tensors.add_bytes(request, target.input, part, axes=target.axes)
        if target.output:
            request.outputs.add(name=target.output)
        try:
            response = await route.call(lambda stub: stub.infer, request, unavailable=Unavailable)
        except InvalidRequest as error:
            raise _shifted(error, start) from error
        parts.append(_encoded(response, len(part)))
        start += len(part)
    if len(parts) == 1:
        return parts[0]
    return Encoded(
        vectors=np.concatenate([part.vectors for part in parts]),
        decode_us=sum(part.decode_us for part in parts),
        encode_us=sum(part.encode_us for part in parts),
        warnings=tuple(warning for part in parts for warning in part.warnings),
    )


def split(elements: Sequence[bytes], limit: int, most: int = 0) -> Iterator[Sequence[bytes]]:
    """Runs of elements of at most `limit` bytes and `most` elements (0: any number) together.

    An element over the limit of bytes is a run of its own.
    """
    start, size = 0, 0
    for i, element in enumerate(elements):
        framed = len(element) + 4
        if i > start and (size + framed > limit or i - start == most):
            yield elements[start:i]
            start, size = i, 0
        size += framed
    yield elements[start:]


def _target(model: common_pb2.ModelRef, input: str) -> Target:
    return Target(model.name, str(model.version), input)


def _encoded(response: pb.ModelInferResponse, rows: int) -> Encoded:
    parameters = response.parameters
    found = json.loads(parameters["warnings"].string_param) if "warnings" in parameters else []
    vectors = tensors.only_output(response)
    if len(vectors) != rows:
        raise ValueError(f"{len(vectors)} rows came back for {rows} elements")
    return Encoded(
        vectors=vectors,
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
