"""Models of the server's repository, and the server's health."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf import wrappers_pb2

from likewise.client import rpc
from likewise.client.results import enum_word
from likewise.client.rpc import Call, make_call
from likewise.v1 import model_service_pb2 as model_pb

_HEALTH: Final[Mapping[int, str]] = {0: "unknown", 1: "serving", 2: "not_serving", 3: "service_unknown"}


@dataclass(frozen=True, slots=True)
class Model:
    """One model version.

    Attributes:
        name: Its name.
        version: From 1.
        kind: "image_encoder", "text_encoder" or "composer".
        family: Models that work together; what a gallery gives as its encoder.
        dim: Output numbers.
        space: Digest of the space of its output.
        state: "available", "loading", "ready", "draining" or "failed".
        reason: Why it failed.
        provider: ONNX Runtime execution provider in use, once loaded.
        files: File name to sha256.
    """

    name: str
    version: int
    kind: str
    family: str
    dim: int
    space: str
    state: str
    reason: str
    provider: str
    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class ModelPage:
    """One page of models and the token of the next; "" after the last."""

    models: tuple[Model, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a server takes calls: "serving", "not_serving", "unknown" or "service_unknown"."""

    status: str

    @property
    def serving(self) -> bool:
        """It does."""
        return self.status == "serving"


def list_call(page_token: str) -> Call[ModelPage]:
    """ModelService.List."""
    request = model_pb.ModelServiceListRequest(page_size=1000, page_token=page_token)
    return make_call(rpc.LIST_MODELS, request, _page)


def get_call(name: str, version: int | None) -> Call[Model]:
    """ModelService.Get."""
    request = model_pb.ModelServiceGetRequest(name=name)
    if version is not None:
        request.version = version
    return make_call(rpc.GET_MODEL, request, _model_of)


def health_call(service: str) -> Call[Health]:
    """grpc.health.v1.Health.Check of a service, or of the whole server for ""."""
    return make_call(rpc.HEALTH_CHECK, wrappers_pb2.StringValue(value=service), _health)


def _page(message: model_pb.ModelServiceListResponse) -> ModelPage:
    return ModelPage(tuple(_model(one) for one in message.models), message.next_page_token)


def _model_of(message: model_pb.ModelServiceGetResponse) -> Model:
    return _model(message.model)


def _model(message: model_pb.Model) -> Model:
    return Model(
        name=message.name,
        version=message.version,
        kind=enum_word(model_pb.ModelKind, message.kind, "MODEL_KIND_"),
        family=message.family,
        dim=message.dim,
        space=message.space,
        state=enum_word(model_pb.ModelState, message.state, "MODEL_STATE_"),
        reason=message.reason,
        provider=message.provider,
        files=dict(message.files),
    )


def _health(message: wrappers_pb2.Int32Value) -> Health:
    return Health(_HEALTH.get(message.value, str(message.value)))
