"""Encoding of pictures through the service against the same graph in raw ONNX Runtime, in one run."""

import re
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from likewise.cli.benchmark.encode_load import run_encode_load
from likewise.cli.benchmark.encode_raw import run_raw
from likewise.cli.benchmark.figures import Measurement, Speed, paired_ratio, summarise, timed
from likewise.cli.benchmark.report import Report
from likewise.cli.benchmark.search import serve_arguments
from likewise.cli.benchmark.vit import SIZES, write_vit
from likewise.cli.server_process import ServerFailed, ServerProcess, serve_command

_METRICS: Final = re.compile(r"metrics on ([^\s,]+)")
_SAMPLE: Final = re.compile(r"^(\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """What to measure.

    Attributes:
        model: One of `vit.SIZES`.
        mode: "embedded" or "ray".
        callers: Numbers of calls in progress, measured one after the other.
        batch: Pictures a run of the raw graph, and the most that the server puts into one.
        pictures: Distinct pictures.
        size: Width and height of each, pixels; JPEG of quality 90.
        runs: Measurements of each; each of the service is paired with one of the raw graph.
        measure_s: Seconds of each run of the service; the two of the raw graph share as many.
        threads: Threads of the server, and of raw ONNX Runtime.
        seed: Of weights and pictures.
    """

    model: str = "vit-b-32"
    mode: str = "embedded"
    callers: Sequence[int] = (32,)
    batch: int = 32
    pictures: int = 64
    size: tuple[int, int] = (320, 240)
    runs: int = 3
    measure_s: float = 20.0
    threads: int = 2
    seed: int = 7


@dataclass(frozen=True, slots=True)
class Histogram:
    """A Prometheus histogram of one part.

    Attributes:
        counts: Observations by the upper bound of their bucket.
        total: Sum of what was observed.
    """

    counts: dict[float, int]
    total: float

    @property
    def mean(self) -> float:
        """Mean of what was observed; 0 without observations."""
        count = sum(self.counts.values())
        return self.total / count if count else 0.0

    def since(self, earlier: "Histogram") -> "Histogram":
        """What was observed after an earlier scrape."""
        counts = {bound: count - earlier.counts.get(bound, 0) for bound, count in self.counts.items()}
        return Histogram({bound: count for bound, count in counts.items() if count}, self.total - earlier.total)


def run(plan: ModelPlan, report: Report) -> None:
    """Measure a plan.

    Raises:
        ServerFailed: If the server does not come up.
        LoadFailed: If a call fails.
        RawFailed: If raw ONNX Runtime fails.
    """
    with tempfile.TemporaryDirectory(prefix="likewise-bench-") as name:
        folder = Path(name)
        report.say(f"writing {plan.model} with random weights")
        models = folder / "models"
        write_vit(models, plan.model, max_batch=plan.batch, seed=plan.seed)
        pictures = _pictures(folder, plan)
        arguments = [
            *serve_arguments(plan.mode, plan.threads),
            *("--models", str(models), "--metrics-port", "0"),
        ]
        log = folder / "server.log"
        report.say(f"starting the server ({plan.mode})")
        command = serve_command(folder / "store", arguments=arguments)
        with ServerProcess(command, log_path=log) as server:
            for callers in plan.callers:
                _measure(plan, models, server.address, _metrics_address(log), pictures, callers, report)


def histogram(text: str, name: str, part: str) -> Histogram:
    """The histogram `name` of a part from the text of a scrape."""
    cumulative: dict[float, float] = {}
    total = 0.0
    for sample, labels, value in _SAMPLE.findall(text):
        of = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if of.get("part") != part:
            continue
        if sample == f"{name}_bucket":
            cumulative[float(of["le"])] = float(value)
        elif sample == f"{name}_sum":
            total = float(value)
    bounds = sorted(cumulative)
    below = [0.0, *(cumulative[bound] for bound in bounds)]
    counts = {bound: round(below[i + 1] - below[i]) for i, bound in enumerate(bounds)}
    return Histogram({bound: count for bound, count in counts.items() if count}, total)


def batches_between(before: str, after: str, part: str) -> dict[str, Any]:
    """What two scrapes say about the batches between them: their sizes, and how long pictures waited."""
    sizes, waits, runs = (
        histogram(after, name, part).since(histogram(before, name, part))
        for name in ("likewise_batch_size", "likewise_queue_duration_seconds", "likewise_batch_duration_seconds")
    )
    return {
        "batches_up_to": {f"{bound:g}": count for bound, count in sizes.counts.items()},
        "mean_batch": round(sizes.mean, 2),
        "mean_queue_ms": round(waits.mean * 1e3, 1),
        "mean_run_ms": round(runs.mean * 1e3, 1),
    }


def _measure(
    plan: ModelPlan,
    models: Path,
    address: str,
    metrics: str,
    pictures: Sequence[Path],
    callers: int,
    report: Report,
) -> None:
    ours: list[Speed] = []
    graph: list[Speed] = []
    whole: list[Speed] = []
    part = f"{plan.model}-image/1"
    before = _scrape(metrics)
    for turn in range(plan.runs):
        # In turn, so that a slow minute of the machine hits all.
        report.say(f"{callers} callers, run {turn + 1} of {plan.runs}: the graph alone, with decoding, the service")
        alone, decoded = run_raw(models, pictures[: plan.batch], threads=plan.threads, measure_s=plan.measure_s / 2)
        graph.append(alone)
        whole.append(decoded)
        # One batch of every caller is under way before the clock starts.
        warm_up_s = max(2.0, 1.5 * callers / graph[-1].qps)
        ours.append(
            run_encode_load(
                address,
                f"{plan.model}-image",
                pictures,
                callers=callers,
                warm_up_s=warm_up_s,
                measure_s=plan.measure_s,
            )
        )
    size = SIZES[plan.model]
    shared: dict[str, Any] = {"benchmark": "encode", "dataset": plan.model, "n": plan.pictures, "dim": size.dim}
    setting = {"batch": plan.batch, "threads": plan.threads, "picture": list(plan.size)}
    for what, runs in (("graph alone", graph), ("decoding + graph", whole)):
        report.add(
            Measurement(
                **shared,
                target="onnxruntime",
                mode="process",
                what=f"{what}, batches of {plan.batch}",
                **timed(summarise(runs)),
                setting=setting,
            )
        )
    report.add(
        Measurement(
            **shared,
            target="likewise",
            mode=plan.mode,
            what="ModelInfer of one JPEG",
            callers=callers,
            client="stub",
            **timed(summarise(ours)),
            ratios={
                "pictures/s / graph": paired_ratio(ours, graph),
                "pictures/s / (decoding + graph)": paired_ratio(ours, whole),
            },
            setting={**setting, **batches_between(before, _scrape(metrics), part)},
        )
    )


def _scrape(metrics: str) -> str:
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=30) as response:
        text: str = response.read().decode()
    return text


def _metrics_address(log: Path) -> str:
    match = _METRICS.search(log.read_text())
    if match is None:
        raise ServerFailed(f"the server does not say where its metrics are; see {log}")
    return match[1]


def _pictures(folder: Path, plan: ModelPlan) -> list[Path]:
    """JPEGs of smooth noise: as large on disk, and as slow to decode, as photographs of the size."""
    rng = np.random.default_rng(plan.seed)
    width, height = plan.size
    paths = []
    for number in range(plan.pictures):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        paths.append(folder / f"picture-{number:03d}.jpg")
        coarse.resize(plan.size, Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths
