"""Ray actors that host parts: a process for each, with a gRPC server of its own.

Ray places and restarts them; it carries no data. An actor keeps nothing that is not in the store: whichever process
`start` finds itself in, it loads and serves.
"""

import asyncio
import dataclasses
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from likewise.server.cluster.hosts import Host, HostOptions, make_host
from likewise.server.cluster.parts import Part
from likewise.shards import memory
from likewise.shards.spec import GallerySpec

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Started:
    """What became of a part's start.

    Attributes:
        failure: Why it does not serve; then the rest is empty.
        incarnation: The process that serves.
        address: host:port of its gRPC server.
        models: For encoders, a serialised `ModelRoute` for each model.
    """

    failure: str = ""
    incarnation: str = ""
    address: str = ""
    models: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request: a message, serialised, or why there is none."""

    content: bytes = b""
    failure: str = ""


class PartActor:
    """One part. All methods are control plane: calls to the part itself go to its gRPC server.

    Args:
        part: What to host.
        options: How.
    """

    def __init__(self, part: Part, options: HostOptions) -> None:
        logging.basicConfig(level=options.log_level, format="%(levelname)s %(name)s: %(message)s")
        listen = options.listen or str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        self._host: Host = make_host(part, dataclasses.replace(options, listen=listen))
        self._name = part.name
        self._incarnation = uuid.uuid4().hex
        self._starting = asyncio.Lock()

    async def start(self) -> Started:
        """Load and serve, once a process."""
        async with self._starting:
            try:
                serving = await self._host.start()
            except Exception as error:
                # Returned, not raised: an exception crosses processes only if its text can rebuild it.
                _log.exception("%s does not start", self._name)
                return Started(failure=f"{type(error).__name__}: {error}")
            memory.set_aside()
        models = tuple(model.SerializeToString() for model in serving.models)
        return Started(incarnation=self._incarnation, address=serving.address, models=models)

    async def hold(self, incarnation: str, seconds: float) -> bool:
        """Whether this is still that incarnation; answers after `seconds`, or at once when it is not.

        A caller that waits for it learns of the process's end from Ray, at once and without polling.
        """
        if incarnation != self._incarnation:
            return False
        await asyncio.sleep(seconds)
        return True

    async def follow(self, *generations: Sequence[Sequence[str]]) -> None:
        """See `PlacedPart.follow`."""
        await self._host.follow(*generations)

    async def update(self, spec: GallerySpec) -> str:
        """See `PlacedPart.update`; returns why it failed, or ""."""
        try:
            await self._host.update(spec)
        except Exception as error:
            _log.exception("%s does not take the new description", self._name)
            return f"{type(error).__name__}: {error}"
        return ""

    async def load(self, name: str, version: int) -> Answer:
        """See `PlacedPart.load`; answers with a `ModelRoute`."""
        try:
            route = await self._host.load(name, version)
        except Exception as error:
            _log.exception("%s cannot load %s/%d", self._name, name, version)
            return Answer(failure=f"{type(error).__name__}: {error}")
        return Answer(route.SerializeToString())

    async def unload(self, name: str, version: int) -> Answer:
        """See `PlacedPart.unload`."""
        try:
            await self._host.unload(name, version)
        except Exception as error:
            _log.exception("%s cannot unload %s/%d", self._name, name, version)
            return Answer(failure=f"{type(error).__name__}: {error}")
        return Answer()

    async def stop(self, grace_s: float, discard: bool) -> None:
        """Finish running calls and close the part; see `PlacedPart.stop`."""
        await self._host.stop(grace_s=grace_s, discard=discard)


RemotePart = ray.remote(PartActor)
