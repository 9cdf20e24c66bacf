"""Model versions swapped under constant load: requests lost, answers mixed, latency meanwhile, memory left behind."""

import asyncio
import io
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from likewise.cli import demo_gallery
from likewise.cli.benchmark.figures import Measurement, Speed, speed
from likewise.cli.benchmark.report import Report
from likewise.cli.benchmark.search import serve_arguments
from likewise.cli.server_process import ServerProcess, serve_command
from likewise.client import AsyncClient, Client, Hits, LikewiseError, Query
from likewise.export.manifest import write_manifest
from likewise.export.model_repository import builtin_repository, load_repository
from likewise.export.shapes.world import render

FAMILY: Final = "swap"
_GALLERY: Final = "swap"
_KINDS: Final = ("image", "text", "composer")
_CONDITIONS: Final = ("in red", "on a black background", "as a ring", "with a star", "striped")
_SETTLED: Final = 10
"""Swaps before memory is looked at: allocators keep what the first ones asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        mode: "embedded" or "ray".
        swaps: New versions of the whole family, loaded and promoted one after the other.
        items: Pictures in the gallery.
        queries: Distinct queries, each a picture and a condition.
        k: Hits a query.
        callers: Calls in progress at any time.
        pause_s: Seconds of load between a promotion and the next load.
        baseline_s: Seconds of load before the first swap, to compare latencies with.
        threads: Threads of the server.
        seed: Of the pictures.
    """

    mode: str = "embedded"
    swaps: int = 50
    items: int = 500
    queries: int = 50
    k: int = 10
    callers: int = 8
    pause_s: float = 0.5
    baseline_s: float = 10.0
    threads: int = 2
    seed: int = 7


@dataclass(slots=True)
class Outcome:
    """What the callers saw. Times are of `time.perf_counter`.

    Attributes:
        calls: Start and end of each answered call.
        lost: Text of each call that failed.
        mixed: Answers that name more than one version, or more than one space.
        backwards: Answers older than one that the same caller had before.
        stale: Answers of a call that began after a promotion was acknowledged, by a version before it.
        wrong: Answers other than those of version 1, which all versions equal.
        swaps: Start of the load and end of the promotion of each swap.
        overlaps: Of each swap's shadow comparison.
        rss: Resident bytes of the server after each swap; empty where it is several processes.
    """

    calls: list[tuple[float, float]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    mixed: int = 0
    backwards: int = 0
    stale: int = 0
    wrong: int = 0
    swaps: list[tuple[float, float]] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)


def run(plan: Plan, report: Report) -> Outcome:
    """Measure a plan.

    Raises:
        ServerFailed: If the server does not come up.
        LikewiseError: If a version cannot be loaded or promoted.
    """
    scenes = demo_gallery.scenes(demo_gallery.Recipe(items=plan.items + plan.queries, seed=plan.seed))
    pictures = [_png(scene) for scene in scenes]
    asked, stored = pictures[: plan.queries], pictures[plan.queries :]
    with tempfile.TemporaryDirectory(prefix="likewise-bench-") as name:
        folder = Path(name)
        repository = folder / "models"
        add_version(repository, 1)
        arguments = [*serve_arguments(plan.mode, plan.threads), "--models", str(repository)]
        command = serve_command(folder / "store", arguments=arguments)
        report.say(f"starting the server ({plan.mode}) and storing {len(stored):,} pictures")
        # The load is to reach the models: nothing is kept of the queries.
        encoding = {"LIKEWISE_KEPT_ENCODINGS": "0"}
        with ServerProcess(command, log_path=folder / "server.log", environment=encoding) as server:
            with Client(server.address, timeout=120) as client:
                gallery = client.create_gallery(_GALLERY, encoder=FAMILY)
                gallery.upsert([f"picture-{i:06d}" for i in range(len(stored))], images=stored, progress=False)
                gallery.count()  # every shard has them then, for callers without this client's token too
            report.say(f"{plan.callers} callers, {plan.swaps} swaps")
            pid = server.pid if plan.mode == "embedded" else None
            outcome = asyncio.run(_drive(plan, server.address, repository, asked, pid))
    report.add(measurement(plan, outcome))
    return outcome


def add_version(repository: Path, version: int) -> None:
    """Write a version of the built-in models under this benchmark's family: the manifest last, as an exporter does."""
    for model in load_repository(builtin_repository(), verify=False).models:
        kind = model.manifest.name.rpartition("-")[2]
        target = repository / f"{FAMILY}-{kind}" / str(version)
        target.mkdir(parents=True)
        for file in model.manifest.files:
            shutil.copy2(model.folder / file, target / file)
        manifest = replace(model.manifest, name=f"{FAMILY}-{kind}", family=FAMILY, version=version)
        write_manifest(target / "manifest.json", manifest)


def slope(values: Sequence[float]) -> float:
    """Least-squares growth from one value to the next; 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    return float(np.polyfit(np.arange(len(values)), np.asarray(values, np.float64), 1)[0])


def measurement(plan: Plan, outcome: Outcome) -> Measurement:
    """The outcome as a result line."""
    calls: npt.NDArray[np.float64] = np.array(outcome.calls).reshape(-1, 2)
    began, ended = outcome.swaps[0][0], outcome.swaps[-1][1]
    during = np.zeros(len(calls), bool)
    for start, end in outcome.swaps:
        during |= (calls[:, 0] < end) & (calls[:, 1] > start)
    baseline = calls[:, 1] < began
    before, swapping = _speed(calls[baseline]), _speed(calls[during])
    durations = np.array([end - start for start, end in outcome.swaps])
    settled = outcome.rss[_SETTLED:] if len(outcome.rss) > 2 * _SETTLED else outcome.rss
    setting: dict[str, Any] = {
        "swaps": len(outcome.swaps),
        "lost": len(outcome.lost),
        "mixed": outcome.mixed,
        "backwards": outcome.backwards,
        "stale": outcome.stale,
        "wrong": outcome.wrong,
        "answered": len(calls),
        "overlap_min": min(outcome.overlaps, default=0.0),
        "swap_p50_ms": float(np.median(durations)) * 1e3,
        "swap_max_ms": float(durations.max()) * 1e3,
        "p99_without_swaps_ms": before.p99_ms,
        "threads": plan.threads,
    }
    if outcome.rss:
        setting |= {
            "rss_first_mib": outcome.rss[0] / 2**20,
            "rss_last_mib": outcome.rss[-1] / 2**20,
            "rss_slope_kib_a_swap": slope(settled) / 2**10,
        }
    return Measurement(
        benchmark="swap",
        target="likewise",
        mode=plan.mode,
        what=f"picture and condition during {len(outcome.swaps)} swaps of a family",
        dataset="shapes",
        n=plan.items,
        dim=0,
        k=plan.k,
        callers=plan.callers,
        client="sdk",
        qps=swapping.qps,
        p50_ms=swapping.p50_ms,
        p95_ms=swapping.p95_ms,
        p99_ms=swapping.p99_ms,
        seconds=ended - began,
        ratios={"p99 / p99 without swaps": swapping.p99_ms / before.p99_ms},
        setting=setting,
    )


def _speed(calls: npt.NDArray[np.float64]) -> Speed:
    return speed(calls[:, 1] - calls[:, 0], float(calls[:, 1].max() - calls[:, 0].min()))


async def _drive(plan: Plan, address: str, repository: Path, pictures: Sequence[bytes], pid: int | None) -> Outcome:
    outcome = Outcome()
    acknowledged = [1]
    stop = asyncio.Event()
    async with AsyncClient(address, timeout=60) as client:
        gallery = client.gallery(_GALLERY)
        queries: list[Query] = [
            {"image": picture, "condition": _CONDITIONS[i % len(_CONDITIONS)], "mode": "change", "k": plan.k}
            for i, picture in enumerate(pictures)
        ]
        expected = [list((await gallery.search(**query)).ids) for query in queries]

        async def caller(number: int) -> None:
            newest, turn = 1, number
            while not stop.is_set():
                turn = (turn + plan.callers) % len(queries)
                least, start = acknowledged[0], time.perf_counter()
                try:
                    hits = await gallery.search(**queries[turn])
                except LikewiseError as error:
                    outcome.lost.append(f"{type(error).__name__}: {error}")
                    continue
                outcome.calls.append((start, time.perf_counter()))
                version = _judge(outcome, hits, expected[turn], newest=newest, least=least)
                newest = max(newest, version)

        callers = [asyncio.create_task(caller(number)) for number in range(plan.callers)]
        try:
            await asyncio.sleep(plan.baseline_s)
            for version in range(2, plan.swaps + 2):
                await asyncio.to_thread(add_version, repository, version)
                start = time.perf_counter()
                for kind in _KINDS:
                    await client.load_model(f"{FAMILY}-{kind}", version)
                first, *rest = (f"{FAMILY}-{kind}" for kind in _KINDS)
                promotion = await client.promote_model(first, version, together=dict.fromkeys(rest, version))
                acknowledged[0] = version
                outcome.swaps.append((start, time.perf_counter()))
                outcome.overlaps.append(promotion.overlap if promotion.overlap is not None else 0.0)
                await asyncio.sleep(plan.pause_s)
                if pid is not None:
                    outcome.rss.append(_rss(pid))
        finally:
            stop.set()
            await asyncio.gather(*callers)
    return outcome


def _judge(outcome: Outcome, hits: Hits, expected: Sequence[str], *, newest: int, least: int) -> int:
    """Count what is wrong with an answer; returns its version."""
    versions, spaces = {model.version for model in hits.models}, {model.space for model in hits.models}
    outcome.mixed += len(versions) != 1 or len(spaces) != 1 or len(hits.models) != len(_KINDS)
    version = max(versions, default=0)
    outcome.backwards += version < newest
    outcome.stale += version < least
    outcome.wrong += list(hits.ids) != list(expected)
    return version


def _rss(pid: int) -> int:
    """Resident bytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no VmRSS")


def _png(scene: Any) -> bytes:
    buffer = io.BytesIO()
    render(scene, demo_gallery.PIXELS).save(buffer, "PNG")
    return buffer.getvalue()
