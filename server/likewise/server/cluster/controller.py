"""Decides what runs: the parts of every gallery in the store and the encoders, kept up and shown in the routing table.

The store is the only truth. A controller that starts again reads it, finds the parts that still run and goes on.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from likewise.export.manifest import Manifest
from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.server import read_only, reshape
from likewise.server.cluster.cluster_reshape import DRAIN_S, ClusterReshape
from likewise.server.cluster.cluster_transfers import ClusterTransfers, finished
from likewise.server.cluster.encoder_fleet import EncoderFleet
from likewise.server.cluster.generation import Connect, connected
from likewise.server.cluster.part_calls import all_up, follow, stop, tell
from likewise.server.cluster.parts import EncoderPart, Part, Placement, ShardPart, WriterPart
from likewise.server.cluster.placed import Placed, addresses_of
from likewise.server.cluster.protocols import Catalogue
from likewise.server.cluster.routing import Board
from likewise.server.cluster.supervisor import Supervisor
from likewise.server.errors import InvalidRequest, NotFound, Unavailable
from likewise.shards import spec as specs
from likewise.shards.snapshots import Snapshot
from likewise.shards.spec import GallerySpec, SpecError
from likewise.shards.spec_change import check_change
from likewise.v1 import gallery_service_pb2

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Controller:
    """Follows the store's catalogue and the callers' wishes.

    Args:
        catalogue: The store's galleries.
        placement: Where parts run.
        models: Every model version of the repositories; none for a cluster of vectors only.
        folders: The repositories, to find further versions in.
        replicas: Of each model family's encoders.
        connect: Reaches shards that are to be looked at.
        drain_s: See `DRAIN_S`.

    Attributes:
        board: The routing table.
        models: The encoders and their versions.
        transfers: Exports and imports.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        placement: Placement,
        *,
        models: Sequence[Manifest] = (),
        folders: Sequence[Path] = (),
        replicas: int = 1,
        connect: Connect = connected,
        drain_s: float = DRAIN_S,
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
        self.transfers = ClusterTransfers(catalogue, self._serve)
        self._reshape = ClusterReshape(
            catalogue, supervise=self._supervise, publish=self._publish, connect=connect, drain_s=drain_s
        )
        self._galleries: dict[str, Placed] = {}
        self._changing = asyncio.Lock()
        self._follows: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take up the store's galleries and the encoders; returns at once, parts come up one by one."""
        await self.models.start()
        for spec in await self._blocking(self._catalogue.specs):
            version = await self._blocking(functools.partial(self._catalogue.version, spec.name))
            placed = self._galleries[spec.name] = self._place(spec, version)
            placed.read_only = await self._blocking(functools.partial(self._catalogue.read_only, spec.name))
        self._publish()
        supervised = [*self.models.supervisors, *(part for placed in self._galleries.values() for part in placed.parts)]
        await self._placement.prune({supervisor.part.name for supervisor in supervised})

    async def settle(self, *, timeout_s: float) -> None:
        """Return when every part serves or has failed once, or after so many seconds.

        A controller that comes back finds parts that run: before it has, its table would send routers away from them.
        """
        parts = [*self.models.supervisors, *(part for placed in self._galleries.values() for part in placed.parts)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(part.wait_tried() for part in parts))

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
            return await self._bring_up(spec, read_only=False)

    async def restore(self, gallery: str, snapshot: str, name: str, *, read_only: bool) -> gallery_service_pb2.Gallery:
        """Make a gallery of a snapshot and return when all its parts serve; as `create`, it is there or it is not.

        Raises:
            NotFound: If there is no such gallery or snapshot.
            InvalidRequest: If the name cannot be.
            AlreadyExists: If the name is taken.
            Unavailable: If a part does not start.
        """
        async with self._changing:
            self._find(gallery)
            made = asyncio.create_task(
                self._blocking(lambda: self._catalogue.restore(gallery, snapshot, name, read_only=read_only))
            )
            try:
                spec = await asyncio.shield(made)
            except asyncio.CancelledError:
                await asyncio.wait((made,))
                if not made.cancelled() and made.exception() is None:
                    await self._blocking(functools.partial(self._catalogue.delete, name))
                raise
            return await self._bring_up(spec, read_only=read_only)

    async def snapshots_of(self, gallery: str) -> Sequence[Snapshot]:
        """A gallery's snapshots by name."""
        self._find(gallery)
        return await self._blocking(functools.partial(self._catalogue.snapshots, gallery))

    async def create_snapshot(self, gallery: str, name: str, *, version: int | None, note: str) -> Snapshot:
        """Name a version; see `snapshots.create`."""
        self._find(gallery)
        return await self._blocking(lambda: self._catalogue.create_snapshot(gallery, name, version=version, note=note))

    async def delete_snapshot(self, gallery: str, name: str) -> None:
        """Forget a snapshot."""
        self._find(gallery)
        await self._blocking(functools.partial(self._catalogue.delete_snapshot, gallery, name))

    async def update(self, spec: GallerySpec, *, min_recall: float | None = None) -> gallery_service_pb2.Gallery:
        """Give a gallery a new description and return when its parts follow.

        Attributes and search parameters change in place. For another number of shards or replicas, or an index built in
        another way, new shards are loaded beside the old ones, which serve until the new ones are found good and the
        description is on record. Whatever goes wrong before that leaves the gallery as it was.

        Args:
            spec: All of the description.
            min_recall: See `reshape.check`.

        Raises:
            NotFound: If there is no such gallery.
            SpecChange: If its spaces would change, or an attribute would go or change its type.
            FailedPrecondition: If new shards fail a check, or if it is being changed already.
            Unavailable: If a part is not up or does not follow; calling again completes the change.
        """
        async with self._changing:
            placed = self._find(spec.name)
            old = placed.spec
            spec = dataclasses.replace(_valid(spec), gallery_id=old.gallery_id, created_micros=old.created_micros)
            check_change(old, spec)
            if placed.read_only:
                raise read_only.refusal(spec.name)
            if placed.change is not None:
                raise reshape.change_running(spec.name)
            if not reshape.is_reshape(old, spec) and old.replicas == spec.replicas:
                await tell(placed.writer, spec)  # commits it: from here on it is the truth
                placed.spec = spec
                await asyncio.gather(*(tell(part, spec) for part in placed.shard_parts))
                placed.version = await self._blocking(functools.partial(self._catalogue.version, spec.name))
                self._publish()
                return placed.message()
            placed.change = asyncio.create_task(
                self._reshape.run(placed, spec, min_recall), name=f"reshape-{spec.name}"
            )
        try:
            await placed.change  # cancelled with its caller, and waited for: it takes back what it did
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise Unavailable(f"gallery {spec.name!r} went, or the cluster stops: it was not changed") from None
        finally:
            placed.change = None
        return placed.message()

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
        await self.transfers.close()
        await self.models.close()
        for placed in self._galleries.values():
            await placed.give_up()
        parts = [*self.models.supervisors, *(part for placed in self._galleries.values() for part in placed.parts)]
        if stop_parts:
            await stop(parts, discard=False)
        else:
            await asyncio.gather(*(part.leave() for part in parts))
        for task in self._follows:
            task.cancel()
        await asyncio.gather(*self._follows, return_exceptions=True)
        await self._blocking(self._catalogue.close)

    def parts_of_galleries(self) -> list[tuple[GallerySpec, Supervisor, list[list[Supervisor]]]]:
        """Each gallery by name, with its writer and, for each shard, its replicas."""
        return [(placed.spec, placed.writer, placed.shards) for _, placed in sorted(self._galleries.items())]

    def _find(self, name: str) -> Placed:
        try:
            return self._galleries[name]
        except KeyError:
            raise NotFound(f"no gallery {name!r}", reason="GALLERY_NOT_FOUND", metadata={"gallery": name}) from None

    def _place(self, spec: GallerySpec, version: int) -> Placed:
        writer = self._supervise(WriterPart(spec))
        shards = [
            [self._supervise(ShardPart(spec, shard, replica)) for replica in range(spec.replicas)]
            for shard in range(spec.shards)
        ]
        return Placed(spec, version, writer, shards)

    def _supervise(self, part: Part) -> Supervisor:
        return Supervisor(part, self._placement, self._changed)

    async def _serve(self, spec: GallerySpec, *, read_only: bool) -> gallery_service_pb2.Gallery:
        """See `cluster_transfers.Serve`."""
        try:
            await self._changing.acquire()
        except asyncio.CancelledError:
            await finished(functools.partial(self._catalogue.delete, spec.name))
            raise
        try:
            return await self._bring_up(spec, read_only=read_only)
        finally:
            self._changing.release()

    async def _bring_up(self, spec: GallerySpec, *, read_only: bool) -> gallery_service_pb2.Gallery:
        """Place the parts of a gallery that was just made; it goes again if they do not come up."""
        try:
            version = await self._blocking(functools.partial(self._catalogue.version, spec.name))
        except BaseException:
            await finished(functools.partial(self._catalogue.delete, spec.name))
            raise
        placed = self._galleries[spec.name] = self._place(spec, version)
        placed.read_only = read_only
        try:
            await all_up(placed.parts, spec.name)
        except BaseException:
            await asyncio.shield(self._remove(spec.name))
            raise
        await follow(placed)
        self._publish()
        return placed.message()

    async def _remove(self, name: str) -> None:
        await self._galleries[name].give_up()
        placed = self._galleries.pop(name)
        self._publish()
        await stop(placed.parts, discard=True)
        await self._blocking(lambda: self._catalogue.delete(name))

    def _changed(self, changed: Supervisor) -> None:
        """A part came up or went: tell the routers, and the gallery's writer where its shards are."""
        if isinstance(changed.part, EncoderPart):
            self.models.changed(changed)
        self._publish()
        for placed in self._galleries.values():
            if changed in placed.parts and changed.serving is not None:
                task = asyncio.create_task(follow(placed), name=f"follow-{placed.spec.name}")
                self._follows.add(task)
                task.add_done_callback(self._follows.discard)

    def _publish(self) -> None:
        galleries = [
            pb.GalleryRoute(
                gallery=placed.message(),
                writer=placed.writer.serving.address if placed.writer.serving else "",
                shards=[
                    pb.ShardRoute(shard=number, addresses=addresses_of(replicas))
                    for number, replicas in enumerate(placed.shards)
                ],
            )
            for _, placed in sorted(self._galleries.items())
        ]
        self.board.publish(galleries, self.models.routes(), self.models.families())

    async def _blocking(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(None, call)


def _valid(spec: GallerySpec) -> GallerySpec:
    try:
        return specs.validate(spec)
    except SpecError as error:
        raise InvalidRequest(str(error), field=error.field) from error
