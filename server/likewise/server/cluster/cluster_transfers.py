"""Exports and imports of a cluster's galleries, in the process that has the store."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

from likewise.server.cluster.protocols import Catalogue
from likewise.server.transfers import Done, Transfers
from likewise.shards.copying import Progress, Report
from likewise.shards.spec import GallerySpec
from likewise.v1 import gallery_service_pb2


class Serve(Protocol):
    """Brings up a gallery that was just put into the store; whoever calls it need not look after that any more."""

    def __call__(self, spec: GallerySpec, *, read_only: bool) -> Awaitable[gallery_service_pb2.Gallery]:
        """Return when it is served; raise when it is not, and then it is not in the store either."""
        ...


class ClusterTransfers:
    """Runs them, a few at a time.

    Args:
        catalogue: The store's galleries.
        serve: Brings an imported one up.
    """

    def __init__(self, catalogue: Catalogue, serve: Serve) -> None:
        self._catalogue = catalogue
        self._serve = serve
        self._transfers = Transfers()

    async def export(
        self, gallery: str, snapshot: str, folder: str
    ) -> AsyncGenerator[Progress | Done[gallery_service_pb2.Export]]:
        """Write a gallery to a folder of the export root; "" is the newest version."""
        work = await asyncio.to_thread(self._catalogue.exporting, gallery, snapshot, folder)
        async with aclosing(self._transfers.run(work)) as steps:
            async for step in steps:
                yield step

    async def load(
        self, folder: str, name: str, *, read_only: bool
    ) -> AsyncGenerator[Progress | Done[gallery_service_pb2.Gallery]]:
        """Make a gallery of such a folder and serve it; "" is the exported one's name.

        Whenever the caller goes, it is there with all its parts, or not there.
        """
        work = await asyncio.to_thread(self._catalogue.importing, folder, name, read_only=read_only)
        published: list[GallerySpec] = []

        def noted(report: Report) -> GallerySpec:
            published.append(work(report))
            return published[0]

        try:
            last = Progress(0, 0, 0, 0)
            async with aclosing(self._transfers.run(noted)) as steps:
                async for step in steps:
                    if isinstance(step, Done):
                        last = step.progress
                    else:
                        yield step
            gallery = await self._serve(published.pop(), read_only=read_only)
        finally:
            for spec in published:  # while nobody waited any more
                await finished(functools.partial(self._catalogue.delete, spec.name))
        yield Done(gallery, last)

    async def close(self) -> None:
        """Give up what runs."""
        await self._transfers.close()


async def finished(work: Callable[[], None]) -> None:
    """Run blocking work to its end in a thread, whether or not the caller is cancelled meanwhile."""
    await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(work)))
