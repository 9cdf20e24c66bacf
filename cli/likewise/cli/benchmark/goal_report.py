"""Goals for people and for programs: result lines in, a table or JSON lines out."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from likewise.cli.benchmark.figures import Measurement
from likewise.cli.benchmark.goals import Line, Result, Verdict

_STYLES: Final = {Verdict.PASS: "green", Verdict.MISS: "red", Verdict.NOT_MEASURED: "dim"}


class BadLines(ValueError):
    """A file that should have result lines has something else; the message says where."""


def read_lines(path: Path) -> list[Line]:
    """The result lines of a file, as `--json` writes them; empty lines are passed over.

    Raises:
        BadLines: If it cannot be read, or a line is not a JSON object.
    """
    found: list[Line] = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadLines(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadLines(f"{path}, line {number}: not JSON: {line[:80]!r}") from error
        if not isinstance(value, dict):
            raise BadLines(f"{path}, line {number}: a result line is a JSON object, got {line[:80]!r}")
        found.append(value)
    return found


def as_lines(measurements: Sequence[Measurement]) -> list[Line]:
    """Measurements of this process as lines."""
    return [asdict(one) for one in measurements]


def table(results: Sequence[Result]) -> Table:
    """One row a check, goals together."""
    made = Table(show_header=True, header_style="bold", pad_edge=False)
    made.add_column("#", justify="right")
    made.add_column("goal", overflow="fold", min_width=24)
    made.add_column("figure", overflow="fold", min_width=20)
    made.add_column("wanted", justify="right", no_wrap=True)
    made.add_column("measured", justify="right", no_wrap=True)
    made.add_column("recall", justify="right", no_wrap=True)
    made.add_column("verdict", overflow="fold", min_width=12)
    last = 0
    for result in results:
        new = result.goal.number != last
        if new and last:
            made.add_section()
        last = result.goal.number
        check = result.check
        made.add_row(
            str(result.goal.number) if new else "",
            result.goal.name if new else "",
            check.of,
            f"{check.sense} {_number(check.bound)}{_unit(check.unit)}",
            "" if result.figure is None else f"{_number(result.figure)}{_unit(check.unit)}",
            "" if result.recall is None else f"{result.recall:.3f}",
            Text(_verdict(result), style=_STYLES[result.verdict]),
        )
    return made


def summary(results: Sequence[Result]) -> str:
    """One line: how many goals pass, miss, and are not measured; a goal is as good as its worst check."""
    worst: dict[int, Verdict] = {}
    order = (Verdict.PASS, Verdict.NOT_MEASURED, Verdict.MISS)
    for result in results:
        known = worst.get(result.goal.number, Verdict.PASS)
        worst[result.goal.number] = max(known, result.verdict, key=order.index)
    counts = {verdict: list(worst.values()).count(verdict) for verdict in order}
    return (
        f"of {len(worst)} goals {counts[Verdict.PASS]} pass, {counts[Verdict.MISS]} miss, "
        f"{counts[Verdict.NOT_MEASURED]} not (wholly) measured"
    )


def to_json(result: Result) -> str:
    """A check as one JSON object."""
    fields: dict[str, Any] = {
        "goal": result.goal.number,
        "name": result.goal.name,
        "figure": result.check.of,
        "sense": result.check.sense,
        "bound": result.check.bound,
        "unit": result.check.unit,
        "measured": None if result.figure is None else float(f"{result.figure:.4g}"),
        "recall_at_k": result.recall,
        "verdict": result.verdict,
        "note": result.note,
        "how": result.goal.how,
    }
    return json.dumps(fields)


def _verdict(result: Result) -> str:
    return f"{result.verdict}: {result.note}" if result.note else str(result.verdict)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 or value == int(value) else f"{value:.3g}"


def _unit(unit: str) -> str:
    return f" {unit}" if unit not in ("", "/s") else unit
