"""A gallery's parts as the controller has them: those that serve, those that are to, and those that did."""

import asyncio
import dataclasses
from collections.abc import Iterable

from likewise.server.cluster.supervisor import Supervisor
from likewise.shards import spec as specs
from likewise.shards.spec import GallerySpec
from likewise.v1 import gallery_service_pb2


@dataclasses.dataclass(slots=True)
class Placed:
    """A gallery with the supervisors of its parts.

    Attributes:
        spec: Its description.
        version: Store version that it was seen at last.
        writer: Of its writer.
        shards: Of each shard's replicas, by number.
        beside: Likewise, of shards that are to take over.
        leaving: Likewise, of shards that did serve and still answer the calls begun before.
        change: The reshape under way; None for none.
        retiring: What ends the leaving ones.
        read_only: It takes no writes.
    """

    spec: GallerySpec
    version: int
    writer: Supervisor
    shards: list[list[Supervisor]]
    beside: list[list[Supervisor]] = dataclasses.field(default_factory=list)
    leaving: list[list[list[Supervisor]]] = dataclasses.field(default_factory=list)
    change: asyncio.Task[None] | None = None
    retiring: set[asyncio.Task[None]] = dataclasses.field(default_factory=set)
    read_only: bool = False

    @property
    def shard_parts(self) -> list[Supervisor]:
        """Those that serve, replicas and all."""
        return flat(self.shards)

    @property
    def parts(self) -> list[Supervisor]:
        """All that run, each once."""
        others = [part for shards in (self.beside, *self.leaving) for part in flat(shards)]
        return list(dict.fromkeys((self.writer, *self.shard_parts, *others)))

    @property
    def leaving_names(self) -> set[str]:
        """Names of the parts that end soon."""
        return {part.part.name for shards in self.leaving for part in flat(shards)}

    @property
    def followers(self) -> list[list[list[str]]]:
        """Addresses of every generation that the writer is to push to; see `PlacedPart.follow`."""
        generations = (self.shards, self.beside, *self.leaving)
        return [[addresses_of(replicas) for replicas in shards] for shards in generations if shards]

    def message(self) -> gallery_service_pb2.Gallery:
        """As callers see it."""
        made = specs.to_message(self.spec, version=self.version)
        made.read_only = self.read_only
        return made

    async def give_up(self) -> None:
        """End the change under way, once it has taken back what it did, and wait no longer for replaced shards."""
        tasks = [*self.retiring, *([] if self.change is None else [self.change])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def flat(shards: Iterable[Iterable[Supervisor]]) -> list[Supervisor]:
    """The supervisors of all replicas of all shards."""
    return [replica for replicas in shards for replica in replicas]


def addresses_of(replicas: Iterable[Supervisor]) -> list[str]:
    """Where those of the replicas are that are up."""
    return [replica.serving.address for replica in replicas if replica.serving is not None]
