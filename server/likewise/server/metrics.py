"""Every metric of the process, and the HTTP endpoint that shows them.

Base units, prefix `likewise_`, labels of bounded size: never an id, a text or a request. A registry is given, not
global, so that two servers in one process (tests) do not share counters.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from likewise.server.batcher import BatchReport
from likewise.server.histograms import Histogram, Series
from likewise.server.protocols import ImageEncoder, TextEncoder
from likewise.v1 import gallery_service_pb2, model_service_pb2, search_service_pb2

# 100 µs to 30 s: a cached vector search on loopback takes a few hundred µs, a cold batch of images seconds.
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384, 65536)
_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
_SELECTIVITY = (0.0, 0.0001, 0.001, 0.01, 0.03, 0.1, 0.33, 0.5, 1.0)
# A stage of a search and its field in `Timing`: those of a search itself, and those of all that are answered together.
_OWN_STAGES = (("decode", "decode_us"), ("encode", "encode_us"), ("compose", "compose_us"), ("gather", "gather_us"))
_SHARED_STAGES = (
    ("fan_out", "fan_out_us"),
    ("shard", "shard_max_us"),
    ("shard_queue", "shard_queue_max_us"),
    ("merge", "merge_us"),
)
_own_us = attrgetter(*[field for _, field in _OWN_STAGES])

GalleryStats = gallery_service_pb2.GalleryServiceStatsResponse


class Metrics:
    """The metric families of one server; each attribute is one family.

    Args:
        registry: Where they are registered; one of their own when None.
        version: Release of this server, told by `likewise_info`.
    """

    def __init__(self, registry: CollectorRegistry | None = None, *, version: str) -> None:
        self.registry = registry = registry or CollectorRegistry()
        self.rpc_requests = Counter("likewise_rpc_requests", "Calls finished.", ["method", "code"], registry=registry)
        self.rpc_duration = Histogram(
            "likewise_rpc_duration_seconds",
            "Time of a call in the server.",
            "method",
            buckets=_SECONDS,
            registry=registry,
        )
        self.rpc_in_flight = Gauge("likewise_rpc_in_flight", "Calls in progress.", ["method"], registry=registry)
        self.stage_duration = Histogram(
            "likewise_stage_duration_seconds",
            "Time of one stage of a search: decode, encode, compose, gather, fan_out, shard, shard_queue, merge.",
            "stage",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "likewise_batch_size", "Rows run as one batch.", "part", buckets=_ROWS, registry=registry
        )
        self.batch_duration = Histogram(
            "likewise_batch_duration_seconds",
            "Time of a run of a model.",
            "part",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_failures = Counter(
            "likewise_batch_failures", "Runs of a model that failed.", ["part"], registry=registry
        )
        self.queue_duration = Histogram(
            "likewise_queue_duration_seconds",
            "Wait of one row for the batch that it ran in.",
            "part",
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_depth = Gauge("likewise_queue_depth", "Rows waiting for a part.", ["part"], registry=registry)
        self.rejected = Counter(
            "likewise_rejected", "Requests refused to protect the server.", ["reason"], registry=registry
        )
        self.shard_requests = Counter(
            "likewise_shard_requests",
            "Searches of a shard by outcome: OK or the reason.",
            ["outcome"],
            registry=registry,
        )
        self.plan = Counter("likewise_plan", "Shard searches by plan.", ["plan"], registry=registry)
        self.plan_fallback = Counter(
            "likewise_plan_fallback",
            "Approximate searches that came short of k and were done exactly.",
            registry=registry,
        )
        self.filter_selectivity = Histogram(
            "likewise_filter_selectivity_ratio",
            "Share of a gallery's live rows that a filter leaves.",
            buckets=_SELECTIVITY,
            registry=registry,
        )
        self.coverage = Histogram(
            "likewise_coverage_ratio", "Share of the live items searched.", buckets=_SHARES, registry=registry
        )
        self.degraded = Counter("likewise_degraded", "Answers without every shard.", ["reason"], registry=registry)
        self.query_encodings = Counter(
            "likewise_query_encodings",
            "Texts and pictures of queries, by whether their encoding was kept from before.",
            ["model", "kept"],
            registry=registry,
        )
        self.written = Counter("likewise_items_written", "Items acknowledged.", ["operation"], registry=registry)
        self.info = Gauge("likewise_info", "Always 1.", ["version"], registry=registry)
        self.info.labels(version).set(1)
        self._own_stages = tuple(self.stage_duration.labels(stage) for stage, _ in _OWN_STAGES)
        self._shared_stages = tuple((self.stage_duration.labels(stage), field) for stage, field in _SHARED_STAGES)
        self._plans = {kind: self.plan.labels(plan_name(kind)) for kind in search_service_pb2.PlanKind.values()}
        self._shard_ok = self.shard_requests.labels("OK")
        self._parts: dict[str, tuple[Series, Gauge]] = {}

    def searches(self, responses: Sequence[search_service_pb2.SearchResponse], queries: Sequence[int]) -> None:
        """Count searches that were answered together by what their answers say.

        Args:
            responses: At least one.
            queries: How many query vectors each of them answers, of which each counts as a search.
        """
        count, shared = sum(queries), responses[0]
        own = [_own_us(response.timing) for response in responses]
        if count > len(own):
            own = [us for us, times in zip(own, queries, strict=True) for _ in range(times)]
        stages = zip(*own, strict=True)
        for series, stage in zip(self._own_stages, stages, strict=True):
            if any(stage):
                series.observe_all([microseconds / 1e6 for microseconds in stage if microseconds])
        for series, field in self._shared_stages:
            if microseconds := getattr(shared.timing, field):
                series.observe(microseconds / 1e6, count)
        for shard in shared.plan.shards:
            (self._plans.get(shard.kind) or self.plan.labels("unknown")).inc(count)
            if shard.fallback:
                self.plan_fallback.inc(count)
        coverage = shared.coverage
        self.coverage.observe(coverage.fraction, count)
        self._shard_ok.inc(coverage.shards_ok * count)
        for degradation in coverage.degradations:
            self.degraded.labels(degradation.reason).inc(count)
            self.shard_requests.labels(degradation.reason).inc(len(degradation.shards) * count)

    def batch(self, part: str, size: int, waiting: int) -> None:
        """Note a batch that `part` ("shard" or a model's name/version) runs, and the rows left waiting for it."""
        noted = self._parts.get(part)
        if noted is None:
            noted = self._parts[part] = self.batch_size.labels(part), self.queue_depth.labels(part)
        sizes, depth = noted
        sizes.observe(size)
        depth.set(waiting)

    def model_batch(self, report: BatchReport) -> None:
        """Note a batch that a model ran: its size, its time, and how long each of its rows had waited."""
        self.batch(report.name, report.size, report.waiting)
        self.batch_duration.labels(report.name).observe(report.run_s)
        if report.failed:
            self.batch_failures.labels(report.name).inc()
        waited = self.queue_duration.labels(report.name)
        for seconds in report.queue_s:
            waited.observe(seconds)

    def query_inputs(self, encoder: ImageEncoder | TextEncoder, kept: int, encoded: int) -> None:
        """Note how many texts or pictures of a query had their encoding kept, and how many were encoded."""
        for outcome, count in (("true", kept), ("false", encoded)):
            if count:
                self.query_encodings.labels(encoder.model.name, outcome).inc(count)

    def watch_models(self, models: Callable[[], Iterable[model_service_pb2.Model]]) -> None:
        """Show `likewise_model_info` and `likewise_model_in_use` from now on, read anew at each scrape."""
        self.registry.register(_ModelInfo(models))

    def watch_galleries(self, stats: Callable[[], Iterable[GalleryStats]]) -> None:
        """Show `likewise_index_items`, `likewise_recall_ratio` and their kin from now on, read anew at each scrape.

        `stats` must not block for long.
        """
        self.registry.register(_IndexItems(stats))


def plan_name(kind: int) -> str:
    """Label of a `PlanKind`: "exact", "ann_filtered", ..."""
    return search_service_pb2.PlanKind.Name(search_service_pb2.PlanKind.ValueType(kind))[len("PLAN_KIND_") :].lower()


class _ModelInfo:
    def __init__(self, models: Callable[[], Iterable[model_service_pb2.Model]]) -> None:
        self._models = models

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        labels = ["model", "version", "kind", "state", "provider"]
        family = GaugeMetricFamily("likewise_model_info", "Always 1.", labels=labels)
        used = GaugeMetricFamily(
            "likewise_model_in_use", "1 while new queries are encoded by it.", labels=["model", "version", "family"]
        )
        for model in self._models():
            kind = model_service_pb2.ModelKind.Name(model.kind)[len("MODEL_KIND_") :].lower()
            state = model_service_pb2.ModelState.Name(model.state)[len("MODEL_STATE_") :].lower()
            family.add_metric([model.name, str(model.version), kind, state, model.provider], 1)
            used.add_metric([model.name, str(model.version), model.family], model.in_use)
        return [family, used]


class _IndexItems:
    def __init__(self, stats: Callable[[], Iterable[GalleryStats]]) -> None:
        self._stats = stats

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        items = GaugeMetricFamily("likewise_index_items", "Rows of a shard.", labels=["gallery", "shard", "state"])
        memory = GaugeMetricFamily(
            "likewise_index_memory_bytes", "Vectors and indexes of a shard.", labels=["gallery", "shard"]
        )
        partial = GaugeMetricFamily(
            "likewise_partial_indexes", "Filters that have an index of their own.", labels=["gallery", "shard"]
        )
        version = GaugeMetricFamily(
            "likewise_index_version", "Store version a shard serves.", labels=["gallery", "shard"]
        )
        labels = ["gallery", "shard", "space", "share"]
        recall = GaugeMetricFamily("likewise_recall_ratio", "Recall@k of a shard's searches, measured.", labels=labels)
        low = GaugeMetricFamily("likewise_recall_low_ratio", "Lower end of its 95 % interval.", labels=labels)
        high = GaugeMetricFamily("likewise_recall_high_ratio", "Upper end of its 95 % interval.", labels=labels)
        queries = GaugeMetricFamily("likewise_recall_queries", "Queries that it rests on.", labels=labels)
        hardness = GaugeMetricFamily(
            "likewise_recall_local_dimension", "Median local intrinsic dimension at those queries.", labels=labels
        )
        spent = CounterMetricFamily(
            "likewise_recall_check_seconds", "CPU time of the checks.", labels=["gallery", "shard"]
        )
        for gallery in self._stats():
            name = gallery.gallery.spec.name
            for shard in gallery.shards:
                number = str(shard.shard)
                for one in shard.recall:
                    where = [name, number, one.space, f"{one.max_share:g}"]
                    recall.add_metric(where, one.recall)
                    low.add_metric(where, one.low)
                    high.add_metric(where, one.high)
                    queries.add_metric(where, one.queries)
                    if one.HasField("local_dimension"):
                        hardness.add_metric(where, one.local_dimension)
                spent.add_metric([name, number], shard.recall_seconds)
                for state in ("live", "sealed", "fresh", "tombstones"):
                    items.add_metric([name, number, state], getattr(shard, state))
                memory.add_metric([name, number], shard.memory_bytes)
                partial.add_metric([name, number], shard.partial_indexes)
                version.add_metric([name, number], shard.version)
        return [items, memory, partial, version, recall, low, high, queries, hardness, spent]


class MetricsEndpoint:
    """/metrics over HTTP on its own thread."""

    def __init__(self, registry: CollectorRegistry, *, host: str, port: int) -> None:
        """Start serving.

        Raises:
            OSError: If the address cannot be had.
        """
        self._server: WSGIServer
        self._thread: threading.Thread
        self._server, self._thread = start_http_server(port, addr=host, registry=registry)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
