"""A server of likewise.v1 in this process: real gRPC on a free port, items in a dict, failures on demand."""

import threading
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.unit.client.fake_failures import Failure, abort
from tests.unit.client.fake_filters import matches
from tests.unit.client.fake_models import FakeModels
from tests.unit.client.fake_search import FakeSearch

from likewise.v1 import (
    common_pb2,
    gallery_service_pb2,
    gallery_service_pb2_grpc,
    item_service_pb2,
    item_service_pb2_grpc,
    model_service_pb2_grpc,
    search_service_pb2_grpc,
)
from likewise.wire import MAX_MESSAGE_BYTES, decode_column, decode_vectors, encode_column, encode_vectors

Request = Any
Context = grpc.ServicerContext


@dataclass
class Received:
    """One call as it arrived."""

    method: str
    request: Request
    size: int
    metadata: dict[str, str | bytes]


@dataclass
class Stored:
    """One item."""

    vector: np.ndarray
    attributes: dict[str, Any]


class Gallery:
    """One gallery."""

    def __init__(self, spec: gallery_service_pb2.GallerySpec, number: int) -> None:
        self.spec = spec
        self.gallery_id = f"id-{number}"
        self.version = 0
        self.items: dict[str, Stored] = {}

    def message(self) -> gallery_service_pb2.Gallery:
        return gallery_service_pb2.Gallery(spec=self.spec, gallery_id=self.gallery_id, version=self.version)

    def token(self) -> common_pb2.VersionToken:
        return common_pb2.VersionToken(gallery_id=self.gallery_id, version=self.version)

    def columns(self, ids: Sequence[str], names: Sequence[str]) -> list[common_pb2.AttributeColumn]:
        return [
            encode_column(one.name, one.type, [self.items[item].attributes.get(one.name) for item in ids])
            for one in self.spec.attributes
            if "*" in names or one.name in names
        ]


class FakeServer:
    """The four services and health over dicts.

    Attributes:
        address: host:port.
        received: Calls in the order of arrival, failed ones included.
        failures: Method name to the failures of its next calls.
        gate: While it is not set, calls wait until their caller gives up.
        arrived: Released by each call that waits.
        given_up: Released by each call whose caller gave up.
        bad_rows: Ids that an upsert refuses, naming the row.
        opened: Ids of the streams of upserts, each time that one was opened.
        ended: Ids of those that their clients ended well.
        back_off_s: What acknowledgements on streams tell.
        lost_answers: Upserts on streams whose answer is lost, with the stream.
        index_states: States that the next Stats calls report; then ready.
    """

    def __init__(self, *, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self.received: list[Received] = []
        self.failures: dict[str, deque[Failure]] = defaultdict(deque)
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Semaphore(0)
        self.given_up = threading.Semaphore(0)
        self.bad_rows: set[str] = set()
        self.index_states: deque[gallery_service_pb2.IndexState.ValueType] = deque()
        self.galleries: dict[str, Gallery] = {}
        self.applied: set[str] = set()
        self.opened: list[str] = []
        self.ended: list[str] = []
        self.back_off_s = 0.0
        self.lost_answers = 0
        self.page_size = 3
        self.address = ""
        self._made = 0
        self._lock = threading.RLock()
        self._options = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.so_reuseport", 0),
        ]

    def fail(self, method: str, *failures: Failure) -> None:
        self.failures[method].extend(failures)

    def calls(self, method: str) -> list[Received]:
        return [call for call in self.received if call.method == method]

    @contextmanager
    def serving(self) -> Iterator["FakeServer"]:
        server = grpc.server(
            ThreadPoolExecutor(8), interceptors=[_Recorder(self)], options=self._options, maximum_concurrent_rpcs=None
        )
        search_service_pb2_grpc.add_SearchServiceServicer_to_server(FakeSearch(self), server)  # type: ignore[abstract]
        item_service_pb2_grpc.add_ItemServiceServicer_to_server(_Items(self), server)
        gallery_service_pb2_grpc.add_GalleryServiceServicer_to_server(_Galleries(self), server)  # type: ignore[abstract]
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(FakeModels(), server)
        health_pb2_grpc.add_HealthServicer_to_server(_Health(), server)
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield self
        finally:
            self.gate.set()
            server.stop(0).wait()

    def gallery(self, name: str, context: Context) -> Gallery:
        if name not in self.galleries:
            failure = Failure(
                grpc.StatusCode.NOT_FOUND, f"no gallery {name!r}", "GALLERY_NOT_FOUND", {"gallery": name}, "gallery"
            )
            abort(context, failure)
        return self.galleries[name]

    def create(self, spec: gallery_service_pb2.GallerySpec) -> Gallery:
        self._made += 1
        self.galleries[spec.name] = made = Gallery(spec, self._made)
        return made

    def enter(self, call: Received, context: Context) -> None:
        with self._lock:
            self.received.append(call)
            failure = self.failures[call.method].popleft() if self.failures[call.method] else None
        if not self.gate.is_set():
            over = threading.Event()
            context.add_callback(over.set)
            self.arrived.release()
            if over.wait(30):
                self.given_up.release()
        if failure:
            abort(context, failure)

    @property
    def lock(self) -> threading.RLock:
        return self._lock


class _Recorder(grpc.ServerInterceptor):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        method = details.method.rpartition("/")[2]
        metadata = dict(details.invocation_metadata)

        def behaviour(request: Request, context: Context) -> Any:
            self._server.enter(Received(method, request, request.ByteSize(), metadata), context)
            return handler.unary_unary(request, context)

        def stream(requests: Iterator[Request], context: Context) -> Iterator[Any]:
            for message in requests:
                if message.HasField("opening"):
                    self._server.opened.append(message.opening.stream_id)
                    yield item_service_pb2.StreamUpsertResponse(opened=item_service_pb2.StreamUpsertOpened())
                    continue
                # Known to the fake by its place in the stream, as to a server.
                message.request.request_id = f"{self._server.opened[-1]}/{message.sequence}"
                self._server.enter(Received("Upsert", message.request, message.ByteSize(), metadata), context)
                yield handler.stream_stream(message, context)
            self._server.ended.append(self._server.opened[-1])

        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                stream,
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            behaviour,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


class _Items(item_service_pb2_grpc.ItemServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def StreamUpsert(self, message: Any, context: Context) -> Any:
        answer = item_service_pb2.StreamUpsertResponse(sequence=message.sequence)
        bad = self._bad(message.request.items)
        if bad is not None:
            answer.error.CopyFrom(bad.status())
            return answer
        answer.response.CopyFrom(self.Upsert(message.request, context))
        if self._server.lost_answers:
            self._server.lost_answers -= 1
            abort(context, Failure(grpc.StatusCode.UNAVAILABLE, "the connection is gone", "LOST"))
        if self._server.back_off_s:
            answer.back_off.FromNanoseconds(int(self._server.back_off_s * 1e9))
        return answer

    def _bad(self, items: item_service_pb2.Items) -> Failure | None:
        for row, item in enumerate(items.ids):
            if item in self._server.bad_rows:
                kind = {"images": "images.data", "texts": "texts.values"}.get(
                    items.WhichOneof("content") or "", "vectors"
                )
                place = f"items.{kind}[{row}]"
                return Failure(grpc.StatusCode.INVALID_ARGUMENT, f"{place} is bad", "BAD", field=place)
        return None

    def Upsert(self, request: Request, context: Context) -> Any:
        gallery = self._server.gallery(request.gallery, context)
        items = request.items
        if (bad := self._bad(items)) is not None:
            abort(context, bad)
        with self._server.lock:
            if request.request_id not in self._server.applied:
                self._server.applied.add(request.request_id)
                gallery.version += 1
                self._store(gallery, items)
            return item_service_pb2.UpsertResponse(upserted=len(set(items.ids)), version=gallery.token())

    def Get(self, request: Request, context: Context) -> Any:
        gallery = self._server.gallery(request.gallery, context)
        found = [item for item in request.ids if item in gallery.items]
        return item_service_pb2.ItemServiceGetResponse(
            items=_page(gallery, found, request),
            missing=[item for item in request.ids if item not in gallery.items],
            version=gallery.version,
        )

    def Delete(self, request: Request, context: Context) -> Any:
        gallery = self._server.gallery(request.gallery, context)
        if request.WhichOneof("selection") == "filter":
            chosen = [one for one, stored in gallery.items.items() if matches(request.filter, stored.attributes)]
        else:
            chosen = [one for one in request.ids.ids if one in gallery.items]
        for one in chosen:
            del gallery.items[one]
        gallery.version += 1
        return item_service_pb2.ItemServiceDeleteResponse(deleted=len(chosen), version=gallery.token())

    def List(self, request: Request, context: Context) -> Any:
        gallery = self._server.gallery(request.gallery, context)
        left = sorted(
            one
            for one, stored in gallery.items.items()
            if one > request.page_token
            and (not request.HasField("filter") or matches(request.filter, stored.attributes))
        )
        page = left[: request.page_size]
        return item_service_pb2.ItemServiceListResponse(
            items=_page(gallery, page, request), next_page_token=page[-1] if len(left) > len(page) else ""
        )

    def Count(self, request: Request, context: Context) -> Any:
        gallery = self._server.gallery(request.gallery, context)
        chosen = [
            one for one in gallery.items.values()
            if not request.HasField("filter") or matches(request.filter, one.attributes)
        ]  # fmt: skip
        return item_service_pb2.ItemServiceCountResponse(count=len(chosen), version=gallery.version)

    def _store(self, gallery: Gallery, items: item_service_pb2.Items) -> None:
        kind = items.WhichOneof("content")
        if kind == "vectors":
            vectors = list(decode_vectors(items.vectors))
        else:
            contents: Sequence[Any] = items.images.data if kind == "images" else items.texts.values
            vectors = [np.full(gallery.spec.spaces[0].dim, 1.0 + len(content)) for content in contents]
        columns = {column.name: decode_column(column) for column in items.attributes}
        for row, item in enumerate(items.ids):
            gallery.items[item] = Stored(vectors[row], {name: values[row] for name, values in columns.items()})


class _Galleries(gallery_service_pb2_grpc.GalleryServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def Create(self, request: Request, context: Context) -> Any:
        if request.spec.name in self._server.galleries:
            taken = Failure(grpc.StatusCode.ALREADY_EXISTS, f"gallery {request.spec.name!r} exists", "GALLERY_EXISTS")
            abort(context, taken)
        if request.spec.spaces[0].encoder:
            request.spec.spaces[0].dim = 2
        return gallery_service_pb2.GalleryServiceCreateResponse(gallery=self._server.create(request.spec).message())

    def Get(self, request: Request, context: Context) -> Any:
        gallery = self._server.gallery(request.name, context)
        return gallery_service_pb2.GalleryServiceGetResponse(gallery=gallery.message())

    def List(self, request: Request, context: Context) -> Any:
        names = sorted(name for name in self._server.galleries if name > request.page_token)
        page = names[: self._server.page_size]
        return gallery_service_pb2.GalleryServiceListResponse(
            galleries=[self._server.galleries[name].message() for name in page],
            next_page_token=page[-1] if len(names) > len(page) else "",
        )

    def Update(self, request: Request, context: Context) -> Any:
        gallery = self._server.gallery(request.spec.name, context)
        for path in request.update_mask.paths:
            gallery.spec.ClearField(path)
        only = type(request.spec)()
        request.update_mask.MergeMessage(request.spec, only)
        gallery.spec.MergeFrom(only)
        return gallery_service_pb2.GalleryServiceUpdateResponse(gallery=gallery.message())

    def Delete(self, request: Request, context: Context) -> Any:
        self._server.gallery(request.name, context)
        del self._server.galleries[request.name]
        return gallery_service_pb2.GalleryServiceDeleteResponse()

    def Stats(self, request: Request, context: Context) -> Any:
        gallery = self._server.gallery(request.name, context)
        states = self._server.index_states
        state = states.popleft() if states else gallery_service_pb2.INDEX_STATE_READY
        shard = gallery_service_pb2.ShardStats(
            live=len(gallery.items), index="flat", state=state, version=gallery.version, message="out of memory"
        )
        return gallery_service_pb2.GalleryServiceStatsResponse(
            gallery=gallery.message(), items=len(gallery.items), shards=[shard], version=gallery.version
        )


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    def Check(self, request: Request, context: Context) -> Any:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


def _page(gallery: Gallery, ids: Sequence[str], request: Request) -> item_service_pb2.Items:
    items = item_service_pb2.Items(ids=ids, attributes=gallery.columns(ids, request.attributes))
    if request.vectors and ids:
        items.vectors.CopyFrom(encode_vectors([gallery.items[item].vector for item in ids]))
    return items
