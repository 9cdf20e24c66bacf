"""Closed-loop load on ModelInfer, from a process of its own: each caller sends its next picture after its answer.

Run as `python -m likewise.cli.benchmark.encode_load JOB_FILE`; `run_encode_load` does that and reads the result.
"""

import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import grpc.aio
import numpy as np

from likewise.cli.benchmark.echo import run_loop
from likewise.cli.benchmark.figures import Speed, speed
from likewise.cli.benchmark.load import LoadFailed
from likewise.internal.inference.v1 import inference_pb2 as pb

_INFER_PATH: Final = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """What to do.

    Attributes:
        address: Server.
        model: Name of an image encoder there.
        pictures: Files to send in turn, over and over, one a call.
        callers: Calls in progress at any time.
        warm_up_s: Seconds that do not count.
        measure_s: Seconds that do.
        result: File for the latencies.
    """

    address: str
    model: str
    pictures: Sequence[str]
    callers: int
    warm_up_s: float
    measure_s: float
    result: str


def run_encode_load(
    address: str, model: str, pictures: Sequence[Path], *, callers: int, warm_up_s: float, measure_s: float
) -> Speed:
    """Load a server from a fresh process; pictures a second, and the latency of a call.

    A call counts by the share of its time that lies within the measured seconds: with few long batches, whole calls
    would round the figure by a batch at either end.

    Raises:
        LoadFailed: If any call failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, job_file = Path(folder, "calls.npy"), Path(folder, "job.json")
        job = EncodeJob(address, model, [str(path) for path in pictures], callers, warm_up_s, measure_s, str(result))
        job_file.write_text(json.dumps(asdict(job)))
        command = [sys.executable, "-m", "likewise.cli.benchmark.encode_load", str(job_file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LoadFailed(f"load on {address} failed: {done.stderr.strip()[-2000:]}")
        calls = np.load(result)
    return within(calls, warm_up_s, warm_up_s + measure_s)


def within(calls: Any, begin_s: float, end_s: float) -> Speed:
    """Speed in a stretch of time from (n, 2) begins and ends of calls, seconds.

    Raises:
        ValueError: If no call overlaps it.
    """
    calls = np.asarray(calls, np.float64).reshape(-1, 2)
    inside = np.clip(calls[:, 1], begin_s, end_s) - np.clip(calls[:, 0], begin_s, end_s)
    touching = inside > 0
    if not touching.any():
        raise ValueError(f"no call between {begin_s} s and {end_s} s")
    length = calls[touching, 1] - calls[touching, 0]
    rate = float((inside[touching] / length).sum()) / (end_s - begin_s)
    latencies = speed(length, end_s - begin_s)
    return Speed(rate, latencies.p50_ms, latencies.p95_ms, latencies.p99_ms)


async def _run(job: EncodeJob, pictures: Sequence[bytes]) -> None:
    requests = [_request(job.model, picture) for picture in pictures]
    calls: list[tuple[float, float]] = []
    async with grpc.aio.insecure_channel(job.address) as channel:
        infer: Any = channel.unary_unary(
            _INFER_PATH,
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        begin = time.perf_counter()
        turn = itertools.cycle(requests)

        async def caller() -> None:
            while (sent := time.perf_counter() - begin) < job.warm_up_s + job.measure_s:
                await infer(next(turn), timeout=120)
                calls.append((sent, time.perf_counter() - begin))

        async with asyncio.TaskGroup() as group:
            for _ in range(job.callers):
                group.create_task(caller())
    np.save(job.result, np.asarray(calls))


def _request(model: str, picture: bytes) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="image", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(len(picture).to_bytes(4, "little") + picture)
    return request


if __name__ == "__main__":
    given = EncodeJob(**json.loads(Path(sys.argv[1]).read_text()))
    run_loop(_run(given, [Path(path).read_bytes() for path in given.pictures]))
