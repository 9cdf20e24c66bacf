"""One model at an Open Inference Protocol endpoint, called from threads that may wait."""

import contextlib
from typing import Any, Final, TypeVar, cast

import grpc
from google.protobuf.message import Message
from grpc import StatusCode, aio

from likewise.export.manifest import Endpoint
from likewise.internal.inference.v1 import inference_pb2 as pb
from likewise.server.errors import (
    DeadlinePassed,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    ServiceError,
    Unavailable,
    Unimplemented,
)
from likewise.server.graph_trial import SessionError
from likewise.server.remote import deadlines, statuses
from likewise.server.remote.channels import CHANNEL_OPTIONS
from likewise.server.remote.endpoint_contract import place
from likewise.server.remote.inference_servicer import SERVICE

_OPEN_S: Final = 10.0
_LONGEST_S: Final = 60.0
"""Of one run without a deadline: an endpoint that hangs must not hold the queue of a model for ever."""

ReplyT = TypeVar("ReplyT", bound=Message)


class EndpointClient:
    """Calls one model of an endpoint; from any thread. Every call blocks.

    Args:
        endpoint: Where, and which model.
        model: Name and version of our own, as callers know it.
    """

    def __init__(self, endpoint: Endpoint, *, model: str) -> None:
        self.endpoint = endpoint
        self._model = model
        self._channel = grpc.insecure_channel(endpoint.address, options=CHANNEL_OPTIONS)
        self._infer: Any = self._method("ModelInfer", pb.ModelInferResponse)

    def describe(self) -> tuple[pb.ModelMetadataResponse, pb.ModelConfig | None]:
        """What the endpoint says about the model, and its configuration if it is a server that has such.

        Raises:
            SessionError: If it cannot be reached, does not have the model, or the model is not ready.
        """
        name, version = self.endpoint.model, self.endpoint.version
        try:
            metadata = self._ask("ModelMetadata", pb.ModelMetadataRequest(name=name, version=version), _METADATA)
            ready = self._ask("ModelReady", pb.ModelReadyRequest(name=name, version=version), _READY)
        except grpc.RpcError as error:
            raise SessionError(_unusable(self.endpoint, error)) from error
        if not ready.ready:
            raise SessionError(f"{place(self.endpoint)}: it is there but not ready; load it and try again")
        config = None
        with contextlib.suppress(grpc.RpcError):  # KServe and others have no such call
            config = self._ask("ModelConfig", pb.ModelConfigRequest(name=name, version=version), _CONFIG).config
        return metadata, config

    def request(self) -> pb.ModelInferRequest:
        """A request of the model, without inputs."""
        return pb.ModelInferRequest(model_name=self.endpoint.model, model_version=self.endpoint.version)

    def infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """Run the model within the current deadline.

        Raises:
            Unavailable: If the endpoint cannot be reached, or cancels.
            Overloaded: If it is at its limit.
            DeadlinePassed: If it takes too long.
            FailedPrecondition: If it refuses what was sent: its inputs are made here, not by the caller.
            ServiceError: If it fails otherwise.
        """
        left = deadlines.remaining_s()
        timeout_s = _LONGEST_S if left is None else min(left, _LONGEST_S)
        try:
            response: pb.ModelInferResponse = self._infer(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._failure(error, timeout_s) from error
        except ValueError as error:  # what grpcio raises for a call on a closed channel
            raise Unavailable(f"the endpoint of the model {self._model} is closed") from error
        return response

    def close(self) -> None:
        """End the calls in progress and the connection."""
        self._channel.close()

    def _failure(self, error: grpc.RpcError, timeout_s: float) -> Exception:
        what = f"the endpoint of the model {self._model}"
        failure = statuses.from_rpc(cast("aio.AioRpcError", error), what=what, unavailable=Unavailable)
        match failure:
            case DeadlinePassed():
                return DeadlinePassed(f"{what} did not answer within {timeout_s:.3g} s")
            case InvalidRequest() | NotFound() | Unimplemented() | FailedPrecondition():
                return FailedPrecondition(
                    f"{what} refused what it was sent: {error.details()}",
                    reason="ENDPOINT_REFUSED",
                    metadata={"model": self._model},
                )
            case ServiceError() if type(failure) is ServiceError:
                return ServiceError(f"{what} failed: {error.code().name}", reason="ENDPOINT_FAILED")
            case _:
                return failure

    def _method(self, name: str, reply: type[ReplyT]) -> Any:
        return self._channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=_serialised,
            response_deserializer=reply.FromString,
        )

    def _ask(self, name: str, request: Message, reply: type[ReplyT]) -> ReplyT:
        answer: ReplyT = self._method(name, reply)(request, timeout=_OPEN_S)
        return answer


_METADATA: Final = pb.ModelMetadataResponse
_READY: Final = pb.ModelReadyResponse
_CONFIG: Final = pb.ModelConfigResponse


def _unusable(endpoint: Endpoint, error: grpc.RpcError) -> str:
    code, details = error.code(), error.details()
    where = place(endpoint)
    if code == StatusCode.UNAVAILABLE:
        return f"{where}: it does not answer ({details}); is the server up, and is this its gRPC port?"
    if code == StatusCode.DEADLINE_EXCEEDED:
        return f"{where}: no answer within {_OPEN_S:.0f} s; is this the gRPC port of an inference server?"
    if code == StatusCode.UNIMPLEMENTED:
        return f"{where}: it does not speak the Open Inference Protocol over gRPC ({details})"
    return f"{where}: {code.name}: {details}"


def _serialised(message: Message) -> bytes:
    return message.SerializeToString()
