"""`likewise bench`: speed of this installation on this machine, beside the limits that no server could pass."""

from collections.abc import Callable
from typing import Annotated, Final, TypeVar

import typer
from rich.console import Console

from likewise.cli.benchmark import encode as encode_benchmark
from likewise.cli.benchmark import ingest as ingest_benchmark
from likewise.cli.benchmark import search as search_benchmark
from likewise.cli.benchmark.gallery import NotReady
from likewise.cli.benchmark.load import LoadFailed
from likewise.cli.benchmark.report import Report
from likewise.cli.server_process import ServerFailed, stop_on_sigterm
from likewise.client.errors import LikewiseError
from likewise.export.manifest import ManifestError

app = typer.Typer(add_completion=False)

_MODES: Final = ("embedded", "ray")
_T = TypeVar("_T", int, float)

Mode = Annotated[str, typer.Option(help="embedded or ray.")]
Items = Annotated[int, typer.Option(min=1_000, help="Rows of the gallery.")]
Dim = Annotated[int, typer.Option(min=2, max=32_768, help="Dimensions.")]
Callers = Annotated[str, typer.Option(help="Calls in progress at any time, a comma between numbers.")]
Index = Annotated[str, typer.Option(help="hnsw or flat.")]
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
    mode: Mode = "embedded",
    items: Items = 50_000,
    dim: Dim = 512,
    callers: Callers = "1,8,32",
    index: Index = "hnsw",
    filters: Annotated[
        str, typer.Option("--filter", help="Percent of the rows that a filter leaves, or none; a comma between them.")
    ] = "none",
    correlated: Annotated[
        bool, typer.Option("--correlated", help="Filters leave whole clusters, not random rows.")
    ] = False,
    client: Annotated[str, typer.Option(help="stub (bare gRPC), sdk, or both with a comma.")] = "stub",
    k: Annotated[int, typer.Option(min=1, max=10_000, help="Hits a query.")] = 10,
    queries: Annotated[int, typer.Option(min=1, help="Distinct queries.")] = 1_000,
    m: Annotated[int, typer.Option(min=4, max=128, help="HNSW links.")] = 32,
    ef_construction: Annotated[int, typer.Option(min=8, help="HNSW candidates while building.")] = 100,
    ef: Annotated[int, typer.Option(min=1, help="HNSW candidates while searching.")] = 64,
    shards: Shards = 1,
    runs: Runs = 3,
    seconds: Seconds = 5.0,
    threads: Threads = 2,
    seed: Seed = 7,
    as_json: AsJson = False,
) -> None:
    """Calls a second and latency of Search on clustered vectors, with recall, beside a bare gRPC echo and raw FAISS."""
    clients = tuple(part.strip() for part in client.split(","))
    _one_of("--mode", (mode,), _MODES)
    _one_of("--index", (index,), ("hnsw", "flat"))
    _one_of("--client", clients, ("stub", "sdk"))
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
def ingest(
    mode: Mode = "embedded",
    items: Items = 50_000,
    dim: Dim = 512,
    index: Index = "hnsw",
    m: Annotated[int, typer.Option(min=4, max=128, help="HNSW links.")] = 32,
    ef_construction: Annotated[int, typer.Option(min=8, help="HNSW candidates while building.")] = 100,
    shards: Shards = 1,
    runs: Runs = 3,
    threads: Threads = 2,
    seed: Seed = 7,
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
def encode(
    mode: Mode = "embedded",
    items: Items = 1_000,
    callers: Callers = "1,32",
    queries: Annotated[int, typer.Option(min=1, help="Distinct queries.")] = 200,
    batch: Annotated[int, typer.Option(min=1, help="Queries a run of the graphs in the limit.")] = 64,
    runs: Runs = 3,
    seconds: Seconds = 5.0,
    threads: Threads = 2,
    seed: Seed = 7,
    as_json: AsJson = False,
) -> None:
    """Queries by picture and condition a second with the built-in model, beside raw ONNX Runtime and the echo."""
    _one_of("--mode", (mode,), _MODES)
    plan = encode_benchmark.Plan(
        mode=mode,
        items=items,
        queries=queries,
        callers=_numbers("--callers", callers, int, low=1, high=10_000),
        batch=batch,
        runs=runs,
        measure_s=seconds,
        threads=threads,
        seed=seed,
    )
    _run(lambda report: encode_benchmark.run(plan, report), as_json=as_json)


def _run(work: Callable[[Report], None], *, as_json: bool) -> None:
    stop_on_sigterm()
    report = Report(as_json=as_json)
    try:
        work(report)
    except (ServerFailed, LoadFailed, NotReady, LikewiseError, ManifestError) as error:
        Console(stderr=True).print(f"[red]The benchmark failed:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    finally:
        report.close()


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
