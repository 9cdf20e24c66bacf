"""What the figures should be: the goals on speed as data, and whether result lines meet them.

A line is a `Measurement` as a mapping, just measured or read back from a file. A goal may ask for several figures, each
a check of its own. A check looks for a line of the very setting that its goal names; a figure from a smaller gallery,
fewer runs or another number of callers is not that figure, and the check stays "not measured".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

Line = Mapping[str, Any]

MIN_RUNS: Final = 3
MIN_RECALL: Final = 0.95
_SPARE_BYTES: Final = 300e6
"""Resident memory that a process may have beside its vectors, goal 10."""


class Sense(StrEnum):
    """Which side of the bound is good."""

    AT_LEAST = "at least"
    AT_MOST = "at most"


class Verdict(StrEnum):
    """What came of a check."""

    PASS = "pass"
    MISS = "miss"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Found:
    """A figure in the lines.

    Attributes:
        figure: It.
        recall: Mean recall@k of the run it is from; None where that means nothing.
        runs: Runs behind it; None where one is all that makes sense.
    """

    figure: float
    recall: float | None = None
    runs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One figure of a goal.

    Attributes:
        of: What is held against the bound, for people.
        sense: Whether the bound is a floor or a ceiling.
        bound: It; meeting it exactly passes.
        unit: Of figure and bound: "", "x", "s", "/s".
        sources: Where to look for it, the first that has it counts.
    """

    of: str
    sense: Sense
    bound: float
    unit: str = ""
    sources: tuple[Callable[[Sequence[Line]], Found | None], ...]


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal.

    Attributes:
        number: Its number.
        name: What is measured, in which setting.
        how: The command whose lines have it.
        checks: All of them have to pass.
    """

    number: int
    name: str
    how: str
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """A check and what came of it; `note` says why a figure that is there does not count."""

    goal: Goal
    check: Check
    verdict: Verdict
    figure: float | None = None
    recall: float | None = None
    note: str = ""


def evaluate(goals: Sequence[Goal], lines: Sequence[Line]) -> list[Result]:
    """Every check of every goal against the lines; the order is that of the goals."""
    return [_evaluate(goal, check, lines) for goal in goals for check in goal.checks]


def _evaluate(goal: Goal, check: Check, lines: Sequence[Line]) -> Result:
    found = next((found for source in check.sources if (found := source(lines)) is not None), None)
    if found is None:
        return Result(goal, check, Verdict.NOT_MEASURED)
    if found.runs is not None and found.runs < MIN_RUNS:
        note = f"{found.runs} of at least {MIN_RUNS} runs"
        return Result(goal, check, Verdict.NOT_MEASURED, found.figure, found.recall, note)
    if found.recall is not None and found.recall < MIN_RECALL:
        note = f"recall {found.recall:.3f} is below {MIN_RECALL:g}"
        return Result(goal, check, Verdict.MISS, found.figure, found.recall, note)
    met = found.figure >= check.bound if check.sense is Sense.AT_LEAST else found.figure <= check.bound
    return Result(goal, check, Verdict.PASS if met else Verdict.MISS, found.figure, found.recall)


def field(*path: str, **where: Any) -> Callable[[Sequence[Line]], Found | None]:
    """A source: the value at `path` of the last line that has the fields `where`, and the value.

    Args:
        path: Names from the line inwards, as in ("ratios", "QPS / echo").
        where: Fields of the line.
    """

    def source(lines: Sequence[Line]) -> Found | None:
        for line in reversed(lines):
            value = _at(line, path)
            if value is not None and _matches(line, where):
                return Found(value, line.get("recall_at_k"), line.get("runs"))
        return None

    return source


def quotient(
    name: str, numerator: Mapping[str, Any], denominator: Mapping[str, Any]
) -> Callable[[Sequence[Line]], Found | None]:
    """A source: the field `name` of one line over that of another; the lower recall and the fewer runs count."""

    def source(lines: Sequence[Line]) -> Found | None:
        above, below = field(name, **numerator)(lines), field(name, **denominator)(lines)
        if above is None or below is None or not below.figure:
            return None
        recalls = [found.recall for found in (above, below) if found.recall is not None]
        runs = [found.runs for found in (above, below) if found.runs is not None]
        return Found(above.figure / below.figure, min(recalls, default=None), min(runs, default=None))

    return source


def memory(**where: Any) -> Callable[[Sequence[Line]], Found | None]:
    """A source: the server's resident bytes less the spare ones over the vectors' bytes, the largest of the lines."""

    def source(lines: Sequence[Line]) -> Found | None:
        shares = [
            (resident * 2**20 - _SPARE_BYTES) / (line["n"] * line["dim"] * 4)
            for line in lines
            if _matches(line, where) and (resident := _at(line, ("setting", "server_mib"))) is not None
        ]
        return Found(max(shares)) if shares else None

    return source


def _matches(line: Line, where: Mapping[str, Any]) -> bool:
    return all(line.get(name) == value for name, value in where.items())


def _at(line: Line, path: Sequence[str]) -> float | None:
    value: Any = line
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None
