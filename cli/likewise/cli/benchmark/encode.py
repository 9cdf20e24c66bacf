"""Conditional queries by picture against their limits: the same graphs in raw ONNX Runtime, and the echo."""

import io
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from likewise.cli import demo_gallery
from likewise.cli.benchmark.echo import echo_command
from likewise.cli.benchmark.figures import Measurement, Speed, combined_limit, paired_ratio, speed, summarise, timed
from likewise.cli.benchmark.load import write_requests
from likewise.cli.benchmark.report import Report
from likewise.cli.benchmark.search import GALLERY, one_reply, paired_loads, serve_arguments
from likewise.cli.server_process import ServerProcess, serve_command
from likewise.client import Client
from likewise.export.preprocess import to_tensor
from likewise.export.runtime import OnnxFamily, load_family
from likewise.export.shapes.conditions import compose_text
from likewise.export.shapes.world import render
from likewise.v1 import search_service_pb2 as pb

_CONDITIONS: Final = ("in red", "on a black background", "as a ring", "with a star", "striped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        mode: "embedded" or "ray".
        items: Pictures in the gallery, which is small so that search costs little.
        queries: Distinct queries, each a picture and a condition.
        k: Hits a query.
        callers: Numbers of calls in progress, measured one after the other.
        batch: Queries a run of the graphs in the limit.
        runs: Measurements of each; each is paired with one of the echo.
        measure_s: Seconds of each.
        kept: Encodings that the server keeps of its queries' texts and pictures. With 0 it encodes each of them, as raw
            ONNX Runtime does; with as many as there are queries, or more, none after the warm-up.
        threads: Threads of the server; ONNX Runtime in the limit uses every processor.
        seed: Of the pictures.
    """

    mode: str = "embedded"
    items: int = 1_000
    queries: int = 200
    k: int = 10
    callers: Sequence[int] = (1, 32)
    batch: int = 64
    runs: int = 3
    measure_s: float = 5.0
    kept: int = 0
    threads: int = 2
    seed: int = 7


def run(plan: Plan, report: Report) -> None:
    """Measure a plan.

    Raises:
        ServerFailed: If the server does not come up.
        LoadFailed: If a call fails.
        ManifestError: If the built-in model is not there.
    """
    scenes = demo_gallery.scenes(demo_gallery.Recipe(items=plan.items + plan.queries, seed=plan.seed))
    pictures = [_png(scene) for scene in scenes]
    asked, stored = pictures[: plan.queries], pictures[plan.queries :]
    texts = [_CONDITIONS[i % len(_CONDITIONS)] for i in range(plan.queries)]
    raw = _raw_onnx(plan, asked, texts, report)
    with tempfile.TemporaryDirectory(prefix="likewise-bench-") as name:
        folder = Path(name)
        command = serve_command(folder / "store", arguments=serve_arguments(plan.mode, plan.threads))
        report.say(f"starting the server ({plan.mode}) and storing {len(stored):,} pictures")
        keeping = {"LIKEWISE_KEPT_ENCODINGS": str(plan.kept)}
        starting = ServerProcess(command, log_path=folder / "server.log", environment=keeping)
        with starting as server, Client(server.address) as client:
            gallery = client.create_gallery(GALLERY, encoder="shapes")
            started = time.perf_counter()
            gallery.upsert([f"picture-{i:06d}" for i in range(len(stored))], images=stored, progress=False)
            _add_ingest(plan, len(stored), time.perf_counter() - started, raw["decode + image graph"], report)
            requests = [_request(plan, *query) for query in zip(asked, texts, strict=True)]
            path = write_requests(requests, folder / "requests")
            reply = one_reply(server.address, requests[0])
            (folder / "reply").write_bytes(reply)
            with ServerProcess(echo_command(folder / "reply"), log_path=folder / "echo.log") as echo:
                for callers in plan.callers:
                    report.say(f"picture and condition, {callers} callers")
                    pairs = paired_loads(server.address, echo.address, path, plan, callers=callers, client="stub")
                    ours, limit = [pair[0].speed for pair in pairs], [pair[1].speed for pair in pairs]
                    _add_queries(plan, ours, limit, raw, callers, report)


def _png(scene: Any) -> bytes:
    buffer = io.BytesIO()
    render(scene, demo_gallery.PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


def _request(plan: Plan, picture: bytes, text: str) -> pb.SearchRequest:
    request = pb.SearchRequest(gallery=GALLERY, k=plan.k)
    request.reference.image = picture
    request.conditions.add(text=text, mode=pb.CONDITION_MODE_CHANGE)
    return request


def _raw_onnx(plan: Plan, pictures: Sequence[bytes], texts: Sequence[str], report: Report) -> dict[str, list[Speed]]:
    """The same graphs in batches here: pixels ready, with decoding, and the image graph with decoding alone."""
    report.say("raw ONNX Runtime")
    family = load_family(None, "shapes")
    composed = [compose_text("change", text) for text in texts]
    batches = [slice(start, start + plan.batch) for start in range(0, len(pictures), plan.batch)]
    tensors = [_decode(family, pictures[part]) for part in batches]

    def graphs(which: int) -> int:
        images = family.encode_images(tensors[which])
        family.compose(images, family.encode_texts(composed[batches[which]]))
        return len(images)

    def decode_and_graphs(which: int) -> int:
        images = family.encode_images(_decode(family, pictures[batches[which]]))
        family.compose(images, family.encode_texts(composed[batches[which]]))
        return len(images)

    def decode_and_image(which: int) -> int:
        return len(family.encode_images(_decode(family, pictures[batches[which]])))

    found = {}
    for name, work in (
        ("graphs", graphs),
        ("decode + graphs", decode_and_graphs),
        ("decode + image graph", decode_and_image),
    ):
        runs = [_repeat(work, len(batches), plan.measure_s) for _ in range(plan.runs)]
        found[name] = runs
        report.add(
            Measurement(
                benchmark="encode",
                target="onnxruntime",
                mode="in process",
                what=f"{name}, batches of {plan.batch}",
                dataset="shapes",
                n=plan.items,
                dim=_dim(family, tensors[0][:1]),
                **timed(summarise(runs)),
                setting={"batch": plan.batch},
            )
        )
    return found


def _decode(family: OnnxFamily, pictures: Sequence[bytes]) -> Any:
    opened = (Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures)
    return np.stack([to_tensor(image, family.preprocessing) for image in opened])


def _dim(family: OnnxFamily, tensor: Any) -> int:
    return int(family.encode_images(tensor).shape[1])


def _repeat(work: Callable[[int], int], count: int, measure_s: float) -> Speed:
    """Queries a second and the latency of a batch, after one unmeasured pass."""
    for which in range(count):
        work(which)
    latencies: list[float] = []
    done = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < measure_s or not latencies:
        before = time.perf_counter()
        done += work(len(latencies) % count)
        latencies.append(time.perf_counter() - before)
    calls = speed(latencies, elapsed)
    return Speed(done / elapsed, calls.p50_ms, calls.p95_ms, calls.p99_ms)


def _add_ingest(plan: Plan, rows: int, seconds: float, raw: Sequence[Speed], report: Report) -> None:
    rate = rows / seconds
    report.add(
        Measurement(
            benchmark="encode",
            target="likewise",
            mode=plan.mode,
            what="upsert of pictures until durable",
            dataset="shapes",
            n=rows,
            dim=0,
            qps=rate,
            seconds=seconds,
            ratios={"pictures/s / (decode + image graph)": rate / summarise(raw).median.qps},
            setting={"threads": plan.threads},
        )
    )


def _add_queries(
    plan: Plan,
    ours: Sequence[Speed],
    echo: Sequence[Speed],
    raw: dict[str, list[Speed]],
    callers: int,
    report: Report,
) -> None:
    shared: dict[str, Any] = {"dataset": "shapes", "n": plan.items, "dim": 0, "k": plan.k, "callers": callers}
    report.add(
        Measurement(
            benchmark="encode",
            target="echo",
            mode="process",
            what="same messages, ready reply",
            client="stub",
            **shared,
            **timed(summarise(echo)),
        )
    )
    whole = raw["decode + graphs"]
    limits = [Speed(combined_limit(e.qps, w.qps), 0, 0, 0) for e, w in zip(echo, whole, strict=True)]
    report.add(
        Measurement(
            benchmark="encode",
            target="likewise",
            mode=plan.mode,
            what="Search by picture and condition",
            client="stub",
            **shared,
            **timed(summarise(ours)),
            ratios={
                "QPS / echo": paired_ratio(ours, echo),
                "QPS / graphs": paired_ratio(ours, raw["graphs"]),
                "QPS / (decode + graphs)": paired_ratio(ours, whole),
                "QPS / limit": paired_ratio(ours, limits),
            },
            setting={"threads": plan.threads, "kept": plan.kept},
        )
    )
