"""What a comparison measures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

SWEEP_POINTS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        items: Rows.
        dim: Dimensions.
        k: Hits a query.
        queries: Distinct queries that are measured.
        tuning_queries: Others, on which search parameters are chosen.
        target: Mean recall@k that everyone is tuned to.
        callers: Numbers of calls in progress, unfiltered.
        filters: Shares in percent that a filter leaves.
        filter_callers: Calls in progress under a filter.
        curve_callers: Calls in progress for the curve of recall against QPS, and for what saturates a peer.
        sweep: Measure that curve.
        loads: Fractions of a peer's saturation at which calls arrive by themselves; none for no open loop.
        open_callers: Calls in progress at most in the open loop.
        runs: Measurements of each figure, everyone's first before anyone's second.
        measure_s: Seconds of each.
        warm_up_s: Seconds before each that do not count.
        threads: Processors that everything together may use.
        seed: Of the data and the arrivals.
    """

    items: int = 50_000
    dim: int = 512
    k: int = 10
    queries: int = 1_000
    tuning_queries: int = 500
    target: float = 0.95
    callers: tuple[int, ...] = (1, 8, 32)
    filters: tuple[float, ...] = (33.0, 1.0)
    filter_callers: int = 8
    curve_callers: int = 32
    sweep: bool = True
    loads: tuple[float, ...] = (0.25, 0.5, 0.7, 0.9)
    open_callers: int = 64
    runs: int = 3
    measure_s: float = 4.0
    warm_up_s: float = 1.0
    threads: int = 2
    seed: int = 7

    def filtered(self) -> tuple[float | None, ...]:
        """No filter, then the filters."""
        return (None, *self.filters)


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is measured for everyone.

    Attributes:
        kind: "load" (until searchable), "closed", "curve" or "open".
        percent: Share of the rows that the filter leaves; None for no filter.
        callers: Calls in progress.
        level: Place on the curve, or fraction of saturation in percent; 0 otherwise.
    """

    kind: str
    percent: float | None = None
    callers: int = 1
    level: int = 0

    @property
    def filter_name(self) -> str:
        """As result lines have it."""
        return "none" if self.percent is None else f"{self.percent:g} % random"


def closed_cases(plan: Plan) -> list[Case]:
    """Everything that is measured in a closed loop with the tuned parameters."""
    unfiltered = [Case("closed", None, callers) for callers in plan.callers]
    return [*unfiltered, *(Case("closed", percent, plan.filter_callers) for percent in plan.filters)]


def in_turn(names: list[str], run: int) -> list[str]:
    """The order of a run: another one begins each time, so that nobody always follows the same neighbour's noise."""
    at = run % len(names) if names else 0
    return names[at:] + names[:at]


def as_setting(params: Mapping[str, Any]) -> str:
    """Search parameters in a few characters."""
    return ", ".join(f"{name} {value}" for name, value in params.items())
