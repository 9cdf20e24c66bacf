"""Folders in which something is made whole before anybody can see it."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from likewise.shards.lock import StoreLock, StoreLocked
from likewise.shards.sync import sync_files

STAGING_PREFIX: Final = ".incoming-"
_TRIES: Final = 20


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A hidden folder below `parent`, gone after the block; what was finished in it has been moved away by then.

    One that a crash left behind is removed by `sweep`, which leaves alone those that a living process works in.
    """
    folder, lock = _claimed(parent)
    try:
        with lock:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _claimed(parent: Path) -> tuple[Path, StoreLock]:
    """A new folder and its lock, which is held. A `sweep` takes a folder that is not locked yet for a leftover."""
    for _ in range(_TRIES):
        folder = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=parent))
        lock = StoreLock(folder)
        try:
            lock.acquire()
            if lock.holds:
                return folder, lock
            lock.release()
        except (StoreLocked, FileExistsError, FileNotFoundError):
            pass  # by a sweep
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    raise OSError(errno.EBUSY, f"{_TRIES} new folders were each swept away before they could be locked", str(parent))


def sweep(parent: Path) -> None:
    """Remove what crashes left below `parent`."""
    for folder in parent.glob(f"{STAGING_PREFIX}*"):
        try:
            with StoreLock(folder) as lock:
                if lock.holds:  # else another sweep has been there, and the name may be somebody's again
                    shutil.rmtree(folder, ignore_errors=True)
        except (StoreLocked, OSError):
            continue


def move(staged: Path, target: Path) -> None:
    """Give a finished folder its name; durable, contents included, when this returns.

    Raises:
        FileExistsError: If the name is taken; nothing has changed.
    """
    inside = list(staged.rglob("*"))
    sync_files(path for path in inside if path.is_file())
    for folder in (staged, *(path for path in inside if path.is_dir())):
        flush(folder)
    try:
        if target.exists():
            raise FileExistsError(f"{target.name} exists already")
        # A folder cannot be renamed over one that holds anything, so that nothing is lost to somebody who was quicker.
        staged.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(f"{target.name} exists already") from error
        raise
    flush(target.parent)


def flush(folder: Path) -> None:
    """Make the folder's own entries survive power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
