"""`likewise serve --ray`: a router in this process, everything else on Ray."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

from likewise.server.app import Server, StartupError, serve
from likewise.server.batcher import BatchLimits
from likewise.server.cluster.bootstrap import LOCAL, ClusterError, ClusterOptions, RayCluster
from likewise.server.cluster.controller_actor import ControllerOptions
from likewise.server.cluster.hosts import HostOptions
from likewise.server.cluster.ray_placement import Resources
from likewise.server.cluster.router import Routing
from likewise.server.embedded import runtime, server_options, shard_limits
from likewise.server.galleries import StoreOptions
from likewise.server.images import ImageLimits
from likewise.server.session import Runtime
from likewise.server.settings import Settings
from likewise.shards.store import local_folder
from likewise.shards.write_queue import WriterLimits

_log = logging.getLogger(__name__)


def run(settings: Settings, address: str) -> None:
    """Serve until SIGTERM or SIGINT. Call it on the main thread.

    Args:
        settings: Of the server; every part gets what concerns it.
        address: "local" for a Ray cluster that lives and ends with this process; else that of a running one, where
            controller, shards, writers and encoders stay up when this router ends, and further routers find them.

    Raises:
        StartupError: If the cluster cannot be started or joined, or a part of it does not come up.
    """
    options = cluster_options(settings, address)
    try:
        cluster = RayCluster(options)
    except ClusterError as error:
        raise StartupError(str(error)) from error
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings, cluster, options))
    finally:
        cluster.close()


def cluster_options(settings: Settings, address: str) -> ClusterOptions:
    """The cluster's part of the settings. A local store's folder is made absolute: actors run in other folders."""
    local = address == LOCAL
    folder = local_folder(settings.store)
    store = StoreOptions(
        uri=settings.store if folder is None else str(folder.resolve()),
        cache=None if settings.cache is None else settings.cache.resolve(),
        shard=shard_limits(settings),
        writer=WriterLimits(
            queue_rows=settings.write_queue_rows,
            queue_bytes=settings.write_queue_bytes,
            group_rows=settings.write_group_rows,
        ),
    )
    host = HostOptions(
        store=store,
        models=tuple(path.resolve() for path in settings.models),
        listen="127.0.0.1" if local else "",
        threads=settings.threads or 1,
        runtime=_runtime(settings),
        images=ImageLimits(max_bytes=settings.image_max_bytes, max_pixels=settings.image_max_pixels),
        batch=BatchLimits(
            max_batch=settings.encoder_batch,
            max_items=max(settings.encoder_queue, settings.encoder_batch),
            max_delay_s=settings.encoder_wait_ms / 1e3,
        ),
        log_level="WARNING" if settings.log_level == "INFO" else settings.log_level,
    )
    controller = ControllerOptions(
        host=host,
        resources=Resources(
            shard_cpus=settings.shard_cpus,
            writer_cpus=settings.writer_cpus,
            encoder_cpus=settings.encoder_cpus,
            shard_gpus=settings.shard_gpus,
            encoder_gpus=settings.encoder_gpus,
        ),
        encoder_replicas=settings.encoder_replicas,
        port=settings.controller_port,
        export_root=None if settings.export_root is None else settings.export_root.resolve(),
    )
    return ClusterOptions(address=address, controller=controller)


def _runtime(settings: Settings) -> Runtime:
    """As embedded, but for the threads, and for the GPU: Ray shows an actor that has one that one alone."""
    device = 0 if settings.encoder_gpus else settings.encoder_gpu
    return replace(runtime(settings), threads=settings.threads or 1, device_id=device)


class _ClusterPart:
    """The cluster as something that a server opens before it serves."""

    def __init__(self, cluster: RayCluster, routing: Routing, *, timeout_s: float) -> None:
        self._cluster = cluster
        self._routing = routing
        self._timeout_s = timeout_s

    async def open(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                controller = await self._cluster.resolve()
            _log.info("the controller serves routers at %s", controller)
            await self._cluster.check_store()
            await self._routing.start(timeout_s=self._timeout_s)
        except ClusterError as error:
            raise StartupError(str(error)) from error
        except TimeoutError as error:
            raise StartupError(f"the cluster's parts are not up after {self._timeout_s:.0f} s") from error

    async def close(self) -> None:
        await self._routing.close()
        if self._cluster.local:
            await self._cluster.stop_parts()


async def _serve(settings: Settings, cluster: RayCluster, options: ClusterOptions) -> None:
    # Made inside the loop that will run it.
    routing = Routing(cluster.resolve)
    server = Server(
        server_options(settings),
        models=routing.models,
        galleries=routing.galleries,
        parts=(_ClusterPart(cluster, routing, timeout_s=options.start_timeout_s),),
        announce=cluster.serving_at,
        versions=routing.models,
        controller=lambda: routing.controller,
    )
    await serve(server, note=f", store {settings.store}, Ray {options.address}")


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
