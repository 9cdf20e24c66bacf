"""`ModelService`: which models there are, and which versions of them answer."""

import math
from typing import Final

from likewise.server import validate
from likewise.server.errors import InvalidRequest, NotFound, Unimplemented
from likewise.server.promotion import Promoted, Promotions, VersionedModels
from likewise.server.protocols import Galleries, Models
from likewise.server.recent_queries import RecentQueries
from likewise.server.remote.channels import Context
from likewise.v1 import model_service_pb2 as pb
from likewise.v1 import model_service_pb2_grpc as pb_grpc

_DEFAULT_PAGE: Final = 100
_MAX_PAGE: Final = 1_000
_MAX_TOGETHER: Final = 16
"""Models of one promotion; a family has one of each kind."""


class ModelServiceServicer(pb_grpc.ModelServiceServicer):
    """Answers from what the process has loaded and found.

    Args:
        models: What there is.
        versions: The same models, if their versions can be changed while the server runs.
        galleries: What they are used for.
        recent: Live queries that new versions are compared on.
    """

    def __init__(
        self,
        models: Models,
        *,
        versions: VersionedModels | None = None,
        galleries: Galleries | None = None,
        recent: RecentQueries | None = None,
    ) -> None:
        self._models = models
        self._versions = versions
        self._promotions = None
        if versions is not None and galleries is not None:
            self._promotions = Promotions(versions, galleries, recent or RecentQueries())

    async def List(self, request: pb.ModelServiceListRequest, context: Context) -> pb.ModelServiceListResponse:
        """See the proto."""
        size = request.page_size if request.HasField("page_size") else _DEFAULT_PAGE
        validate.within(size, 1, _MAX_PAGE, "page_size")
        start = validate.page_start(request.page_token, ["models"])
        rest = [model for model in self._models.models() if _key(model) > start]
        response = pb.ModelServiceListResponse(models=rest[:size])
        if len(rest) > size:
            response.next_page_token = validate.page_token(_key(rest[size - 1]), ["models"])
        return response

    async def Get(self, request: pb.ModelServiceGetRequest, context: Context) -> pb.ModelServiceGetResponse:
        """See the proto."""
        validate.required(request.name, "name")
        versions = [model for model in self._models.models() if model.name == request.name]
        if not versions:
            known = sorted({model.name for model in self._models.models()})
            raise NotFound(
                f"no model {validate.shown(request.name)}, there are {known}", reason="MODEL_NOT_FOUND", field="name"
            )
        if not request.HasField("version"):
            in_use = [model for model in versions if model.in_use]
            return pb.ModelServiceGetResponse(model=(in_use or versions)[-1])
        for model in versions:
            if model.version == request.version:
                return pb.ModelServiceGetResponse(model=model)
        numbers = [model.version for model in versions]
        raise NotFound(
            f"model {request.name!r} has no version {request.version}, only {numbers}",
            reason="MODEL_NOT_FOUND",
            field="version",
        )

    async def Load(self, request: pb.ModelServiceLoadRequest, context: Context) -> pb.ModelServiceLoadResponse:
        """See the proto."""
        name = validate.required(request.name, "name")
        version = _version(request.version, "version") if request.HasField("version") else None
        return pb.ModelServiceLoadResponse(model=await self._changeable().load(name, version))

    async def Promote(self, request: pb.ModelServicePromoteRequest, context: Context) -> pb.ModelServicePromoteResponse:
        """See the proto."""
        name = validate.required(request.name, "name")
        wanted = {name: _version(request.version, "version")}
        if len(request.also) >= _MAX_TOGETHER:
            raise InvalidRequest(f"also: at most {_MAX_TOGETHER - 1} models, got {len(request.also)}", field="also")
        for i, other in enumerate(request.also):
            field = f"also[{i}]"
            if validate.required(other.name, f"{field}.name") in wanted:
                raise InvalidRequest(f"{field}.name: {validate.shown(other.name)} comes twice", field=f"{field}.name")
            wanted[other.name] = _version(other.version, f"{field}.version")
        if math.isnan(request.min_overlap) or not 0 <= request.min_overlap <= 1:
            raise InvalidRequest(f"min_overlap must be in [0, 1], got {request.min_overlap:g}", field="min_overlap")
        promoted = await self._promoting().promote(wanted, min_overlap=request.min_overlap, force=request.force)
        models = self._in_use(promoted)
        return pb.ModelServicePromoteResponse(
            model=_named(models, name),
            overlap=promoted.comparison.overlap,
            compared=promoted.comparison.compared,
            models=models,
        )

    async def Rollback(
        self, request: pb.ModelServiceRollbackRequest, context: Context
    ) -> pb.ModelServiceRollbackResponse:
        """See the proto."""
        name = validate.required(request.name, "name")
        models = self._in_use(await self._promoting().rollback(name))
        return pb.ModelServiceRollbackResponse(model=_named(models, name), models=models)

    async def Unload(self, request: pb.ModelServiceUnloadRequest, context: Context) -> pb.ModelServiceUnloadResponse:
        """See the proto."""
        name = validate.required(request.name, "name")
        await self._changeable().unload(name, _version(request.version, "version"))
        return pb.ModelServiceUnloadResponse()

    def _changeable(self) -> VersionedModels:
        if self._versions is None:
            raise _unchangeable()
        return self._versions

    def _promoting(self) -> Promotions:
        if self._promotions is None:
            raise _unchangeable()
        return self._promotions

    def _in_use(self, promoted: Promoted) -> list[pb.Model]:
        """The line-up as it was switched to; another promotion may have changed it since."""
        keys = promoted.history.current.keys
        return [model for model in self._models.models() if (model.name, model.version) in keys]


def _key(model: pb.Model) -> str:
    """Sorts as (name, version) do: no character of a name comes before the zero."""
    return f"{model.name}\0{model.version:020d}"


def _version(value: int, field: str) -> int:
    """A version, which counts from 1; Python's integers take all that the message can hold."""
    return validate.within(value, 1, 2**63 - 1, field)


def _named(models: list[pb.Model], name: str) -> pb.Model | None:
    return next((model for model in models if model.name == name), None)


def _unchangeable() -> Unimplemented:
    return Unimplemented("the models of this server cannot be changed while it runs")
