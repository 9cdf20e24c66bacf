"""A whole gallery as one folder: written by `export`, read back by `imported`.

    <folder>/manifest.json     format, what it is, and the bytes and SHA-256 of every other file
    <folder>/spec.json         the gallery's description
    <folder>/gallery.lance/    a plain Lance dataset with the one version, for any tool that reads Lance

The folder appears whole or not at all. Nothing of it is believed before it has been checked: sizes, hashes, rows and
description; and no path in it leads out of it.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final

from likewise.shards.copying import (
    Damaged,
    FileEntry,
    NotLocal,
    Report,
    Tally,
    copy_file,
    copy_files,
    version_files,
)
from likewise.shards.failures import told_apart
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.protocols import ShardError
from likewise.shards.snapshots import adopt, check_free
from likewise.shards.spec import SpecError, to_json
from likewise.shards.staging import move, staging, sweep
from likewise.shards.store import NewerFormat, Store, local_folder

EXPORT_FORMAT: Final = 1
"""Version of the folder's layout; one of a newer release is refused."""

MANIFEST_FILE: Final = "manifest.json"
SPEC_FILE: Final = "spec.json"
DATASET_FOLDER: Final = "gallery.lance"

_KIND: Final = "likewise gallery export"
_MAX_MANIFEST_BYTES: Final = 64 << 20
"""A manifest has some 150 bytes a file, and files have about 128 MB: this is a gallery of 50 TB."""


class ExportExists(ShardError):
    """There is something at the place already."""


class ExportNotFound(ShardError):
    """There is no such folder."""


class NotAnExport(ShardError):
    """A folder that `export` did not write, or did not finish."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an exported folder says of itself.

    Attributes:
        gallery: Name of the gallery that it was made of.
        gallery_id: Its identity.
        version: Its store version.
        rows: Live rows at that version.
        created: When it was made, ISO 8601, UTC.
        files: Every file but the manifest.
    """

    gallery: str
    gallery_id: str
    version: int
    rows: int
    created: str
    files: tuple[FileEntry, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.bytes for entry in self.files)


def export(gallery: GalleryStore, folder: Path, *, version: int, shared: bool = False, report: Report) -> Manifest:
    """Write one version of a gallery to a new folder; whole and durable when this returns, else not there.

    Args:
        gallery: Which; it may be written to meanwhile.
        folder: To be made; the one above it has to exist.
        version: Store version.
        shared: Another process has the gallery's writer, and forgets its old versions.
        report: Told how far it is; raises to give it up.

    Raises:
        ExportExists: If there is something at `folder`.
        NotLocal: If the gallery's store is no local folder.
        HistoryGone: If the version has been cleaned up.
        StoreFailure: If something cannot be read or written.
    """
    source = local_folder(gallery.uri)
    if source is None:
        raise NotLocal("galleries are exported from local folders only, not yet from an object store")
    if folder.exists():
        raise ExportExists(f"the export {folder.name!r} exists already; choose another name or remove it")
    with told_apart("writing the export"):
        sweep(folder.parent)
        hold = gallery.history.held if shared else gallery.history.pinned
        with staging(folder.parent) as scratch, hold(version) as dataset:
            staged = scratch / folder.name
            files = copy_files(source, staged / DATASET_FOLDER, version_files(dataset), report)
            copied = GalleryStore(str(staged / DATASET_FOLDER), folder=staged / DATASET_FOLDER)
            (staged / SPEC_FILE).write_text(to_json(copied.spec) + "\n")
            size, digest = copy_file(staged / SPEC_FILE, scratch / "check", Tally([], lambda _: None))
            manifest = Manifest(
                gallery=copied.spec.name,
                gallery_id=copied.spec.gallery_id,
                version=copied.version,
                rows=copied.count(),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                files=(
                    FileEntry(SPEC_FILE, size, digest),
                    *(FileEntry(f"{DATASET_FOLDER}/{entry.path}", entry.bytes, entry.sha256) for entry in files),
                ),
            )
            document = {"format": EXPORT_FORMAT, "kind": _KIND, **asdict(manifest)}
            (staged / MANIFEST_FILE).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
            try:
                move(staged, folder)
            except FileExistsError as error:
                raise ExportExists(f"the export {folder.name!r} exists already; choose another name") from error
            return manifest


@contextmanager
def imported(store: Store, folder: Path, name: str, *, read_only: bool = False, report: Report) -> Iterator[Path]:
    """A checked dataset for `Store.publish`, copied from an export; without that, nothing is left of it afterwards.

    Args:
        store: Where to.
        folder: What `export` wrote.
        name: Of the gallery to be.
        read_only: It is to take no writes.
        report: Told how far it is; raises to give it up.

    Raises:
        SpecError: If the name is not valid.
        GalleryExists: If the name is taken.
        ExportNotFound: If there is no such folder.
        NotAnExport: If it is not what `export` writes.
        NewerFormat: If a newer release wrote it.
        Damaged: If a file is not what was written.
        NotLocal: If the store is no local folder.
        StoreFailure: If something cannot be read or written.
    """
    check_free(store, name)
    manifest = read_manifest(folder)
    with store.staging() as scratch:
        with told_apart("reading the export"):
            sizes = {entry.path: _size(folder, entry) for entry in manifest.files}
            tally = Tally(list(sizes.values()), report)
            for entry in manifest.files:
                _check(entry, *copy_file(folder / entry.path, scratch / entry.path, tally))
            staged = scratch / DATASET_FOLDER
            _check_dataset(staged, manifest, spec=(scratch / SPEC_FILE).read_text().rstrip("\n"))
            adopt(staged, name, read_only=read_only)
        yield staged


def read_manifest(folder: Path) -> Manifest:
    """What an exported folder says of itself; nothing of it is checked yet but that it can be meant.

    Raises:
        ExportNotFound: If there is no such folder.
        NotAnExport: If it is not what `export` writes.
        NewerFormat: If a newer release wrote it.
    """
    if not folder.is_dir():
        raise ExportNotFound(f"there is no export {folder.name!r}")
    path = folder / MANIFEST_FILE
    if path.is_symlink() or not path.is_file():
        raise NotAnExport(f"{folder.name!r} is no export of a gallery: it has no {MANIFEST_FILE}")
    if (size := path.stat().st_size) > _MAX_MANIFEST_BYTES:
        raise NotAnExport(f"{MANIFEST_FILE} of {folder.name!r} has {size} bytes, the limit is {_MAX_MANIFEST_BYTES}")
    try:
        document = json.loads(path.read_bytes())
        if document["kind"] != _KIND:
            raise ValueError(f"its kind is {document['kind']!r}, not {_KIND!r}")
        written = int(document["format"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise NotAnExport(f"{MANIFEST_FILE} of {folder.name!r} is not of an export: {_words(error)}") from error
    if written > EXPORT_FORMAT:
        raise NewerFormat(
            f"the export {folder.name!r} has format {written}, this release reads up to {EXPORT_FORMAT}: upgrade"
        )
    try:
        return _manifest(document)
    except (ValueError, TypeError, KeyError) as error:
        raise NotAnExport(f"{MANIFEST_FILE} of {folder.name!r} is not of an export: {_words(error)}") from error


def _manifest(document: dict[str, Any]) -> Manifest:
    files = tuple(FileEntry(str(one["path"]), int(one["bytes"]), str(one["sha256"])) for one in document["files"])
    for entry in files:
        parts = PurePosixPath(entry.path).parts
        inside = parts[:1] == (DATASET_FOLDER,) and len(parts) > 1
        if ".." in parts or "\\" in entry.path or not (inside or entry.path == SPEC_FILE):
            raise ValueError(f"the path {entry.path[:200]!r} is none of an export")
    paths = [entry.path for entry in files]
    if len(set(paths)) != len(paths) or SPEC_FILE not in paths:
        raise ValueError(f"its files name {SPEC_FILE} not once, or another file twice")
    return Manifest(
        gallery=str(document["gallery"]),
        gallery_id=str(document["gallery_id"]),
        version=int(document["version"]),
        rows=int(document["rows"]),
        created=str(document["created"]),
        files=files,
    )


def _size(folder: Path, entry: FileEntry) -> int:
    """Bytes of a file, checked before anything is copied."""
    path = folder / entry.path
    here = folder.resolve()
    if not path.is_file() or path.is_symlink() or here not in path.resolve().parents:
        raise Damaged(f"{entry.path} of the export {folder.name!r} is missing, or no plain file")
    if (size := path.stat().st_size) != entry.bytes:
        raise Damaged(f"{entry.path} of the export {folder.name!r} has {size} bytes, it was written with {entry.bytes}")
    return size


def _check(entry: FileEntry, size: int, digest: str) -> None:
    if (size, digest) != (entry.bytes, entry.sha256):
        raise Damaged(
            f"{entry.path} of the export is damaged: its SHA-256 is {digest}, it was written with {entry.sha256}"
        )


def _check_dataset(staged: Path, manifest: Manifest, *, spec: str) -> None:
    """What the manifest's own words cannot show: that the files are the dataset, whole, and nothing but it."""
    try:
        gallery = GalleryStore(str(staged), folder=staged)
    except SpecError as error:
        raise NewerFormat(str(error)) from error
    needed = {f"{DATASET_FOLDER}/{path}" for path in version_files(gallery.checkout(gallery.version))}
    named = {entry.path for entry in manifest.files}
    _same("files", sorted(needed - named), [])
    _same("version", gallery.version, manifest.version)
    _same("rows", gallery.count(), manifest.rows)
    _same("description", to_json(gallery.spec), spec)


def _same(what: str, found: object, said: Sequence[Any] | object) -> None:
    if found != said:
        raise Damaged(f"the export contradicts itself: its {what} should be {said!r}, the dataset has {found!r}")


def _words(error: BaseException) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)[:200]
