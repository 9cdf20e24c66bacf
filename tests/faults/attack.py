"""What the tests of faults share: the processes of a cluster by their addresses, and callers that go on meanwhile."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from likewise.client import Client, LikewiseError

DIM = 16
PACE_S = 0.02
WAIT_S = 90.0


@dataclass(frozen=True)
class Cluster:
    """Addresses of its first router and of its controller."""

    address: str
    controller: str


def listener(address: str) -> int:
    """Process that listens at host:port; Linux only, and of this user's processes only."""
    port = int(address.rpartition(":")[2])
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                if any(os.readlink(file) in inodes for file in (process / "fd").iterdir()):
                    return int(process.name)
            except OSError:  # another user's, or it has ended
                continue
    raise AssertionError(f"nobody listens at {address}")


def kill(address: str) -> None:
    """SIGKILL for whoever listens there; returns when the kernel has closed its sockets."""
    os.kill(listener(address), signal.SIGKILL)

    def closed() -> bool:
        try:
            listener(address)
        except AssertionError:
            return True
        return False

    wait_until(closed)


@contextmanager
def frozen(address: str) -> Iterator[None]:
    """Whoever listens there stands still inside the block, with its connections open."""
    process = listener(address)
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def wait_until(holds: Callable[[], bool]) -> None:
    """Return when something holds that takes a process's start at most; an answer that is an error is none yet."""
    end = time.monotonic() + WAIT_S
    while True:
        try:
            if holds():
                return
            why = "it is false"
        except LikewiseError as error:
            why = f"{type(error).__name__}: {error}"
        assert time.monotonic() < end, f"it does not hold after a minute and a half: {why}"
        time.sleep(0.05)


def vectors(n: int, seed: int = 1) -> np.ndarray:
    """Rows to store or to ask for."""
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)


@dataclass
class Callers:
    """Searches about fifty times a second until told to stop.

    Attributes:
        answered: How many did.
        failures: Why the others did not.
    """

    client: Client
    gallery: str
    answered: int = 0
    failures: list[Exception] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def calling(self) -> Iterator["Callers"]:
        """Search inside the block."""
        threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def wait_for(self, further: int) -> None:
        """Return after so many further answers, or the first failure."""
        wanted = self.answered + further
        wait_until(lambda: self.answered >= wanted or bool(self.failures))

    def _run(self, seed: int) -> None:
        gallery = self.client.gallery(self.gallery)
        for query in np.tile(vectors(50, seed), (1_000, 1)):
            if self._stop.wait(2 * PACE_S):
                return
            try:
                assert len(gallery.search(vector=query, k=5, timeout=20)) == 5
            except Exception as error:
                self.failures.append(error)
            else:
                self.answered += 1
