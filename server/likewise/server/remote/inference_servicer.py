"""`inference.GRPCInferenceService`: the Open Inference Protocol, with Triton's extensions, around our models.

Image encoders take BYTES "image" (encoded files), text encoders BYTES "text" (UTF-8), composers FP32 "reference" and
"condition"; encoders answer FP32 "embedding", composers FP32 "query". Timings (int64 `decode_us`, `encode_us`) and
warnings (string `warnings`: a JSON list of [code, message]) are parameters of the response.

Where the graph runs in this process its own inputs are taken as well, as a Triton server over the same repository takes
them: the names given decide, and the datatype where the names are the same. The output then has the graph's name, and
may be asked for by that name in either form. https://github.com/kserve/open-inference-protocol
"""

import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, cast

import grpc
from google.protobuf.message import Message
from grpc import aio

from likewise.export.manifest import TensorSpec
from likewise.internal.inference.v1 import inference_pb2 as pb
from likewise.server.errors import InvalidRequest, Unimplemented
from likewise.server.inference_statistics import InferenceStatistics
from likewise.server.model_control import ModelControl
from likewise.server.protocols import Composer, Encoded, ImageEncoder, TextEncoder
from likewise.server.remote import inference_repository as repository
from likewise.server.remote import inference_tensors, tensors
from likewise.server.remote.channels import Context
from likewise.server.remote.inference_tensors import CONDITION, EMBEDDING, IMAGE, QUERY, REFERENCE, TEXT
from likewise.server.served import GraphCall, Served, ServedModels, find
from likewise.v1 import model_service_pb2

SERVICE: Final = "inference.GRPCInferenceService"
EXTENSIONS: Final = ("model_repository", "model_configuration", "statistics", "binary_tensor_data", "parameters")


class InferenceServicer:
    """Answers for the model versions of a process.

    Args:
        models: What can be called.
        control: Loads and unloads; None where that is another process's business.
        statistics: Where calls are counted; whoever runs batches adds them there too.
        serving: Whether the server takes calls at the moment.
    """

    def __init__(
        self,
        models: ServedModels,
        *,
        control: ModelControl | None = None,
        statistics: InferenceStatistics | None = None,
        serving: Callable[[], bool] = lambda: True,
    ) -> None:
        self._models = models
        self._control = control
        self._statistics = statistics or InferenceStatistics()
        self._serving = serving

    async def server_live(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """Whether the process answers at all."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Whether the server takes calls and every model in use can be called."""
        return pb.ServerReadyResponse(ready=self._serving() and repository.ready(self._models.models()))

    async def model_ready(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Whether a version can be called; without one, whether any can."""
        wanted = repository.version_number(request.version)
        ready = any(
            model.name == request.name
            and wanted in (None, model.version)
            and model.state == model_service_pb2.MODEL_STATE_READY
            for model in self._models.models()
        )
        return pb.ModelReadyResponse(ready=ready and self._serving())

    async def server_metadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """Name and release."""
        return pb.ServerMetadataResponse(name="likewise", version=_release(), extensions=EXTENSIONS)

    async def model_metadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """The tensors of a model; alternatives among its inputs stand one after the other."""
        with self._models.serving(request.name, repository.version_number(request.version)) as served:
            versions = [
                str(model.version)
                for model in find(self._models.models(), request.name, None)
                if model.state == model_service_pb2.MODEL_STATE_READY or model.version == served.model.version
            ]
            return inference_tensors.metadata(served, versions)

    async def model_config(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """The graph's tensors and the largest batch, as a Triton configuration has them."""
        with self._models.serving(request.name, repository.version_number(request.version)) as served:
            return pb.ModelConfigResponse(config=inference_tensors.config(served))

    async def model_infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Run a model on a batch."""
        with self._models.serving(request.model_name, repository.version_number(request.model_version)) as served:
            start = time.perf_counter()
            ok = False
            try:
                response = await _infer(served, request)
                ok = True
            finally:
                seconds = time.perf_counter() - start
                self._statistics.call(served.model.name, served.model.version, seconds, ok=ok)
            response.id = request.id
            return response

    async def model_statistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        """Counts and durations of a version, of all versions of a model, or of all models."""
        models: Sequence[model_service_pb2.Model] = self._models.models()
        if request.name:
            models = find(models, request.name, repository.version_number(request.version))
        return pb.ModelStatisticsResponse(
            model_stats=[self._statistics.of(model.name, model.version) for model in models]
        )

    async def repository_index(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        """Every version and its state."""
        repository.check_name(request.repository_name)
        return repository.index(self._models.models(), ready=request.ready)

    async def repository_model_load(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Open a version beside the one in use; it answers calls that name it, and is promoted by ModelService."""
        repository.check_name(request.repository_name)
        wanted = repository.version_to_load(request.parameters)
        await self._controlled().load(request.model_name, wanted)
        return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Free the loaded versions of a model that are not in use; refused where only the one in use is loaded."""
        repository.check_name(request.repository_name)
        control = self._controlled()
        for number in repository.versions_to_unload(find(control.models(), request.model_name, None)):
            await control.unload(request.model_name, number)
        return pb.RepositoryModelUnloadResponse()

    def register(self, server: aio.Server) -> None:
        """Serve under the protocol's own service name."""
        methods = {
            "ServerLive": (self.server_live, pb.ServerLiveRequest),
            "ServerReady": (self.server_ready, pb.ServerReadyRequest),
            "ModelReady": (self.model_ready, pb.ModelReadyRequest),
            "ServerMetadata": (self.server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": (self.model_metadata, pb.ModelMetadataRequest),
            "ModelConfig": (self.model_config, pb.ModelConfigRequest),
            "ModelInfer": (self.model_infer, pb.ModelInferRequest),
            "ModelStatistics": (self.model_statistics, pb.ModelStatisticsRequest),
            "RepositoryIndex": (self.repository_index, pb.RepositoryIndexRequest),
            "RepositoryModelLoad": (self.repository_model_load, pb.RepositoryModelLoadRequest),
            "RepositoryModelUnload": (self.repository_model_unload, pb.RepositoryModelUnloadRequest),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                cast("Any", behaviour), request_deserializer=request.FromString, response_serializer=_serialise
            )
            for name, (behaviour, request) in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def _controlled(self) -> ModelControl:
        if self._control is None:
            raise Unimplemented(
                "models are not loaded or unloaded through this server: call likewise.v1.ModelService of the router"
            )
        return self._control


async def _infer(served: Served, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    tensors.check_inputs(request)
    of = served.model
    response = pb.ModelInferResponse(model_name=of.name, model_version=str(of.version))
    if served.kind == model_service_pb2.MODEL_KIND_COMPOSER:
        names = inference_tensors.requested(served, request, default=QUERY)
        vectors = await _compose(cast("Composer", served.encoder), served.dim, request)
    elif (graph := inference_tensors.chosen_graph(served, request)) is not None:
        names = inference_tensors.requested(served, request, default=graph.outputs[0].name)
        vectors = await _run(graph, request)
    else:
        names = inference_tensors.requested(served, request, default=EMBEDDING)
        encoded = await _encode(served, request)
        vectors = encoded.vectors
        response.parameters["decode_us"].int64_param = encoded.decode_us
        response.parameters["encode_us"].int64_param = encoded.encode_us
        if encoded.warnings:
            response.parameters["warnings"].string_param = json.dumps([[w.code, w.message] for w in encoded.warnings])
    for name in names:
        tensors.set_output(response, name, vectors)
    return response


async def _encode(served: Served, request: pb.ModelInferRequest) -> Encoded:
    if served.kind == model_service_pb2.MODEL_KIND_IMAGE_ENCODER:
        return await cast("ImageEncoder", served.encoder).encode(tensors.bytes_input(request, IMAGE))
    raw = tensors.bytes_input(request, TEXT)
    try:
        texts = [element.decode() for element in raw]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input {TEXT!r} must be UTF-8: {error}", field=TEXT) from error
    return await cast("TextEncoder", served.encoder).encode(texts)


async def _compose(composer: Composer, dim: int, request: pb.ModelInferRequest) -> tensors.Array:
    references, conditions = (
        tensors.array_input(request, TensorSpec(name, "float32", (-1, dim))) for name in (REFERENCE, CONDITION)
    )
    if len(references) != len(conditions):
        raise InvalidRequest(f"{len(references)} references, {len(conditions)} conditions: one of each is a pair")
    return await composer.compose(references, conditions)


async def _run(graph: GraphCall, request: pb.ModelInferRequest) -> tensors.Array:
    feeds = {spec.name: tensors.array_input(request, spec) for spec in graph.inputs}
    sizes = {name: len(array) for name, array in feeds.items()}
    if len(set(sizes.values())) != 1:
        raise InvalidRequest(f"the inputs must have one number of rows, got {sizes}")
    outputs = await graph.infer(feeds)
    return outputs[graph.outputs[0].name]


def _release() -> str:
    try:
        return version("likewise")
    except PackageNotFoundError:
        return "unknown"


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()
