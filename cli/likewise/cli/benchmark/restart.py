"""Time from starting a server on a filled store until its first correct answer, and what it then takes in memory."""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from likewise.cli.benchmark import dataset as data
from likewise.cli.benchmark import gallery as galleries
from likewise.cli.benchmark.dataset import Dataset, as_ids
from likewise.cli.benchmark.figures import Measurement
from likewise.cli.benchmark.report import Report
from likewise.cli.benchmark.search import GALLERY, index_spec, serve_arguments
from likewise.cli.server_process import ServerProcess, serve_command
from likewise.client import Client

K: Final = 10
_WARM_CALLS: Final = 50


class WrongAnswer(RuntimeError):
    """The first answer after a restart was not the right one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        items: Rows.
        dim: Dimensions.
        index: "hnsw" or "flat".
        m: HNSW links.
        ef_construction: HNSW candidates while building.
        shards: Partitions.
        runs: Restarts.
        threads: Threads of the server.
        seed: Of the data set.
    """

    items: int = 200_000
    dim: int = 512
    index: str = "hnsw"
    m: int = 32
    ef_construction: int = 100
    shards: int = 1
    runs: int = 3
    threads: int = 2
    seed: int = 7


@dataclass(frozen=True, slots=True)
class _Start:
    """One start: seconds until the server serves, until it answers, and its memory in MiB."""

    serving_s: float
    answer_s: float
    resident_mib: float | None


def run(plan: Plan, report: Report) -> None:
    """Measure a plan.

    Raises:
        ServerFailed: If the server does not come up.
        NotReady: If the index is not built.
        WrongAnswer: If a restarted server's first answer is wrong.
    """
    dataset = data.clustered(plan.items, plan.dim, queries=_WARM_CALLS, seed=plan.seed)
    rows, _ = data.exact_topk(dataset.base, dataset.queries[:1], K)
    truth = as_ids(rows)[0]
    with tempfile.TemporaryDirectory(prefix="likewise-bench-") as name:
        folder = Path(name)
        command = serve_command(folder / "store", arguments=serve_arguments("embedded", plan.threads))
        empty = serve_command(folder / "empty", arguments=serve_arguments("embedded", plan.threads))
        report.say("starting a server on an empty store")
        started = time.perf_counter()
        with ServerProcess(empty, log_path=folder / "empty.log") as server:
            empty_s = time.perf_counter() - started
            empty_mib = galleries.resident_mib(server.pid)
        report.say(f"storing {plan.items:,} x {plan.dim}")
        with ServerProcess(command, log_path=folder / "server.log") as server, Client(server.address) as client:
            spec = index_spec(plan.index, m=plan.m, ef_construction=plan.ef_construction)
            gallery = galleries.create(client, GALLERY, plan.dim, index=spec, shards=plan.shards)
            galleries.fill(gallery, dataset)
            galleries.wait_sealed(gallery, plan.items, index=plan.index)
            filled_mib = galleries.resident_mib(server.pid)
        starts = []
        for number in range(plan.runs):
            report.say(f"restart {number + 1} of {plan.runs}")
            starts.append(_start(command, folder / f"restart-{number}.log", dataset, truth))
    _report(plan, dataset, starts, report, {"empty_s": empty_s, "empty_mib": empty_mib, "filled_mib": filled_mib})


def _start(command: list[str], log: Path, dataset: Dataset, truth: list[str]) -> _Start:
    """Start the server on the filled store, ask once exactly, and some more, so that its memory is a serving one's."""
    started = time.perf_counter()
    with ServerProcess(command, log_path=log) as server:
        serving_s = time.perf_counter() - started
        with Client(server.address) as client:
            gallery = client.gallery(GALLERY)
            try:
                found = list(gallery.search(vector=dataset.queries[0], k=K).ids)
            except grpc.RpcError as error:
                raise WrongAnswer(f"no answer: {error}") from error
            answer_s = time.perf_counter() - started
            if len(set(found) & set(truth)) < K - 1:
                raise WrongAnswer(f"got {found}, the right ones are {truth}")
            for query in dataset.queries:
                gallery.search(vector=query, k=K)
            return _Start(serving_s, answer_s, galleries.resident_mib(server.pid))


def _report(plan: Plan, dataset: Dataset, starts: list[_Start], report: Report, setting: dict[str, Any]) -> None:
    seconds = [start.answer_s for start in starts]
    median = statistics.median(seconds)
    report.add(
        Measurement(
            benchmark="restart",
            target="likewise",
            mode="embedded",
            what="until the first correct answer",
            dataset=dataset.name,
            n=plan.items,
            dim=plan.dim,
            k=K,
            index=plan.index,
            shards=plan.shards,
            runs=len(starts),
            spread=(max(seconds) - min(seconds)) / median,
            seconds=median,
            setting={
                **setting,
                "serving_s": statistics.median(start.serving_s for start in starts),
                "server_mib": statistics.median(start.resident_mib or 0.0 for start in starts),
                "m": plan.m,
                "ef_construction": plan.ef_construction,
                "threads": plan.threads,
            },
        )
    )
