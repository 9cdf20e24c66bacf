"""A server in a process of its own, for as long as a command needs it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Final, NoReturn

_READY: Final = re.compile(r"serving on ([^\s,]+)")
_START_S: Final = 180.0
_GRACE_S: Final = 30.0  # over the server's own drain time
_TAIL_LINES: Final = 30


def serve_command(store: Path, *, port: int = 0, arguments: Sequence[str] = ()) -> list[str]:
    """The command line of `likewise serve` in this Python, on a free port unless one is named."""
    return [sys.executable, "-m", "likewise.cli.serve", "--store", str(store), "--port", str(port), *arguments]


def stop_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit here, so that servers are stopped on the way out as they are after Ctrl-C."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


class ServerFailed(RuntimeError):
    """The server did not come up; the message ends with the last lines it printed."""


class ServerProcess:
    """Starts a server when entered, stops it when left, whatever happened in between.

    The command has to print a line with "serving on host:port" when it is ready.

    Leaving sends SIGTERM, waits for the server to drain, and kills it and its children when it does not end by itself.
    The server runs in a session of its own: Ctrl-C at the terminal reaches only this process, which then stops the
    server.

    Args:
        command: To run.
        log_path: Everything the server prints.
        environment: Variables besides those of this process.

    Attributes:
        address: host:port, once entered.
        log_path: Everything the server prints.
    """

    def __init__(self, command: Sequence[str], *, log_path: Path, environment: Mapping[str, str] | None = None) -> None:
        self.address = ""
        self._environment = dict(environment or {})
        self.log_path = log_path
        self._command = list(command)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._settled = threading.Event()
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise ServerFailed("the server has not been started")
        return self._process.pid

    def __enter__(self) -> "ServerProcess":
        """Start the server and wait until it serves.

        Raises:
            ServerFailed: If it ends or stays silent instead.
        """
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0", **self._environment},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._follow, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        try:
            heard = self._settled.wait(_START_S)
        except BaseException:
            self.stop()
            raise
        if not self.address:
            why = "ended before it served" if heard else f"said nothing of serving within {_START_S:.0f} s"
            self.stop()
            raise ServerFailed(f"the server {why}. The end of its log, {self.log_path}:\n" + "\n".join(self._tail))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server."""
        self.stop()

    def stop(self) -> int | None:
        """SIGTERM, then after a grace SIGKILL for it and its children; the exit code, None if it never ran."""
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                _kill(process)
            except BaseException:  # a second Ctrl-C: leave at once, but leave nothing behind
                _kill(process)
                raise
        if self._reader is not None:
            self._reader.join(timeout=_GRACE_S)
        return process.returncode

    def _follow(self, stream: IO[str]) -> None:
        with stream, self.log_path.open("w", encoding="utf-8") as log:
            for line in stream:
                log.write(line)
                log.flush()
                self._tail.append(line.rstrip())
                if not self.address and (match := _READY.search(line)):
                    self.address = match[1]
                    self._settled.set()
        self._settled.set()


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
