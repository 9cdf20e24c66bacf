"""`ModelService`: which models there are. Changing them at run time is a later release's."""

from typing import Final, NoReturn

from likewise.server import validate
from likewise.server.errors import NotFound, Unimplemented
from likewise.server.protocols import Models
from likewise.server.remote.channels import Context
from likewise.v1 import model_service_pb2 as pb
from likewise.v1 import model_service_pb2_grpc as pb_grpc

_DEFAULT_PAGE: Final = 100
_MAX_PAGE: Final = 1_000


class ModelServiceServicer(pb_grpc.ModelServiceServicer):
    """Answers from what the process has loaded and found."""

    def __init__(self, models: Models) -> None:
        self._models = models

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
            in_use = [model for model in versions if model.state == pb.MODEL_STATE_READY]
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
        _later("loading a model")

    async def Promote(self, request: pb.ModelServicePromoteRequest, context: Context) -> pb.ModelServicePromoteResponse:
        """See the proto."""
        _later("promoting a model")

    async def Rollback(
        self, request: pb.ModelServiceRollbackRequest, context: Context
    ) -> pb.ModelServiceRollbackResponse:
        """See the proto."""
        _later("rolling a model back")

    async def Unload(self, request: pb.ModelServiceUnloadRequest, context: Context) -> pb.ModelServiceUnloadResponse:
        """See the proto."""
        _later("unloading a model")


def _key(model: pb.Model) -> str:
    """Sorts as (name, version) do: no character of a name comes before the zero."""
    return f"{model.name}\0{model.version:020d}"


def _later(what: str) -> NoReturn:
    raise Unimplemented(
        f"{what} while the server runs is not part of this release: put the version into a model repository and "
        "restart; the highest version of each model is served"
    )
