"""The comparison for people: one table of ratios to Likewise, and what failed."""

from collections.abc import Mapping, Sequence
from typing import Final

from benchmarks.peers.plan import Plan, as_setting
from benchmarks.peers.registry import LIKEWISE
from benchmarks.peers.results import WHAT, Entry
from rich.console import Console
from rich.table import Table
from rich.text import Text

from likewise.cli.benchmark.figures import Measurement

_SHOWN: Final = (WHAT["load"], WHAT["closed"], WHAT["open"])


def table(measurements: Sequence[Measurement], plan: Plan) -> Table:
    """One row a peer and case, cases together; the curve is for the plot.

    "Likewise / it" is Likewise's figure over the peer's: of searches, calls a second (2.0 is twice as fast); of a load,
    the time (0.5 is twice as fast).
    """
    made = Table(show_header=True, header_style="bold", pad_edge=False)
    made.add_column("what", overflow="fold")
    made.add_column("who", no_wrap=True)
    for name in ("a second", "± %", "p50 / p95 / p99 ms", "recall", "Likewise / it"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("search", overflow="fold")
    last = None
    for row in sorted((row for row in measurements if row.what in _SHOWN), key=lambda row: _SHOWN.index(row.what)):
        case = _case(row)
        if last not in (None, case):
            made.add_section()
        made.add_row(
            "" if case == last else case,
            f"[bold]{row.target}[/bold]" if row.target.startswith(LIKEWISE) else row.target,
            f"{row.qps:,.0f}" if row.qps is not None else "",
            f"{50 * row.spread:.0f}" if row.spread is not None and row.runs > 1 else "",
            _latency(row),
            _recall(row, plan.target),
            _advantage(row),
            _search(row),
        )
        last = case
    return made


def _search(row: Measurement) -> str:
    setting = row.setting or {}
    batch = {"batches of": setting["batch"]} if "batch" in setting else {}
    return as_setting({**setting.get("search", {}), **batch})


def _case(row: Measurement) -> str:
    if row.seconds is not None:
        return f"{row.what}, {row.n:,} rows"
    filtered = "" if row.filter == "none" else f", filter {row.filter}"
    return f"{row.what}, {row.callers} caller{'s' * (row.callers > 1)}{filtered}"


def _latency(row: Measurement) -> str:
    if row.seconds is not None:
        return f"{row.seconds:.1f} s in all"
    if row.p50_ms is None or row.p95_ms is None or row.p99_ms is None:
        return ""
    offered = (row.setting or {}).get("offered_qps")
    at = f"at {offered:,.0f}/s: " if offered is not None else ""
    return f"{at}{row.p50_ms:.2f} / {row.p95_ms:.2f} / {row.p99_ms:.2f}"


def _recall(row: Measurement, target: float) -> Text:
    if row.recall_at_k is None:
        return Text("")
    # A peer below the target is not comparable on speed, and that has to catch the eye.
    return Text(f"{row.recall_at_k:.3f}", style="red" if row.recall_at_k < target else "")


def _advantage(row: Measurement) -> str:
    ratios = row.ratios or {}
    if (time := ratios.get(f"time / {LIKEWISE}")) is not None:
        return f"{1 / time:.2f}"
    if (rate := ratios.get(f"QPS / {LIKEWISE}")) is not None and row.what != WHAT["open"]:
        return f"{1 / rate:.2f}"
    return ""


def print_failures(entries: Mapping[str, Entry], console: Console) -> None:
    """What could not be measured, and why."""
    for name, entry in entries.items():
        for what, why in entry.failures.items():
            console.print(Text.assemble((f"{name}: not measured ({what}): ", "yellow"), why), soft_wrap=True)
