"""Statuses as the real server sends them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2


@dataclass(frozen=True)
class Failure:
    """A status with google.rpc details, as the real server sends it; none of them for a bare status."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
    field: str = ""
    retry_after_s: float | None = None

    def status(self) -> status_pb2.Status:
        status = status_pb2.Status(code=code_pb2.Code.Value(self.code.name), message=self.message)
        parts: list[Any] = []
        if self.reason:
            parts.append(
                error_details_pb2.ErrorInfo(reason=self.reason, domain="likewise", metadata=dict(self.details))
            )
        if self.field:
            violation = error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.message)
            parts.append(error_details_pb2.BadRequest(field_violations=[violation]))
        if self.retry_after_s is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromNanoseconds(int(self.retry_after_s * 1e9))
            parts.append(retry)
        for part in parts:
            packed = any_pb2.Any()
            packed.Pack(part)
            status.details.append(packed)
        return status


def abort(context: grpc.ServicerContext, failure: Failure) -> NoReturn:
    if failure.reason:
        context.set_trailing_metadata((("grpc-status-details-bin", failure.status().SerializeToString()),))
    context.abort(failure.code, failure.message)

    raise AssertionError("abort does not return")
