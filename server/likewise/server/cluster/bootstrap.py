"""From a Ray address to a controller: finds or starts the cluster.

This is all of Ray that a router's process sees. Routers that are given the controller's address need not even this.
"""

import logging
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass, replace
from typing import Any, Final

import ray

from likewise.server.cluster.controller_actor import ControllerOptions, RemoteController, Started
from likewise.server.cluster.ray_placement import CONTROLLER

LOCAL: Final = "local"

OBJECT_STORE_BYTES: Final = 100 << 20
"""Of a local cluster; no vector passes through it."""

START_ATTEMPTS: Final = 3
"""Ray gives its own helper processes 15 s and itself 30 s to start, which a busy machine does not always keep."""

_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
    "RAY_COLOR_PREFIX": "0",  # log lines are read by machines too
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default, which it otherwise warns about
}

_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_log = logging.getLogger(__name__)


class ClusterError(Exception):
    """A cluster that cannot be started or joined; the message is for whoever starts the server."""


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Which cluster.

    Attributes:
        address: "local" for a cluster of this process's own, else the address of a running one ("auto", "host:6379").
        controller: How its controller works.
        start_timeout_s: Longest wait for the controller and, once it is there, for all parts to be up.
    """

    address: str
    controller: ControllerOptions
    start_timeout_s: float = 300.0


class RayCluster:
    """A connection to a Ray cluster that runs our controller.

    Ray installs signal handlers and, for a local cluster, binds the life of its processes to the calling thread: make
    it on the main thread, before the event loop's own handlers.

    Attributes:
        options: As given.
        local: Whether it is this process's own.

    Raises:
        ClusterError: If Ray cannot be reached.
    """

    def __init__(self, options: ClusterOptions) -> None:
        self.options = options
        self.local = options.address == LOCAL
        self._folder: str | None = None
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if self.local:
            # Read by the numerical libraries of the processes that Ray starts from here.
            for name in _THREADS:
                os.environ.setdefault(name, str(options.controller.host.threads))
        namespace = options.controller.namespace
        if self.local:
            self._folder = start_local(namespace)
        else:
            join(options.address, namespace)
        controller = options.controller
        if self.local:
            controller = replace(controller, host=replace(controller.host, listen="127.0.0.1"))
        self._controller: Any = RemoteController.options(
            name=CONTROLLER,
            namespace=namespace,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            num_cpus=controller.resources.writer_cpus,
        ).remote(controller)

    async def resolve(self) -> str:
        """host:port of the controller, which is started first if need be.

        Raises:
            ClusterError: If the controller cannot start.
        """
        # Waits for a restart that is under way; starting twice does no harm.
        started: Started = await self._controller.start.options(max_task_retries=-1).remote()
        if started.failure:
            raise ClusterError(started.failure)
        return started.address

    async def check_store(self) -> None:
        """Raise `ClusterError` if the cluster works on another store than the options say."""
        served: str = await self._controller.store.remote()
        wanted = self.options.controller.host.store.uri
        if served != wanted:
            raise ClusterError(f"the cluster at {self.options.address!r} serves the store {served!r}, not {wanted!r}")

    def serving_at(self, address: str) -> None:
        """Tell the store's holder where this router serves."""
        self._controller.serving_at.remote(address)

    async def stop_parts(self) -> None:
        """End the controller with all parts: of a shared cluster, for every router."""
        try:
            await self._controller.stop.remote()
        except ray.exceptions.RayError as error:
            _log.warning("the controller did not stop by itself: %s", type(error).__name__)
        ray.kill(self._controller, no_restart=True)

    def close(self) -> None:
        """Leave; a local cluster ends with everything in it. Blocks; call it on the thread that made this."""
        ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def start_local(namespace: str) -> str:
    """Start a cluster that ends with this process; returns its folder."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    for attempt in range(1, START_ATTEMPTS + 1):
        # Short: Unix socket paths below it may have 107 bytes.
        folder = tempfile.mkdtemp(prefix="likewise-")
        try:
            _init(
                address=LOCAL,
                namespace=namespace,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level=logging.ERROR,
                _temp_dir=folder,
                _node_ip_address="127.0.0.1",
            )
        except Exception as error:  # Ray raises no narrower one when a process of its own is late
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
            if attempt == START_ATTEMPTS:
                raise ClusterError(f"Ray does not start on this machine: {error}") from error
            _log.warning("Ray did not start, attempt %d of %d: %s", attempt, START_ATTEMPTS, error)
        else:
            return folder
    raise AssertionError("the last attempt returns or raises. This is a bug.")


def join(address: str, namespace: str) -> None:
    """Connect to a running cluster.

    Raises:
        ClusterError: If there is none.
    """
    try:
        _init(address=address, namespace=namespace, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"no Ray cluster at {address!r}: {error}") from error


def _init(**options: Any) -> None:
    with warnings.catch_warnings():
        # Ray forks to start programs, and a forked child that is replaced at once never touches lance.
        warnings.filterwarnings("ignore", message="lance is not fork-safe")
        ray.init(**options)
