"""Open-loop load on a Search endpoint, from a process of its own: calls come when they come, whatever the server does.

Run as `python -m likewise.cli.benchmark.open_loop JOB_FILE`; `run_open_loop` does that and reads the result. Arrivals
are a Poisson process. The deadline of a call counts from its arrival: a caller process that falls behind its schedule
sends what is left of it, and nothing where nothing is left.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import numpy as np

from likewise.cli.benchmark.echo import run_loop
from likewise.cli.benchmark.load import LoadFailed, searching
from likewise.client import LikewiseError
from likewise.v1 import search_service_pb2 as pb

GOOD: Final = "good"
WRONG: Final = "wrong"
LATE: Final = "late"
REFUSED: Final = "refused"
DROPPED: Final = "dropped unread"
FAILED: Final = "failed"

_CODES: Final = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: REFUSED,
    # All that gRPC's core says of a call that came when too many were waiting; this client cancels none.
    grpc.StatusCode.CANCELLED: DROPPED,
    grpc.StatusCode.DEADLINE_EXCEEDED: LATE,
}


@dataclass(frozen=True, slots=True)
class OpenJob:
    """What to do.

    Attributes:
        address: Server.
        requests: File with a `BatchSearchRequest`, the requests to send in turn.
        client: "stub" or "sdk", as of `likewise.cli.benchmark.load.Job`.
        answers: JSON file with the right ids of each request; "" to take any.
        rate: Arrivals a second.
        measure_s: Seconds of arrivals.
        deadline_s: Of each call.
        seed: Of the arrivals.
        result: File for the result.
    """

    address: str
    requests: str
    client: str
    answers: str
    rate: float
    measure_s: float
    deadline_s: float
    seed: int
    result: str


@dataclass(frozen=True, slots=True)
class OpenLoad:
    """What became of the calls: how many of each outcome, and the seconds that they came in."""

    outcomes: dict[str, int]
    measure_s: float

    @property
    def goodput(self) -> float:
        """Right answers in time, a second."""
        return self.outcomes.get(GOOD, 0) / self.measure_s

    @property
    def offered(self) -> float:
        """Arrivals a second."""
        return sum(self.outcomes.values()) / self.measure_s


def run_open_loop(
    address: str,
    requests: Path,
    answers: Path | None,
    *,
    rate: float,
    measure_s: float,
    deadline_s: float,
    seed: int,
    client: str = "stub",
) -> OpenLoad:
    """Load a server from a fresh process.

    Raises:
        LoadFailed: If the process fails; a call that fails is an outcome.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        given = "" if answers is None else str(answers)
        job = OpenJob(address, str(requests), client, given, rate, measure_s, deadline_s, seed, str(result))
        job_file = Path(folder, "job.json")
        job_file.write_text(json.dumps(asdict(job)))
        command = [sys.executable, "-m", "likewise.cli.benchmark.open_loop", str(job_file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LoadFailed(f"open-loop load on {address} failed: {done.stderr.strip()[-2000:]}")
        return OpenLoad(json.loads(result.read_text()), measure_s)


def arrivals(rate: float, measure_s: float, seed: int) -> list[float]:
    """Seconds from the start at which calls come: a Poisson process of `rate` a second, up to `measure_s`."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, int(rate * measure_s * 1.5) + 64)
    times = np.cumsum(gaps)
    due: list[float] = times[times < measure_s].tolist()
    return due


def _main(job: OpenJob) -> None:
    requests = list(pb.BatchSearchRequest.FromString(Path(job.requests).read_bytes()).requests)
    answers = json.loads(Path(job.answers).read_text()) if job.answers else None
    outcomes: Counter[str] = Counter()
    run_loop(_run(job, requests, answers, outcomes))
    Path(job.result).write_text(json.dumps(outcomes))


async def _run(job: OpenJob, requests: Sequence[pb.SearchRequest], answers: Any, outcomes: "Counter[str]") -> None:
    due = arrivals(job.rate, job.measure_s, job.seed)
    async with searching(job.address, job.client, requests) as search:

        async def call(which: int, at: float) -> None:
            left = at + job.deadline_s - time.perf_counter()
            if left <= 0:
                outcomes[LATE] += 1
                return
            try:
                ids = await search(which, left)
            except (grpc.aio.AioRpcError, LikewiseError) as error:
                code = error.code if isinstance(error, LikewiseError) else error.code()
                outcomes[_CODES.get(code) or f"{FAILED}: {code.name if code else 'by the client'}"] += 1
                return
            right = answers is None or ids == answers[which]
            in_time = time.perf_counter() <= at + job.deadline_s
            outcomes[(GOOD if in_time else LATE) if right else WRONG] += 1

        await search(0, 60.0)
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as calls:
            for i, at in enumerate(due):
                if (wait := begin + at - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                elif i % 16 == 0:  # behind its schedule, it still has to hear the answers
                    await asyncio.sleep(0)
                calls.create_task(call(i % len(requests), begin + at))


if __name__ == "__main__":
    _main(OpenJob(**json.loads(Path(sys.argv[1]).read_text())))
