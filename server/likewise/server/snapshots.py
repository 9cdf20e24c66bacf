"""Snapshots, exports and imports of the galleries in this process."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from likewise.server.errors import InvalidRequest
from likewise.server.exports import Exports, told
from likewise.server.protocols import GalleryHandle
from likewise.server.transfers import Done, Transfers
from likewise.shards import snapshots
from likewise.shards.copying import Progress, Report
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.snapshots import Snapshot
from likewise.shards.store import Store
from likewise.v1 import gallery_service_pb2 as pb

T = TypeVar("T")


class Home(Protocol):
    """Where the galleries are."""

    def store(self) -> Store:
        """The open store."""
        ...

    def store_of(self, name: str) -> GalleryStore:
        """One gallery's part of it; raises NotFound."""
        ...

    async def adopt(self, name: str, make: Callable[[], GalleryStore]) -> GalleryHandle:
        """Serve the gallery that `make` puts into the store."""
        ...


class EmbeddedSnapshots:
    """`snapshot_service.Snapshots` over a store in this process.

    Args:
        home: The galleries.
        export_root: Folder that exports lie in; None: nothing is exported or imported.
    """

    def __init__(self, home: Home, export_root: Path | None) -> None:
        self._home = home
        self._exports = Exports(export_root, shared=False)
        self._transfers = Transfers()

    async def close(self) -> None:
        """Give up what runs."""
        await self._transfers.close()

    async def create(self, gallery: str, name: str, *, version: int | None, note: str) -> Snapshot:
        """See `snapshot_service.Snapshots.create`."""
        store = self._home.store_of(gallery)

        return await self._in_thread(lambda: named(store, name, version=version, note=note))

    async def list(self, gallery: str) -> Sequence[Snapshot]:
        """See `snapshot_service.Snapshots.list`."""
        store = self._home.store_of(gallery)
        return await self._in_thread(lambda: snapshots.snapshots(store))

    async def delete(self, gallery: str, name: str) -> None:
        """See `snapshot_service.Snapshots.delete`."""
        store = self._home.store_of(gallery)
        await self._in_thread(lambda: snapshots.delete(store, name))

    async def restore(self, gallery: str, snapshot: str, name: str, *, read_only: bool) -> GalleryHandle:
        """See `snapshot_service.Snapshots.restore`."""
        store, source = self._home.store(), self._home.store_of(gallery)
        loop = asyncio.get_running_loop()

        def work(_: Report) -> GalleryHandle:
            with told(), snapshots.restored(store, source, snapshot, name, read_only=read_only) as staged:
                return self._adopt(staged, name, loop)

        return await self._transfers.finish(work)

    async def export(self, gallery: str, snapshot: str, folder: str) -> AsyncGenerator[Progress | Done[pb.Export]]:
        """See `snapshot_service.Snapshots.export`."""
        work = self._exports.exporting(self._home.store_of(gallery), snapshot, folder)
        async for step in _closing(self._transfers.run(work)):
            yield step

    async def load(self, folder: str, name: str, *, read_only: bool) -> AsyncGenerator[Progress | Done[GalleryHandle]]:
        """See `snapshot_service.Snapshots.load`."""
        loop = asyncio.get_running_loop()
        work = self._exports.importing(
            self._home.store(),
            folder,
            name,
            read_only=read_only,
            publish=lambda staged, chosen: self._adopt(staged, chosen, loop),
        )
        async for step in _closing(self._transfers.run(work)):
            yield step

    def _adopt(self, staged: Path, name: str, loop: asyncio.AbstractEventLoop) -> GalleryHandle:
        """Publish and serve, from a thread; once begun it goes on to its end, whoever still waits."""
        store = self._home.store()
        adopting = self._home.adopt(name, lambda: store.publish(staged, name))
        return asyncio.run_coroutine_threadsafe(adopting, loop).result()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        def worded() -> T:
            with told():
                return work()

        # To its end, so that no half of it is going on when the caller's next call comes.
        return await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(worded)))


def named(gallery: GalleryStore, name: str, *, version: int | None, note: str) -> Snapshot:
    """See `snapshots.create`; blocking.

    Raises:
        InvalidRequest: For a version that is still to come.
    """
    newest = gallery.newest_version()
    if version is not None and not 1 <= version <= newest:
        raise InvalidRequest(f"version must be in [1, {newest}], got {version}", field="version")
    return snapshots.create(gallery, name, note=note, version=version)


async def _closing(steps: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
    """The same steps, ended as soon as this is: a generator left to the garbage collector would go on working."""
    try:
        async for step in steps:
            yield step
    finally:
        await steps.aclose()
