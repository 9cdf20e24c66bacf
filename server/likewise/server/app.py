"""The server process around the services: start, serve, drain, stop.

The port answers from the first moment, so that probes can tell "loading" from "dead"; until every part is open, all
calls but health and reflection get UNAVAILABLE. On the way out health says NOT_SERVING, new calls are refused, running
ones have the grace to finish, and only then the parts close.
"""

import asyncio
import contextlib
import enum
import logging
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Protocol

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from likewise import wire
from likewise.internal.v1 import bulk_service_pb2_grpc
from likewise.server.bulk_service import BulkService
from likewise.server.call_handlers import ByName, CallHandlers
from likewise.server.errors import Unavailable
from likewise.server.gallery_service import GalleryService
from likewise.server.gallery_stats import GalleryStatsCache
from likewise.server.health import Health
from likewise.server.inference_statistics import InferenceStatistics
from likewise.server.item_service import ItemService
from likewise.server.listening import CannotListen, check_port, check_socket, port_address, socket_address
from likewise.server.metrics import Metrics, MetricsEndpoint
from likewise.server.model_service import ModelServiceServicer
from likewise.server.promotion import VersionedModels
from likewise.server.protocols import Galleries, Models
from likewise.server.recent_queries import RecentQueries
from likewise.server.remote import inference_servicer
from likewise.server.remote.inference_servicer import InferenceServicer
from likewise.server.search import Searcher
from likewise.server.search_service import SearchService
from likewise.server.search_streams import SearchStreams
from likewise.server.served import InUse, ServedModels
from likewise.server.version_tokens import VersionTokens
from likewise.shards import memory
from likewise.v1 import (
    gallery_service_pb2,
    gallery_service_pb2_grpc,
    item_service_pb2,
    item_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
)

log = logging.getLogger(__name__)

_GRPC_OPTIONS: Final = (
    ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
    # Clients that ping every 10 s without calls, as pymilvus's do, would else be sent away with "too_many_pings".
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # Notices clients that vanished without a word.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)

_SERVICES: Final = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (search_service_pb2, "SearchService"),
        (item_service_pb2, "ItemService"),
        (gallery_service_pb2, "GalleryService"),
        (model_service_pb2, "ModelService"),
    )
)


class StartupError(Exception):
    """The server cannot start for a reason that its operator can change; the message says which."""


class Part(Protocol):
    """Something that has to be open while the server serves."""

    async def open(self) -> None:
        """Get ready; returns when it is."""
        ...

    async def close(self) -> None:
        """Finish what was begun and let go of everything; safe after an `open` that failed."""
        ...


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the router serves; fields as in `Settings`."""

    host: str = "127.0.0.1"
    port: int = 50051
    share_port: bool = False
    socket: Path | None = None
    metrics_port: int | None = None
    threads: int = 2
    max_calls: int = 2048
    max_unread_calls: int = 512
    batch_concurrency: int = 64
    kept_encodings: int = 2048
    stream_in_flight: int = 32
    write_bytes: int = 512 << 20
    drain_grace_s: float = 20.0


class _State(enum.Enum):
    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"


class Server:
    """The public gRPC server over any models and galleries.

    Args:
        options: How to serve.
        models: The models of the router.
        galleries: The galleries of the router.
        parts: What to open before serving, in order, and to close after it, in reverse.
        metrics: Where to count; a registry of its own by default.
        announce: Told the address once calls are taken.
        versions: The models once more, if their versions can be changed while the server runs.
        served: Model versions one by one, for the Open Inference Protocol; by default those that `models` has in use.
        controller: Says where the cluster's controller is, for workers of bulk ingest; "" without a cluster.
        statistics: What that protocol tells about them; whoever runs batches adds them there.

    Attributes:
        metrics: Where it counts.
    """

    def __init__(
        self,
        options: ServerOptions,
        *,
        models: Models,
        galleries: Galleries,
        parts: Sequence[Part] = (),
        metrics: Metrics | None = None,
        announce: Callable[[str], None] | None = None,
        versions: VersionedModels | None = None,
        served: ServedModels | None = None,
        statistics: InferenceStatistics | None = None,
        controller: Callable[[], str] = lambda: "",
    ) -> None:
        self._options = options
        self._models = models
        self._versions = versions
        self._served = served or InUse(models)
        self._statistics = statistics or InferenceStatistics()
        self._galleries = galleries
        self._controller = controller
        self._parts = parts
        self.metrics = metrics or Metrics(version=release())
        self._announce = announce
        self._state = _State.LOADING
        self._stack = contextlib.AsyncExitStack()
        self._grpc: aio.Server | None = None
        self._drains: list[Callable[[], None]] = []
        self._health = Health((*_SERVICES, inference_servicer.SERVICE))
        self._port = 0
        self._listening = False
        self._metrics_port: int | None = None

    @property
    def address(self) -> str:
        """host:port of the public services, once started."""
        return port_address(self._options.host, self._port)

    @property
    def socket_address(self) -> str | None:
        """The Unix socket as clients name it; None without one."""
        return None if self._options.socket is None else socket_address(self._options.socket)

    @property
    def listening(self) -> bool:
        """Whether the port answers, if only to probes yet."""
        return self._listening

    @property
    def metrics_address(self) -> str | None:
        """host:port of the Prometheus endpoint, once started; None without one."""
        return None if self._metrics_port is None else port_address(self._options.host, self._metrics_port)

    async def start(self) -> None:
        """Listen, open the parts, and serve.

        Raises:
            StartupError: If a port cannot be had.
            Exception: Whatever a part raised; everything opened before is closed again.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop(grace_s=0)
            raise

    async def stop(self, *, grace_s: float | None = None) -> None:
        """Drain and close; running calls have `grace_s` seconds (by default the option's) to finish."""
        self._state = _State.DRAINING
        await self._health.close()
        for drain in self._drains:
            drain()
        if self._grpc is not None:
            await self._grpc.stop(self._options.drain_grace_s if grace_s is None else grace_s)
            self._grpc, self._listening = None, False
        await self._stack.aclose()

    async def _start(self) -> None:
        options = self._options
        try:
            check_port(options.host, options.port, option="--port", share=options.share_port)
            if options.socket is not None:
                check_socket(options.socket)
        except CannotListen as error:
            raise StartupError(str(error)) from error
        self._grpc = self._build()
        self._port = _listen(self._grpc, port_address(options.host, options.port))
        if self.socket_address is not None:
            _listen(self._grpc, self.socket_address)
        await self._grpc.start()
        self._listening = True
        if options.metrics_port is not None:
            self._serve_metrics(options.host, options.metrics_port)
        for part in self._parts:
            self._stack.push_async_callback(part.close)
            await part.open()
        stats = GalleryStatsCache(self._galleries)
        self._stack.push_async_callback(stats.close)
        stats.start()
        self.metrics.watch_models(self._models.models)
        self.metrics.watch_galleries(stats.latest)
        if self._announce is not None:
            self._announce(self.address)
        self._state = _State.SERVING
        await self._health.set_serving(True)

    def _serve_metrics(self, host: str, port: int) -> None:
        try:
            check_port(host, port, option="--metrics-port")
        except CannotListen as error:
            raise StartupError(str(error)) from error
        endpoint = MetricsEndpoint(self.metrics.registry, host=host, port=port)
        self._stack.callback(endpoint.close)
        self._metrics_port = endpoint.port

    def _build(self) -> aio.Server:
        options = self._options
        executor = ThreadPoolExecutor(max_workers=options.threads, thread_name_prefix="router")
        self._stack.callback(executor.shutdown, wait=False, cancel_futures=True)
        handlers = CallHandlers(metrics=self.metrics, admit=self._admit, max_calls=options.max_calls)
        # Unless it is wanted, a second server on the port is an error to be told, not half of the calls gone elsewhere.
        sharing = ("grpc.so_reuseport", int(options.share_port))
        grpc_server = aio.server(options=(*_GRPC_OPTIONS, sharing, *_unread(options.max_unread_calls)))
        grpc_server.add_generic_rpc_handlers((handlers,))
        server: Any = ByName(handlers)
        recent = RecentQueries()
        tokens = VersionTokens()
        searcher = Searcher(
            models=self._models,
            galleries=self._galleries,
            metrics=self.metrics,
            executor=executor,
            recent=recent,
            tokens=tokens,
            kept=options.kept_encodings,
        )
        streams = SearchStreams(
            searcher,
            in_flight=options.stream_in_flight,
            searches=handlers.messages("likewise.v1.SearchService/Search"),
            matrices=handlers.messages("likewise.v1.SearchService/SearchVectors"),
        )
        self._drains.append(streams.drain)
        search_service_pb2_grpc.add_SearchServiceServicer_to_server(
            SearchService(searcher, batch_concurrency=options.batch_concurrency, streams=streams), server
        )
        items = ItemService(
            galleries=self._galleries,
            models=self._models,
            metrics=self.metrics,
            executor=executor,
            stream_in_flight=options.stream_in_flight,
            write_bytes=options.write_bytes,
            tokens=tokens,
        )
        item_service_pb2_grpc.add_ItemServiceServicer_to_server(items, server)
        bulk = BulkService(galleries=self._galleries, metrics=self.metrics, controller=self._controller)
        bulk_service_pb2_grpc.add_BulkServiceServicer_to_server(bulk, server)
        gallery_service_pb2_grpc.add_GalleryServiceServicer_to_server(
            GalleryService(galleries=self._galleries, models=self._models), server
        )
        models = ModelServiceServicer(self._models, versions=self._versions, galleries=self._galleries, recent=recent)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
        inference = InferenceServicer(
            self._served,
            control=self._versions,
            statistics=self._statistics,
            serving=lambda: self._state is _State.SERVING,
        )
        inference.register(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        health: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        names = (*_SERVICES, health, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), server)
        return grpc_server

    def _admit(self) -> None:
        if self._state is not _State.SERVING:
            raise Unavailable(
                f"the server is {self._state.value}", reason=f"SERVER_{self._state.name}", retry_after_s=1.0
            )


@contextlib.asynccontextmanager
async def serving(server: Server) -> AsyncIterator[str]:
    """A started server's address; stopped at the end, without grace: nobody is left to wait for."""
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop(grace_s=0)


async def serve(server: Server, *, note: str = "") -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal ends the process at once.

    Prints one line when calls are taken: "likewise: serving on 127.0.0.1:50051 ...".

    Args:
        server: Not started yet.
        note: Added to that line.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stopping.set)
    starting = asyncio.create_task(server.start())
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        starting.result()
        memory.set_aside()
        metrics = f", metrics on {server.metrics_address}" if server.metrics_address else ""
        beside = f" and {server.socket_address}" if server.socket_address else ""
        print(f"likewise: serving on {server.address}{beside}{metrics}{note}", flush=True)
        await waiting
    finally:
        waiting.cancel()
        for number in signals:
            loop.remove_signal_handler(number)
    print("likewise: draining", flush=True)
    await server.stop()
    print("likewise: stopped", flush=True)


def _listen(server: aio.Server, address: str) -> int:
    """Have a server listen on an address, too; the port, if it has one."""
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartupError(f"cannot listen on {address}") from error


def _unread(limit: int) -> tuple[tuple[str, int], ...]:
    """Bounds on the calls that wait in gRPC's core, which hands over one for each turn of the event loop.

    Its own bounds (1,000 and 3,000) are more than a second of work, so under more load than can be borne every call
    would be taken up when its deadline is about to pass.
    """
    return (
        ("grpc.server.max_pending_requests", limit // 2),
        ("grpc.server.max_pending_requests_hard_limit", limit),
    )


def release() -> str:
    """The installed version of Likewise."""
    try:
        return version("likewise")
    except PackageNotFoundError:
        return "unknown"
