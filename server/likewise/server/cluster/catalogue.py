"""The controller's hand on a store: its galleries and, on a local folder, its lock."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from likewise.server.errors import AlreadyExists, NotFound
from likewise.server.exports import Exports, told
from likewise.server.snapshots import named
from likewise.shards import audit, snapshots
from likewise.shards.copying import Report
from likewise.shards.lock import StoreLock, StoreLocked
from likewise.shards.protocols import F32
from likewise.shards.snapshots import Snapshot
from likewise.shards.spec import GallerySpec
from likewise.shards.store import GalleryExists, GalleryNotFound, Store, local_folder
from likewise.v1 import gallery_service_pb2


class StoreCatalogue:
    """`Catalogue` of a store; holds the lock of a local one until closed.

    Args:
        uri: The store.
        lock_wait_s: Longest wait for the lock.
        export_root: Folder that exports lie in; None: nothing is exported or imported.

    Raises:
        StoreLocked: If another process has the store and keeps it.
    """

    def __init__(self, uri: str, *, lock_wait_s: float, export_root: Path | None = None) -> None:
        self._exports = Exports(export_root, shared=True)
        folder = local_folder(uri)
        self._lock = None if folder is None else StoreLock(folder)
        if self._lock is not None:
            _acquire(self._lock, lock_wait_s)
        try:
            self._store = Store(uri)
            if folder is not None:  # galleries are exported from folders only
                for name in self._store.galleries():
                    self._store.open(name).history.drop_holds()
        except BaseException:
            self.close()
            raise

    def specs(self) -> Sequence[GallerySpec]:
        """See `Catalogue.specs`."""
        return [self._store.open(name).spec for name in self._store.galleries()]

    def create(self, spec: GallerySpec) -> None:
        """See `Catalogue.create`.

        Raises:
            AlreadyExists: If the name is taken.
        """
        try:
            self._store.create(spec)
        except GalleryExists as error:
            raise AlreadyExists(str(error), reason="GALLERY_EXISTS", metadata={"gallery": spec.name}) from error

    def delete(self, name: str) -> None:
        """See `Catalogue.delete`.

        Raises:
            NotFound: If there is none.
        """
        try:
            self._store.delete(name)
        except GalleryNotFound as error:
            raise NotFound(str(error), reason="GALLERY_NOT_FOUND", metadata={"gallery": name}) from error

    def version(self, name: str) -> int:
        """See `Catalogue.version`."""
        return self._store.open(name).version

    def spec(self, name: str) -> GallerySpec:
        """See `Catalogue.spec`."""
        return self._store.open(name).spec

    def rows(self, name: str, version: int, shard: int, shards: int) -> int:
        """See `generation.Stored.rows`."""
        return audit.stored_rows(self._store.open(name), version, shard, shards)

    def sample(self, name: str, space: str, count: int) -> F32:
        """See `generation.Stored.sample`."""
        return audit.stored_vectors(self._store.open(name), space, count)

    def read_only(self, name: str) -> bool:
        """See `Catalogue.read_only`."""
        return self._store.open(name).read_only

    def create_snapshot(self, gallery: str, name: str, *, version: int | None, note: str) -> Snapshot:
        """See `Catalogue.create_snapshot`."""
        with told():
            return named(self._store.open(gallery), name, version=version, note=note)

    def snapshots(self, gallery: str) -> Sequence[Snapshot]:
        """See `Catalogue.snapshots`."""
        with told():
            return snapshots.snapshots(self._store.open(gallery))

    def delete_snapshot(self, gallery: str, name: str) -> None:
        """See `Catalogue.delete_snapshot`."""
        with told():
            snapshots.delete(self._store.open(gallery), name)

    def restore(self, gallery: str, snapshot: str, name: str, *, read_only: bool) -> GallerySpec:
        """See `Catalogue.restore`."""
        source = self._store.open(gallery)
        with told(), snapshots.restored(self._store, source, snapshot, name, read_only=read_only) as staged:
            return self._store.publish(staged, name).spec

    def exporting(self, gallery: str, snapshot: str, folder: str) -> Callable[[Report], gallery_service_pb2.Export]:
        """See `Catalogue.exporting`.

        Raises:
            NotFound: If there is no such gallery.
            InvalidRequest: If the folder is no name.
            FailedPrecondition: If there is no export root.
        """
        try:
            source = self._store.open(gallery)
        except GalleryNotFound as error:
            raise NotFound(str(error), reason="GALLERY_NOT_FOUND", metadata={"gallery": gallery}) from error
        return self._exports.exporting(source, snapshot, folder)

    def importing(self, folder: str, name: str, *, read_only: bool) -> Callable[[Report], GallerySpec]:
        """See `Catalogue.importing`.

        Raises:
            InvalidRequest: If the folder is no name.
            FailedPrecondition: If there is no export root.
        """

        def publish(staged: Path, chosen: str) -> GallerySpec:
            return self._store.publish(staged, chosen).spec

        return self._exports.importing(self._store, folder, name, read_only=read_only, publish=publish)

    def read_document(self, name: str) -> Any:
        """See `Catalogue.read_document`."""
        return self._store.read_document(name)

    def write_document(self, name: str, value: Any) -> None:
        """See `Catalogue.write_document`."""
        self._store.write_document(name, value)

    def serving_at(self, address: str) -> None:
        """Say in the store's lock where the galleries are served, for whoever finds it taken."""
        if self._lock is not None:
            self._lock.update_address(address)

    def close(self) -> None:
        """See `Catalogue.close`."""
        if self._lock is not None:
            self._lock.release()


def _acquire(lock: StoreLock, wait_s: float) -> None:
    until = time.monotonic() + wait_s
    while True:
        try:
            return lock.acquire()
        except StoreLocked:
            if time.monotonic() >= until:
                raise
            time.sleep(0.25)
