"""Named versions of a gallery, and galleries made from them.

A snapshot is a Lance tag: the version it names, with all its files, outlives every clean-up. A restored gallery has the
version's files under names of its own (hard links, copies where there are none), so that it costs next to nothing, and
neither the snapshot nor the gallery it was taken of is needed any more.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from likewise.shards.copying import link_files, version_files
from likewise.shards.failures import told_apart
from likewise.shards.gallery_store import READ_ONLY_KEY, SPEC_KEY, GalleryStore
from likewise.shards.history import Tag, TagExists, TagNotFound
from likewise.shards.protocols import ShardError
from likewise.shards.spec import GALLERY_NAME, GallerySpec, SpecError, to_json, validate
from likewise.shards.store import GalleryExists, Store, local_folder

MAX_NOTE_BYTES: Final = 1_024

_NOTE: Final = "likewise.note"
_ROWS: Final = "likewise.rows"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A named version.

    Attributes:
        name: Unique in its gallery.
        version: Store version.
        rows: Live rows at that version.
        created_micros: When it was made, microseconds since the epoch.
        note: What its maker wrote.
    """

    name: str
    version: int
    rows: int
    created_micros: int
    note: str


class SnapshotExists(ShardError):
    """The gallery has a snapshot of that name."""


class SnapshotNotFound(ShardError):
    """The gallery has no snapshot of that name."""


def create(gallery: GalleryStore, name: str, *, note: str = "", version: int | None = None) -> Snapshot:
    """Name a version; durable when this returns. Any thread may call it, whoever writes meanwhile.

    Args:
        gallery: Of which.
        name: As `spec.GALLERY_NAME`.
        note: At most 1,024 bytes.
        version: The newest committed one if None.

    Raises:
        SpecError: If the name or the note is not valid.
        SnapshotExists: If the name is taken.
        HistoryGone: If the version has been cleaned up.
        StoreFailure: If the store refused, or has no such version yet.
    """
    if not GALLERY_NAME.fullmatch(name):
        raise SpecError("snapshot", f"{name!r} does not match {GALLERY_NAME.pattern}")
    if (size := len(note.encode())) > MAX_NOTE_BYTES:
        raise SpecError("note", f"must have at most {MAX_NOTE_BYTES} bytes, got {size}")
    history = gallery.history
    chosen = history.newest_version() if version is None else version
    with history.pinned(chosen) as dataset:
        rows = int(dataset.count_rows())
    try:
        history.tag(name, chosen, {_NOTE: note, _ROWS: str(rows)})
    except TagExists as error:
        raise SnapshotExists(f"gallery {gallery.spec.name!r} has a snapshot {name!r} already") from error
    return find(gallery, name)


def snapshots(gallery: GalleryStore) -> list[Snapshot]:
    """All snapshots by name: the gallery's Lance tags, but for those whose name no snapshot can have."""
    return [_snapshot(gallery, tag) for tag in gallery.history.tags() if GALLERY_NAME.fullmatch(tag.name)]


def find(gallery: GalleryStore, name: str) -> Snapshot:
    """The snapshot of that name.

    Raises:
        SnapshotNotFound: Naming some that there are.
    """
    for tag in gallery.history.tags():
        if tag.name == name and GALLERY_NAME.fullmatch(name):
            return _snapshot(gallery, tag)
    raise _not_found(gallery, name)


def delete(gallery: GalleryStore, name: str) -> None:
    """Forget a snapshot; what only it needed goes with one of the next clean-ups.

    Raises:
        SnapshotNotFound: Naming some that there are.
    """
    find(gallery, name)
    try:
        gallery.history.untag(name)
    except TagNotFound as error:
        raise _not_found(gallery, name) from error


@contextmanager
def restored(
    store: Store, gallery: GalleryStore, snapshot: str, name: str, *, read_only: bool = False
) -> Iterator[Path]:
    """A dataset for `Store.publish`, made from a snapshot; without that, nothing is left of it after the block.

    Args:
        store: Which the gallery is of.
        gallery: Of which.
        snapshot: Name of the snapshot.
        name: Of the gallery to be.
        read_only: It is to take no writes.

    Raises:
        SpecError: If the name is not valid.
        GalleryExists: If the name is taken.
        SnapshotNotFound: If there is no such snapshot.
        NotLocal: If the store is no local folder.
        StoreFailure: If the store refused.
    """
    check_free(store, name)
    found = find(gallery, snapshot)
    with store.staging() as folder:
        source, staged = local_folder(gallery.uri), folder / name
        assert source is not None, "a store with staging is a folder"
        with told_apart("restoring the snapshot"), gallery.history.pinned(found.version) as dataset:
            link_files(source, staged, version_files(dataset))
            adopt(staged, name, read_only=read_only)
        yield staged


def check_free(store: Store, name: str) -> None:
    """Refuse a name that a new gallery cannot have.

    Raises:
        SpecError: If it is not valid.
        GalleryExists: If it is taken.
    """
    if not GALLERY_NAME.fullmatch(name):
        raise SpecError("name", f"{name!r} does not match {GALLERY_NAME.pattern}")
    if name in store.galleries():
        raise GalleryExists(f"the gallery {name!r} exists already")


def adopt(dataset: Path, name: str, *, read_only: bool) -> GallerySpec:
    """Make a copied dataset a gallery of its own: with another name and identity, and its own rule about writes."""
    gallery = GalleryStore(str(dataset), folder=dataset)
    spec = replace(gallery.spec, name=name, gallery_id=uuid.uuid4().hex, created_micros=time.time_ns() // 1_000)
    rule = "true" if read_only else "false"
    gallery.checkout(gallery.version).update_schema_metadata({SPEC_KEY: to_json(validate(spec)), READ_ONLY_KEY: rule})
    return spec


def _snapshot(gallery: GalleryStore, tag: Tag) -> Snapshot:
    rows = tag.metadata.get(_ROWS)
    return Snapshot(
        name=tag.name,
        version=tag.version,
        # A tag made by Lance itself, or by a process that died right after, says nothing about its rows.
        rows=int(gallery.checkout(tag.version).count_rows() if rows is None else rows),
        created_micros=0 if tag.created is None else int(tag.created.timestamp() * 1e6),
        note=tag.metadata.get(_NOTE, ""),
    )


def _not_found(gallery: GalleryStore, name: str) -> SnapshotNotFound:
    known = [tag.name for tag in gallery.history.tags()][:20]
    return SnapshotNotFound(f"gallery {gallery.spec.name!r} has no snapshot {name[:80]!r}, it has {known}")
