"""`inference.GRPCInferenceService` (the Open Inference Protocol) around encoders and composers.

Image encoders take BYTES "image" (encoded files), text encoders BYTES "text" (UTF-8), composers FP32 "reference" and
"condition"; encoders answer FP32 "embedding", composers FP32 "query". Timings (int64 `decode_us`, `encode_us`) and
warnings (string `warnings`: a JSON list of [code, message]) are parameters of the response.
https://github.com/kserve/open-inference-protocol
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final, cast

import grpc
from google.protobuf.message import Message
from grpc import aio

from likewise.internal.inference.v1 import inference_pb2 as pb
from likewise.server.errors import InvalidRequest, NotFound
from likewise.server.protocols import Composer, Encoded, Family, ImageEncoder, TextEncoder
from likewise.server.remote import tensors
from likewise.server.remote.channels import Context

SERVICE: Final = "inference.GRPCInferenceService"

IMAGE: Final = "image"
TEXT: Final = "text"
REFERENCE: Final = "reference"
CONDITION: Final = "condition"
EMBEDDING: Final = "embedding"
QUERY: Final = "query"


@dataclass(frozen=True, slots=True)
class _Served:
    """A model with the shape of its tensors; exactly one of the three is set."""

    dim: int
    image: ImageEncoder | None = None
    text: TextEncoder | None = None
    composer: Composer | None = None

    @property
    def version(self) -> str:
        model = self.image or self.text or self.composer
        assert model is not None
        return str(model.model.version)


class InferenceServicer:
    """Answers for the models of some families."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._models: dict[str, _Served] = {}
        for family in families:
            if family.image is not None:
                self._models[family.image.model.name] = _Served(family.dim, image=family.image)
            if family.text is not None:
                self._models[family.text.model.name] = _Served(family.dim, text=family.text)
            if family.composer is not None:
                self._models[family.composer.model.name] = _Served(family.dim, composer=family.composer)

    async def server_live(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """Whether the process answers at all."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Whether every model can be used; models are loaded before the server starts."""
        return pb.ServerReadyResponse(ready=True)

    async def model_ready(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Whether a model is here."""
        served = self._models.get(request.name)
        return pb.ModelReadyResponse(ready=served is not None and request.version in ("", served.version))

    async def server_metadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """Name and release."""
        return pb.ServerMetadataResponse(name="likewise", version=version("likewise"))

    async def model_metadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """The tensors of a model."""
        served = self._find(request.name, request.version)
        if served.composer is not None:
            inputs = [_tensor(REFERENCE, "FP32", served.dim), _tensor(CONDITION, "FP32", served.dim)]
        else:
            inputs = [_tensor(IMAGE if served.image is not None else TEXT, "BYTES")]
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[served.version],
            platform="likewise_onnxruntime",
            inputs=inputs,
            outputs=[_tensor(QUERY if served.composer is not None else EMBEDDING, "FP32", served.dim)],
        )

    async def model_infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Run a model on a batch."""
        served = self._find(request.model_name, request.model_version)
        response = pb.ModelInferResponse(model_name=request.model_name, model_version=served.version, id=request.id)
        if served.composer is not None:
            references = tensors.floats_input(request, REFERENCE)
            conditions = tensors.floats_input(request, CONDITION)
            if references.shape != conditions.shape or references.shape[1] != served.dim:
                raise InvalidRequest(
                    f"reference and condition must be [n, {served.dim}], "
                    f"got {list(references.shape)} and {list(conditions.shape)}"
                )
            tensors.set_output(response, QUERY, await served.composer.compose(references, conditions))
            return response
        encoded = await _encode(served, request)
        tensors.set_output(response, EMBEDDING, encoded.vectors)
        response.parameters["decode_us"].int64_param = encoded.decode_us
        response.parameters["encode_us"].int64_param = encoded.encode_us
        if encoded.warnings:
            response.parameters["warnings"].string_param = json.dumps([[w.code, w.message] for w in encoded.warnings])
        return response

    def register(self, server: aio.Server) -> None:
        """Serve under the protocol's own service name."""
        methods = {
            "ServerLive": (self.server_live, pb.ServerLiveRequest),
            "ServerReady": (self.server_ready, pb.ServerReadyRequest),
            "ModelReady": (self.model_ready, pb.ModelReadyRequest),
            "ServerMetadata": (self.server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": (self.model_metadata, pb.ModelMetadataRequest),
            "ModelInfer": (self.model_infer, pb.ModelInferRequest),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                cast("Any", behaviour), request_deserializer=request.FromString, response_serializer=_serialise
            )
            for name, (behaviour, request) in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def _find(self, name: str, wanted: str) -> _Served:
        served = self._models.get(name)
        if served is None:
            raise NotFound(f"no model {name!r} here, there are {sorted(self._models)}", reason="MODEL_NOT_FOUND")
        if wanted not in ("", served.version):
            raise NotFound(f"model {name!r} has version {served.version} here, not {wanted}", reason="MODEL_NOT_FOUND")
        return served


async def _encode(served: _Served, request: pb.ModelInferRequest) -> Encoded:
    if served.image is not None:
        return await served.image.encode(tensors.bytes_input(request, IMAGE))
    assert served.text is not None
    raw = tensors.bytes_input(request, TEXT)
    try:
        texts = [element.decode() for element in raw]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input {TEXT!r} must be UTF-8: {error}", field=TEXT) from error
    return await served.text.encode(texts)


def _tensor(name: str, datatype: str, *more: int) -> pb.TensorMetadata:
    return pb.TensorMetadata(name=name, datatype=datatype, shape=[-1, *more])


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()
