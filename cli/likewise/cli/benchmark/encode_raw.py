"""A graph in raw ONNX Runtime, in a process of its own: the limit of any service around it.

A process like the server's, so that both have the same share of the machine and the same environment. Run as
`python -m likewise.cli.benchmark.encode_raw JOB_FILE`; `run_raw` does that and reads the result.
"""

import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from likewise.cli.benchmark.figures import Speed, speed
from likewise.export.model_repository import load_repository
from likewise.export.preprocess import Preprocessing, preprocessing_of, to_tensor
from likewise.export.runtime import open_session, run_graph


class RawFailed(RuntimeError):
    """The process failed; the message has the end of what it said."""


@dataclass(frozen=True, slots=True)
class RawJob:
    """What to do.

    Attributes:
        repository: Model repository with one image encoder.
        pictures: Files; one batch of them is run over and over.
        threads: Of ONNX Runtime.
        measure_s: Seconds of each of the two measurements.
        result: File for the two speeds.
    """

    repository: str
    pictures: Sequence[str]
    threads: int
    measure_s: float
    result: str


def run_raw(repository: Path, pictures: Sequence[Path], *, threads: int, measure_s: float) -> tuple[Speed, Speed]:
    """Pictures a second and the latency of a batch: of the graph alone, and of decoding one by one, then the graph.

    Raises:
        RawFailed: If the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, job_file = Path(folder, "result.json"), Path(folder, "job.json")
        job = RawJob(str(repository), [str(path) for path in pictures], threads, measure_s, str(result))
        job_file.write_text(json.dumps(asdict(job)))
        command = [sys.executable, "-m", "likewise.cli.benchmark.encode_raw", str(job_file)]
        # A session of its own, as the server has: schedulers share the processors among sessions.
        done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
        if done.returncode:
            raise RawFailed(f"raw ONNX Runtime failed: {done.stderr.strip()[-2000:]}")
        graph, whole = (Speed(**found) for found in json.loads(result.read_text()))
    return graph, whole


def _main(job: RawJob) -> None:
    (model,) = load_repository(Path(job.repository), verify=False).models
    preprocessing = preprocessing_of(model)
    files = [Path(path).read_bytes() for path in job.pictures]
    session = open_session(model.file(), threads=job.threads)
    pixels = _decoded(files, preprocessing)
    run_graph(session, pixels)
    graph = _measured(lambda: len(run_graph(session, pixels)), job.measure_s)
    whole = _measured(lambda: len(run_graph(session, _decoded(files, preprocessing))), job.measure_s)
    Path(job.result).write_text(json.dumps([asdict(graph), asdict(whole)]))


def _decoded(files: Sequence[bytes], preprocessing: Preprocessing) -> Any:
    opened = (Image.open(io.BytesIO(data)).convert("RGB") for data in files)
    return np.stack([to_tensor(image, preprocessing) for image in opened])


def _measured(work: Callable[[], int], measure_s: float) -> Speed:
    latencies: list[float] = []
    done = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < measure_s or not latencies:
        before = time.perf_counter()
        done += work()
        latencies.append(time.perf_counter() - before)
    calls = speed(latencies, elapsed)
    return Speed(done / elapsed, calls.p50_ms, calls.p95_ms, calls.p99_ms)


if __name__ == "__main__":
    _main(RawJob(**json.loads(Path(sys.argv[1]).read_text())))
