"""Models of the server's repository, which of their versions are in use, and the server's health."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from google.protobuf import wrappers_pb2

from likewise.client import rpc
from likewise.client.errors import InvalidArgument
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
        provider: What runs it, once loaded: ONNX Runtime's execution provider, or an endpoint.
        files: File name to sha256.
        in_use: New queries and items are encoded by this version.
        previous: A rollback goes back to this version.
        compatible_with: Digest of an older space to the leading numbers that compare with its vectors.
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
    in_use: bool = False
    previous: bool = False
    compatible_with: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a promotion or a rollback came to.

    Attributes:
        model: The model asked for, in the version in use now.
        models: The whole family as it is in use now, by name.
        compared: Recent live queries that the versions before and after both answered.
        overlap: Mean share of their ten best hits that stayed, in [0, 1]; None if none were compared.
    """

    model: Model
    models: tuple[Model, ...]
    compared: int = 0
    overlap: float | None = None


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


def load_call(name: str, version: int | None) -> Call[Model]:
    """ModelService.Load."""
    request = model_pb.ModelServiceLoadRequest(name=name)
    if version is not None:
        request.version = _number(version, "version")
    return make_call(rpc.LOAD_MODEL, request, _loaded)


def promote_call(
    name: str, version: int, *, together: Mapping[str, int] | None, min_overlap: float, force: bool
) -> Call[Promotion]:
    """ModelService.Promote."""
    request = model_pb.ModelServicePromoteRequest(
        name=name,
        version=_number(version, "version"),
        also=[
            model_pb.ModelVersion(name=other, version=_number(number, f"together[{other!r}]"))
            for other, number in (together or {}).items()
        ],
        min_overlap=min_overlap,
        force=force,
    )
    return make_call(rpc.PROMOTE_MODEL, request, _promotion)


def rollback_call(name: str) -> Call[Promotion]:
    """ModelService.Rollback."""
    return make_call(rpc.ROLLBACK_MODEL, model_pb.ModelServiceRollbackRequest(name=name), _rollback)


def unload_call(name: str, version: int) -> Call[None]:
    """ModelService.Unload."""
    request = model_pb.ModelServiceUnloadRequest(name=name, version=_number(version, "version"))
    return make_call(rpc.UNLOAD_MODEL, request, _nothing)


def health_call(service: str) -> Call[Health]:
    """grpc.health.v1.Health.Check of a service, or of the whole server for ""."""
    return make_call(rpc.HEALTH_CHECK, wrappers_pb2.StringValue(value=service), _health)


def _page(message: model_pb.ModelServiceListResponse) -> ModelPage:
    return ModelPage(tuple(_model(one) for one in message.models), message.next_page_token)


def _model_of(message: model_pb.ModelServiceGetResponse) -> Model:
    return _model(message.model)


def _loaded(message: model_pb.ModelServiceLoadResponse) -> Model:
    return _model(message.model)


def _promotion(message: model_pb.ModelServicePromoteResponse) -> Promotion:
    return Promotion(
        model=_model(message.model),
        models=tuple(_model(one) for one in message.models),
        compared=message.compared,
        overlap=message.overlap if message.compared else None,
    )


def _rollback(message: model_pb.ModelServiceRollbackResponse) -> Promotion:
    return Promotion(model=_model(message.model), models=tuple(_model(one) for one in message.models))


def _nothing(message: model_pb.ModelServiceUnloadResponse) -> None:
    return None


def _number(version: int, field: str) -> int:
    if not 1 <= version < 1 << 63:
        raise InvalidArgument(f"{field} must be a version from 1, got {version}", field=field)
    return version


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
        in_use=message.in_use,
        previous=message.previous,
        compatible_with=dict(message.compatible_with),
    )


def _health(message: wrappers_pb2.Int32Value) -> Health:
    return Health(_HEALTH.get(message.value, str(message.value)))
