"""One version of a dataset, file by file: linked or copied, hashed on the way, given up when nobody waits any more."""

import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from likewise.shards.protocols import ShardError, StoreFailure

CHUNK_BYTES: Final = 4 << 20
"""Read and written at a time; progress is reported as often."""

# File systems without hard links, between two of them, and files with as many as they may have.
_NO_LINK: Final = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOTSUP)

_NEEDED: Final = ("manifest", "data file", "deletion file", "index file")
"""Kinds of `lance.LanceDataset.tracked_files`: a version is read, and written on, without its transaction file."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a transfer has come.

    Attributes:
        files_done: Files finished.
        files: Files in all.
        bytes_done: Bytes written.
        bytes: Bytes in all.
    """

    files_done: int
    files: int
    bytes_done: int
    bytes: int


Report = Callable[[Progress], None]
"""Told after every chunk; raises to give the transfer up."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file as it has to be: `path` relative, with forward slashes; `sha256` in hex."""

    path: str
    bytes: int
    sha256: str


class NotLocal(ShardError):
    """Whole galleries are copied between local folders only."""


class Damaged(StoreFailure):
    """Bytes that are not what was written."""


class Tally:
    """Adds up a transfer and reports it.

    Args:
        sizes: Bytes of every file to come.
        report: See `Report`.
    """

    def __init__(self, sizes: Sequence[int], report: Report) -> None:
        self._files, self._bytes = len(sizes), sum(sizes)
        self._files_done = self._bytes_done = 0
        self._report = report

    def wrote(self, size: int) -> None:
        """So many bytes more of a file."""
        self._bytes_done += size
        self._tell()

    def finished(self) -> None:
        """One file more."""
        self._files_done += 1
        self._tell()

    def _tell(self) -> None:
        self._report(Progress(self._files_done, self._files, self._bytes_done, self._bytes))


def version_files(dataset: Any) -> list[str]:
    """Paths, relative to a `lance.LanceDataset`'s folder, of all that its version is made of, the manifest last.

    Raises:
        StoreFailure: If the version lies partly elsewhere (a shallow clone).
    """
    version = int(dataset.version)
    table = dataset.tracked_files(min_version=version).read_all().to_pylist()
    own = [entry for entry in table if entry["version"] == version and entry["type"] in _NEEDED]
    if dataset.base_paths():
        raise StoreFailure("the gallery is a shallow clone, with files elsewhere too: make a deep clone of it first")
    return [entry["path"] for entry in sorted(own, key=lambda entry: (entry["type"] == "manifest", entry["path"]))]


def link_files(source: Path, target: Path, paths: Sequence[str]) -> None:
    """Give files, which nobody ever changes, a second name in `target`; copies where there are no hard links."""
    for path in paths:
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / path, place)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            copy_file(source / path, place, Tally([], lambda _: None))


def copy_files(source: Path, target: Path, paths: Sequence[str], report: Report) -> list[FileEntry]:
    """Copy files below `source` to the same places below `target`; durable is what `staging.move` makes them."""
    tally = Tally([(source / path).stat().st_size for path in paths], report)
    return [FileEntry(path, *copy_file(source / path, target / path, tally)) for path in paths]


def copy_file(source: Path, place: Path, tally: Tally) -> tuple[int, str]:
    """Copy one file; returns its bytes and their SHA-256 in hex. A symbolic link is refused, wherever it leads."""
    place.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    size = 0
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as reading, place.open("xb") as writing:
        while chunk := reading.read(CHUNK_BYTES):
            digest.update(chunk)
            writing.write(chunk)
            size += len(chunk)
            tally.wrote(len(chunk))
    tally.finished()
    return size, digest.hexdigest()
