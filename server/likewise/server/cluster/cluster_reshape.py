"""A gallery's other shards: loaded beside those that serve, found good, put in use; the replaced ones end later."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from likewise.server import reshape
from likewise.server.cluster.generation import CatalogueTruth, Connect
from likewise.server.cluster.part_calls import all_up, follow, stop, tell
from likewise.server.cluster.parts import Part, ShardPart
from likewise.server.cluster.placed import Placed, addresses_of, flat
from likewise.server.cluster.protocols import Catalogue
from likewise.server.cluster.supervisor import Supervisor
from likewise.server.errors import Unavailable
from likewise.shards.spec import GallerySpec

DRAIN_S: Final = 15.0
"""Seconds that replaced shards go on serving, for routers that have the old table still and calls begun under it."""

_log = logging.getLogger(__name__)


class ClusterReshape:
    """Gives galleries another number of shards or replicas, or an index built in another way.

    Args:
        catalogue: The store's galleries.
        supervise: Places a part and keeps it up.
        publish: Called when a gallery is served by other shards.
        connect: Reaches shards that are to be looked at.
        drain_s: See `DRAIN_S`.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        supervise: Callable[[Part], Supervisor],
        publish: Callable[[], None],
        connect: Connect,
        drain_s: float,
    ) -> None:
        self._catalogue = catalogue
        self._supervise = supervise
        self._publish = publish
        self._connect = connect
        self._drain_s = drain_s

    async def run(self, placed: Placed, spec: GallerySpec, min_recall: float | None) -> None:
        """Load the shards that a description asks for, look at them and switch; else leave everything as it was.

        Args:
            placed: The gallery.
            spec: All of the description.
            min_recall: See `reshape.check`.

        Raises:
            FailedPrecondition: If new shards fail a check.
            Unavailable: If a part is not up or does not follow.
        """
        anew = reshape.is_reshape(placed.spec, spec)
        before = {part.part.name: part for part in placed.shard_parts}
        wanted = [[ShardPart(spec, shard, replica) for replica in range(spec.replicas)] for shard in range(spec.shards)]
        if {part.name for parts in wanted for part in parts} & placed.leaving_names:
            await asyncio.wait(placed.retiring)  # back to what is just being left: those have to end first
        shards = [
            [before.pop(part.name) if part.name in before else self._supervise(part) for part in parts]
            for parts in wanted
        ]
        added = [part for part in flat(shards) if part not in placed.shard_parts]
        placed.beside = shards
        try:
            await all_up(added, spec.name)
            await follow(placed)
            if anew:
                await self._check(spec, shards, min_recall)
            # From the commit on there is no way back: whoever gives up now is told of what is.
            switch = asyncio.create_task(self._switch(placed, spec, shards, gone=set(before.values())))
            try:
                await asyncio.shield(switch)
            except asyncio.CancelledError:
                await asyncio.wait((switch,))
                raise
        finally:
            if placed.shards is not shards:
                placed.beside = []
                await asyncio.shield(asyncio.create_task(self._take_back(placed, added, discard=anew)))

    async def _check(self, spec: GallerySpec, shards: list[list[Supervisor]], min_recall: float | None) -> None:
        truth = CatalogueTruth(self._catalogue, spec.name)
        for replicas in zip(*shards, strict=True):
            addresses = addresses_of(replicas)
            if len(addresses) < len(replicas):
                raise Unavailable(
                    f"a new shard of gallery {spec.name!r} was lost, it stays as it is", retry_after_s=1.0
                )
            async with self._connect(spec, addresses) as found:
                await reshape.check(found, spec, truth, min_recall=min_recall)

    async def _switch(
        self, placed: Placed, spec: GallerySpec, shards: list[list[Supervisor]], *, gone: set[Supervisor]
    ) -> None:
        """Put the description on record, and the shards in use; the others end when nobody can be calling them."""
        anew = reshape.is_reshape(placed.spec, spec)
        try:
            await tell(placed.writer, spec)
        except Unavailable:
            # An answer that did not come says nothing: the store does.
            if await asyncio.to_thread(self._catalogue.spec, spec.name) != spec:
                raise
        left = [[part for part in replicas if part in gone] for replicas in placed.shards]
        placed.spec, placed.shards, placed.beside = spec, shards, []
        placed.leaving.append(left)
        placed.version = await asyncio.to_thread(self._catalogue.version, spec.name)
        await follow(placed)
        self._publish()
        task = asyncio.create_task(self._retire(placed, left, discard=anew), name=f"retire-{spec.name}")
        placed.retiring.add(task)
        task.add_done_callback(placed.retiring.discard)

    async def _retire(self, placed: Placed, left: list[list[Supervisor]], *, discard: bool) -> None:
        await asyncio.sleep(self._drain_s)
        try:
            await stop(flat(left), discard=discard)
        except Exception:
            _log.exception("replaced shards of gallery %r did not end in order", placed.spec.name)
        placed.leaving.remove(left)
        await follow(placed)

    async def _take_back(self, placed: Placed, added: list[Supervisor], *, discard: bool) -> None:
        await follow(placed)
        await stop(added, discard=discard)
