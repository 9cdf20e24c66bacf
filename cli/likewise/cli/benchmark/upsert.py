"""Rows a second that one streaming client has acknowledged, that is, durable; nothing is built meanwhile."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from likewise.cli.benchmark import dataset as data
from likewise.cli.benchmark import gallery as galleries
from likewise.cli.benchmark import limit_lance
from likewise.cli.benchmark.figures import Measurement, Speed, paired_ratio, summarise
from likewise.cli.benchmark.report import Report
from likewise.cli.benchmark.search import GALLERY, serve_arguments
from likewise.cli.server_process import ServerProcess, serve_command
from likewise.client import Client
from likewise.client.galleries import IndexSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        mode: "embedded" or "ray".
        items: Rows of a run.
        dim: Dimensions.
        shards: Partitions.
        runs: Measurements of each; each is paired with one write of the same rows by Lance alone.
        threads: Threads of the server.
        seed: Of the data set.
    """

    mode: str = "embedded"
    items: int = 50_000
    dim: int = 512
    shards: int = 1
    runs: int = 3
    threads: int = 2
    seed: int = 7


def run(plan: Plan, report: Report) -> None:
    """Measure a plan: rows that are new, and the same rows once more, which replace them.

    Raises:
        ServerFailed: If the server does not come up.
    """
    dataset = data.clustered(plan.items, plan.dim, queries=1, seed=plan.seed)
    raw, new, replaced = [], [], []
    with tempfile.TemporaryDirectory(prefix="likewise-bench-") as name:
        folder = Path(name)
        command = serve_command(folder / "store", arguments=serve_arguments(plan.mode, plan.threads))
        with ServerProcess(command, log_path=folder / "server.log") as server, Client(server.address) as client:
            for number in range(plan.runs):
                report.say(f"upserts {number + 1} of {plan.runs}: {plan.items:,} x {plan.dim}")
                raw.append(limit_lance.write(dataset, folder / f"raw-{number}"))
                gallery = galleries.create(client, GALLERY, plan.dim, index=IndexSpec(kind="flat"), shards=plan.shards)
                new.append(galleries.fill(gallery, dataset))
                replaced.append(galleries.fill(gallery, dataset))
                client.delete_gallery(GALLERY)
    limit = _speeds(plan, raw)
    for target, mode, what, speeds in (
        ("lance", "in process", "one write of all rows", limit),
        ("likewise", plan.mode, "rows that replace others", _speeds(plan, replaced)),
        ("likewise", plan.mode, "new rows", _speeds(plan, new)),
    ):
        summary = summarise(speeds)
        report.add(
            Measurement(
                benchmark="upsert",
                target=target,
                mode=mode,
                what=what,
                dataset=dataset.name,
                n=plan.items,
                dim=plan.dim,
                index="flat",
                shards=plan.shards,
                client="sdk" if target == "likewise" else "",
                runs=summary.runs,
                qps=summary.median.qps,
                spread=summary.spread,
                ratios={"rows/s / lance": paired_ratio(speeds, limit)} if target == "likewise" else None,
                setting={"threads": plan.threads},
            )
        )


def _speeds(plan: Plan, seconds: list[float]) -> list[Speed]:
    """Rows a second of each run; a stream has no latency."""
    return [Speed(plan.items / value, 0.0, 0.0, 0.0) for value in seconds]
