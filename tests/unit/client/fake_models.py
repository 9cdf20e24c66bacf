"""ModelService of the fake server: three versions of two models, and every change is told as done."""

from typing import Any

import grpc
from tests.unit.client.fake_failures import Failure, abort

from likewise.v1 import model_service_pb2, model_service_pb2_grpc

Request = Any
Context = grpc.ServicerContext


class FakeModels(model_service_pb2_grpc.ModelServiceServicer):
    _ALL = tuple(
        model_service_pb2.Model(
            name=name,
            version=version,
            kind=model_service_pb2.MODEL_KIND_COMPOSER,
            family="shapes",
            dim=2,
            state=model_service_pb2.MODEL_STATE_READY,
            files={"model.onnx": "ab"},
        )
        for name, version in (("a", 1), ("a", 2), ("b", 1))
    )

    def List(self, request: Request, context: Context) -> Any:
        start = int(request.page_token or 0)
        return model_service_pb2.ModelServiceListResponse(
            models=self._ALL[start : start + 2], next_page_token=str(start + 2) if start + 2 < len(self._ALL) else ""
        )

    def Get(self, request: Request, context: Context) -> Any:
        for model in reversed(self._ALL):
            if model.name == request.name and request.version in (0, model.version):
                return model_service_pb2.ModelServiceGetResponse(model=model)
        abort(context, Failure(grpc.StatusCode.NOT_FOUND, f"no model {request.name!r}", "MODEL_NOT_FOUND"))

    def Load(self, request: Request, context: Context) -> Any:
        return model_service_pb2.ModelServiceLoadResponse(model=self.Get(request, context).model)

    def Promote(self, request: Request, context: Context) -> Any:
        models = [_used(one.name, one.version) for one in (request, *request.also)]
        compared = 0 if request.force else 4
        return model_service_pb2.ModelServicePromoteResponse(
            model=models[0], models=models, overlap=0.75 if compared else 0, compared=compared
        )

    def Rollback(self, request: Request, context: Context) -> Any:
        models = [_used(request.name, 1), _used("b", 1)]
        return model_service_pb2.ModelServiceRollbackResponse(model=models[0], models=models)

    def Unload(self, request: Request, context: Context) -> Any:
        return model_service_pb2.ModelServiceUnloadResponse()


def _used(name: str, version: int) -> model_service_pb2.Model:
    return model_service_pb2.Model(
        name=name, version=version, in_use=True, state=model_service_pb2.MODEL_STATE_READY, compatible_with={"old": 2}
    )
