"""Goodput under more than a server can do: twice the rate at which it is saturated, in an open loop with deadlines."""

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from likewise.cli.benchmark import dataset as data
from likewise.cli.benchmark import gallery as galleries
from likewise.cli.benchmark import search
from likewise.cli.benchmark.figures import Measurement, Speed, summarise, timed
from likewise.cli.benchmark.load import run_load, write_requests
from likewise.cli.benchmark.open_loop import FAILED, WRONG, OpenLoad, run_open_loop
from likewise.cli.benchmark.report import Report
from likewise.cli.server_process import ServerProcess, serve_command
from likewise.client import Client

SATURATING_CALLERS: Final = 64
FACTORS: Final = (1.0, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        base: Gallery, queries, runs and seconds; one number of callers finds the saturation.
        deadline_s: Of each call of the open loop.
        client: Who asks, see `likewise.cli.benchmark.load.Job`.
    """

    base: search.Plan = field(default_factory=lambda: search.Plan(callers=(SATURATING_CALLERS,)))
    deadline_s: float = 1.0
    client: str = "stub"


def run(plan: Plan, report: Report) -> None:
    """Measure a plan.

    Raises:
        ServerFailed: If the server does not come up.
        LoadFailed: If a call of the closed loop fails.
    """
    what = plan.base
    report.say(f"drawing {what.items:,} x {what.dim} vectors")
    dataset = data.clustered(what.items, what.dim, queries=what.queries, seed=what.seed)
    with tempfile.TemporaryDirectory(prefix="likewise-bench-") as name:
        folder = Path(name)
        command = serve_command(folder / "store", arguments=search.serve_arguments(what.mode, what.threads))
        with ServerProcess(command, log_path=folder / "server.log") as server, Client(server.address) as client:
            spec = search.index_spec(what.index, m=what.m, ef_construction=what.ef_construction, ef=what.ef)
            gallery = galleries.create(client, search.GALLERY, what.dim, index=spec, shards=what.shards)
            galleries.fill(gallery, dataset)
            galleries.wait_at_rest(gallery, what.items, index=what.index)
            requests = [search.search_request(what, query, None) for query in dataset.queries]
            path = write_requests(requests, folder / "requests")
            answers = folder / "answers"
            # What one caller is told by the idle server is what everybody has to be told.
            calm = run_load(server.address, path, callers=1, measure_s=_seconds_for_all(what), warm_up_s=0).answers
            known = [i for i, ids in enumerate(calm) if ids is not None]
            path = write_requests([requests[i] for i in known], folder / "requests")
            answers.write_text(json.dumps([calm[i] for i in known]))
            saturated: list[Speed] = []
            loads: dict[float, list[OpenLoad]] = {factor: [] for factor in FACTORS}
            for run_number in range(what.runs):
                report.say(f"run {run_number + 1} of {what.runs}")
                closed = run_load(
                    server.address, path, callers=what.callers[0], measure_s=what.measure_s, client=plan.client
                ).speed
                saturated.append(closed)
                for factor in FACTORS:
                    load = run_open_loop(
                        server.address,
                        path,
                        answers,
                        rate=factor * closed.qps,
                        measure_s=what.measure_s,
                        deadline_s=plan.deadline_s,
                        seed=what.seed + run_number,
                        client=plan.client,
                    )
                    loads[factor].append(load)
            # Still there, and still right?
            survived = run_load(server.address, path, callers=1, measure_s=0.5, warm_up_s=0).answers
    _add(report, plan, dataset, saturated, loads, crashes=0 if any(survived) else 1)


def _seconds_for_all(plan: search.Plan) -> float:
    return max(1.0, plan.queries / 250)


def _add(
    report: Report,
    plan: Plan,
    dataset: data.Dataset,
    saturated: list[Speed],
    loads: dict[float, list[OpenLoad]],
    *,
    crashes: int,
) -> None:
    what = plan.base
    shared: dict[str, Any] = {
        "benchmark": "overload",
        "target": "likewise",
        "mode": what.mode,
        "dataset": dataset.name,
        "n": what.items,
        "dim": what.dim,
        "k": what.k,
        "index": what.index,
        "shards": what.shards,
        "client": plan.client,
    }
    callers = what.callers[0]
    report.add(Measurement(what="saturation, closed loop", callers=callers, **shared, **timed(summarise(saturated))))
    for factor, runs in loads.items():
        summary = summarise([Speed(load.goodput, 0, 0, 0) for load in runs])
        outcomes = {name: sum(load.outcomes.get(name, 0) for load in runs) for load in runs for name in load.outcomes}
        line = Measurement(
            what=f"open loop, {factor:g} x saturation, deadline {plan.deadline_s:g} s",
            **shared,
            runs=summary.runs,
            qps=summary.median.qps,
            spread=summary.spread,
            setting={
                "offered": float(np.median([load.offered for load in runs])),
                "outcomes": outcomes,
                "wrong_answers": outcomes.get(WRONG, 0),
                "crashes": crashes + sum(count for name, count in outcomes.items() if name.startswith(FAILED)),
            },
        )
        if factor == FACTORS[-1]:
            shares = [load.goodput / closed.qps for load, closed in zip(runs, saturated, strict=True)]
            line = replace(line, ratios={"goodput / saturation": float(np.median(shares))})
        report.add(line)
