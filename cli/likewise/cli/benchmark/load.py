"""Closed-loop load on a Search endpoint, from a process of its own: each caller sends its next call after its answer.

Run as `python -m likewise.cli.benchmark.load JOB_FILE`; `run_load` does that and reads the result. The "stub" client
is a bare grpc.aio method with prepared messages; "sdk" is `likewise.client.AsyncClient` with a call per query, as a
user writes it, and "threads" is a `likewise.client.Client` that as many threads share. Closed-loop figures tell
throughput; their tail latencies are those of n callers, not of traffic that arrives by itself.
"""

import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import numpy as np

from likewise.cli.benchmark.echo import SEARCH_PATH, run_loop
from likewise.cli.benchmark.figures import Speed, speed
from likewise.client import AsyncClient, Client
from likewise.client.filters import Filter
from likewise.v1 import search_service_pb2 as pb
from likewise.wire import MAX_MESSAGE_BYTES, decode_vectors


@dataclass(frozen=True, slots=True)
class Job:
    """What to do.

    Attributes:
        address: Server.
        requests: File with a `BatchSearchRequest`, the requests to send in turn, over and over.
        client: "stub", "sdk" or "threads"; the SDK's requests are made of vector, k, filter, ef and exact.
        callers: Calls in progress at any time.
        warm_up_s: Seconds that do not count.
        measure_s: Seconds that do.
        result: Folder for the result.
    """

    address: str
    requests: str
    client: str
    callers: int
    warm_up_s: float
    measure_s: float
    result: str


@dataclass(frozen=True, slots=True)
class Load:
    """What a run gave.

    Attributes:
        speed: Of the calls that began after the warm-up and ended in time.
        answers: Ids of the last answer to each request; None for a request that was never answered.
    """

    speed: Speed
    answers: list[list[str] | None]


class LoadFailed(RuntimeError):
    """A call failed; the message has its status."""


def run_load(
    address: str,
    requests: Path,
    *,
    callers: int,
    measure_s: float,
    warm_up_s: float = 1.0,
    client: str = "stub",
) -> Load:
    """Load a server from a fresh process and return what it saw.

    Raises:
        LoadFailed: If any call failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = Job(address, str(requests), client, callers, warm_up_s, measure_s, folder)
        job_file = Path(folder, "job.json")
        job_file.write_text(json.dumps(asdict(job)))
        command = [sys.executable, "-m", "likewise.cli.benchmark.load", str(job_file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LoadFailed(f"load on {address} failed: {done.stderr.strip()[-2000:]}")
        latencies = np.load(Path(folder, "latencies.npy"))
        result = json.loads(Path(folder, "result.json").read_text())
    return Load(speed(latencies, result["wall_s"]), result["answers"])


def write_requests(requests: Sequence[pb.SearchRequest], path: Path) -> Path:
    """Put the requests of a run into a file for `run_load`."""
    path.write_bytes(pb.BatchSearchRequest(requests=requests).SerializeToString())
    return path


_Call = Callable[[int], Awaitable[list[str]]]

Search = Callable[[int, float], Awaitable[list[str]]]
"""Asks the request of a number with so many seconds; returns the ids found."""

_TIMEOUT_S: Final = 60.0


@dataclass(slots=True)
class _Outcome:
    """What the callers of one process saw; they all append to it."""

    latencies_s: list[float]
    answers: list[list[str] | None]


def _main(job: Job) -> None:
    batch = pb.BatchSearchRequest.FromString(Path(job.requests).read_bytes())
    requests = list(batch.requests)
    outcome = _Outcome([], [None] * len(requests))
    if job.client == "threads":
        _run_threads(job, requests, outcome)
    else:
        run_loop(_run(job, requests, outcome))
    np.save(Path(job.result, "latencies.npy"), np.asarray(outcome.latencies_s))
    result = {"wall_s": job.measure_s, "answers": outcome.answers}
    Path(job.result, "result.json").write_text(json.dumps(result))


async def _run(job: Job, requests: Sequence[pb.SearchRequest], outcome: _Outcome) -> None:
    async with searching(job.address, job.client, requests) as search:

        async def call(which: int) -> list[str]:
            return await search(which, _TIMEOUT_S)

        await _measure(job, call, outcome)


@asynccontextmanager
async def searching(address: str, client: str, requests: Sequence[pb.SearchRequest]) -> AsyncIterator[Search]:
    """What asks one of the requests, by its number and with so many seconds, and returns the ids found.

    Args:
        address: Server.
        client: "stub" or "sdk", as of `Job`.
        requests: All that may be asked.
    """
    if client == "stub":
        async with _channel(address) as channel:
            yield _stub_call(channel, requests)
    else:
        async with AsyncClient(address) as sdk:
            yield _sdk_call(sdk, requests)


def _channel(address: str) -> grpc.aio.Channel:
    limits = ("grpc.max_receive_message_length", "grpc.max_send_message_length")
    return grpc.aio.insecure_channel(address, options=[(name, MAX_MESSAGE_BYTES) for name in limits])


def _stub_call(channel: grpc.aio.Channel, requests: Sequence[pb.SearchRequest]) -> Search:
    search: Any = channel.unary_unary(
        SEARCH_PATH,
        request_serializer=pb.SearchRequest.SerializeToString,
        response_deserializer=pb.SearchResponse.FromString,
    )

    async def call(which: int, timeout_s: float) -> list[str]:
        response: pb.SearchResponse = await search(requests[which], timeout=timeout_s)
        return list(response.hits.ids)

    return call


def _sdk_call(client: Any, requests: Sequence[pb.SearchRequest]) -> Search:
    gallery, arguments = client.gallery(requests[0].gallery), _arguments(requests)

    async def call(which: int, timeout_s: float) -> list[str]:
        hits = await gallery.search(timeout=timeout_s, **arguments[which])
        return list(hits.ids)

    return call


def _arguments(requests: Sequence[pb.SearchRequest]) -> list[dict[str, Any]]:
    """What `Gallery.search` is given for each request."""
    arguments: list[dict[str, Any]] = []
    for request in requests:
        given: dict[str, Any] = {"vector": decode_vectors(request.reference.vector)[0], "k": request.k}
        if request.HasField("filter"):
            given["where"] = Filter(request.filter)
        if request.params.HasField("ef"):
            given["ef"] = request.params.ef
        if request.params.HasField("exact"):
            given["exact"] = request.params.exact
        arguments.append(given)
    return arguments


def _run_threads(job: Job, requests: Sequence[pb.SearchRequest], outcome: _Outcome) -> None:
    """As `_measure`, in threads.

    Raises:
        Exception: What the first call that failed raised.
    """
    arguments, turn = _arguments(requests), itertools.cycle(range(len(requests)))
    begin = time.perf_counter() + job.warm_up_s
    end = begin + job.measure_s
    with Client(job.address) as client, ThreadPoolExecutor(job.callers) as pool:
        gallery = client.gallery(requests[0].gallery)

        def caller() -> None:
            clock = time.perf_counter
            while (sent := clock()) < end:
                which = next(turn)
                outcome.answers[which] = list(gallery.search(timeout=_TIMEOUT_S, **arguments[which]).ids)
                came = clock()
                if sent >= begin and came <= end:
                    outcome.latencies_s.append(came - sent)

        for done in [pool.submit(caller) for _ in range(job.callers)]:
            done.result()


async def _measure(job: Job, call: _Call, outcome: _Outcome) -> None:
    begin = time.perf_counter() + job.warm_up_s
    end = begin + job.measure_s
    turn = itertools.cycle(range(len(outcome.answers)))

    async def caller() -> None:
        clock = time.perf_counter
        while (sent := clock()) < end:
            which = next(turn)
            outcome.answers[which] = await call(which)
            came = clock()
            if sent >= begin and came <= end:
                outcome.latencies_s.append(came - sent)

    async with asyncio.TaskGroup() as group:
        for _ in range(job.callers):
            group.create_task(caller())


if __name__ == "__main__":
    _main(Job(**json.loads(Path(sys.argv[1]).read_text())))
