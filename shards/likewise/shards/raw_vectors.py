"""Raw vectors beside an index that holds compressed ones: on disk, mapped, and in memory only as far as they are used.

They are what candidates are re-scored from, so that no score depends on how an index stores its rows. A file has no
name as soon as it is mapped: it is gone with the last snapshot that uses it, and after a crash. The store has the rows.
"""

import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from likewise.shards.protocols import F32


def allocate(rows: int, dim: int, folder: Path | None) -> F32:
    """(rows, dim) zeros to be filled and then settled: in a file below `folder`, in memory without one.

    Raises:
        OSError: If the disk refuses.
    """
    size = 4 * rows * dim
    if folder is None or size == 0:
        return np.zeros((rows, dim), dtype=np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a disk that is full later would kill the process that writes
        mapped = mmap.mmap(file.fileno(), size)
    return np.frombuffer(mapped, dtype=np.float32).reshape(rows, dim)


def settle(vectors: F32) -> F32:
    """The same vectors for reading; what is mapped leaves this process's memory until it is read."""
    vectors.flags.writeable = False
    leave(vectors)
    return vectors


def leave(vectors: F32) -> None:
    """Take what is mapped out of this process's memory after a look at all of it; the system may still cache it."""
    mapped = _mapping(vectors)
    if mapped is not None and hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)


def is_mapped(vectors: npt.NDArray[Any]) -> bool:
    """Whether an array, or what it is a view of, lies in a file."""
    return _mapping(vectors) is not None


def _mapping(array: npt.NDArray[Any]) -> mmap.mmap | None:
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base if isinstance(base, mmap.mmap) else None
