"""Snapshots, exports and imports of the galleries in this process."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from likewise.server.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    ServiceError,
    Unimplemented,
)
from likewise.server.protocols import GalleryHandle
from likewise.server.transfers import Done, Transfers
from likewise.server.validate import shown
from likewise.shards import snapshots, transfer
from likewise.shards.copying import Damaged, NotLocal, Progress, Report
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.protocols import HistoryGone, ShardError
from likewise.shards.snapshots import Snapshot, SnapshotExists, SnapshotNotFound
from likewise.shards.spec import GALLERY_NAME
from likewise.shards.store import GalleryExists, NewerFormat, Store
from likewise.shards.transfer import ExportExists, ExportNotFound, Manifest, NotAnExport

T = TypeVar("T")

EXPORT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
"""Folders below the export root: no dot and no slash, so that no name leads out of it."""

_ERRORS: Final[tuple[tuple[type[ShardError], type[ServiceError], str], ...]] = (
    (SnapshotExists, AlreadyExists, "SNAPSHOT_EXISTS"),
    (SnapshotNotFound, NotFound, "SNAPSHOT_NOT_FOUND"),
    (GalleryExists, AlreadyExists, "GALLERY_EXISTS"),
    (HistoryGone, FailedPrecondition, "VERSION_GONE"),
    (ExportExists, AlreadyExists, "EXPORT_EXISTS"),
    (ExportNotFound, NotFound, "EXPORT_NOT_FOUND"),
    (NotAnExport, FailedPrecondition, "NOT_AN_EXPORT"),
    (NewerFormat, FailedPrecondition, "NEWER_FORMAT"),
    (Damaged, DataLoss, "EXPORT_DAMAGED"),
    (NotLocal, Unimplemented, "OBJECT_STORE"),
)


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
        self._export_root = export_root
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

    async def export(self, gallery: str, snapshot: str, folder: str) -> AsyncGenerator[Progress | Done[Manifest]]:
        """See `snapshot_service.Snapshots.export`."""
        source = self._home.store_of(gallery)
        target = self._place(folder)

        def work(report: Report) -> Manifest:
            with told():
                version = snapshots.find(source, snapshot).version if snapshot else source.newest_version()
                target.parent.mkdir(parents=True, exist_ok=True)
                return transfer.export(source, target, version=version, report=report)

        async for step in _closing(self._transfers.run(work)):
            yield step

    async def load(self, folder: str, name: str, *, read_only: bool) -> AsyncGenerator[Progress | Done[GalleryHandle]]:
        """See `snapshot_service.Snapshots.load`."""
        store = self._home.store()
        source = self._place(folder)
        loop = asyncio.get_running_loop()

        def work(report: Report) -> GalleryHandle:
            with told():
                chosen = name or _usable(transfer.read_manifest(source).gallery)
                with transfer.imported(store, source, chosen, read_only=read_only, report=report) as staged:
                    return self._adopt(staged, chosen, loop)

        async for step in _closing(self._transfers.run(work)):
            yield step

    def _adopt(self, staged: Path, name: str, loop: asyncio.AbstractEventLoop) -> GalleryHandle:
        """Publish and serve, from a thread; once begun it goes on to its end, whoever still waits."""
        store = self._home.store()
        adopting = self._home.adopt(name, lambda: store.publish(staged, name))
        return asyncio.run_coroutine_threadsafe(adopting, loop).result()

    def _place(self, folder: str) -> Path:
        if not EXPORT_NAME.fullmatch(folder):
            raise InvalidRequest(
                f"folder: {shown(folder)} does not match {EXPORT_NAME.pattern}: it names a folder of the server's "
                "export root, not a path",
                field="folder",
            )
        if self._export_root is None:
            raise FailedPrecondition(
                "this server has no export root, so that it neither exports nor imports: start it with --export-root",
                reason="EXPORT_ROOT_UNSET",
            )
        return self._export_root / folder

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


def _usable(name: str) -> str:
    if not GALLERY_NAME.fullmatch(name):
        raise NotAnExport(f"the export's gallery has the name {shown(name)}, which no gallery can have: give another")
    return name


@contextmanager
def told() -> Iterator[None]:
    """Errors of the store as callers may see them."""
    try:
        yield
    except ShardError as error:
        for kind, shape, reason in _ERRORS:
            if isinstance(error, kind):
                raise shape(str(error), reason=reason) from error
        raise


async def _closing(steps: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
    """The same steps, ended as soon as this is: a generator left to the garbage collector would go on working."""
    try:
        async for step in steps:
            yield step
    finally:
        await steps.aclose()
