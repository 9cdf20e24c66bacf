"""The harness's end of the conversation with a peer's driver process; see `driver.protocol`."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import numpy as np
from benchmarks.peers.driver.pace import Pace
from benchmarks.peers.driver.protocol import F64, I64

ROOT: Final = Path(__file__).resolve().parents[2]
START_S: Final = 300.0
LOAD_S: Final = 3_600.0
_ANSWER_S: Final = 600.0  # over what a pace says it takes
_STOP_S: Final = 60.0
_TAIL_BYTES: Final = 2_000


class PeerFailed(RuntimeError):
    """A peer could not do what it was asked to.

    Attributes:
        gone: Whether its process is over, so that nothing more can be asked of it.
    """

    def __init__(self, message: str, *, gone: bool) -> None:
        super().__init__(message)
        self.gone = gone


@dataclass(frozen=True, slots=True)
class Job:
    """What a driver is started with.

    Attributes:
        adapter: Module with `adapter(setting)`.
        data: Folder of base.npy, share.npy, cluster_share.npy and the queries.
        folder: An empty one for the peer.
        threads: Processors it may count on.
        options: The adapter's own.
    """

    adapter: str
    data: Path
    folder: Path
    threads: int
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as the driver takes it: the file of queries by name; see `driver.protocol.Question` for the rest."""

    queries: str
    k: int
    below: float | None
    params: Mapping[str, Any]
    batch: int = 1


@dataclass(frozen=True, slots=True)
class Ran:
    """A run.

    Attributes:
        latencies_s: (calls,) of the calls that count.
        answers: (m, k) rows; -1 for none, -2 for a query that was not asked.
        wall_s: Seconds measured.
        in_time: Counting calls that were answered before the measured time ended.
        offered: Arrivals in that time, for an open loop.
    """

    latencies_s: F64
    answers: I64
    wall_s: float
    in_time: int
    offered: int


class PeerProcess:
    """Starts a driver when entered, ends it and everything it started when left.

    The driver is a session of its own, so that what it leaves behind can be ended with it.

    Args:
        python: Interpreter of the peer's environment.
        job: What it is started with.
    """

    def __init__(self, python: Path, job: Job) -> None:
        self.versions: dict[str, str] = {}
        self.log_path = job.folder.with_suffix(".log")
        self._python = python
        self._job = job
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.Queue[str | None] = queue.Queue(maxsize=16)

    def __enter__(self) -> "PeerProcess":
        """Start the driver and wait until the peer is up.

        Raises:
            PeerFailed: If it is not.
        """
        self._job.folder.mkdir(parents=True)
        job_path = self._job.folder.with_suffix(".json")
        job_path.write_text(json.dumps({**asdict(self._job), "options": dict(self._job.options)}, default=str))
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [str(self._python), "-m", "benchmarks.peers.driver", str(job_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        threading.Thread(target=self._follow, args=(self._process.stdout,), daemon=True).start()
        try:
            self.versions = dict(self._reply(START_S)["versions"])
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ask the driver to stop; end it when it does not."""
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(PeerFailed):
                self._call({"do": "stop"}, _STOP_S)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
        self._kill()

    def load(self) -> float:
        """Store the rows anew; the seconds until they are searchable.

        Raises:
            PeerFailed: If that fails.
        """
        return float(self._call({"do": "load"}, LOAD_S)["seconds"])

    def ask(self, asked: Asked, pace: Pace) -> Ran:
        """Ask a question at a pace.

        Raises:
            PeerFailed: If a call fails, or the run does not end.
        """
        out = self._job.folder.with_suffix(".npz")
        command = {"do": "ask", "question": asdict(asked), "pace": asdict(pace), "out": str(out)}
        reply = self._call(command, pace.warm_up_s + pace.measure_s + _ANSWER_S)
        with np.load(out) as run:
            ran = Ran(run["latencies_s"], run["answers"], reply["wall_s"], reply["in_time"], reply["offered"])
        out.unlink()
        return ran

    def _call(self, command: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        if self._process is None:
            raise PeerFailed(f"its process was ended. {self._tail()}", gone=True)
        assert self._process.stdin is not None
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
        except BrokenPipeError as error:
            raise PeerFailed(f"its process is over. {self._tail()}", gone=True) from error
        return self._reply(limit_s)

    def _reply(self, limit_s: float) -> dict[str, Any]:
        try:
            line = self._replies.get(timeout=limit_s)
        except queue.Empty as error:
            self._kill()
            raise PeerFailed(f"no answer within {limit_s:.0f} s. {self._tail()}", gone=True) from error
        if line is None:
            raise PeerFailed(f"its process ended. {self._tail()}", gone=True)
        try:
            reply = json.loads(line)
        except json.JSONDecodeError as error:
            self._kill()
            raise PeerFailed(f"not JSON: {line[:200]!r}", gone=True) from error
        if not reply.get("ok"):
            raise PeerFailed(str(reply.get("error", "no reason given")), gone=False)
        return dict(reply)

    def _follow(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._replies.put(line)
        self._replies.put(None)

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            text = self.log_path.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()
            return f"The end of its log:\n{text}" if text else "It said nothing."
        return ""

    def _kill(self) -> None:
        """End the driver, politely first: a server that its peer started may be in a session of its own."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._process = None  # its number may be another's by and by
