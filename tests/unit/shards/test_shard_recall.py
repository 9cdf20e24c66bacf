"""Recall of the approximate plans, with filters that go with the clusters, against them and through them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from tests.unit.shards.fakes import MemoryStore, gallery, hits_of, unit

from likewise.shards.filter import filter_key
from likewise.shards.protocols import SearchOptions
from likewise.shards.recall import recall_at_k
from likewise.shards.shard import Shard
from likewise.shards.spec import AttributeSpec, IndexSpec
from likewise.v1 import common_pb2 as common
from likewise.v1 import search_service_pb2 as pb

N, DIM, CLUSTERS, QUERIES, K = 20_000, 64, 40, 30, 10
RNG = np.random.default_rng(11)
CENTRES = unit(RNG.standard_normal((CLUSTERS, DIM)))
LABELS = RNG.integers(0, CLUSTERS, N)
VECTORS = unit(CENTRES[LABELS] + 0.6 * RNG.standard_normal((N, DIM)) / np.sqrt(DIM))
RANDOM = RNG.random(N)
IDS = [f"i{i:05d}" for i in range(N)]
ASKED = RNG.choice(N, QUERIES, replace=False)
XQ = unit(VECTORS[ASKED] + 0.3 * RNG.standard_normal((QUERIES, DIM)) / np.sqrt(DIM))

SPEC = gallery(
    dim=DIM,
    attributes=(
        AttributeSpec("random", common.ATTRIBUTE_TYPE_DOUBLE),
        AttributeSpec("label", common.ATTRIBUTE_TYPE_INT64),
    ),
)


def random_below(share: float) -> tuple[bytes, np.typing.NDArray[np.bool_]]:
    comparison = common.Comparison(
        attribute="random", operator=common.COMPARISON_OPERATOR_LESS, value=common.Value(double_value=share)
    )
    return filter_key(common.Filter(comparison=comparison)), share > RANDOM


def clusters_below(count: int) -> tuple[bytes, np.typing.NDArray[np.bool_]]:
    comparison = common.Comparison(
        attribute="label", operator=common.COMPARISON_OPERATOR_LESS, value=common.Value(int64_value=count)
    )
    return filter_key(common.Filter(comparison=comparison)), count > LABELS


FILTERS = {
    "none": (b"", np.ones(N, dtype=bool)),
    "random 33 %": random_below(0.33),
    "random 1 %": random_below(0.01),
    "random 0.1 %": random_below(0.001),
    "nothing": random_below(0.0),
    "a third of the clusters": clusters_below(CLUSTERS // 3),
    "one cluster": clusters_below(1),
}


@dataclass(frozen=True)
class Case:
    """One search of all queries."""

    plan: pb.ShardPlan
    hits: list[list[str]]
    scores: Sequence[float]
    expected: list[list[str]]
    leaked: int


async def searched(kind: str, name: str, options: SearchOptions, folder: Path) -> Case:
    data, mask = FILTERS[name]
    store = MemoryStore(replace(SPEC, index=IndexSpec(kind=kind)))
    store.commit(IDS, VECTORS, {"random": RANDOM, "label": LABELS})
    shard = Shard(store.spec, 0, store.source(), cache=folder / kind.replace(",", "-"))
    await shard.start()
    await shard.settled()
    hits = await shard.search(XQ, options._replace(filter=data, attributes=("random", "label")))
    await shard.close()
    assert hits.attributes is not None
    rows = [int(item_id[1:]) for item_id in hits.ids]
    assert hits.attributes.column("label").to_pylist() == LABELS[rows].tolist()
    return Case(
        plan=hits.plan,
        hits=[hits_of(hits, query) for query in range(QUERIES)],
        scores=hits.scores.tolist(),
        expected=[oracle_of(query, mask) for query in range(QUERIES)],
        leaked=int(np.count_nonzero(~mask[rows])),
    )


def oracle_of(query: int, mask: np.typing.NDArray[np.bool_]) -> list[str]:
    rows = np.flatnonzero(mask)
    scores = VECTORS[rows] @ XQ[query]
    return [IDS[row] for row in rows[np.argsort(-scores, kind="stable")[:K]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sealed indexes, so that each is built once."""
    return tmp_path_factory.mktemp("sealed")


@pytest.mark.parametrize("exact", [None, False], ids=["planned", "through the index"])
@pytest.mark.parametrize("kind", ["HNSW16,Flat", "ivf"])
@pytest.mark.parametrize("name", FILTERS)
async def test_a_filter_leaks_nothing_fills_k_and_keeps_recall(
    kind: str, name: str, exact: bool | None, folder: Path
) -> None:
    case = await searched(kind, name, SearchOptions(space="", k=K, exact=exact), folder)

    assert case.leaked == 0
    assert [len(hits) for hits in case.hits] == [len(expected) for expected in case.expected]
    assert recall_at_k(case.hits, case.expected, K) >= 0.95
    if exact is False and name in ("random 33 %", "a third of the clusters"):
        assert case.plan.kind == pb.PLAN_KIND_ANN_FILTERED
    if exact is None and name not in ("none", "nothing"):
        assert case.plan.kind == pb.PLAN_KIND_EXACT_FILTERED


async def test_a_filter_against_the_clusters_is_noticed(folder: Path) -> None:
    case = await searched("HNSW16,Flat", "one cluster", SearchOptions(space="", k=K, exact=False), folder)

    assert case.plan.fallback
    assert case.hits == case.expected
