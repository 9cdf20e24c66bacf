"""What is found is what a perfect search would find, however the gallery is cut and filtered."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from tests.integration.oracle import Clustered, Oracle, clustered
from tests.integration.processes import ServerProcess

from likewise.client import Client, F

ITEMS = {"embedded": 50_000, "ray": 20_000}
DIM = {"embedded": 512, "ray": 64}
QUERIES = 40
K = 10
BUCKETS = 1_000


@pytest.fixture(scope="module")
def data(mode: str) -> Clustered:
    return clustered(ITEMS[mode], DIM[mode], queries=QUERIES)


@pytest.fixture(scope="module")
def oracle(data: Clustered) -> Oracle:
    return Oracle(data.vectors)


@pytest.fixture(scope="module")
def buckets(data: Clustered) -> npt.NDArray[np.int64]:
    return np.random.default_rng(1).integers(BUCKETS, size=len(data.vectors))


def _ids(rows: npt.ArrayLike) -> list[str]:
    return [f"item-{row:06d}" for row in np.asarray(rows).tolist()]


def _rows(ids: list[str]) -> list[int]:
    return [int(name.removeprefix("item-")) for name in ids]


@pytest.fixture(scope="module")
def filled(server: ServerProcess, data: Clustered, buckets: npt.NDArray[np.int64]) -> dict[str, str]:
    """Gallery names by index kind, filled with the same items."""
    names = {kind: f"exactness-{kind}" for kind in ("flat", "hnsw")}
    columns = {"bucket": buckets.tolist(), "cluster": data.clusters.tolist()}
    with Client(server.address) as client:
        for kind, name in names.items():
            gallery = client.create_gallery(
                name, dim=data.vectors.shape[1], index=kind, attributes={"bucket": "int64", "cluster": "int64"}
            )
            gallery.upsert(_ids(range(len(data.vectors))), vectors=data.vectors, attributes=columns)
            gallery.wait_until_ready(timeout=600)
    return names


def _recall(found: list[list[str]], truth: list[list[str]]) -> float:
    return sum(len(set(a) & set(b)) for a, b in zip(found, truth, strict=True)) / sum(map(len, truth))


@pytest.mark.slow
def test_flat_search_equals_the_oracle(client: Client, filled: dict[str, str], data: Clustered, oracle: Oracle) -> None:
    gallery = client.gallery(filled["flat"])

    for query in data.queries:
        rows, scores = oracle.best(query, K)
        hits = gallery.search(vector=query, k=K)
        assert hits.ids == _ids(rows)
        np.testing.assert_allclose(hits.scores, scores, atol=1e-5)
        assert hits.coverage.fraction == 1.0
        assert hits.coverage.items_searched == len(data.vectors)


@pytest.mark.slow
def test_many_callers_at_once_get_each_their_own_answer(
    server: ServerProcess,
    filled: dict[str, str],
    data: Clustered,
    oracle: Oracle,
    buckets: npt.NDArray[np.int64],
) -> None:
    """Searches that the server puts together are those of different callers, in 16 threads of 4 forms here."""
    half = buckets < BUCKETS // 2

    def ask(number: int) -> None:
        query, k, filtered = data.queries[number % QUERIES], (3, K)[number % 2], number % 4 >= 2
        hits = gallery.search(vector=query, k=k, where=F.bucket < BUCKETS // 2 if filtered else None)
        rows, scores = oracle.best(query, k, allowed=half if filtered else None)
        assert hits.ids == _ids(rows)
        np.testing.assert_allclose(hits.scores, scores, atol=1e-5)

    with Client(server.address) as client, ThreadPoolExecutor(16) as callers:
        gallery = client.gallery(filled["flat"])
        for _ in callers.map(ask, range(8 * QUERIES)):
            pass


@pytest.mark.slow
def test_hnsw_recall_reaches_095(client: Client, filled: dict[str, str], data: Clustered, oracle: Oracle) -> None:
    gallery = client.gallery(filled["hnsw"])
    truth = [_ids(oracle.best(query, K)[0]) for query in data.queries]

    answers = [gallery.search(vector=query, k=K) for query in data.queries]

    assert {shard.kind for hits in answers for shard in hits.plan.shards} == {"ann"}
    assert _recall([hits.ids for hits in answers], truth) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("share", [0.33, 0.01, 0.001, 0.0])
@pytest.mark.parametrize("relation", ["random", "correlated", "anti-correlated"])
def test_filters_leak_nothing_fill_k_and_keep_recall(
    client: Client,
    filled: dict[str, str],
    data: Clustered,
    oracle: Oracle,
    buckets: npt.NDArray[np.int64],
    kind: str,
    share: float,
    relation: str,
) -> None:
    gallery = client.gallery(filled[kind])
    found, truth = [], []

    for query, cluster in zip(data.queries, data.query_clusters, strict=True):
        # Correlated filters take the query's own cluster and its successors, anti-correlated ones those farthest on;
        # below one cluster's share a bucket bound narrows them down.
        width = max(1, round(share * 100))
        first = int(cluster) if relation == "correlated" else (int(cluster) + 50) % 100
        chosen = [(first + step) % 100 for step in range(width)]
        if relation == "random" or share == 0.0:
            allowed = buckets < share * BUCKETS
            where = F.bucket < round(share * BUCKETS)
        elif share < 0.01:
            allowed = np.isin(data.clusters, chosen) & (buckets < share * 100 * BUCKETS)
            where = F.cluster.isin(chosen) & (F.bucket < round(share * 100 * BUCKETS))
        else:
            allowed = np.isin(data.clusters, chosen)
            where = F.cluster.isin(chosen)
        hits = gallery.search(vector=query, k=K, where=where)
        rows, _ = oracle.best(query, K, allowed=allowed)
        assert allowed[_rows(hits.ids)].all(), "a filter leaked"
        assert len(hits.ids) == min(K, int(allowed.sum())), "k was not filled"
        found.append(hits.ids)
        truth.append(_ids(rows))

    if share:
        assert _recall(found, truth) >= 0.95
    else:
        assert found == [[] for _ in data.queries]


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_shards_do_not_change_exact_answers(client: Client, data: Clustered, shards: int) -> None:
    # Every vector is there three times, so that ties are the rule.
    vectors = np.repeat(data.vectors[:1_000], 3, axis=0)
    oracle = Oracle(vectors)
    gallery = client.create_gallery(f"cut-{shards}", dim=vectors.shape[1], shards=shards, index="hnsw")
    gallery.upsert(_ids(range(len(vectors))), vectors=vectors)

    for query in data.queries:
        hits = gallery.search(vector=query, k=25, exact=True)
        rows, scores = oracle.best(query, 25)
        assert hits.ids == _ids(rows)
        np.testing.assert_allclose(hits.scores, scores, atol=1e-5)

    client.delete_gallery(f"cut-{shards}")


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.8, 0.95, 1.0])
def test_a_recall_asked_for_is_reached_and_told(
    client: Client, filled: dict[str, str], data: Clustered, oracle: Oracle, target: float
) -> None:
    gallery = client.gallery(filled["hnsw"])
    truth = [_ids(oracle.best(query, K)[0]) for query in data.queries]

    answers = [gallery.search(vector=query, k=K, target_recall=target) for query in data.queries]

    assert _recall([hits.ids for hits in answers], truth) >= target - 0.05  # 40 queries about a mean
    if target == 1.0:
        assert {shard.kind for hits in answers for shard in hits.plan.shards} == {"exact"}
    # Checks give way to everything else on the machine, so they may take their time.
    deadline = time.monotonic() + 120
    while not (found := [one for one in gallery.stats().shards[0].recall if one.max_share == 1.0]):
        assert time.monotonic() < deadline, "no recall was measured"
        time.sleep(0.2)
    (estimate,) = found
    assert 0.0 < estimate.low <= estimate.recall <= estimate.high <= 1.0
