"""The controller as a named, detached Ray actor with its own gRPC server."""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import ray

from likewise.internal.v1 import controller_service_pb2_grpc as pb_grpc
from likewise.server.cluster.catalogue import StoreCatalogue
from likewise.server.cluster.controller import Controller
from likewise.server.cluster.controller_servicer import ControllerServicer
from likewise.server.cluster.hosts import HostOptions
from likewise.server.cluster.ray_placement import RayPlacement, Resources
from likewise.server.model_folders import read_repositories
from likewise.server.remote.channels import Endpoint

SETTLE_S: Final = 10.0
"""Longest wait for the parts that run already before routers are told where they are."""

RETRY_S: Final = 3.0
"""Between attempts of a restarted controller to start."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ControllerOptions:
    """How a controller works.

    Attributes:
        host: How the parts are hosted; names the store.
        resources: What Ray sets aside for them.
        encoder_replicas: Of each model family.
        port: That the controller serves on, the same after a restart; 0 for any free one.
        namespace: Ray namespace of all actors.
        lock_wait_s: Longest wait for a local store's lock, and for the port: the processes of a killed cluster take a
            moment to go.
        export_root: Folder for exports and imports where the controller runs; None for neither.
    """

    host: HostOptions
    resources: Resources = field(default_factory=Resources)
    encoder_replicas: int = 1
    port: int = 0
    namespace: str = "likewise"
    lock_wait_s: float = 15.0
    export_root: Path | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """What became of a controller's start: one of host:port and the reason why not."""

    address: str = ""
    failure: str = ""


class ControllerActor:
    """Hosts a `Controller`. Restarted by Ray, it takes up the store and the running parts again by itself."""

    def __init__(self, options: ControllerOptions) -> None:
        logging.basicConfig(level=options.host.log_level, format="%(levelname)s %(name)s: %(message)s")
        self._options = options
        self._starting = asyncio.Lock()
        self._controller: Controller | None = None
        self._catalogue: StoreCatalogue | None = None
        self._endpoint: Endpoint | None = None
        self._address = ""
        # Nobody may ask after a restart: without a router there is still a cluster to keep up.
        ray.get_runtime_context().current_actor.take_up.remote()

    async def start(self) -> Started:
        """Serve, once a process."""
        async with self._starting:
            if not self._address:
                try:
                    self._address = await self._start()
                except Exception as error:
                    # Returned, not raised: an exception crosses processes only if its text can rebuild it.
                    _log.error("the controller does not start", exc_info=error)
                    return Started(failure=str(error))
        return Started(address=self._address)

    async def take_up(self) -> None:
        """Start; after a restart, try until it succeeds: stand-alone routers cannot ask for it."""
        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        started = await self.start()
        while started.failure and restarted:
            await asyncio.sleep(RETRY_S)
            started = await self.start()

    async def store(self) -> str:
        """URI of the store it works on, as its options name it."""
        return self._options.host.store.uri

    async def serving_at(self, address: str) -> None:
        """Where a router serves: told to whoever finds the store taken."""
        if self._catalogue is not None:
            await asyncio.to_thread(self._catalogue.serving_at, address)

    async def stop(self) -> None:
        """End every part, then stop serving; the actor can be killed afterwards."""
        async with self._starting:
            if self._endpoint is not None:
                await self._endpoint.stop(grace_s=0.5)
            if self._controller is not None:
                await self._controller.close(stop_parts=True)

    async def _start(self) -> str:
        # Bound before anything is placed that nobody could be told of, and kept by a start that fails for the next one,
        # for which this process could not bind it again.
        self._endpoint = self._endpoint or await self._bound()
        self._controller = await self._taken_up()
        servicer = ControllerServicer(self._controller)
        pb_grpc.add_ControllerServiceServicer_to_server(servicer, self._endpoint.server)
        return await self._endpoint.start()

    async def _taken_up(self) -> Controller:
        """A controller that has the store and looks after its parts; it lets go of both if it does not come so far."""
        options = self._options
        repositories = await asyncio.to_thread(read_repositories, options.host.models)
        catalogue = await asyncio.to_thread(
            StoreCatalogue,
            options.host.store.uri,
            lock_wait_s=options.lock_wait_s,
            export_root=options.export_root,
        )
        controller = Controller(
            catalogue,
            RayPlacement(options.host, options.resources, namespace=options.namespace),
            models=[model.manifest for repository in repositories for model in repository.models],
            folders=[repository.path for repository in repositories],
            replicas=options.encoder_replicas,
        )
        try:
            await controller.start()
            await controller.settle(timeout_s=SETTLE_S)
        except BaseException:
            await controller.close(stop_parts=False)
            raise
        self._catalogue = catalogue
        return controller

    async def _bound(self) -> Endpoint:
        """An endpoint on the port that is asked for."""
        host = self._options.host.listen or str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        give_up = time.monotonic() + self._options.lock_wait_s
        while True:
            endpoint = Endpoint(host, self._options.port)
            try:
                endpoint.bind()
            except OSError:
                if time.monotonic() >= give_up:
                    raise
                await asyncio.sleep(0.2)  # a killed controller's process takes a moment to go
            else:
                return endpoint


RemoteController = ray.remote(ControllerActor)
