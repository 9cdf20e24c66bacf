"""Search speed against its two limits: a bare gRPC echo of the same messages, and FAISS without a server around it."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from likewise.cli.benchmark import dataset as data
from likewise.cli.benchmark import gallery as galleries
from likewise.cli.benchmark import limit_faiss
from likewise.cli.benchmark.dataset import I64, Dataset, Mask, as_ids
from likewise.cli.benchmark.echo import SEARCH_PATH, echo_command
from likewise.cli.benchmark.figures import Measurement, Speed, combined_limit, paired_ratio, summarise, timed
from likewise.cli.benchmark.load import Load, run_load, write_requests
from likewise.cli.benchmark.report import Report
from likewise.cli.server_process import ServerProcess, serve_command
from likewise.client import Client
from likewise.client.filters import F, Filter
from likewise.client.galleries import IndexSpec
from likewise.shards.recall import recall_at_k
from likewise.v1 import search_service_pb2 as pb
from likewise.wire import encode_vector

GALLERY: Final = "benchmark"
_FAISS_BATCH: Final = 256
_FLAT_BELOW: Final = 0.1
"""Share of rows left by a filter below which raw FAISS compares them all: HNSW with a bitmap finds few of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        mode: "embedded" or "ray".
        items: Rows.
        dim: Dimensions.
        k: Hits a query.
        queries: Distinct queries.
        index: "hnsw", "flat", "auto".
        m: HNSW links.
        ef_construction: HNSW candidates while building.
        ef: HNSW candidates while searching.
        exact: Searches ask for exact answers, whatever the index.
        shards: Partitions.
        callers: Numbers of calls in progress, measured one after the other.
        filters: Shares in percent that a filter leaves, None for no filter.
        correlated: Filters leave whole clusters instead of random rows.
        clients: As of `likewise.cli.benchmark.load.Job`, one or several.
        runs: Measurements of each; each is paired with one of the echo.
        measure_s: Seconds of each.
        threads: Threads of raw FAISS, and of the server.
        seed: Of the data set.
    """

    mode: str = "embedded"
    items: int = 50_000
    dim: int = 512
    k: int = 10
    queries: int = 1_000
    index: str = "hnsw"
    m: int = 32
    ef_construction: int = 100
    ef: int = 32
    exact: bool = False
    shards: int = 1
    callers: Sequence[int] = (1, 8, 32)
    filters: Sequence[float | None] = (None,)
    correlated: bool = False
    clients: Sequence[str] = ("stub",)
    runs: int = 3
    measure_s: float = 5.0
    threads: int = 2
    seed: int = 7

    @property
    def by_graph(self) -> bool:
        """Whether searches walk a graph rather than compare all rows."""
        return self.index != "flat" and not self.exact


@dataclass(frozen=True, slots=True)
class _Case:
    """One filter: which rows it leaves, and the right answers."""

    name: str
    allowed: Mask | None
    where: Filter | None
    truth: list[list[str]]


def run(plan: Plan, report: Report) -> None:
    """Measure a plan.

    Raises:
        ServerFailed: If the server does not come up.
        LoadFailed: If a call fails.
    """
    report.say(f"drawing {plan.items:,} x {plan.dim} vectors and finding the exact answers")
    dataset = data.clustered(plan.items, plan.dim, queries=plan.queries, seed=plan.seed)
    cases = [_case(dataset, percent, plan) for percent in plan.filters]
    hnsw = None
    if plan.by_graph:
        report.say("building raw FAISS HNSW")
        hnsw = limit_faiss.build_hnsw(
            dataset.base, m=plan.m, ef_construction=plan.ef_construction, threads=plan.threads
        )
    raw = {case.name: _raw_faiss(plan, dataset, case, hnsw, report) for case in cases}
    del hnsw
    with tempfile.TemporaryDirectory(prefix="likewise-bench-") as name:
        folder = Path(name)
        command = serve_command(folder / "store", arguments=serve_arguments(plan.mode, plan.threads))
        report.say(f"starting the server ({plan.mode}) and storing the vectors")
        with ServerProcess(command, log_path=folder / "server.log") as server, Client(server.address) as client:
            spec = index_spec(plan.index, m=plan.m, ef_construction=plan.ef_construction, ef=plan.ef)
            gallery = galleries.create(client, GALLERY, plan.dim, index=spec, shards=plan.shards)
            galleries.fill(gallery, dataset)
            galleries.wait_at_rest(gallery, plan.items, index=plan.index)
            memory = galleries.resident_mib(server.pid)
            for case in cases:
                requests = [search_request(plan, query, case.where) for query in dataset.queries]
                path = write_requests(requests, folder / "requests")
                reply = one_reply(server.address, requests[0])
                (folder / "reply").write_bytes(reply)
                about = {
                    "plan": pb.SearchResponse.FromString(reply).plan.summary,
                    "request_bytes": requests[0].ByteSize(),
                    "reply_bytes": len(reply),
                    "server_mib": memory,
                }
                with ServerProcess(echo_command(folder / "reply"), log_path=folder / "echo.log") as echo:
                    for client_kind in plan.clients:
                        for callers in plan.callers:
                            report.say(f"filter {case.name}, {client_kind} client, {callers} callers")
                            pairs = paired_loads(
                                server.address, echo.address, path, plan, callers=callers, client=client_kind
                            )
                            _add(report, plan, dataset, case, pairs, raw[case.name], client_kind, callers, about)


def serve_arguments(mode: str, threads: int) -> list[str]:
    """Options of `likewise serve` for a mode.

    Raises:
        ValueError: If there is no such mode.
    """
    if mode not in ("embedded", "ray"):
        raise ValueError(f"mode must be embedded or ray, got {mode!r}")
    ray = ["--ray", "local"] if mode == "ray" else []
    return [*ray, "--threads", str(threads), "--log-level", "WARNING"]


def index_spec(kind: str, *, m: int, ef_construction: int, ef: int | None = None) -> IndexSpec:
    """The index of a gallery; a flat one has no parameters."""
    return IndexSpec(kind=kind) if kind == "flat" else IndexSpec(kind=kind, m=m, ef_construction=ef_construction, ef=ef)


def search_request(plan: Plan, query: Any, where: Filter | None) -> pb.SearchRequest:
    """The message of one query."""
    request = pb.SearchRequest(gallery=GALLERY, k=plan.k)
    request.reference.vector.CopyFrom(encode_vector(query))
    if plan.by_graph:
        request.params.ef = plan.ef
    elif plan.exact:
        request.params.exact = True
    if where is not None:
        request.filter.CopyFrom(where.to_message())
    return request


def one_reply(address: str, request: pb.SearchRequest) -> bytes:
    """The bytes with which a server answers a request: what the echo will send."""
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(SEARCH_PATH, request_serializer=pb.SearchRequest.SerializeToString)
        reply: bytes = call(request, timeout=60)
    return reply


def paired_loads(
    address: str, echo_address: str, requests: Path, plan: Any, *, callers: int, client: str
) -> list[tuple[Load, Load]]:
    """Runs of the server and of the echo in turn, so that a slow minute of the machine hits both."""
    pairs = []
    for _ in range(plan.runs):
        # The echo is always asked by bare stubs: it is the limit, whatever client is measured.
        echo = run_load(echo_address, requests, callers=callers, measure_s=plan.measure_s, client="stub")
        pairs.append((run_load(address, requests, callers=callers, measure_s=plan.measure_s, client=client), echo))
    return pairs


def _case(dataset: Dataset, percent: float | None, plan: Plan) -> _Case:
    if percent is None:
        truth, _ = data.exact_topk(dataset.base, dataset.queries, plan.k)
        return _Case("none", None, None, as_ids(truth))
    attribute, values = ("cluster_share", dataset.cluster_share) if plan.correlated else ("share", dataset.share)
    allowed = values < percent / 100
    truth, _ = data.exact_topk(dataset.base, dataset.queries, plan.k, allowed=allowed)
    kind = "whole clusters" if plan.correlated else "random"
    return _Case(f"{percent:g} % {kind}", allowed, F[attribute] < percent / 100, as_ids(truth))


def _raw_faiss(
    plan: Plan, dataset: Dataset, case: _Case, hnsw: limit_faiss.RawIndex | None, report: Report
) -> dict[str, list[Speed]]:
    """Raw FAISS in batches and one query at a time, both reported; by name "batch" and "single"."""
    share = 1.0 if case.allowed is None else float(case.allowed.mean())
    report.say(f"raw FAISS, filter {case.name}")
    exact = hnsw is None or share < _FLAT_BELOW
    if hnsw is None or exact:
        raw, ef, allowed = limit_faiss.build_flat(dataset.base, allowed=case.allowed), None, None
    else:
        raw, ef, allowed = hnsw, plan.ef, case.allowed
    speeds: dict[str, list[Speed]] = {}
    for name, batch, threads in (("batch", _FAISS_BATCH, plan.threads), ("single", 1, 1)):
        runs, rows = [], None
        for _ in range(plan.runs):
            one, rows = limit_faiss.search(
                raw,
                dataset.queries,
                plan.k,
                batch=batch,
                threads=threads,
                measure_s=plan.measure_s,
                ef=ef,
                allowed=allowed,
            )
            runs.append(one)
        speeds[name] = runs
        report.add(
            Measurement(
                benchmark="search",
                target="faiss",
                mode="in process",
                what=f"{'flat over the allowed rows' if exact else 'HNSW'}, {batch} a call, {threads} threads",
                **_what_was_searched(plan, dataset, case),
                recall_at_k=_recall(rows, case.truth, plan.k),
                **timed(summarise(runs)),
                setting={"batch": batch, "threads": threads, "build_s": raw.build_s, **_index_setting(plan)},
            )
        )
    return speeds


def _recall(rows: I64 | None, truth: list[list[str]], k: int) -> float | None:
    return None if rows is None else recall_at_k(as_ids(rows), truth, k)


def _add(
    report: Report,
    plan: Plan,
    dataset: Dataset,
    case: _Case,
    pairs: Sequence[tuple[Load, Load]],
    raw: dict[str, list[Speed]],
    client: str,
    callers: int,
    about: dict[str, Any],
) -> None:
    ours, echo = [pair[0].speed for pair in pairs], [pair[1].speed for pair in pairs]
    shared = {**_what_was_searched(plan, dataset, case), "callers": callers}
    report.add(
        Measurement(
            benchmark="search",
            target="echo",
            mode="process",
            what="same messages, ready reply",
            client="stub",
            **shared,
            **timed(summarise(echo)),
            setting=about,
        )
    )
    faiss = max(raw.values(), key=lambda runs: summarise(runs).median.qps)
    limits = [Speed(combined_limit(e.qps, f.qps), 0, 0, 0) for e, f in zip(echo, faiss, strict=True)]
    ratios = {
        "QPS / echo": paired_ratio(ours, echo),
        "QPS / faiss": paired_ratio(ours, faiss),
        "QPS / limit": paired_ratio(ours, limits),
        "p50 / echo p50": summarise(ours).median.p50_ms / summarise(echo).median.p50_ms,
    }
    answered = [(ids, truth) for ids, truth in zip(pairs[-1][0].answers, case.truth, strict=True) if ids is not None]
    report.add(
        Measurement(
            benchmark="search",
            target="likewise",
            mode=plan.mode,
            what=f"Search, {client} client",
            client=client,
            **shared,
            recall_at_k=recall_at_k([ids for ids, _ in answered], [truth for _, truth in answered], plan.k),
            **timed(summarise(ours)),
            ratios=ratios,
            setting={**_index_setting(plan), **about, "recall_queries": len(answered), "threads": plan.threads},
        )
    )


def _what_was_searched(plan: Plan, dataset: Dataset, case: _Case) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "n": plan.items,
        "dim": plan.dim,
        "k": plan.k,
        "index": plan.index,
        "shards": plan.shards,
        "filter": case.name,
    }


def _index_setting(plan: Plan) -> dict[str, Any]:
    return {"m": plan.m, "ef_construction": plan.ef_construction, "ef": plan.ef} if plan.by_graph else {}
