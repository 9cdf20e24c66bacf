"""Named versions of galleries, and whole galleries as folders of the server: what comes back, and the calls."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from likewise.client import rpc
from likewise.client.errors import InvalidArgument, InvalidType, ServerError
from likewise.client.galleries import GalleryInfo, gallery_of, name_of
from likewise.client.progress import ProgressChoice, Reporter
from likewise.client.rpc import Call, make_call
from likewise.client.versions import VersionToken
from likewise.v1 import gallery_service_pb2 as pb

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A named version of a gallery.

    Attributes:
        name: Unique in its gallery.
        version: Store version.
        rows: Live items at that version.
        created: When it was made, UTC.
        note: What its maker wrote.
    """

    name: str
    version: int
    rows: int
    created: datetime
    note: str


@dataclass(frozen=True, slots=True)
class SnapshotPage:
    """One page of snapshots and the token of the next; "" after the last."""

    snapshots: tuple[Snapshot, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Export:
    """A gallery exported to a folder of the server.

    Attributes:
        folder: Name below the server's export root.
        gallery: What was exported.
        version: Its store version.
        rows: Live items.
        files: Files, the manifest not counted.
        bytes: Bytes of those files.
    """

    folder: str
    gallery: str
    version: int
    rows: int
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """How far an export or import is: bytes done, bytes in all (0 until that is known), and at its end the result."""

    done: int
    total: int
    result: T | None


def create_call(gallery: str, name: str, *, note: str, version: VersionToken | int | None) -> Call[Snapshot]:
    """GalleryService.CreateSnapshot.

    Raises:
        InvalidArgument: If the version is none.
    """
    request = pb.GalleryServiceCreateSnapshotRequest(
        gallery=name_of(gallery), snapshot=_text(name, "snapshot"), note=_text(note, "note")
    )
    if version is not None:
        number = version.version if isinstance(version, VersionToken) else version
        if not isinstance(number, int) or isinstance(number, bool):
            raise InvalidType(f"version must be an integer or a VersionToken, got {version!r}", field="version")
        if not 0 <= number < 1 << 64:
            raise InvalidArgument(f"version must be in [0, 2**64), got {number}", field="version")
        request.version = number
    return make_call(rpc.CREATE_SNAPSHOT, request, lambda message: _snapshot(message.snapshot))


def list_call(gallery: str, page_token: str) -> Call[SnapshotPage]:
    """GalleryService.ListSnapshots."""
    request = pb.GalleryServiceListSnapshotsRequest(gallery=name_of(gallery), page_size=1000, page_token=page_token)
    return make_call(rpc.LIST_SNAPSHOTS, request, _page)


def delete_call(gallery: str, name: str) -> Call[None]:
    """GalleryService.DeleteSnapshot."""
    request = pb.GalleryServiceDeleteSnapshotRequest(gallery=name_of(gallery), snapshot=_text(name, "snapshot"))
    return make_call(rpc.DELETE_SNAPSHOT, request, lambda _: None)


def restore_call(gallery: str, snapshot: str, name: str, *, read_only: bool) -> Call[GalleryInfo]:
    """GalleryService.RestoreSnapshot."""
    request = pb.GalleryServiceRestoreSnapshotRequest(
        gallery=name_of(gallery), snapshot=_text(snapshot, "snapshot"), name=name_of(name), read_only=read_only
    )
    return make_call(rpc.RESTORE_SNAPSHOT, request, gallery_of)


def export_call(gallery: str, folder: str, *, snapshot: str | None) -> Call[Step[Export]]:
    """GalleryService.ExportGallery."""
    request = pb.GalleryServiceExportGalleryRequest(
        gallery=name_of(gallery), folder=_text(folder, "folder"), snapshot=_text(snapshot or "", "snapshot")
    )
    return make_call(rpc.EXPORT_GALLERY, request, lambda message: _step(message, "export", _export))


def import_call(folder: str, name: str | None, *, read_only: bool) -> Call[Step[GalleryInfo]]:
    """GalleryService.ImportGallery."""
    request = pb.GalleryServiceImportGalleryRequest(
        folder=_text(folder, "folder"), name=name_of(name or ""), read_only=read_only
    )
    return make_call(
        rpc.IMPORT_GALLERY, request, lambda message: _step(message, "gallery", lambda _: gallery_of(message))
    )


class Following(Generic[T]):
    """Follows an export or import to its end, telling how far it is; a context manager.

    Args:
        choice: See `ProgressChoice`; bytes instead of items.
        request_id: Of the call, for the error.
    """

    def __init__(self, choice: ProgressChoice, request_id: str) -> None:
        self._choice = choice
        self._request_id = request_id
        self._reporter: Reporter | None = None
        self._result: T | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reporter is not None:
            self._reporter.__exit__(kind, error, trace)

    def take(self, step: Step[T]) -> None:
        """One message of the server."""
        if step.total:
            if self._reporter is None:
                self._reporter = Reporter(self._choice, step.total, unit="bytes")
            self._reporter.update(step.done)
        self._result = step.result if step.result is not None else self._result

    def result(self) -> T:
        """What came last.

        Raises:
            ServerError: If the server ended the call without it.
        """
        if self._result is None:
            raise ServerError("the server ended the call without a result", request_id=self._request_id)
        return self._result


def follow(steps: Iterator[Step[T]], call: Call[Step[T]], choice: ProgressChoice) -> T:
    """`Following` for threads."""
    with Following[T](choice, call.request_id) as following:
        for step in steps:
            following.take(step)
    return following.result()


async def follow_async(steps: AsyncGenerator[Step[T]], call: Call[Step[T]], choice: ProgressChoice) -> T:
    """`Following` for asyncio; the call is given up when the caller is cancelled."""
    with Following[T](choice, call.request_id) as following:
        async with aclosing(steps):
            async for step in steps:
                following.take(step)
    return following.result()


def _text(value: str, field: str) -> str:
    if not isinstance(value, str):
        raise InvalidType(f"{field} must be a string, got a {type(value).__name__}", field=field)
    return value


def _snapshot(message: pb.Snapshot) -> Snapshot:
    return Snapshot(message.name, message.version, message.rows, message.create_time.ToDatetime(UTC), message.note)


def _page(message: pb.GalleryServiceListSnapshotsResponse) -> SnapshotPage:
    return SnapshotPage(tuple(_snapshot(one) for one in message.snapshots), message.next_page_token)


def _export(message: pb.Export) -> Export:
    return Export(message.folder, message.gallery, message.version, message.rows, message.files, message.bytes)


def _step(message: Any, field: str, decode: Any) -> Step[Any]:
    result = decode(getattr(message, field)) if message.HasField(field) else None
    return Step(message.progress.bytes_done, message.progress.bytes, result)
