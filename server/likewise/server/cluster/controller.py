"""Decides what runs: the parts of every gallery in the store and the encoders, kept up and shown in the routing table.

The store is the only truth. A controller that starts again reads it, finds the parts that still run and goes on.
"""

import asyncio
import dataclasses
import functools
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from likewise.export.manifest import Manifest
from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.server.cluster.encoder_fleet import EncoderFleet
from likewise.server.cluster.parts import EncoderPart, Part, Placement, ShardPart, WriterPart
from likewise.server.cluster.routing import Board
from likewise.server.cluster.supervisor import Supervisor
from likewise.server.errors import FailedPrecondition, InvalidRequest, NotFound, Unavailable
from likewise.shards import spec as specs
from likewise.shards.spec import GallerySpec, SpecError
from likewise.v1 import gallery_service_pb2

T = TypeVar("T")

STOP_GRACE_S: Final = 5.0
"""Seconds that running calls of a part have before it is ended."""

_log = logging.getLogger(__name__)


class Catalogue(Protocol):
    """The galleries of a store. Blocking: the controller calls it from an executor."""

    def specs(self) -> Sequence[GallerySpec]:
        """Every gallery there is."""
        ...

    def create(self, spec: GallerySpec) -> None:
        """Make an empty gallery."""
        ...

    def delete(self, name: str) -> None:
        """Delete a gallery with its data."""
        ...

    def version(self, name: str) -> int:
        """Newest committed store version of a gallery."""
        ...

    def read_document(self, name: str) -> Any:
        """A JSON document beside the galleries; None if there is none."""
        ...

    def write_document(self, name: str, value: Any) -> None:
        """Replace it; durable when this returns."""
        ...

    def close(self) -> None:
        """Give the store back."""
        ...


@dataclasses.dataclass(slots=True)
class _Placed:
    """A gallery with the supervisors of its parts; `shards[i]` are those of shard i's replicas."""

    spec: GallerySpec
    version: int
    writer: Supervisor
    shards: list[list[Supervisor]]

    @property
    def shard_parts(self) -> list[Supervisor]:
        return [replica for replicas in self.shards for replica in replicas]

    @property
    def parts(self) -> list[Supervisor]:
        return [self.writer, *self.shard_parts]


class Controller:
    """Follows the store's catalogue and the callers' wishes.

    Args:
        catalogue: The store's galleries.
        placement: Where parts run.
        models: Every model version of the repositories; none for a cluster of vectors only.
        folders: The repositories, to find further versions in.
        replicas: Of each model family's encoders.

    Attributes:
        board: The routing table.
        models: The encoders and their versions.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        placement: Placement,
        *,
        models: Sequence[Manifest] = (),
        folders: Sequence[Path] = (),
        replicas: int = 1,
    ) -> None:
        self.board = Board(first_version=time.time_ns() // 1_000_000)
        self._catalogue = catalogue
        self._placement = placement
        self.models = EncoderFleet(
            catalogue,
            supervise=self._supervise,
            publish=self._publish,
            manifests=models,
            folders=folders,
            replicas=replicas,
        )
        self._galleries: dict[str, _Placed] = {}
        self._changing = asyncio.Lock()
        self._follows: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take up the store's galleries and the encoders; returns at once, parts come up one by one."""
        await self.models.start()
        for spec in await self._blocking(self._catalogue.specs):
            version = await self._blocking(functools.partial(self._catalogue.version, spec.name))
            self._galleries[spec.name] = self._place(spec, version)
        self._publish()
        supervised = [*self.models.supervisors, *(part for placed in self._galleries.values() for part in placed.parts)]
        await self._placement.prune({supervisor.part.name for supervisor in supervised})

    async def create(self, spec: GallerySpec) -> gallery_service_pb2.Gallery:
        """Make a gallery and return when all its parts serve.

        The identity and creation time are made here. If a part does not come up, the gallery is deleted again.

        Raises:
            InvalidRequest: If the description cannot be.
            AlreadyExists: If the name is taken.
            Unavailable: If a part does not start.
        """
        async with self._changing:
            spec = dataclasses.replace(
                _valid(spec), gallery_id=uuid.uuid4().hex, created_micros=time.time_ns() // 1_000
            )
            await self._blocking(lambda: self._catalogue.create(spec))
            version = await self._blocking(lambda: self._catalogue.version(spec.name))
            placed = self._galleries[spec.name] = self._place(spec, version)
            try:
                await self._all_up(placed.parts, spec.name)
            except BaseException:
                await asyncio.shield(self._remove(spec.name))
                raise
            await self._follow(placed)
            self._publish()
            return specs.to_message(spec, version=placed.version)

    async def update(self, spec: GallerySpec) -> gallery_service_pb2.Gallery:
        """Give a gallery a new description and return when its parts follow.

        Index and attributes change in place. For another number of shards or replicas new shards are loaded beside the
        old ones, which serve until the new ones do.

        Raises:
            NotFound: If there is no such gallery.
            FailedPrecondition: If its spaces would change, or an attribute would go or change its type.
            Unavailable: If a part is not up or does not follow; calling again completes the change.
        """
        async with self._changing:
            placed = self._find(spec.name)
            old = placed.spec
            spec = dataclasses.replace(_valid(spec), gallery_id=old.gallery_id, created_micros=old.created_micros)
            _check_change(old, spec)
            await self._tell(placed.writer, spec)  # commits it: from here on it is the truth
            placed.spec = spec
            if (old.shards, old.replicas) == (spec.shards, spec.replicas):
                await asyncio.gather(*(self._tell(part, spec) for part in placed.shard_parts))
            else:
                await self._reshape(placed)
            placed.version = await self._blocking(functools.partial(self._catalogue.version, spec.name))
            self._publish()
            return specs.to_message(spec, version=placed.version)

    async def delete(self, name: str) -> None:
        """Stop a gallery's parts and delete its data.

        Raises:
            NotFound: If there is no such gallery.
        """
        async with self._changing:
            self._find(name)
            await self._remove(name)

    async def close(self, *, stop_parts: bool) -> None:
        """Stop looking after the parts; with `stop_parts`, end them as well."""
        await self.models.close()
        parts = [*self.models.supervisors, *(part for placed in self._galleries.values() for part in placed.parts)]
        if stop_parts:
            await self._stop(parts, discard=False)
        else:
            await asyncio.gather(*(part.leave() for part in parts))
        for task in self._follows:
            task.cancel()
        await asyncio.gather(*self._follows, return_exceptions=True)
        await self._blocking(self._catalogue.close)

    def parts_of_galleries(self) -> list[tuple[GallerySpec, Supervisor, list[list[Supervisor]]]]:
        """Each gallery by name, with its writer and, for each shard, its replicas."""
        return [(placed.spec, placed.writer, placed.shards) for _, placed in sorted(self._galleries.items())]

    def _find(self, name: str) -> _Placed:
        try:
            return self._galleries[name]
        except KeyError:
            raise NotFound(f"no gallery {name!r}", reason="GALLERY_NOT_FOUND", metadata={"gallery": name}) from None

    def _place(self, spec: GallerySpec, version: int) -> _Placed:
        writer = self._supervise(WriterPart(spec))
        shards = [
            [self._supervise(ShardPart(spec, shard, replica)) for replica in range(spec.replicas)]
            for shard in range(spec.shards)
        ]
        return _Placed(spec, version, writer, shards)

    def _supervise(self, part: Part) -> Supervisor:
        return Supervisor(part, self._placement, self._changed)

    async def _all_up(self, parts: Iterable[Supervisor], gallery: str) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(part.wait_up())
        except* Exception as failures:
            first = failures.exceptions[0]
            _log.error("gallery %r does not start: %s", gallery, first)
            raise Unavailable(f"a part of gallery {gallery!r} does not start, see the server's log") from first

    async def _remove(self, name: str) -> None:
        placed = self._galleries.pop(name)
        self._publish()
        await self._stop(placed.parts, discard=True)
        await self._blocking(lambda: self._catalogue.delete(name))

    async def _stop(self, parts: Iterable[Supervisor], *, discard: bool) -> None:
        await asyncio.gather(*(part.stop(grace_s=STOP_GRACE_S, discard=discard) for part in parts))

    async def _tell(self, part: Supervisor, spec: GallerySpec) -> None:
        name = part.part.name
        if part.placed is None or part.serving is None:
            raise Unavailable(f"{name} of gallery {spec.name!r} is not up", retry_after_s=1.0)
        try:
            await part.placed.update(spec)
        except Exception as error:
            _log.error("%s does not take the new description: %s", name, error)
            raise Unavailable(f"{name} of gallery {spec.name!r} does not take the new description") from error

    async def _reshape(self, placed: _Placed) -> None:
        """Load the shards that the description asks for, switch to them, and end the others."""
        before = {part.part.name: part for part in placed.shard_parts}
        wanted = [
            [ShardPart(placed.spec, shard, replica) for replica in range(placed.spec.replicas)]
            for shard in range(placed.spec.shards)
        ]
        shards = [
            [before.pop(part.name) if part.name in before else self._supervise(part) for part in parts]
            for parts in wanted
        ]
        added = [part for parts in shards for part in parts if part not in placed.shard_parts]
        try:
            await self._all_up(added, placed.spec.name)
        except BaseException:
            await asyncio.shield(self._stop(added, discard=True))
            raise
        placed.shards = shards
        await self._follow(placed)
        self._publish()
        for part in before.values():
            # Replicas on one node share their cache files: those of a shard that stays are still in use.
            stays = isinstance(part.part, ShardPart) and part.part.spec.shards == placed.spec.shards
            await self._stop([part], discard=not stays)

    def _changed(self, changed: Supervisor) -> None:
        """A part came up or went: tell the routers, and the gallery's writer where its shards are."""
        if isinstance(changed.part, EncoderPart):
            self.models.changed(changed)
        self._publish()
        for placed in self._galleries.values():
            if changed in placed.parts and changed.serving is not None:
                task = asyncio.create_task(self._follow(placed), name=f"follow-{placed.spec.name}")
                self._follows.add(task)
                task.add_done_callback(self._follows.discard)

    async def _follow(self, placed: _Placed) -> None:
        writer = placed.writer
        if writer.placed is None or writer.serving is None:
            return
        try:
            await writer.placed.follow([_addresses(replicas) for replicas in placed.shards])
        except Exception as error:
            # A lost writer is told again once it is back.
            _log.warning("the writer of gallery %r does not know its shards yet: %s", placed.spec.name, error)

    def _publish(self) -> None:
        galleries = [
            pb.GalleryRoute(
                gallery=specs.to_message(placed.spec, version=placed.version),
                writer=placed.writer.serving.address if placed.writer.serving else "",
                shards=[
                    pb.ShardRoute(shard=number, addresses=_addresses(replicas))
                    for number, replicas in enumerate(placed.shards)
                ],
            )
            for _, placed in sorted(self._galleries.items())
        ]
        self.board.publish(galleries, self.models.routes(), self.models.families())

    async def _blocking(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(None, call)


def _addresses(replicas: Iterable[Supervisor]) -> list[str]:
    return [replica.serving.address for replica in replicas if replica.serving is not None]


def _valid(spec: GallerySpec) -> GallerySpec:
    try:
        return specs.validate(spec)
    except SpecError as error:
        raise InvalidRequest(str(error), field=error.field) from error


def _check_change(old: GallerySpec, new: GallerySpec) -> None:
    if old.spaces != new.spaces:
        raise FailedPrecondition(f"the spaces of gallery {old.name!r} cannot be changed", field="spec.spaces")
    known = {attribute.name: attribute for attribute in new.attributes}
    for attribute in old.attributes:
        if known.get(attribute.name) != attribute:
            raise FailedPrecondition(
                f"attribute {attribute.name!r} of gallery {old.name!r} cannot be dropped or given another type",
                field="spec.attributes",
            )
