"""From single runs to result lines: medians, recall, and ratios to Likewise taken run by run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from benchmarks.peers.plan import Case, Plan
from benchmarks.peers.registry import ECHO, FAISS, LIKEWISE, Params, Peer

from likewise.cli.benchmark.figures import Measurement, Speed, Summary, combined_limit, summarise, timed

WHAT = {"load": "load until searchable", "closed": "Search", "curve": "Search, curve", "open": "Search, open loop"}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one case.

    Attributes:
        speed: Calls a second and latency; for a load, rows a second.
        recall: Mean recall@k of the queries that were asked; None where that means nothing.
        offered_qps: Arrivals a second, for an open loop.
        served: Share of the arrivals that got an answer.
    """

    speed: Speed
    recall: float | None = None
    offered_qps: float | None = None
    served: float | None = None


@dataclass(slots=True)
class Entry:
    """Everything measured of one peer.

    Attributes:
        peer: Which.
        versions: Of its parts.
        runs: Of each case, by number of the run.
        params: Search parameters of each case.
        failures: What went wrong, by what was asked.
    """

    peer: Peer
    versions: dict[str, str] = field(default_factory=dict)
    runs: dict[Case, dict[int, Run]] = field(default_factory=dict)
    params: dict[Case, Params] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, case: Case, number: int, run: Run) -> None:
        """Keep a run."""
        self.runs.setdefault(case, {})[number] = run

    def speeds(self, case: Case) -> dict[int, Speed]:
        """Of the runs of a case."""
        return {number: run.speed for number, run in self.runs.get(case, {}).items()}

    def recall(self, case: Case) -> float | None:
        """Median over the runs."""
        found = [run.recall for run in self.runs.get(case, {}).values() if run.recall is not None]
        return float(np.median(found)) if found else None


def quotient(numerator: Mapping[int, Speed], denominator: Mapping[int, Speed]) -> float | None:
    """Median over the runs that both have of the ratio of calls a second; None if there are none."""
    both = sorted(numerator.keys() & denominator.keys())
    if not both:
        return None
    return float(np.median([numerator[number].qps / denominator[number].qps for number in both]))


def ratios(entries: Mapping[str, Entry], name: str, case: Case) -> dict[str, float]:
    """How a peer compares in one case.

    For Likewise: its calls a second over everyone's, over the limit that echo and raw FAISS make together, and its
    median latency over the echo's. For everyone else: over Likewise's. Of a load, the times.
    """
    mine = entries[name].speeds(case)
    found: dict[str, float | None] = {}
    for other, entry in entries.items():
        if other == name or (name != LIKEWISE and other != LIKEWISE):
            continue
        if case.kind == "load":
            found[f"time / {other}"] = quotient(entry.speeds(case), mine)
        else:
            found[f"QPS / {other}"] = quotient(mine, entry.speeds(case))
    if name == LIKEWISE and case.kind == "closed" and case.percent is None and {ECHO, FAISS} <= entries.keys():
        found.update(_against_limits(mine, entries[ECHO].speeds(case), entries[FAISS].speeds(case)))
    return {what: value for what, value in found.items() if value is not None}


def _against_limits(
    mine: Mapping[int, Speed], echo: Mapping[int, Speed], faiss: Mapping[int, Speed]
) -> dict[str, float | None]:
    both = echo.keys() & faiss.keys()
    limit = {number: Speed(combined_limit(echo[number].qps, faiss[number].qps), 0, 0, 0) for number in both}
    p50 = [mine[number].p50_ms / echo[number].p50_ms for number in sorted(mine.keys() & echo.keys())]
    return {"QPS / limit": quotient(mine, limit), "p50 / echo p50": float(np.median(p50)) if p50 else None}


def at_its_recall(entries: Mapping[str, Entry], other: str) -> float | None:
    """Likewise's best calls a second at the recall of another one's tuned parameters or better, over the other's.

    Both from the curve, hence from the same minutes. None if either was not measured, or no such recall is reached.
    """
    if LIKEWISE not in entries or other not in entries:
        return None
    theirs, ours = entries[other], entries[LIKEWISE]
    tuned = next(
        (params for case, params in theirs.params.items() if case.kind == "closed" and case.percent is None), None
    )
    at = next((case for case, params in theirs.params.items() if case.kind == "curve" and params == tuned), None)
    if at is None or (needed := theirs.recall(at)) is None:
        return None
    found = [
        value
        for case in ours.runs
        if case.kind == "curve" and (recall := ours.recall(case)) is not None and recall >= needed
        if (value := quotient(ours.speeds(case), theirs.speeds(at))) is not None
    ]
    return max(found, default=None)


def measurement(plan: Plan, dataset: str, entries: Mapping[str, Entry], name: str, case: Case) -> Measurement:
    """The result line of one peer and case; it has to have runs."""
    entry = entries[name]
    runs = list(entry.runs[case].values())
    summary = summarise([run.speed for run in runs])
    compared = ratios(entries, name, case)
    if name == LIKEWISE and case == Case("closed", None, plan.curve_callers):
        for other in entries:
            if other != name and (value := at_its_recall(entries, other)) is not None:
                compared[f"QPS / {other} at its recall"] = value
    load = case.kind == "load"
    return Measurement(
        benchmark="peers",
        target=name,
        mode=entry.peer.mode,
        what=WHAT[case.kind],
        dataset=dataset,
        n=plan.items,
        dim=plan.dim,
        k=None if load else plan.k,
        index="hnsw" if entry.peer.searches else "",
        shards=entry.peer.options.get("shards"),
        filter=case.filter_name,
        callers=case.callers,
        client=str(entry.peer.options.get("client", "")),
        recall_at_k=entry.recall(case),
        seconds=plan.items / summary.median.qps if load else None,
        ratios=compared or None,
        setting=_setting(entry, case, runs, plan),
        **(_rate(summary) if load else timed(summary)),
    )


def _rate(summary: Summary) -> dict[str, Any]:
    """Rows a second; a load has no latency."""
    return {"runs": summary.runs, "qps": summary.median.qps, "spread": summary.spread}


def _setting(entry: Entry, case: Case, runs: Sequence[Run], plan: Plan) -> dict[str, Any]:
    setting: dict[str, Any] = {
        "versions": entry.versions,
        "index": {name: value for name, value in entry.peer.options.items() if name in ("m", "ef_construction")},
        "target_recall": plan.target,
        "threads": plan.threads,
    }
    if transport := entry.peer.options.get("transport"):
        setting["transport"] = transport
    if (params := entry.params.get(case)) and entry.peer.searches:
        setting["search"] = dict(params)
    if (batch := entry.peer.callers(case.callers)[1]) > 1:
        setting["batch"] = batch
    if case.kind == "open":
        setting["offered_qps"] = float(np.median([run.offered_qps or 0.0 for run in runs]))
        setting["served"] = float(np.median([run.served or 0.0 for run in runs]))
    return setting
