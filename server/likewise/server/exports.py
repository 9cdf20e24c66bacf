"""Exports and imports of whole galleries, wherever the store is: what is checked, and the work itself."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from likewise.server.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    ServiceError,
    Unimplemented,
)
from likewise.server.snapshot_messages import export_message
from likewise.server.validate import shown
from likewise.shards import snapshots, transfer
from likewise.shards.copying import Damaged, NotLocal, Report
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.protocols import HistoryGone, ShardError
from likewise.shards.snapshots import SnapshotExists, SnapshotNotFound
from likewise.shards.spec import GALLERY_NAME
from likewise.shards.store import GalleryExists, NewerFormat, Store
from likewise.shards.transfer import ExportExists, ExportNotFound, NotAnExport
from likewise.v1 import gallery_service_pb2 as pb

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


class Exports:
    """Makes the work of exports and imports, for `Transfers` to run.

    Args:
        root: Folder that exports lie in; None: nothing is exported or imported.
        shared: Other processes have the galleries' writers.
    """

    def __init__(self, root: Path | None, *, shared: bool) -> None:
        self._root = root
        self._shared = shared

    def exporting(self, source: GalleryStore, snapshot: str, folder: str) -> Callable[[Report], pb.Export]:
        """The work of an export.

        Args:
            source: Which gallery.
            snapshot: Which version; "" is the newest.
            folder: To be made in the export root.

        Raises:
            InvalidRequest: If the folder is no name.
            FailedPrecondition: If there is no export root.
        """
        target = self._place(folder)

        def work(report: Report) -> pb.Export:
            with told():
                version = snapshots.find(source, snapshot).version if snapshot else source.newest_version()
                target.parent.mkdir(parents=True, exist_ok=True)
                made = transfer.export(source, target, version=version, shared=self._shared, report=report)
                return export_message(folder, made)

        return work

    def importing(
        self, store: Store, folder: str, name: str, *, read_only: bool, publish: Callable[[Path, str], T]
    ) -> Callable[[Report], T]:
        """The work of an import.

        Args:
            store: Where to.
            folder: In the export root.
            name: Of the gallery to be; "" is the exported one's.
            read_only: It is to take no writes.
            publish: Puts the checked dataset into the store under the name; what it gives is what the work gives.

        Raises:
            InvalidRequest: If the folder is no name.
            FailedPrecondition: If there is no export root.
        """
        source = self._place(folder)

        def work(report: Report) -> T:
            with told():
                chosen = name or _usable(transfer.read_manifest(source).gallery)
                with transfer.imported(store, source, chosen, read_only=read_only, report=report) as staged:
                    return publish(staged, chosen)

        return work

    def _place(self, folder: str) -> Path:
        if not EXPORT_NAME.fullmatch(folder):
            raise InvalidRequest(
                f"folder: {shown(folder)} does not match {EXPORT_NAME.pattern}: it names a folder of the server's "
                "export root, not a path",
                field="folder",
            )
        if self._root is None:
            raise FailedPrecondition(
                "this server has no export root, so that it neither exports nor imports: start it with --export-root",
                reason="EXPORT_ROOT_UNSET",
            )
        return self._root / folder


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
