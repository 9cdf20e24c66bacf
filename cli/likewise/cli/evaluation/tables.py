"""Reports for people."""

import json
import sys
from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from likewise.export.evaluate import Interval
from likewise.export.evaluation.landmarks import LandmarkReport
from likewise.export.evaluation.reports import Outcome, Report

_PIPE_WIDTH: Final = 140


def show(report: Report, *, as_json: bool) -> None:
    """Print a report on standard output."""
    if as_json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
        return
    console = _console()
    console.print(_table(report))
    for difference in report.differences:
        rows = "; ".join(
            f"{task} " + ", ".join(f"{name} {_interval(value)}" for name, value in row.items())
            for task, row in difference.values.items()
            if task == "mean" or "mean" not in difference.values
        )
        _line(console, f"{difference.composer} minus {difference.baseline}, paired, in points: {rows}")
    for outcome in report.outcomes:
        for task in outcome.tasks:
            for part, values in task.slices.items():
                rest = ", ".join(f"{name} {value:.2f}" for name, value in values.items() if name != "n")
                _line(console, f"{outcome.composer}, {task.name}, {part} ({values['n']:,.0f}): {rest}")
        for part, values in outcome.mean_slices.items():
            rest = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
            _line(console, f"{outcome.composer}, {outcome.mean_label}, {part}: {rest}")
        _line(console, f"{outcome.composer}: {_facts(outcome)}", style="dim")
    for note in report.notes:
        _line(console, f"Note: {note}", style="dim")
    _line(
        console,
        "In percent. Intervals are 95 %, by bootstrap over references. A tie counts against the target.",
        style="dim",
    )


def show_landmarks(reports: Sequence[LandmarkReport], notes: Sequence[str], *, as_json: bool) -> None:
    """Print figures of Google Landmarks v2 on standard output."""
    if as_json:
        tasks = {report.name: report.to_json() for report in reports}
        print(json.dumps({"benchmark": "gldv2", "unit": "percent", "notes": list(notes), "tasks": tasks}, indent=2))
        return
    console, table = _console(), Table(box=None, header_style="bold", pad_edge=False)
    for name in ("task", "n", "answered", "metric", "value"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right", no_wrap=True)
    for report in reports:
        for metric, value in report.values.items():
            table.add_row(
                report.name, f"{report.queries:,}", f"{report.answered:,}", metric, _interval(value, digits=2)
            )
        for fact, number in report.facts.items():
            table.add_row("", "", "", fact.replace("_", " "), f"{number:,.6g}", style="dim")
    console.print(table)
    for note in notes:
        _line(console, f"Note: {note}", style="dim")
    _line(console, "In percent, but for places. Intervals are 95 %, by bootstrap over test images.", style="dim")


def _table(report: Report) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title=report.benchmark, title_justify="left")
    for name in ("task", "n", "candidates", "metric", "chance"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right", no_wrap=True)
    for outcome in report.outcomes:
        table.add_column(escape(outcome.composer), justify="right", no_wrap=True)
    first = report.outcomes[0]
    for index, task in enumerate(first.tasks):
        low, high = task.candidates
        heading = [task.name, f"{task.queries:,}", f"{low:,}" if low == high else f"{low:,} to {high:,}"]
        for metric in task.values:
            values = [_interval(outcome.tasks[index].values[metric], digits=2) for outcome in report.outcomes]
            table.add_row(*heading, metric, f"{task.chance[metric]:.2f}", *values)
            heading = ["", "", ""]
        table.add_section()
    for metric in first.mean:
        values = [_interval(outcome.mean[metric], digits=2) for outcome in report.outcomes]
        table.add_row(first.mean_label if metric == next(iter(first.mean)) else "", "", "", metric, "", *values)
    return table


def _facts(outcome: Outcome) -> str:
    facts = {name: value for name, value in outcome.facts.items() if value}
    parts = []
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key or 'no mode'}: {one}" for key, one in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        parts.append(f"{name.replace('_', ' ')} {value}")
    return "; ".join(parts)


def _interval(value: Interval, *, digits: int = 1) -> str:
    return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def _line(console: Console, text: str, style: str | None = None) -> None:
    console.print(escape(text), style=style, highlight=False, soft_wrap=True)


def _console() -> Console:
    # A pipe or a file has no width of its own; the tables are at their best in this one.
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
