"""A server as a user runs it: a process of its own, started, killed and started again by the tests."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

START_SECONDS = 180.0
STOP_SECONDS = 60.0

_READY = re.compile(r"serving on ([^\s,]+)")


class ServerProcess:
    """`likewise serve` on a free port over one store.

    Attributes:
        address: host:port once it serves.
        log: Everything it printed so far, a line each.
    """

    def __init__(self, store: Path, arguments: Sequence[str] = ()) -> None:
        self.store = store
        self.address = ""
        self.log: list[str] = []
        self._arguments = list(arguments)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._ready = threading.Event()

    def start(self) -> "ServerProcess":
        """Start and wait until it serves."""
        command = [sys.executable, "-m", "likewise.client.cli", "serve", "--store", str(self.store), "--port", "0"]
        self._ready.clear()
        self._process = subprocess.Popen(
            [*command, *self._arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0"},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        if not self._ready.wait(START_SECONDS) or not self.address:
            self.kill()
            raise AssertionError("the server did not come up:\n" + "\n".join(self.log[-40:]))
        return self

    def terminate(self) -> int:
        """SIGTERM, as Kubernetes does, and the exit code."""
        return self._signal(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL for the process and all its children, as a dying machine does."""
        return self._signal(signal.SIGKILL)

    @property
    def pid(self) -> int:
        """Process id while it runs."""
        assert self._process is not None
        return self._process.pid

    def freeze(self) -> None:
        """SIGSTOP for the process and all its children, as a machine that hangs does; connections stay open."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: it goes on where it was."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> int:
        assert self._process is not None
        if self._process.poll() is None:
            if number == signal.SIGKILL:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)
        code = self._process.wait(STOP_SECONDS)
        if self._reader is not None:
            self._reader.join(STOP_SECONDS)
        return code

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.log.append(line.rstrip())
                if not self._ready.is_set() and (match := _READY.search(line)):
                    self.address = match[1]
                    self._ready.set()
        self.address = "" if not self._ready.is_set() else self.address
        self._ready.set()


@contextmanager
def serving(mode: str, store: Path | None = None, arguments: Sequence[str] = ()) -> Iterator[ServerProcess]:
    """A server in `mode` ("embedded" or "ray") that is stopped afterwards, whatever happens."""
    with tempfile.TemporaryDirectory() as folder:
        extra = ["--ray", "local"] if mode == "ray" else []
        server = ServerProcess(store or Path(folder) / "store", [*extra, *arguments])
        server.start()
        try:
            yield server
        finally:
            try:
                server.terminate()
            except subprocess.TimeoutExpired:
                server.kill()
                raise
