"""Ingest speed against its limit: until every row is durable, and until it is in a sealed index."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from likewise.cli.benchmark import dataset as data
from likewise.cli.benchmark import gallery as galleries
from likewise.cli.benchmark import limit_faiss, limit_lance
from likewise.cli.benchmark.dataset import Dataset
from likewise.cli.benchmark.figures import Measurement, Speed, Summary, summarise
from likewise.cli.benchmark.report import Report
from likewise.cli.benchmark.search import GALLERY, index_spec, serve_arguments
from likewise.cli.server_process import ServerProcess, serve_command
from likewise.client import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        mode: "embedded" or "ray".
        items: Rows.
        dim: Dimensions.
        index: "hnsw" or "flat".
        m: HNSW links.
        ef_construction: HNSW candidates while building.
        shards: Partitions.
        runs: Measurements, each with a fresh gallery and paired with one of the limit.
        threads: Threads of the server, and of raw FAISS.
        seed: Of the data set.
    """

    mode: str = "embedded"
    items: int = 50_000
    dim: int = 512
    index: str = "hnsw"
    m: int = 32
    ef_construction: int = 100
    shards: int = 1
    runs: int = 3
    threads: int = 2
    seed: int = 7


@dataclass(frozen=True, slots=True)
class _Run:
    """Seconds of one run: ours until durable and until sealed, and the limit's write and build."""

    durable_s: float
    sealed_s: float
    write_s: float
    build_s: float


def run(plan: Plan, report: Report) -> None:
    """Measure a plan.

    Raises:
        ServerFailed: If the server does not come up.
        NotReady: If the index is not built.
    """
    dataset = data.clustered(plan.items, plan.dim, queries=1, seed=plan.seed)
    runs = []
    with tempfile.TemporaryDirectory(prefix="likewise-bench-") as name:
        folder = Path(name)
        command = serve_command(folder / "store", arguments=serve_arguments(plan.mode, plan.threads))
        with ServerProcess(command, log_path=folder / "server.log") as server, Client(server.address) as client:
            for number in range(plan.runs):
                report.say(f"ingest {number + 1} of {plan.runs}: {plan.items:,} x {plan.dim}")
                runs.append(_one_run(plan, dataset, client, folder / f"raw-{number}"))
    _report(plan, dataset, runs, report)


def _one_run(plan: Plan, dataset: Dataset, client: Client, raw_folder: Path) -> _Run:
    write_s = limit_lance.write(dataset, raw_folder)
    build_s = 0.0
    if plan.index != "flat":
        raw = limit_faiss.build_hnsw(dataset.base, m=plan.m, ef_construction=plan.ef_construction, threads=plan.threads)
        build_s = raw.build_s
    spec = index_spec(plan.index, m=plan.m, ef_construction=plan.ef_construction)
    gallery = galleries.create(client, GALLERY, plan.dim, index=spec, shards=plan.shards)
    started = time.perf_counter()
    durable_s = galleries.fill(gallery, dataset)
    galleries.wait_sealed(gallery, plan.items, index=plan.index)
    sealed_s = time.perf_counter() - started
    client.delete_gallery(GALLERY)
    return _Run(durable_s, sealed_s, write_s, build_s)


def _report(plan: Plan, dataset: Dataset, runs: list[_Run], report: Report) -> None:
    limit = _summary(plan, [run.write_s + run.build_s for run in runs])
    write = _summary(plan, [run.write_s for run in runs])
    for target, mode, what, summary, ratios in (
        ("lance", "in process", "one write of all rows", write, None),
        ("lance + faiss", "in process", "one write, one build", limit, None),
        (
            "likewise",
            plan.mode,
            "until durable",
            durable := _summary(plan, [run.durable_s for run in runs]),
            {"time / lance": write.median.qps / durable.median.qps},
        ),
        (
            "likewise",
            plan.mode,
            "until durable and sealed",
            sealed := _summary(plan, [run.sealed_s for run in runs]),
            {"time / (lance + faiss)": limit.median.qps / sealed.median.qps},
        ),
    ):
        report.add(
            Measurement(
                benchmark="ingest",
                target=target,
                mode=mode,
                what=what,
                dataset=dataset.name,
                n=plan.items,
                dim=plan.dim,
                index=plan.index,
                shards=plan.shards,
                runs=summary.runs,
                qps=summary.median.qps,
                spread=summary.spread,
                seconds=plan.items / summary.median.qps,
                ratios=ratios,
                setting={"m": plan.m, "ef_construction": plan.ef_construction, "threads": plan.threads},
            )
        )


def _summary(plan: Plan, seconds: list[float]) -> Summary:
    """Rows a second over the runs; an ingest has no latency."""
    return summarise([Speed(plan.items / value, 0.0, 0.0, 0.0) for value in seconds])
