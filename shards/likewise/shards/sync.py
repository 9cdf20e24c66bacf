"""Files made durable against power loss.

Lance writes and renames without fsync: what it acknowledges survives the process in the page cache, not the machine.
On a local folder we close that gap ourselves, about 2 ms a commit on an SSD.
"""

import os
from collections.abc import Iterable
from pathlib import Path


def sync_files(paths: Iterable[Path]) -> None:
    """Flush files and the folders that name them to the device.

    Raises:
        OSError: If the device refuses.
    """
    folders: set[Path] = set()
    for path in paths:
        _sync(path, os.O_RDONLY)
        folders.add(path.parent)
    for folder in folders:
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
