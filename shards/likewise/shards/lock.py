"""One process a store: an exclusive lock on a local store folder.

The lock is the kernel's (flock), so it goes with its holder however that ends, kill -9 included; the file's text only
says who holds it. An object store has no such lock, and a lock says nothing about a process on the other side of a
network file system: what keeps a writer that was taken for dead from committing after its successor is `fence`.
"""

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from likewise.shards.protocols import ShardError

LOCK_FILE: Final = "likewise.lock"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a store.

    Attributes:
        pid: Process id on its host.
        host: Host name.
        address: Where it serves, "" if it does not say.
        since: Unix time in seconds at which it took the lock.
    """

    pid: int
    host: str
    address: str
    since: float


class StoreLocked(ShardError):
    """Another process has the store.

    Attributes:
        holder: Who it is, None if the lock file does not say.
    """

    def __init__(self, root: Path, holder: Holder | None) -> None:
        if holder is None:
            who = "another process"
        else:
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(holder.since))
            serving = f", serving at {holder.address}" if holder.address else ""
            who = f"process {holder.pid} on {holder.host}{serving}, since {since}"
        super().__init__(f"the store {root} is in use by {who}; stop it or choose another store")
        self.holder = holder


class StoreLock:
    """An exclusive lock on a local store folder, held from `acquire` to `release` or the end of the process.

    Not inherited by programs that the holder starts. A context manager too.
    """

    def __init__(self, root: Path, *, address: str = "") -> None:
        """Nothing is locked yet; `address` is what others are told about the holder."""
        self._root = root
        self._address = address
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, making the folder if need be.

        Raises:
            StoreLocked: If another process, or another lock of this one, has it.
            OSError: If the folder cannot be written.
        """
        if self._descriptor is not None:
            return
        self._root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._root / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(descriptor)
            os.close(descriptor)
            raise StoreLocked(self._root, holder) from None
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self._announce()

    @property
    def holds(self) -> bool:
        """Whether the lock is held and the folder still has the file it is on: somebody may have removed both."""
        if self._descriptor is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), (self._root / LOCK_FILE).stat())
        except FileNotFoundError:
            return False

    def update_address(self, address: str) -> None:
        """Say where the holder serves, once that is known."""
        self._address = address
        if self._descriptor is not None:
            self._announce()

    def release(self) -> None:
        """Give the lock back; without one nothing happens. The file stays: removing it would race with the next one."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def _announce(self) -> None:
        assert self._descriptor is not None
        holder = Holder(pid=os.getpid(), host=socket.gethostname(), address=self._address, since=time.time())
        text = json.dumps(asdict(holder)).encode()
        # Cut after writing: a reader then never sees an empty file, at worst a text with an older tail.
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _read_holder(descriptor: int) -> Holder | None:
    with suppress(ValueError, TypeError, OSError):
        return Holder(**json.loads(os.pread(descriptor, 4_096, 0)))
    return None
