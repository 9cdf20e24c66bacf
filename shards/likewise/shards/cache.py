"""Sealed indexes on disk, so that a restart does not build them again.

One file for each space of a shard. It is a cache: whatever is wrong with one (damaged, of another gallery, partition,
index or release), it is logged, removed and built anew. FAISS's own format has no checksum and accepts flipped bytes,
so none reaches it before the digest of the whole file has been compared. Flat shards have no file: their vectors come
from the store in any case, and the directions that they are compared in are soon found again.

Layout: the index as FAISS writes it, which comes first so that FAISS reads the file itself; if its rows are reduced,
the directions and the rows as they are (float32, little-endian, row after row); stamps (int64, little-endian, one a
position), header (JSON), length of the header, checksum of all before it, magic.
"""

import contextlib
import json
import logging
import os
import struct
import tempfile
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

import numpy as np

from likewise.shards import checksum
from likewise.shards import index as sealed_index
from likewise.shards.index import SealedIndex
from likewise.shards.protocols import F32, I64
from likewise.shards.recipe import Recipe
from likewise.shards.reduction import Reduction
from likewise.shards.spec import GallerySpec, SpaceSpec, generation

log = logging.getLogger(__name__)

FORMAT: Final = 3
SUFFIX: Final = ".sealed"

_MAGIC: Final = b"LIKEWISE-SEALED\n"
_LENGTH: Final = struct.Struct("<I")
_END: Final = struct.Struct(f"<{checksum.DIGEST_BYTES}s{len(_MAGIC)}s")
_MAX_HEADER_BYTES: Final = 1 << 16


class _Unusable(Exception):
    """Why a file cannot be used."""


@dataclass(frozen=True, slots=True)
class CachedIndex:
    """An index and which row versions it holds.

    Attributes:
        index: The index.
        stamps: (rows,) int64 stamp of each position.
    """

    index: SealedIndex
    stamps: I64


class SealedCache:
    """The files of one shard. Blocking: use it from an executor.

    Args:
        folder: Made when it is missing; may be shared by all shards of a machine.
        spec: The gallery.
        shard: Number of the partition.
    """

    def __init__(self, folder: Path, spec: GallerySpec, shard: int) -> None:
        self._folder = folder
        self._spec = spec
        self._shard = shard

    def path(self, space: SpaceSpec) -> Path:
        """Where the file of a space is."""
        return self._folder / f"{self._spec.gallery_id}-{self._shard}{_of(self._spec)}{space.name}{SUFFIX}"

    def load(self, space: SpaceSpec) -> CachedIndex | None:
        """The index of a space; None, with the reason logged and the file gone, if there is none to trust."""
        path = self.path(space)
        try:
            return self._read(path, space)
        except FileNotFoundError:
            return None
        except (_Unusable, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            log.warning("sealed index %s is not used and will be built anew: %s", path.name, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def store(self, space: SpaceSpec, index: SealedIndex, stamps: I64) -> None:
        """Write the file of a space, whole or not at all.

        Raises:
            OSError: If the disk refuses; what was there before stays.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        header = json.dumps(self._header(space, index.recipe) | _described(index)).encode()
        descriptor, name = tempfile.mkstemp(dir=self._folder, suffix=".tmp")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                total = checksum.Checksum()

                def put(piece: bytes | memoryview) -> None:
                    total.update(piece)
                    file.write(piece)

                sealed_index.write(index, put)
                if index.reduction is not None:
                    put(np.ascontiguousarray(index.reduction.directions.T, dtype="<f4").tobytes())
                    put(np.ascontiguousarray(index.vectors, dtype="<f4").data.cast("B"))
                put(np.ascontiguousarray(stamps, dtype="<i8").tobytes())
                put(header + _LENGTH.pack(len(header)))
                file.write(_END.pack(total.digest(), _MAGIC))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path(space))
            _sync_folder(self._folder)
        finally:
            temporary.unlink(missing_ok=True)

    def discard(self, space: SpaceSpec) -> None:
        """Remove the file of a space, if there is one."""
        self.path(space).unlink(missing_ok=True)

    def _read(self, path: Path, space: SpaceSpec) -> CachedIndex:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END) - _END.size
            if end < _LENGTH.size:
                raise _Unusable(f"it has {max(0, end + _END.size)} bytes, which are too few")
            file.seek(end)
            expected, magic = _END.unpack(file.read(_END.size))
            if magic != _MAGIC:
                raise _Unusable("it does not end as a sealed index does")
            if checksum.of_file(file.fileno(), end) != expected:
                raise _Unusable("its checksum does not hold")
            file.seek(end - _LENGTH.size)
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > min(_MAX_HEADER_BYTES, end - _LENGTH.size):
                raise _Unusable(f"its header has {length} bytes, at most {_MAX_HEADER_BYTES} are possible")
            file.seek(end - _LENGTH.size - length)
            header: dict[str, Any] = json.loads(file.read(length))
            if header.get("format") != FORMAT:
                raise _Unusable(f"it has format {header.get('format')}, this release reads {FORMAT}")
            rows, trained, width = (int(header.pop(name)) for name in ("rows", "trained", "width"))
            slack = float(header.pop("slack"))
            recipe = Recipe(**header.get("recipe", {}))
            if header != self._header(space, recipe):
                raise _Unusable(f"it is of another gallery, partition, space or format: {header}")
            columns = max(0, width - 1)
            beside = rows if width else 0  # vectors
            file.seek(end - _LENGTH.size - length - 8 * rows - 4 * space.dim * (columns + beside))
            directions, vectors = (_matrix(file, *shape) for shape in ((space.dim, columns), (beside, space.dim)))
            stamps = np.frombuffer(file.read(8 * rows), dtype="<i8").astype(np.int64)
        index = sealed_index.read(path)
        numbers = width or space.dim
        if index.ntotal != rows or index.d != numbers or len(stamps) != rows:
            raise _Unusable(f"it holds {index.ntotal} rows of {index.d} numbers, its header says {rows} of {numbers}")
        reduction = Reduction(np.ascontiguousarray(directions.T), slack) if width else None
        adopted = sealed_index.adopt(
            index, recipe, self._spec.index, trained_rows=trained, reduction=reduction, vectors=vectors
        )
        return CachedIndex(adopted, stamps)

    def _header(self, space: SpaceSpec, recipe: Recipe) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "gallery_id": self._spec.gallery_id,
            "shard": self._shard,
            "shards": self._spec.shards,
            "space": space.name,
            "dim": space.dim,
            "digest": space.digest,
            "recipe": asdict(recipe),
        }


def _matrix(file: BufferedReader, rows: int, columns: int) -> F32:
    """The next (rows, columns) numbers of a file, read in place."""
    matrix = np.empty((rows, columns), dtype="<f4")
    if matrix.nbytes and file.readinto(matrix.data.cast("B")) != matrix.nbytes:
        raise _Unusable(f"it ends within {rows} rows of {columns} numbers")
    matrix.flags.writeable = False
    return matrix


def _described(index: SealedIndex) -> dict[str, Any]:
    """What the header says of an index beside what it must be: 0 numbers a row stand for rows that are not reduced."""
    reduction = index.reduction
    return {
        "rows": index.rows,
        "trained": index.trained_rows,
        "width": 0 if reduction is None else reduction.width,
        "slack": 0.0 if reduction is None else reduction.slack,
    }


def sweep(folder: Path, spec: GallerySpec) -> None:
    """Remove what a gallery's shards of other generations left behind. Blocking.

    Args:
        folder: Of the files; need not be there.
        spec: The description on record: files of a generation that is still being tried may go, at a build's cost.
    """
    for path in folder.glob(f"{spec.gallery_id}-*-of-*{SUFFIX}"):
        if _of(spec) not in path.name:
            path.unlink(missing_ok=True)


def discard(folder: Path, spec: GallerySpec) -> None:
    """Remove the files of all of a gallery's shards under a description. Blocking."""
    for shard in range(spec.shards):
        for space in spec.spaces:
            SealedCache(folder, spec, shard).discard(space)


def _of(spec: GallerySpec) -> str:
    return f"-of-{generation(spec)}-"


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder durable, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
