"""What a filter's own index answers."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.shards.conftest import Started
from tests.unit.shards.fakes import F32, hits_of, oracle, unit
from tests.unit.shards.shard_rows import TEN, below
from tests.unit.shards.steady_filters import (
    ALLOWED,
    ALWAYS,
    FILTER,
    IDS,
    QUERIES,
    ROUGH,
    ROWS,
    N,
    clusters,
    found,
    indexed,
    recall,
    snapshot_of,
)
from tests.unit.shards.surfaces import DIM, stored

from likewise.shards import partial_index, partial_indexes
from likewise.shards.partial_index import PartialIndex
from likewise.shards.protocols import SearchOptions
from likewise.shards.recall_check import Asked, Outcome, check
from likewise.shards.shard import Shard, ShardLimits
from likewise.v1 import search_service_pb2 as pb


@pytest.fixture(autouse=True, scope="module")
def _dear() -> Iterator[None]:
    """No search of a test pays for an index by itself, however slow the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial_indexes, "EARNED_S_PER_ROW", 1.0)
        yield


async def test_its_answers_are_those_of_before_or_better(started: Started) -> None:
    shard = await started(stored(ROWS), limits=ALWAYS)
    exact = await shard.search(QUERIES, ROUGH._replace(exact=True, ef=None))
    before = await shard.search(QUERIES, ROUGH)
    memory = (await shard.stats()).memory_bytes

    index, whole = await indexed(shard), snapshot_of(shard).spaces["default"].index
    after = await shard.search(QUERIES, ROUGH)

    assert after.plan.partial_index
    assert recall(after, exact) >= max(recall(before, exact) - 0.01, 0.97)
    assert after.plan.ef < before.plan.ef
    assert set(after.ids) <= set(IDS[:ALLOWED])
    for i, query in enumerate(QUERIES):
        rows = [int(item_id[1:]) for item_id in hits_of(after, i)]
        np.testing.assert_allclose(after.scores[10 * i : 10 * i + 10], ROWS[rows] @ query, atol=1e-5)
    assert index is not None
    assert whole is not None
    assert (await shard.stats()).memory_bytes == memory + index.memory_bytes
    assert index.memory_bytes == pytest.approx(partial_index.expected_bytes(whole, ALLOWED), rel=0.1)


async def test_searches_that_compare_all_go_on_to(started: Started) -> None:
    shard = await started(stored(ROWS), limits=ShardLimits(recall_share=0))
    await indexed(shard)

    hits = await shard.search(QUERIES, TEN._replace(filter=FILTER))

    assert hits.plan.kind == pb.PLAN_KIND_EXACT_FILTERED
    assert not hits.plan.partial_index


@settings(max_examples=15)
@given(seed=st.integers(0, 1 << 30), deleted=st.integers(0, 110), added=st.integers(0, 60), k=st.integers(1, 30))
def test_it_heeds_what_was_written_since(seed: int, deleted: int, added: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    gone = rng.choice(ALLOWED, deleted, replace=False)
    fresh = unit(QUERIES[rng.integers(0, 40, added)] + 0.05 * rng.standard_normal((added, DIM))) if added else ROWS[:0]
    ids = [*IDS, *(f"new{i}" for i in range(added))]
    vectors = np.concatenate((ROWS, fresh))
    allowed = [(i < ALLOWED and i not in set(gone.tolist())) or i >= N for i in range(len(ids))]

    async def run() -> None:
        store = stored(ROWS)
        shard = Shard(store.spec, 0, store.source(), limits=ALWAYS)
        await shard.start()
        await shard.settled()
        await indexed(shard)
        delta = store.commit(ids[N:], fresh, {"count": [0] * added}, deleted=[IDS[i] for i in gone.tolist()])
        await shard.apply(delta)

        hits = await shard.search(QUERIES, ROUGH._replace(k=k))

        assert hits.plan.partial_index
        overlap = 0
        for i, query in enumerate(QUERIES):
            expected, _ = oracle(ids, vectors, query, k, allowed=allowed)
            answer = hits_of(hits, i)
            rows = [ids.index(item_id) for item_id in answer]
            assert len(set(answer)) == k
            assert all(allowed[row] for row in rows)
            scores = hits.scores[k * i : k * i + k]
            np.testing.assert_allclose(scores, vectors[rows] @ query, atol=1e-5)
            assert sorted(scores.tolist(), reverse=True) == scores.tolist()
            overlap += len({*answer} & {*expected})
        assert overlap / (k * len(QUERIES)) >= 0.95
        await shard.close()

    asyncio.run(run())


async def test_an_older_snapshot_is_not_answered_by_a_newer_ones_index(started: Started) -> None:
    store = stored(ROWS)
    shard = await started(store, limits=ALWAYS)
    before = snapshot_of(shard)
    allowed = shard._masks.allowed(before, FILTER)

    await shard.update(replace(store.spec, index=replace(store.spec.index, ef=20)))
    await indexed(shard)

    assert shard._partials.of(before, allowed, "default") is None


async def test_queries_that_a_filter_leads_away_from_are_answered_as_without(started: Started) -> None:
    rows = clusters(N, of=range(40))
    near, far = clusters(13, of=range(13), seed=1), clusters(27, of=range(13, 40), seed=2)
    queries = np.concatenate((far[:3], near, far[3:]))
    asked = ROUGH._replace(filter=below(N // 40 * 13))
    plain = await started(stored(rows), limits=replace(ALWAYS, partial_share=0))
    shard = await started(stored(rows), limits=ALWAYS)
    await indexed(shard, asked.filter)

    before, after = await plain.search(queries, asked), await shard.search(queries, asked)
    alone = [await shard.search(queries[i : i + 1], asked) for i in range(len(queries))]

    was, is_ = found(before, 40), found(after, 40)
    assert not before.plan.partial_index
    assert after.plan.partial_index
    assert is_[:3] == was[:3]
    assert is_[16:] == was[16:]
    assert after.plan.fallback
    assert list(after.ids) == [item_id for hits in alone for item_id in hits.ids]
    assert after.scores.tobytes() == b"".join(hits.scores.tobytes() for hits in alone)
    used = [hits.plan.partial_index for hits in alone]
    assert not any(used[:3] + used[16:])
    assert sum(used[3:16]) >= 10  # the rows of a cluster are few, some queries lie at its rim


async def test_a_recall_that_is_promised_holds_with_and_without_it(started: Started) -> None:
    with ThreadPoolExecutor(1) as checker:
        shard = await guarded(started, checker)
        target = SearchOptions("default", 10, filter=FILTER, target_recall=0.99)
        ef = shard._guard.resolve(target).ef
        exact = await shard.search(QUERIES, ROUGH._replace(exact=True, ef=None))
        asked = ROUGH._replace(ef=ef)

        without = await shard.search(QUERIES, asked)
        await indexed(shard)
        beside = await shard.search(QUERIES, asked)

    assert (without.plan.partial_index, beside.plan.partial_index) == (False, True)
    assert min(recall(without, exact), recall(beside, exact)) >= 0.98


async def test_a_check_takes_the_recall_of_a_step_for_the_lower_one_of_both_ways(started: Started) -> None:
    shard = await started(stored(ROWS), limits=ALWAYS)
    index, snapshot = await indexed(shard), snapshot_of(shard)
    allowed = shard._masks.allowed(snapshot, FILTER)

    def checked(query: F32, partial: PartialIndex | None) -> Outcome:
        outcome = check(snapshot, allowed, Asked(query, "default", 10, FILTER, ef=4), partial=partial, stop=bool)
        assert outcome is not None
        return outcome

    without, beside = [[checked(query, partial) for query in QUERIES] for partial in (None, index)]

    assert all((a.recalls >= b.recalls).all() for a, b in zip(without, beside, strict=True))
    # A list of 4 is one of 12 without it and of all 15 that are wanted in it.
    assert np.mean([outcome.served for outcome in beside]) > np.mean([outcome.served for outcome in without])


async def test_a_check_of_a_query_from_afar_goes_by_the_way_it_is_answered(started: Started) -> None:
    rows, far = clusters(N, of=range(40)), clusters(27, of=range(13, 40), seed=2)
    shard, filter = await started(stored(rows), limits=ALWAYS), below(N // 40 * 13)
    index, snapshot = await indexed(shard, filter), snapshot_of(shard)
    asked, allowed = Asked(far[0], "default", 10, filter, ef=10), shard._masks.allowed(snapshot, filter)

    without, beside = [check(snapshot, allowed, asked, partial=partial, stop=bool) for partial in (None, index)]

    assert without is not None
    assert beside is not None
    assert index is not None
    assert (beside.served, beside.recalls.tolist()) == (without.served, without.recalls.tolist())


async def guarded(started: Started, checker: Executor) -> Shard:
    shard = await started(stored(ROWS), limits=replace(ALWAYS, recall_share=1e9), checker=checker)
    await shard.checked()
    for query in QUERIES[:24]:
        shard._guard._sampled_s = float("-inf")
        await shard.search(query[np.newaxis], ROUGH)
        await shard.checked()
    return shard
