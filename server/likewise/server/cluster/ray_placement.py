"""Parts on Ray: named detached actors that outlive whoever placed them, so that a new controller finds them running."""

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.server.cluster.actors import Answer, RemotePart, Started
from likewise.server.cluster.hosts import HostOptions
from likewise.server.cluster.parts import EncoderPart, Part, PlacedPart, Serving, ShardPart
from likewise.server.cluster.spread import node_of
from likewise.shards.spec import GallerySpec

HOLD_S: Final = 5.0
"""Length of one `hold`; a process that is frozen rather than dead is noticed after this and `ANSWER_S`."""

ANSWER_S: Final = 10.0
"""Longest a living actor takes to answer; it may be busy loading."""

CONTROLLER: Final = "controller"
"""Name of the one actor in the namespace that is no part."""

START_S: Final = 600.0
"""Longest a part may take to load its share of the store."""

_log = logging.getLogger(__name__)


class PartFailed(Exception):
    """A part's own account of why it does not start."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What Ray sets aside for each kind of actor; bookkeeping, no limit that a process feels.

    Attributes:
        shard_cpus: CPUs of a shard.
        writer_cpus: CPUs of a writer.
        encoder_cpus: CPUs of an encoder.
        shard_gpus: GPUs of a shard.
        encoder_gpus: GPUs of an encoder.
    """

    shard_cpus: float = 0.02
    writer_cpus: float = 0.02
    encoder_cpus: float = 0.02
    shard_gpus: float = 0.0
    encoder_gpus: float = 0.0

    def of(self, part: Part) -> dict[str, float]:
        """Ray's options for a part."""
        if isinstance(part, ShardPart):
            return {"num_cpus": self.shard_cpus, "num_gpus": self.shard_gpus}
        if isinstance(part, EncoderPart):
            return {"num_cpus": self.encoder_cpus, "num_gpus": self.encoder_gpus}
        return {"num_cpus": self.writer_cpus}


class RayPlacement:
    """`Placement` on the Ray cluster that this process is connected to."""

    def __init__(self, options: HostOptions, resources: Resources, *, namespace: str) -> None:
        self._options = options
        self._resources = resources
        self._namespace = namespace

    async def place(self, part: Part) -> PlacedPart:
        """Make the part's actor, or find it by its name."""
        actor = await asyncio.get_running_loop().run_in_executor(None, self._actor, part)
        return RayPart(part.name, actor)

    async def prune(self, wanted: Collection[str]) -> None:
        """See `Placement.prune`."""
        await asyncio.get_running_loop().run_in_executor(None, self._prune, wanted)

    def _prune(self, wanted: Collection[str]) -> None:
        for entry in ray.util.list_named_actors(all_namespaces=True):
            name = entry["name"]
            if entry["namespace"] != self._namespace or name in wanted or name == CONTROLLER:
                continue
            _log.warning("%s is left over and is ended", name)
            try:
                ray.kill(ray.get_actor(name, namespace=self._namespace), no_restart=True)
            except ValueError:
                _log.info("%s has ended by itself", name)

    def _actor(self, part: Part) -> Any:
        return RemotePart.options(
            name=part.name,
            namespace=self._namespace,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            scheduling_strategy=self._strategy(part),
            **self._resources.of(part),
        ).remote(part, self._options)

    def _strategy(self, part: Part) -> Any:
        """A node of the replica's own, if there is one; Ray takes another where that one is gone or full."""
        need = self._resources.of(part)
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        node = node_of(part, {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}, need)
        if node is None:
            return "SPREAD"
        return NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)


class RayPart:
    """`PlacedPart` in an actor."""

    def __init__(self, name: str, actor: Any) -> None:
        self._name = name
        self._actor = actor
        self._incarnation = ""

    async def start(self) -> Serving:
        """See `PlacedPart.start`."""
        async with asyncio.timeout(START_S):
            # Waits for a restart that is under way; starting twice does no harm.
            started: Started = await self._actor.start.options(max_task_retries=-1).remote()
        if started.failure:
            raise PartFailed(started.failure)
        self._incarnation = started.incarnation
        return Serving(started.address, tuple(pb.ModelRoute.FromString(model) for model in started.models))

    async def wait_lost(self) -> None:
        """See `PlacedPart.wait_lost`."""
        while True:
            try:
                async with asyncio.timeout(HOLD_S + ANSWER_S):
                    if not await self._actor.hold.remote(self._incarnation, HOLD_S):
                        return
            except TimeoutError:
                # Frozen, not dead: Ray would wait for it for good. Nothing is in it that is not in the store.
                _log.warning("%s does not answer for %.0f s, its process is ended", self._name, HOLD_S + ANSWER_S)
                ray.kill(self._actor, no_restart=False)
                return
            except RayError as error:
                _log.info("%s: %s", self._name, type(error).__name__)
                return

    async def follow(self, *generations: Sequence[Sequence[str]]) -> None:
        """See `PlacedPart.follow`."""
        async with asyncio.timeout(ANSWER_S):
            await self._actor.follow.remote(*([list(replicas) for replicas in shards] for shards in generations))

    async def update(self, spec: GallerySpec) -> None:
        """See `PlacedPart.update`."""
        async with asyncio.timeout(START_S):
            failure: str = await self._actor.update.remote(spec)
        if failure:
            raise PartFailed(failure)

    async def load(self, name: str, version: int) -> pb.ModelRoute:
        """See `PlacedPart.load`."""
        async with asyncio.timeout(START_S):
            answer: Answer = await self._actor.load.remote(name, version)
        if answer.failure:
            raise PartFailed(answer.failure)
        return pb.ModelRoute.FromString(answer.content)

    async def unload(self, name: str, version: int) -> None:
        """See `PlacedPart.unload`."""
        async with asyncio.timeout(START_S):
            answer: Answer = await self._actor.unload.remote(name, version)
        if answer.failure:
            raise PartFailed(answer.failure)

    async def stop(self, *, grace_s: float, discard: bool) -> None:
        """See `PlacedPart.stop`."""
        try:
            async with asyncio.timeout(grace_s + ANSWER_S):
                await self._actor.stop.remote(grace_s, discard)
        except (RayError, TimeoutError) as error:
            _log.warning("%s did not stop by itself: %s", self._name, type(error).__name__)
        ray.kill(self._actor, no_restart=True)
