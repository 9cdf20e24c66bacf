"""The goals themselves."""

from typing import Any, Final

from likewise.cli.benchmark.goals import Check, Goal, Sense, field, memory, quotient

_SIZE: Final[dict[str, Any]] = {"n": 50_000, "dim": 512}
_LARGE: Final[dict[str, Any]] = {"n": 200_000, "dim": 512}
_SEARCH: Final[dict[str, Any]] = {"benchmark": "search", "target": "likewise", "client": "stub", "filter": "none"}
_EMBEDDED: Final[dict[str, Any]] = {**_SEARCH, **_SIZE, "mode": "embedded", "index": "hnsw", "shards": 1}
_RAY: Final[dict[str, Any]] = {**_SEARCH, **_SIZE, "mode": "ray", "index": "hnsw", "shards": 2}
_PEERS: Final[dict[str, Any]] = {
    "benchmark": "peers",
    "target": "likewise",
    "what": "Search",
    "client": "sdk",
    **_SIZE,
}
_UNFILTERED: Final[dict[str, Any]] = {**_PEERS, "filter": "none", "callers": 32}
_BY_SEARCH: Final = "likewise bench search"
_BY_PEERS: Final = "python benchmarks/peers.py"

GOALS: Final[tuple[Goal, ...]] = (
    Goal(
        1,
        "unfiltered HNSW, 50 k x 512, 32 callers of one SDK client",
        _BY_SEARCH,
        (
            Check(
                of="QPS / limit, of echo and raw FAISS together",
                sense=Sense.AT_LEAST,
                bound=0.75,
                sources=(
                    field("ratios", "QPS / limit", **{**_EMBEDDED, "client": "sdk"}, callers=32),
                    field("ratios", "QPS / limit", **_UNFILTERED),
                ),
            ),
        ),
    ),
    Goal(
        2,
        "the same against pgvector at equal or better recall",
        _BY_PEERS,
        (
            Check(
                of="QPS / pgvector's",
                sense=Sense.AT_LEAST,
                bound=2,
                unit="x",
                sources=(field("ratios", "QPS / pgvector at its recall", **_UNFILTERED),),
            ),
        ),
    ),
    Goal(
        3,
        "the same against Chroma",
        _BY_PEERS,
        (
            Check(
                of="QPS / Chroma's",
                sense=Sense.AT_LEAST,
                bound=7,
                unit="x",
                sources=(field("ratios", "QPS / chroma at its recall", **_UNFILTERED),),
            ),
        ),
    ),
    Goal(
        4,
        "filters, 8 callers",
        _BY_PEERS,
        tuple(
            Check(
                of=f"{percent} %: QPS / {named}'s",
                sense=Sense.AT_LEAST,
                bound=bound,
                unit="x",
                sources=(field("ratios", f"QPS / {peer}", **_PEERS, filter=f"{percent} % random", callers=8),),
            )
            for peer, named, bound in (("pgvector", "pgvector", 1.5), ("chroma", "Chroma", 20.0))
            for percent in (33, 1)
        ),
    ),
    Goal(
        5,
        "one caller of the SDK, unfiltered",
        _BY_SEARCH,
        (
            Check(
                of="p50 / echo's p50",
                sense=Sense.AT_MOST,
                bound=1.7,
                sources=(
                    field("ratios", "p50 / echo p50", **{**_EMBEDDED, "client": "sdk"}, callers=1),
                    field("ratios", "p50 / echo p50", **_PEERS, filter="none", callers=1),
                ),
            ),
        ),
    ),
    Goal(
        6,
        "exact search, 200 k x 512, 64 callers",
        f"{_BY_SEARCH} --items 200000 --index flat --callers 64",
        (
            Check(
                of="QPS / raw FAISS flat in batches of 256",
                sense=Sense.AT_LEAST,
                bound=0.7,
                sources=(
                    field("ratios", "QPS / faiss", **_SEARCH, **_LARGE, mode="embedded", index="flat", callers=64),
                ),
            ),
        ),
    ),
    Goal(
        7,
        "a ViT-B/32-sized encoder, JPEG in, 32 callers",
        "likewise bench encode --model vit-b-32",
        (
            Check(
                of="pictures a second / raw ONNX Runtime, the graph in batches",
                sense=Sense.AT_LEAST,
                bound=0.85,
                sources=(
                    field(
                        "ratios",
                        "pictures/s / graph",
                        benchmark="encode",
                        target="likewise",
                        dataset="vit-b-32",
                        callers=32,
                    ),
                ),
            ),
        ),
    ),
    Goal(
        8,
        "ingest of 50 k vectors until durable, sealed and searchable",
        f"likewise bench ingest; {_BY_PEERS}",
        (
            Check(
                of="time / (Lance write + raw FAISS build)",
                sense=Sense.AT_MOST,
                bound=1.3,
                sources=(
                    field(
                        "ratios",
                        "time / (lance + faiss)",
                        benchmark="ingest",
                        target="likewise",
                        what="until durable and sealed",
                        mode="embedded",
                        index="hnsw",
                        **_SIZE,
                    ),
                ),
            ),
            Check(
                of="time / pgvector's",
                sense=Sense.AT_MOST,
                bound=0.6,
                sources=(field("ratios", "time / pgvector", **{**_PEERS, "what": "load until searchable"}),),
            ),
        ),
    ),
    Goal(
        9,
        "upserts acknowledged, one streaming client, 512 dimensions",
        "likewise bench upsert",
        (
            Check(
                of="rows a second",
                sense=Sense.AT_LEAST,
                bound=15_000,
                unit="/s",
                sources=(
                    field("qps", benchmark="upsert", target="likewise", what="new rows", mode="embedded", dim=512),
                ),
            ),
        ),
    ),
    Goal(
        10,
        "resident memory at 200 k x 512 fp32, less 300 MB",
        f"{_BY_SEARCH} --items 200000",
        (
            Check(
                of="RSS / bytes of the vectors",
                sense=Sense.AT_MOST,
                bound=1.6,
                sources=(memory(benchmark="search", target="likewise", mode="embedded", index="hnsw", **_LARGE),),
            ),
        ),
    ),
    Goal(
        11,
        "restart with 200 k items",
        "likewise bench restart",
        (
            Check(
                of="until the first correct answer",
                sense=Sense.AT_MOST,
                bound=4,
                unit="s",
                sources=(
                    field("seconds", benchmark="restart", target="likewise", mode="embedded", index="hnsw", **_LARGE),
                ),
            ),
        ),
    ),
    Goal(
        12,
        "open loop at twice the saturation rate, one SDK client",
        "likewise bench overload --client sdk",
        (
            Check(
                of="goodput / goodput at saturation",
                sense=Sense.AT_LEAST,
                bound=0.9,
                sources=(
                    field("ratios", "goodput / saturation", benchmark="overload", target="likewise", client="sdk"),
                ),
            ),
            Check(
                of="wrong answers",
                sense=Sense.AT_MOST,
                bound=0,
                sources=(field("setting", "wrong_answers", benchmark="overload", target="likewise"),),
            ),
            Check(
                of="crashes",
                sense=Sense.AT_MOST,
                bound=0,
                sources=(field("setting", "crashes", benchmark="overload", target="likewise"),),
            ),
        ),
    ),
    Goal(
        13,
        "Ray mode, 2 shards, 32 callers",
        f"{_BY_SEARCH} --mode ray --shards 2; {_BY_PEERS}",
        (
            Check(
                of="QPS / embedded QPS on the same cores",
                sense=Sense.AT_LEAST,
                bound=0.45,
                sources=(
                    # Taken in turn where the peers are compared, one after the other by the two searches.
                    field("ratios", "QPS / likewise", **{**_UNFILTERED, "target": "likewise-ray", "shards": 2}),
                    quotient("qps", {**_RAY, "callers": 32}, {**_EMBEDDED, "callers": 32}),
                ),
            ),
        ),
    ),
)
