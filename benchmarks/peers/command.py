"""The command line of `benchmarks/peers.py`."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from benchmarks.peers import environments, plots
from benchmarks.peers.comparison import Comparison
from benchmarks.peers.plan import Plan
from benchmarks.peers.registry import PEERS, Peer, chosen
from benchmarks.peers.results import measurement
from benchmarks.peers.table import print_failures, table
from rich.console import Console

from likewise.cli.benchmark.figures import Measurement
from likewise.cli.benchmark.report import environment, to_line
from likewise.cli.server_process import stop_on_sigterm

_NAMES: Final = ", ".join(peer.name for peer in PEERS)
_WIDTH: Final = 150  # of a table that goes into a pipe
_QUICK: Final[dict[str, Any]] = {
    "items": 5_000,
    "queries": 200,
    "tuning_queries": 200,
    "runs": 1,
    "measure_s": 1.0,
    "warm_up_s": 0.3,
    "loads": (0.5,),
}


def peers(
    only: Annotated[str, typer.Option(help=f"Who, a comma between names: {_NAMES}. All by default.")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="5,000 rows, one run of a second each: whether it works, not how fast.")
    ] = False,
    items: Annotated[int | None, typer.Option(min=4_000, help="Rows.", show_default="50,000")] = None,
    dim: Annotated[int, typer.Option(min=2, max=2_000, help="Dimensions; pgvector indexes up to 2,000.")] = 512,
    runs: Annotated[int | None, typer.Option(min=1, help="Runs of each figure, in turn.", show_default="3")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.5, help="Seconds of each.", show_default="4")] = None,
    target: Annotated[float, typer.Option(min=0.1, max=0.999, help="Recall@10 that everyone is tuned to.")] = 0.95,
    client: Annotated[
        str | None,
        typer.Option(
            help="How Likewise and Chroma are called. bare: prepared messages; sdk: their own Python clients.",
            show_default="sdk for Likewise, bare for Chroma: the faster of each",
        ),
    ] = None,
    transport: Annotated[
        str | None,
        typer.Option(
            help="How Likewise and the echo are reached. socket: a Unix socket, as pgvector always is; tcp: a port.",
            show_default="socket",
        ),
    ] = None,
    curve: Annotated[bool, typer.Option(help="Measure recall against calls a second.")] = True,
    open_loop: Annotated[bool, typer.Option(help="Measure latency against offered load.")] = True,
    threads: Annotated[int, typer.Option(min=1, help="Processors that everything together runs on.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the data and the arrivals.")] = 7,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the peers' environments.", show_default="~/.cache/likewise/peers")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for results.jsonl and the pictures.")] = Path("peers-out"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result lines instead of a table.")] = False,
) -> None:
    """Compare Likewise with what a user would pick instead: same vectors, queries, recall target and processors."""
    if client not in (None, "bare", "sdk"):
        raise typer.BadParameter(f"--client must be bare or sdk, got {client!r}")
    if transport not in (None, "socket", "tcp"):
        raise typer.BadParameter(f"--transport must be socket or tcp, got {transport!r}")
    try:
        who = chosen([name.strip() for name in only.split(",") if name.strip()], client=client, transport=transport)
    except ValueError as error:
        raise typer.BadParameter(f"--only: {error}") from error
    plan = Plan(dim=dim, target=target, threads=threads, seed=seed, sweep=curve)
    given: dict[str, Any] = {"items": items, "runs": runs, "measure_s": seconds}
    plan = replace(plan, **{**(_QUICK if quick else {}), **{name: value for name, value in given.items() if value}})
    if not open_loop:
        plan = replace(plan, loads=())
    stop_on_sigterm()
    _compare(plan, who, cache or environments.default_cache(), out, as_json=as_json)


def _compare(plan: Plan, who: tuple[Peer, ...], cache: Path, out: Path, *, as_json: bool) -> None:
    progress = Console(stderr=True)
    _stay_on(plan.threads)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="likewise-peers-") as work:
        comparison = Comparison(
            plan,
            cache.expanduser().absolute(),
            Path(work),
            lambda text: progress.print(text, style="dim", highlight=False, markup=False, soft_wrap=True),
        )
        try:
            comparison.run(who)
        finally:
            # What was measured before an interruption is worth keeping.
            found = _measurements(plan, comparison)
            where = environment()
            lines = [to_line(one, where) for one in found]
            (out / "results.jsonl").write_text("".join(f"{line}\n" for line in lines))
            console = Console(width=None if Console().is_terminal else _WIDTH)
            if as_json:
                for line in lines:
                    print(line)
            elif found:
                console.print(table(found, plan))
            print_failures(comparison.entries, progress)
    try:
        pictures = plots.draw(found, out)
    except plots.NoMatplotlib as error:
        progress.print(f"No pictures: {error}", soft_wrap=True)
    else:
        progress.print(f"Written: {', '.join(map(str, [out / 'results.jsonl', *pictures]))}", soft_wrap=True)
    if not found:
        raise typer.Exit(1)


def _measurements(plan: Plan, comparison: Comparison) -> list[Measurement]:
    """Result lines, case by case in the order they were measured."""
    cases = dict.fromkeys(case for entry in comparison.entries.values() for case in entry.runs)
    return [
        measurement(plan, comparison.dataset, comparison.entries, name, case)
        for case in cases
        for name, entry in comparison.entries.items()
        if case in entry.runs
    ]


def _stay_on(threads: int) -> None:
    """Keep this process and all it starts on so many processors, where the system can and there are more."""
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) > threads:
        os.sched_setaffinity(0, set(allowed[:threads]))
