"""From places to figures: metrics of each task with intervals and chance, their mean, and paired differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from likewise.export.evaluate import Interval
from likewise.export.evaluation import metrics
from likewise.export.evaluation.bootstrap import mean_of, means_of_tasks
from likewise.export.evaluation.ranking import Ranker
from likewise.export.evaluation.task import Benchmark, Task

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class TaskReport:
    """One task's figures, all in percent.

    Attributes:
        name: The task.
        queries: How many.
        references: Distinct references: the observations that intervals rest on.
        candidates: Fewest and most candidates of a query.
        values: Metric name to value and interval.
        chance: Metric name to what a random order would have.
        slices: Part to metric name to value, "n" being its number of queries.
    """

    name: str
    queries: int
    references: int
    candidates: tuple[int, int]
    values: Mapping[str, Interval]
    chance: Mapping[str, float]
    slices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one ranker made of a benchmark.

    Attributes:
        composer: The ranker's name.
        facts: How it ranked.
        tasks: In the benchmark's order, one a name.
        mean: Metric name to the unweighted mean over tasks; empty where the benchmark has none.
        mean_label: What that mean is called.
        mean_slices: Part to metric name to the mean over tasks in which tasks without that part count whole.
        per_query: (task, metric) to (n,) values in [0, 1], for differences.
    """

    composer: str
    facts: Mapping[str, object]
    tasks: tuple[TaskReport, ...]
    mean: Mapping[str, Interval]
    mean_label: str
    mean_slices: Mapping[str, Mapping[str, float]]
    per_query: Mapping[tuple[str, str], F64]


@dataclass(frozen=True, slots=True)
class Difference:
    """A composer's figures minus the first one's on the same queries, in points: task (or "mean") to metric."""

    composer: str
    baseline: str
    values: Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that an evaluation found."""

    benchmark: str
    notes: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    differences: tuple[Difference, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers; docs/evaluation.md describes them."""
        results = [_outcome_json(outcome) for outcome in self.outcomes]
        content: dict[str, Any] = {"benchmark": self.benchmark, "unit": "percent", "notes": list(self.notes)}
        content |= results[0]
        if len(results) > 1:
            content["others"] = results[1:]
            content["differences"] = [
                {
                    "composer": one.composer,
                    "minus": one.baseline,
                    "values": {
                        task: {name: _interval_json(value) for name, value in row.items()}
                        for task, row in one.values.items()
                    },
                }
                for one in self.differences
            ]
        return content


def run(benchmark: Benchmark, rankers: Sequence[Ranker], *, progress: Progress | None = None) -> Report:
    """Rank every task with every ranker and report; the first ranker is what others are compared with.

    Raises:
        EvaluationError: A ranker lacks something for a task; every ranker is asked before the first one ranks.
    """
    for ranker in rankers:
        for task in benchmark.tasks:
            ranker.check(task)
    steps, done = len(rankers) * len(benchmark.tasks), 0
    outcomes = []
    for ranker in rankers:
        per_query: dict[tuple[str, str], F64] = {}
        for task in benchmark.tasks:
            if progress is not None:
                progress(f"{ranker.name}: {task.name}", done / steps)
            per_query |= {(task.name, name): row for name, row in measure(task, ranker.positions(task)).items()}
            done += 1
        outcomes.append(_outcome(benchmark, ranker, per_query))
    differences = tuple(_difference(benchmark, outcomes[0], outcome) for outcome in outcomes[1:])
    return Report(benchmark.name, benchmark.notes, tuple(outcomes), differences)


def measure(task: Task, positions: Sequence[I64]) -> dict[str, F64]:
    """Metric name to (n,) values in [0, 1] from each query's ascending target places."""
    value = metrics.average_precision if task.metric == "mAP" else metrics.hit
    return {
        name: np.asarray([value(places, k) for places in positions], np.float64)
        for name, k in zip(task.metric_names(), task.cutoffs, strict=True)
    }


def chance_of(task: Task) -> dict[str, float]:
    """Metric name to the value that random orders have on average, in percent."""
    expected = metrics.chance_of_precision if task.metric == "mAP" else metrics.chance_of_hit
    pairs: dict[tuple[int, int], int] = {}
    for count, right in zip(task.candidate_counts(), task.targets or (), strict=True):
        pairs[count, len(right)] = pairs.get((count, len(right)), 0) + 1
    total = sum(pairs.values())
    return {
        name: 100 * sum(times * expected(count, right, k) for (count, right), times in pairs.items()) / total
        for name, k in zip(task.metric_names(), task.cutoffs, strict=True)
    }


def _outcome(benchmark: Benchmark, ranker: Ranker, per_query: Mapping[tuple[str, str], F64]) -> Outcome:
    reports = [_task_report(name, rows, per_query) for name, rows in _by_name(benchmark).items()]
    mean: dict[str, Interval] = {}
    slices: dict[str, dict[str, float]] = {}
    if benchmark.mean is not None:
        shared = [name for name in reports[0].values if all(name in report.values for report in reports)]
        references = [rows[0].references for rows in _by_name(benchmark).values()]
        mean = means_of_tasks([{name: per_query[r.name, name] for name in shared} for r in reports], references)
        for part in {part for report in reports for part in report.slices}:
            rows = [report.slices.get(part) or _whole(report) for report in reports]
            slices[part] = {name: float(np.mean([row[name] for row in rows])) for name in shared}
    return Outcome(ranker.name, ranker.facts(), tuple(reports), mean, benchmark.mean or "", slices, per_query)


def _by_name(benchmark: Benchmark) -> dict[str, list[Task]]:
    names: dict[str, list[Task]] = {}
    for task in benchmark.tasks:
        names.setdefault(task.name, []).append(task)
    return names


def _whole(report: TaskReport) -> dict[str, float]:
    return {name: value.value for name, value in report.values.items()}


def _task_report(name: str, tasks: Sequence[Task], per_query: Mapping[tuple[str, str], F64]) -> TaskReport:
    values: dict[str, Interval] = {}
    chance: dict[str, float] = {}
    slices: dict[str, dict[str, float]] = {}
    for task in tasks:
        rows = {metric: per_query[name, metric] for metric in task.metric_names()}
        values |= {metric: mean_of(row, task.references) for metric, row in rows.items()}
        chance |= chance_of(task)
        for part, indices in task.slices.items():
            own = {metric: 100 * float(row[list(indices)].mean()) for metric, row in rows.items()}
            slices.setdefault(part, {"n": len(indices)}).update(own)
    counts = tasks[0].candidate_counts()
    return TaskReport(
        name=name,
        queries=len(tasks[0].ids),
        references=len(set(tasks[0].references)),
        candidates=(min(counts), max(counts)),
        values=values,
        chance=chance,
        slices=slices,
    )


def _difference(benchmark: Benchmark, first: Outcome, other: Outcome) -> Difference:
    values: dict[str, dict[str, Interval]] = {}
    by_name = _by_name(benchmark)
    for task, metric in first.per_query:
        change = other.per_query[task, metric] - first.per_query[task, metric]
        values.setdefault(task, {})[metric] = mean_of(change, by_name[task][0].references)
    if first.mean:
        values["mean"] = means_of_tasks(
            [
                {name: other.per_query[task, name] - first.per_query[task, name] for name in first.mean}
                for task in by_name
            ],
            [tasks[0].references for tasks in by_name.values()],
        )
    return Difference(other.composer, first.composer, values)


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    content: dict[str, Any] = {"composer": outcome.composer, "how": dict(outcome.facts)}
    content["tasks"] = {report.name: _task_json(report) for report in outcome.tasks}
    if outcome.mean:
        content["mean"] = {
            "label": outcome.mean_label,
            "tasks": [report.name for report in outcome.tasks],
            **_values_json(outcome.mean),
            **{part: dict(row) for part, row in outcome.mean_slices.items()},
        }
    return content


def _task_json(report: TaskReport) -> dict[str, Any]:
    low, high = report.candidates
    return {
        "n": report.queries,
        "references": report.references,
        "candidates": low if low == high else [low, high],
        **_values_json(report.values),
        "chance": dict(report.chance),
        **({"slices": {part: dict(row) for part, row in report.slices.items()}} if report.slices else {}),
    }


def _values_json(values: Mapping[str, Interval]) -> dict[str, Any]:
    return {
        **{name: value.value for name, value in values.items()},
        "interval": {name: [value.low, value.high] for name, value in values.items()},
    }


def _interval_json(value: Interval) -> dict[str, Any]:
    return {"value": value.value, "interval": [value.low, value.high]}
