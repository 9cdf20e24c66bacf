"""`likewise bench`: speed of this installation on this machine, beside the limits that no server could pass."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from likewise.cli.benchmark import encode as encode_benchmark
from likewise.cli.benchmark import encode_model, goal_report, vit
from likewise.cli.benchmark import ingest as ingest_benchmark
from likewise.cli.benchmark import overload as overload_benchmark
from likewise.cli.benchmark import restart as restart_benchmark
from likewise.cli.benchmark import search as search_benchmark
from likewise.cli.benchmark import upsert as upsert_benchmark
from likewise.cli.benchmark.encode_raw import RawFailed
from likewise.cli.benchmark.gallery import NotReady
from likewise.cli.benchmark.goal_list import GOALS
from likewise.cli.benchmark.goals import Line, evaluate
from likewise.cli.benchmark.load import LoadFailed
from likewise.cli.benchmark.report import Report
from likewise.cli.benchmark.restart import WrongAnswer
from likewise.cli.server_process import ServerFailed, stop_on_sigterm
from likewise.client.errors import LikewiseError
from likewise.export.manifest import ManifestError

app = typer.Typer(add_completion=False)

_MODES: Final = ("embedded", "ray")
# The defaults of the options are those of the plans.
_SEARCH: Final = search_benchmark.Plan()
_INGEST: Final = ingest_benchmark.Plan()
_UPSERT: Final = upsert_benchmark.Plan()
_ENCODE: Final = encode_benchmark.Plan()
_RESTART: Final = restart_benchmark.Plan()
_SEARCH_CALLERS: Final = ",".join(map(str, _SEARCH.callers))
_ENCODE_CALLERS: Final = ",".join(map(str, _ENCODE.callers))
_PIPE_WIDTH: Final = 140
_FAILURES: Final = (ServerFailed, LoadFailed, RawFailed, NotReady, WrongAnswer, LikewiseError, ManifestError)
_T = TypeVar("_T", int, float)

Mode = Annotated[str, typer.Option(help="embedded or ray.")]
Items = Annotated[int, typer.Option(min=1_000, help="Rows of the gallery.")]
Dim = Annotated[int, typer.Option(min=2, max=32_768, help="Dimensions.")]
Callers = Annotated[str, typer.Option(help="Calls in progress at any time, a comma between numbers.")]
Index = Annotated[str, typer.Option(help="hnsw or flat.")]
Links = Annotated[int, typer.Option("--m", min=4, max=128, help="HNSW links.")]
Construction = Annotated[int, typer.Option("--ef-construction", min=8, help="HNSW candidates while building.")]
Queries = Annotated[int, typer.Option(min=1, help="Distinct queries.")]
Shards = Annotated[int, typer.Option(min=1, max=1_024, help="Shards of the gallery.")]
Runs = Annotated[int, typer.Option(min=1, help="Measurements of each figure; the median and the spread are told.")]
Seconds = Annotated[float, typer.Option(min=0.5, help="Seconds of each measurement.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of the server and of the raw libraries.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the data.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead of a table.")]


@app.callback(invoke_without_command=True)
def bench(context: typer.Context, as_json: AsJson = False) -> None:
    """Measure search, ingest and encoding beside their limits; without a command, a quick set of all three."""
    if context.invoked_subcommand is not None:
        return

    def quick(report: Report) -> None:
        # More than the planner would compare exactly, so that the index is what is measured.
        items = 25_000
        search_benchmark.run(
            search_benchmark.Plan(items=items, callers=(1, 32), filters=(None, 1.0), measure_s=3.0), report
        )
        ingest_benchmark.run(ingest_benchmark.Plan(items=items, runs=1), report)
        encode_benchmark.run(encode_benchmark.Plan(measure_s=3.0), report)

    _run(quick, as_json=as_json)


@app.command()
def search(
    mode: Mode = _SEARCH.mode,
    items: Items = _SEARCH.items,
    dim: Dim = _SEARCH.dim,
    callers: Callers = _SEARCH_CALLERS,
    index: Index = _SEARCH.index,
    filters: Annotated[
        str, typer.Option("--filter", help="Percent of the rows that a filter leaves, or none; a comma between them.")
    ] = "none",
    correlated: Annotated[
        bool, typer.Option("--correlated", help="Filters leave whole clusters, not random rows.")
    ] = False,
    client: Annotated[
        str, typer.Option(help="stub (bare gRPC), sdk, threads (of one Client); a comma between them.")
    ] = "stub",
    k: Annotated[int, typer.Option(min=1, max=10_000, help="Hits a query.")] = _SEARCH.k,
    queries: Queries = _SEARCH.queries,
    m: Links = _SEARCH.m,
    ef_construction: Construction = _SEARCH.ef_construction,
    ef: Annotated[int, typer.Option(min=1, help="HNSW candidates while searching.")] = _SEARCH.ef,
    exact: Annotated[bool, typer.Option("--exact", help="Ask for exact answers, whatever the index.")] = False,
    shards: Shards = _SEARCH.shards,
    runs: Runs = _SEARCH.runs,
    seconds: Seconds = _SEARCH.measure_s,
    threads: Threads = _SEARCH.threads,
    seed: Seed = _SEARCH.seed,
    as_json: AsJson = False,
) -> None:
    """Calls a second and latency of Search on clustered vectors, with recall, beside a bare gRPC echo and raw FAISS."""
    clients = tuple(part.strip() for part in client.split(","))
    _one_of("--mode", (mode,), _MODES)
    _one_of("--index", (index,), ("hnsw", "flat"))
    _one_of("--client", clients, ("stub", "sdk", "threads"))
    plan = search_benchmark.Plan(
        mode=mode,
        items=items,
        dim=dim,
        k=k,
        queries=queries,
        index=index,
        m=m,
        ef_construction=ef_construction,
        ef=ef,
        exact=exact,
        shards=shards,
        callers=_numbers("--callers", callers, int, low=1, high=10_000),
        filters=[
            None if part.strip() == "none" else _numbers("--filter", part, float, low=0, high=100)[0]
            for part in filters.split(",")
        ],
        correlated=correlated,
        clients=clients,
        runs=runs,
        measure_s=seconds,
        threads=threads,
        seed=seed,
    )
    _run(lambda report: search_benchmark.run(plan, report), as_json=as_json)


@app.command()
def overload(
    items: Items = _SEARCH.items,
    dim: Dim = _SEARCH.dim,
    index: Index = _SEARCH.index,
    callers: Annotated[
        int, typer.Option(min=1, max=10_000, help="Callers of the closed loop that finds the saturation.")
    ] = overload_benchmark.SATURATING_CALLERS,
    deadline: Annotated[float, typer.Option(min=0.01, help="Seconds that a call of the open loop may take.")] = 1.0,
    client: Annotated[str, typer.Option(help="Who asks: stub or sdk.")] = "stub",
    runs: Runs = _SEARCH.runs,
    seconds: Seconds = _SEARCH.measure_s,
    threads: Threads = _SEARCH.threads,
    seed: Seed = _SEARCH.seed,
    as_json: AsJson = False,
) -> None:
    """Right answers in time a second when twice as many calls come as the server can answer."""
    _one_of("--index", (index,), ("hnsw", "flat"))
    _one_of("--client", (client,), ("stub", "sdk"))
    plan = search_benchmark.Plan(
        items=items,
        dim=dim,
        index=index,
        callers=(callers,),
        runs=runs,
        measure_s=seconds,
        threads=threads,
        seed=seed,
    )
    overload_plan = overload_benchmark.Plan(base=plan, deadline_s=deadline, client=client)
    _run(lambda report: overload_benchmark.run(overload_plan, report), as_json=as_json)


@app.command()
def ingest(
    mode: Mode = _INGEST.mode,
    items: Items = _INGEST.items,
    dim: Dim = _INGEST.dim,
    index: Index = _INGEST.index,
    m: Links = _INGEST.m,
    ef_construction: Construction = _INGEST.ef_construction,
    shards: Shards = _INGEST.shards,
    runs: Runs = _INGEST.runs,
    threads: Threads = _INGEST.threads,
    seed: Seed = _INGEST.seed,
    as_json: AsJson = False,
) -> None:
    """Rows a second until durable and until sealed, beside one raw Lance write and one raw FAISS build."""
    _one_of("--mode", (mode,), _MODES)
    _one_of("--index", (index,), ("hnsw", "flat"))
    plan = ingest_benchmark.Plan(
        mode=mode,
        items=items,
        dim=dim,
        index=index,
        m=m,
        ef_construction=ef_construction,
        shards=shards,
        runs=runs,
        threads=threads,
        seed=seed,
    )
    _run(lambda report: ingest_benchmark.run(plan, report), as_json=as_json)


@app.command()
def upsert(
    mode: Mode = _UPSERT.mode,
    items: Items = _UPSERT.items,
    dim: Dim = _UPSERT.dim,
    shards: Shards = _UPSERT.shards,
    runs: Runs = _UPSERT.runs,
    threads: Threads = _UPSERT.threads,
    seed: Seed = _UPSERT.seed,
    as_json: AsJson = False,
) -> None:
    """Rows a second that one streaming client has acknowledged, new and replaced, beside one raw Lance write."""
    _one_of("--mode", (mode,), _MODES)
    plan = upsert_benchmark.Plan(mode=mode, items=items, dim=dim, shards=shards, runs=runs, threads=threads, seed=seed)
    _run(lambda report: upsert_benchmark.run(plan, report), as_json=as_json)


@app.command()
def restart(
    items: Items = _RESTART.items,
    dim: Dim = _RESTART.dim,
    index: Index = _RESTART.index,
    m: Links = _RESTART.m,
    ef_construction: Construction = _RESTART.ef_construction,
    shards: Shards = _RESTART.shards,
    runs: Runs = _RESTART.runs,
    threads: Threads = _RESTART.threads,
    seed: Seed = _RESTART.seed,
    as_json: AsJson = False,
) -> None:
    """Seconds from starting a server on a filled store to its first correct answer, and the memory it then takes."""
    _one_of("--index", (index,), ("hnsw", "flat"))
    plan = restart_benchmark.Plan(
        items=items,
        dim=dim,
        index=index,
        m=m,
        ef_construction=ef_construction,
        shards=shards,
        runs=runs,
        threads=threads,
        seed=seed,
    )
    _run(lambda report: restart_benchmark.run(plan, report), as_json=as_json)


@app.command()
def encode(
    mode: Mode = _ENCODE.mode,
    model: Annotated[
        str, typer.Option(help="shapes (the built-in models, through Search), vit-b-32 or vit-tiny (random weights).")
    ] = "shapes",
    items: Items = _ENCODE.items,
    callers: Callers = _ENCODE_CALLERS,
    queries: Queries = _ENCODE.queries,
    batch: Annotated[
        int | None, typer.Option(min=1, max=1_024, help="Rows a run of the raw graph. Default: 64 for shapes, else 32.")
    ] = None,
    runs: Runs = _ENCODE.runs,
    seconds: Seconds = _ENCODE.measure_s,
    kept: Annotated[
        int, typer.Option(min=0, help="Encodings of queries that the server keeps, of shapes; 0 to encode each.")
    ] = _ENCODE.kept,
    threads: Threads = _ENCODE.threads,
    seed: Seed = _ENCODE.seed,
    as_json: AsJson = False,
) -> None:
    """Queries by picture and condition a second, or pictures a second of a large encoder, beside raw ONNX Runtime."""
    _one_of("--mode", (mode,), _MODES)
    _one_of("--model", (model,), ("shapes", *vit.SIZES))
    if model != "shapes":
        large = encode_model.ModelPlan(
            model=model,
            mode=mode,
            callers=_numbers("--callers", callers, int, low=1, high=10_000),
            batch=batch or 32,
            runs=runs,
            measure_s=seconds,
            threads=threads,
            seed=seed,
        )
        _run(lambda report: encode_model.run(large, report), as_json=as_json)
        return
    plan = encode_benchmark.Plan(
        mode=mode,
        items=items,
        queries=queries,
        callers=_numbers("--callers", callers, int, low=1, high=10_000),
        batch=batch or 64,
        runs=runs,
        measure_s=seconds,
        kept=kept,
        threads=threads,
        seed=seed,
    )
    _run(lambda report: encode_benchmark.run(plan, report), as_json=as_json)


@app.command()
def goals(
    lines: Annotated[
        list[Path] | None,
        typer.Option(help="Result lines to take figures from too: what --json printed, benchmarks/peers.py wrote."),
    ] = None,
    measure: Annotated[bool, typer.Option(help="Measure here what this command can; else only read --lines.")] = True,
    as_json: AsJson = False,
) -> None:
    """Hold the figures against the goals on speed: pass, miss or not measured. Measuring takes about a quarter hour."""
    if not measure and not lines:
        raise typer.BadParameter("--no-measure without --lines leaves nothing to hold against the goals")
    try:
        known: list[Line] = [line for path in lines or () for line in goal_report.read_lines(path)]
    except goal_report.BadLines as error:
        raise typer.BadParameter(f"--lines: {error}") from error
    stop_on_sigterm()
    report = Report(as_json=as_json)
    if measure:
        for part in _goal_parts():
            try:
                part(report)
            except _FAILURES as error:
                # A goal that cannot be measured is one of the answers; the others are still wanted.
                _say_failed(error)
        report.close()
    # What is measured here comes last, and the last line of a setting counts.
    results = evaluate(GOALS, [*known, *goal_report.as_lines(report.measurements)])
    if as_json:
        for result in results:
            print(goal_report.to_json(result))
    else:
        console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
        console.print(goal_report.table(results))
        console.print(goal_report.summary(results), highlight=False)


def _goal_parts() -> list[Callable[[Report], None]]:
    """What the goals need of the measurements there are, each in the setting of its goal."""
    plan = search_benchmark.Plan
    searches = (
        plan(callers=(1, 32), clients=("stub", "sdk")),
        plan(items=200_000, index="flat", callers=(64,)),
        plan(items=200_000, callers=(32,), runs=1, measure_s=1.0),  # for the memory it takes
        plan(mode="ray", shards=2, callers=(32,)),
    )
    return [
        *(partial(search_benchmark.run, one) for one in searches),
        partial(overload_benchmark.run, overload_benchmark.Plan(client="sdk")),
        partial(ingest_benchmark.run, ingest_benchmark.Plan()),
        partial(upsert_benchmark.run, upsert_benchmark.Plan()),
        partial(restart_benchmark.run, restart_benchmark.Plan()),
        partial(encode_model.run, encode_model.ModelPlan(model="vit-b-32", callers=(32,))),
    ]


def _run(work: Callable[[Report], None], *, as_json: bool) -> None:
    stop_on_sigterm()
    report = Report(as_json=as_json)
    try:
        work(report)
    except _FAILURES as error:
        _say_failed(error)
        raise typer.Exit(1) from error
    finally:
        report.close()


def _say_failed(error: Exception) -> None:
    console = Console(stderr=True)
    console.print(f"[red]The benchmark failed:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)


def _one_of(option: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    if wrong := [value for value in given if value not in known]:
        raise typer.BadParameter(f"{option} must be one of {', '.join(known)}, got {wrong[0]!r}")


def _numbers(option: str, text: str, kind: Callable[[str], _T], *, low: float, high: float) -> list[_T]:
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{option} must be numbers with commas between them, got {text!r}") from error
    if wrong := [value for value in values if not low <= value <= high]:
        raise typer.BadParameter(f"{option} must be in [{low:g}, {high:g}], got {wrong[0]:g}")
    return values
