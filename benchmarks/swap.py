"""Model versions swapped under constant load: requests lost, mixed answers, latency, memory. See `--help`."""

from typing import Annotated

import typer
from rich.console import Console

from likewise.cli.benchmark.report import Report
from likewise.cli.benchmark.swap import Plan, run
from likewise.cli.server_process import ServerFailed, stop_on_sigterm
from likewise.client import LikewiseError


def swap(
    mode: Annotated[str, typer.Option(help="embedded or ray.")] = "embedded",
    swaps: Annotated[int, typer.Option(min=1, help="Versions loaded and promoted one after the other.")] = 50,
    items: Annotated[int, typer.Option(min=1, help="Pictures in the gallery.")] = 500,
    callers: Annotated[int, typer.Option(min=1, help="Calls in progress at any time.")] = 8,
    pause: Annotated[float, typer.Option(min=0.0, help="Seconds of load between swaps.")] = 0.5,
    baseline: Annotated[float, typer.Option(min=0.1, help="Seconds of load before the first swap.")] = 10.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the server.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line.")] = False,
) -> None:
    """Load and promote new versions of a family under load; ends with status 1 if a request was lost or mixed."""
    if mode not in ("embedded", "ray"):
        raise typer.BadParameter(f"must be embedded or ray, got {mode!r}", param_hint="--mode")
    stop_on_sigterm()
    plan = Plan(
        mode=mode, swaps=swaps, items=items, callers=callers, pause_s=pause, baseline_s=baseline, threads=threads
    )
    report = Report(as_json=as_json)
    errors = Console(stderr=True)
    try:
        outcome = run(plan, report)
    except (ServerFailed, LikewiseError) as error:
        errors.print(f"[red]The benchmark failed:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    finally:
        report.close()
    for name, value in (report.measurements[-1].setting or {}).items():
        errors.print(f"{name:<24} {value:,.4g}", highlight=False)
    for text in dict.fromkeys(outcome.lost):
        errors.print(f"lost: {text}", highlight=False)
    if outcome.lost or outcome.mixed or outcome.backwards or outcome.stale or outcome.wrong:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(swap)
