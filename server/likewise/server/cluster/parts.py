"""What a cluster is made of: the parts that are placed, and what places them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.shards.spec import GallerySpec, generation


@dataclass(frozen=True, slots=True)
class ShardPart:
    """One replica of one shard of a gallery."""

    spec: GallerySpec
    shard: int
    replica: int

    @property
    def name(self) -> str:
        """Unique in the cluster; another for a gallery made anew under an old name, and for another generation."""
        return f"{self.spec.gallery_id}-shard-{self.shard}-of-{generation(self.spec)}-replica-{self.replica}"


@dataclass(frozen=True, slots=True)
class WriterPart:
    """The writer of a gallery."""

    spec: GallerySpec

    @property
    def name(self) -> str:
        """Unique in the cluster."""
        return f"{self.spec.gallery_id}-writer"


@dataclass(frozen=True, slots=True)
class EncoderPart:
    """One replica of the models of a family."""

    family: str
    replica: int

    @property
    def name(self) -> str:
        """Unique in the cluster."""
        return f"family-{self.family}-replica-{self.replica}"


Part = ShardPart | WriterPart | EncoderPart


@dataclass(frozen=True, slots=True)
class Serving:
    """A part that is up.

    Attributes:
        address: host:port of its gRPC server.
        models: For encoders, the versions that are open already, without addresses.
    """

    address: str
    models: tuple[pb.ModelRoute, ...] = ()


class PlacedPart(Protocol):
    """A part somewhere in the cluster, whatever happens to the process it runs in."""

    async def start(self) -> Serving:
        """Serve, or go on serving, and say where; after a restart, at another address.

        Raises:
            Exception: If the part cannot start now; it is worth trying again.
        """
        ...

    async def wait_lost(self) -> None:
        """Return when what `start` said last no longer holds."""
        ...

    async def follow(self, *generations: Sequence[Sequence[str]]) -> None:
        """Writers only: push commits to these addresses and to no others.

        Each generation has the addresses of shard i's replicas at i: those that serve, then those that are to, or did.
        """
        ...

    async def update(self, spec: GallerySpec) -> None:
        """Shards and writers: take a changed description of the gallery; the writer's also stores it.

        Raises:
            Exception: If it cannot; nothing has changed then.
        """
        ...

    async def load(self, name: str, version: int) -> pb.ModelRoute:
        """Encoders only: open a version beside the others; says how it came out, READY or FAILED with the reason.

        Raises:
            Exception: If the part cannot be asked.
        """
        ...

    async def unload(self, name: str, version: int) -> None:
        """Encoders only: free a version once nobody calls it any more; one that is not open is left alone.

        Raises:
            Exception: If the part cannot be asked.
        """
        ...

    async def stop(self, *, grace_s: float, discard: bool) -> None:
        """Finish running calls within `grace_s` seconds, then end for good; `discard`: leave no cache file behind."""
        ...


class Placement(Protocol):
    """Where parts run."""

    async def place(self, part: Part) -> PlacedPart:
        """Give the part a process, or find the one it has."""
        ...

    async def prune(self, wanted: Collection[str]) -> None:
        """End the parts of earlier controllers whose names are not wanted."""
        ...
