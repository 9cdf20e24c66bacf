"""A call, told apart from how it is carried: what both clients send and how they read the answer."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf import wrappers_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode

from likewise.client.errors import InvalidArgument, LikewiseError, ServerError, Unavailable, from_rpc
from likewise.v1 import gallery_service_pb2, item_service_pb2, model_service_pb2, search_service_pb2
from likewise.wire import WireError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rpc:
    """One method of a service.

    Attributes:
        path: "/package.Service/Method".
        reply: Message class of its answer.
    """

    path: str
    reply: type[Message]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and how its answer is read.

    Attributes:
        rpc: The method.
        request: The message, not to be changed any more.
        decode: Answer to result; pure.
        request_id: Sent along as metadata, logged by the server.
    """

    rpc: Rpc
    request: Message
    decode: Callable[[Any], T]
    request_id: str


def new_request_id() -> str:
    """A fresh id, 128 random bits."""
    return os.urandom(16).hex()


def make_call(rpc: Rpc, request: Message, decode: Callable[[Any], T], *, request_id: str | None = None) -> Call[T]:
    """A call with a request id of its own unless one is given.

    Raises:
        InvalidArgument: If the id cannot travel in a header.
    """
    if request_id and not (request_id.isascii() and request_id.isprintable()):
        raise InvalidArgument(f"request_id must be printable ASCII, got {request_id!r}", field="request_id")
    return Call(rpc, request, decode, request_id or new_request_id())


def read_answer(call: Call[T], message: Any) -> T:
    """The result that an answer stands for.

    Raises:
        ServerError: If the answer contradicts itself.
    """
    try:
        return call.decode(message)
    except WireError as error:
        raise ServerError(f"the answer cannot be read: {error}", request_id=call.request_id) from error


def translated(error: Any, request_id: str, target: str) -> LikewiseError:
    """The error of a grpc.RpcError, which has code, text and trailing metadata in both worlds.

    Args:
        error: What gRPC raised.
        request_id: Id that was sent.
        target: Where to, named when nobody answered there.
    """
    code, text = error.code(), error.details() or ""
    found = from_rpc(code, text, error.trailing_metadata() or (), request_id=request_id)
    if code is StatusCode.UNAVAILABLE and not found.reason:
        return Unavailable(f"no answer from {target}: {text}", request_id=request_id)
    return found


def _rpc(file: FileDescriptor, service: str, method: str) -> Rpc:
    found = file.services_by_name[service].methods_by_name[method]
    return Rpc(f"/{file.package}.{service}/{method}", GetMessageClass(found.output_type))


_SEARCH, _ITEMS = search_service_pb2.DESCRIPTOR, item_service_pb2.DESCRIPTOR
_GALLERIES, _MODELS = gallery_service_pb2.DESCRIPTOR, model_service_pb2.DESCRIPTOR

SEARCH = _rpc(_SEARCH, "SearchService", "Search")
BATCH_SEARCH = _rpc(_SEARCH, "SearchService", "BatchSearch")
SEARCH_VECTORS = _rpc(_SEARCH, "SearchService", "SearchVectors")
STREAM_SEARCH = _rpc(_SEARCH, "SearchService", "StreamSearch")
COMPOSE = _rpc(_SEARCH, "SearchService", "Compose")
EXPLAIN = _rpc(_SEARCH, "SearchService", "Explain")
UPSERT = _rpc(_ITEMS, "ItemService", "Upsert")
UPSERT_STREAM = _rpc(_ITEMS, "ItemService", "StreamUpsert")
GET_ITEMS = _rpc(_ITEMS, "ItemService", "Get")
DELETE_ITEMS = _rpc(_ITEMS, "ItemService", "Delete")
LIST_ITEMS = _rpc(_ITEMS, "ItemService", "List")
COUNT_ITEMS = _rpc(_ITEMS, "ItemService", "Count")
CREATE_GALLERY = _rpc(_GALLERIES, "GalleryService", "Create")
GET_GALLERY = _rpc(_GALLERIES, "GalleryService", "Get")
LIST_GALLERIES = _rpc(_GALLERIES, "GalleryService", "List")
UPDATE_GALLERY = _rpc(_GALLERIES, "GalleryService", "Update")
DELETE_GALLERY = _rpc(_GALLERIES, "GalleryService", "Delete")
GALLERY_STATS = _rpc(_GALLERIES, "GalleryService", "Stats")
CREATE_SNAPSHOT = _rpc(_GALLERIES, "GalleryService", "CreateSnapshot")
LIST_SNAPSHOTS = _rpc(_GALLERIES, "GalleryService", "ListSnapshots")
DELETE_SNAPSHOT = _rpc(_GALLERIES, "GalleryService", "DeleteSnapshot")
RESTORE_SNAPSHOT = _rpc(_GALLERIES, "GalleryService", "RestoreSnapshot")
EXPORT_GALLERY = _rpc(_GALLERIES, "GalleryService", "ExportGallery")
IMPORT_GALLERY = _rpc(_GALLERIES, "GalleryService", "ImportGallery")
LIST_MODELS = _rpc(_MODELS, "ModelService", "List")
GET_MODEL = _rpc(_MODELS, "ModelService", "Get")
LOAD_MODEL = _rpc(_MODELS, "ModelService", "Load")
PROMOTE_MODEL = _rpc(_MODELS, "ModelService", "Promote")
ROLLBACK_MODEL = _rpc(_MODELS, "ModelService", "Rollback")
UNLOAD_MODEL = _rpc(_MODELS, "ModelService", "Unload")

# grpc.health.v1 has one string in its request and one enum in its answer, both field 1: on the wire they are these
# wrappers. So the SDK asks for health without grpcio-health-checking, which only servers need.
HEALTH_CHECK = Rpc("/grpc.health.v1.Health/Check", wrappers_pb2.Int32Value)
