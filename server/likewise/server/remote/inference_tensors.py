"""Which tensors a model has in the Open Inference Protocol, and which of its forms a request is of. Pure functions."""

from collections.abc import Sequence
from typing import Final

from likewise.export.manifest import TensorSpec
from likewise.internal.inference.v1 import inference_pb2 as pb
from likewise.server.errors import InvalidRequest
from likewise.server.remote.tensors import BYTES, DATATYPES, shown
from likewise.server.served import GraphCall, Served
from likewise.v1 import model_service_pb2

IMAGE: Final = "image"
TEXT: Final = "text"
REFERENCE: Final = "reference"
CONDITION: Final = "condition"
EMBEDDING: Final = "embedding"
QUERY: Final = "query"

PLATFORM: Final = "onnxruntime_onnx"
BACKEND: Final = "onnxruntime"

_CONFIG_TYPES: Final = {
    "BOOL": 1,
    "UINT8": 2,
    "UINT16": 3,
    "UINT32": 4,
    "UINT64": 5,
    "INT8": 6,
    "INT16": 7,
    "INT32": 8,
    "INT64": 9,
    "FP16": 10,
    "FP32": 11,
    "FP64": 12,
    BYTES: 13,
}
"""Numbers of `DataType` in Triton's model_config.proto."""


def metadata(served: Served, versions: Sequence[str]) -> pb.ModelMetadataResponse:
    """What ModelMetadata says; of inputs that are alternatives, encoded contents come before the graph's own."""
    return pb.ModelMetadataResponse(
        name=served.model.name,
        versions=versions,
        platform=PLATFORM,
        inputs=[_metadata(spec) for spec in _inputs(served)],
        outputs=[_metadata(spec) for spec in _outputs(served)],
    )


def config(served: Served) -> pb.ModelConfig:
    """What ModelConfig says: the graph's tensors, as Triton over the same repository has them, where they are known."""
    graph = served.graph
    inputs = graph.inputs if graph is not None else _encoded_inputs(served)
    outputs = graph.outputs if graph is not None else _outputs(served)
    return pb.ModelConfig(
        name=served.model.name,
        platform=PLATFORM,
        backend=BACKEND,
        max_batch_size=served.max_batch,
        input=[pb.ModelInput(name=spec.name, data_type=_config_type(spec), dims=_dims(spec)) for spec in inputs],
        output=[pb.ModelOutput(name=spec.name, data_type=_config_type(spec), dims=_dims(spec)) for spec in outputs],
    )


def chosen_graph(served: Served, request: pb.ModelInferRequest) -> GraphCall | None:
    """The graph, if the request holds the graph's own inputs; None if it holds encoded images or texts.

    Raises:
        InvalidRequest: If it holds neither, or more.
    """
    element = _element(served)
    names = [tensor.name for tensor in request.inputs]
    if names == [element] and request.inputs[0].datatype == BYTES:
        return None
    graph = served.graph
    if graph is not None and sorted(names) == sorted(spec.name for spec in graph.inputs):
        return graph
    if names == [element]:
        return None
    wanted = " or ".join(f"{shown(_metadata(spec))} {spec.name!r}" for spec in _inputs(served))
    got = ", ".join(f"{shown(tensor)} {tensor.name!r}" for tensor in request.inputs) or "none"
    raise InvalidRequest(f"the model {served.model.name!r} takes the input {wanted}; got {got}", field="inputs")


def requested(served: Served, request: pb.ModelInferRequest, *, default: str) -> list[str]:
    """Names under which the output is to be given.

    Raises:
        InvalidRequest: If another output is asked for, or one in a form that is not served.
    """
    for tensor in request.outputs:
        for parameter in ("classification", "shared_memory_region"):
            if parameter in tensor.parameters:
                raise InvalidRequest(f"output {tensor.name!r}: {parameter} is not served", field="outputs")
    known = [spec.name for spec in _outputs(served)]
    names = [tensor.name for tensor in request.outputs]
    if unknown := [name for name in names if name not in known]:
        raise InvalidRequest(
            f"the model {served.model.name!r} has no output {unknown[0]!r}, there is {' and '.join(known)}",
            field="outputs",
        )
    return list(dict.fromkeys(names)) or [default]


def _element(served: Served) -> str:
    return IMAGE if served.kind == model_service_pb2.MODEL_KIND_IMAGE_ENCODER else TEXT


def _encoded_inputs(served: Served) -> tuple[TensorSpec, ...]:
    if served.kind == model_service_pb2.MODEL_KIND_COMPOSER:
        return tuple(TensorSpec(name, "float32", (-1, served.dim)) for name in (REFERENCE, CONDITION))
    return (TensorSpec(_element(served), "bytes", (-1, 1)),)


def _inputs(served: Served) -> tuple[TensorSpec, ...]:
    encoded = _encoded_inputs(served)
    if served.graph is None or served.kind == model_service_pb2.MODEL_KIND_COMPOSER:
        return encoded
    return (*encoded, *served.graph.inputs)


def _outputs(served: Served) -> tuple[TensorSpec, ...]:
    name = QUERY if served.kind == model_service_pb2.MODEL_KIND_COMPOSER else EMBEDDING
    own = (TensorSpec(name, "float32", (-1, served.dim)),)
    return own + tuple(spec for spec in (served.graph.outputs if served.graph else ()) if spec.name != name)


def _metadata(spec: TensorSpec) -> pb.TensorMetadata:
    return pb.TensorMetadata(name=spec.name, datatype=DATATYPES[spec.dtype], shape=spec.shape)


def _config_type(spec: TensorSpec) -> int:
    return _CONFIG_TYPES[DATATYPES[spec.dtype]]


def _dims(spec: TensorSpec) -> tuple[int, ...]:
    """Without the batch."""
    return spec.shape[1:]
