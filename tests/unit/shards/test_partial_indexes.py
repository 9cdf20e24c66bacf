"""Filters that have an index of their own: which ones, what they answer, and when they have none any more."""

import asyncio
import logging
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.shards.conftest import Started
from tests.unit.shards.fakes import F32, hits_of, oracle, unit
from tests.unit.shards.shard_rows import TEN, below
from tests.unit.shards.surfaces import DIM, stored, surface

from likewise.shards import partial_index
from likewise.shards.partial_index import PartialIndex
from likewise.shards.partial_indexes import FAR_QUERIES, FILTERS, PartialIndexes
from likewise.shards.protocols import SearchOptions
from likewise.shards.recall_check import Asked, Outcome, check
from likewise.shards.rows import Snapshot
from likewise.shards.shard import Shard, ShardLimits
from likewise.shards.spec import IndexSpec
from likewise.v1 import search_service_pb2 as pb

N, ALLOWED = 3_000, 1_000
ROWS = surface(N, latent=12)
QUERIES = surface(40, latent=12, seed=1)
IDS = [f"i{i:04d}" for i in range(N)]
FILTER = below(ALLOWED)
ROUGH = TEN._replace(filter=FILTER, exact=False, ef=10)
ALWAYS = ShardLimits(exact_rows=0, recall_share=0)
LONG_S = 60.0
"""Searches for so long pay for any index here."""


def snapshot_of(shard: Shard) -> Snapshot:
    snapshot = shard._newest()
    assert snapshot is not None
    return snapshot


async def indexed(shard: Shard, filter: bytes = FILTER) -> PartialIndex | None:
    """The index of a filter whose searches have taken long."""
    snapshot = snapshot_of(shard)
    allowed = shard._masks.allowed(snapshot, filter)
    shard._partials.earn(snapshot, allowed, "default", LONG_S)
    shard._partials.begin()
    await shard._partials.settled()
    return held(shard, filter)


def held(shard: Shard, filter: bytes = FILTER) -> PartialIndex | None:
    snapshot = snapshot_of(shard)
    return shard._partials.of(snapshot, shard._masks.allowed(snapshot, filter), "default")


def found(hits: Any, count: int = len(QUERIES)) -> list[list[str]]:
    return [hits_of(hits, i) for i in range(count)]


def recall(hits: Any, exact: Any) -> float:
    return float(np.mean([len({*a} & {*b}) / 10 for a, b in zip(found(hits), found(exact), strict=True)]))


def clusters(rows: int, *, of: range, seed: int = 0) -> F32:
    """Rows in tight clusters far from each other, cluster by cluster."""
    world, rng = np.random.default_rng(5), np.random.default_rng(seed)
    embedding = np.linalg.qr(world.standard_normal((DIM, 12)))[0].T
    centres = world.standard_normal((40, 12))[of.start : of.stop]
    points = np.repeat(centres, rows // len(of), axis=0) + 0.1 * rng.standard_normal((rows, 12))
    return unit(points @ embedding + 0.005 * rng.standard_normal((rows, DIM)))


async def test_a_filter_in_steady_use_comes_to_have_an_index(started: Started) -> None:
    shard = await started(stored(ROWS), limits=ALWAYS)

    first = await shard.search(QUERIES[:1], ROUGH)
    for i in range(20_000):  # some 200: until they have taken half as long as building does
        hits = await shard.search(QUERIES[i % 40 : i % 40 + 1], ROUGH)
        if hits.plan.partial_index:
            break
        await shard.settled()

    assert not first.plan.partial_index
    assert hits.plan.partial_index
    assert (hits.plan.kind, hits.plan.allowed) == (pb.PLAN_KIND_ANN_FILTERED, ALLOWED)
    assert (await shard.stats()).partial_indexes == 1


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


async def test_when_an_eighth_of_its_rows_is_gone_it_goes_too(started: Started) -> None:
    store = stored(ROWS)
    shard = await started(store, limits=ALWAYS)
    await indexed(shard)

    await shard.apply(store.commit(deleted=IDS[:125]))
    most = held(shard)
    await shard.apply(store.commit(deleted=IDS[125:126]))

    assert most is not None
    assert held(shard) is None
    assert (await shard.stats()).partial_indexes == 0
    assert await indexed(shard) is not None


async def test_it_goes_when_rows_are_numbered_anew_and_may_come_again(started: Started) -> None:
    store = stored(ROWS)
    shard = await started(store, limits=ALWAYS)
    await indexed(shard)

    await shard.update(replace(store.spec, index=replace(store.spec.index, ef=20)))

    assert held(shard) is None
    index = await indexed(shard)
    assert index is not None
    assert index.traits.ef == 20
    assert (await shard.search(QUERIES, ROUGH._replace(ef=None))).plan.ef == 20


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


async def test_an_index_that_most_queries_are_far_from_goes_and_does_not_come_again(started: Started) -> None:
    rows, far = clusters(N, of=range(40)), clusters(27, of=range(13, 40), seed=2)
    asked = ROUGH._replace(filter=below(N // 40 * 13))
    shard = await started(stored(rows), limits=ALWAYS)
    await indexed(shard, asked.filter)

    for _ in range(-(-FAR_QUERIES // len(far))):
        assert held(shard, asked.filter) is not None
        await shard.search(far, asked)

    assert held(shard, asked.filter) is None
    assert await indexed(shard, asked.filter) is None


async def test_few_queries_from_afar_do_not_cost_the_others_their_index(started: Started) -> None:
    shard = await started(stored(ROWS), limits=ALWAYS)
    await indexed(shard)
    allowed = shard._masks.allowed(snapshot_of(shard), FILTER)

    for _ in range(100):
        shard._partials.note(allowed, "default", queries=40, far=10)

    assert held(shard) is not None


async def test_all_together_are_bounded_and_the_one_not_used_for_longest_goes(started: Started) -> None:
    shard = await started(stored(ROWS), limits=replace(ALWAYS, partial_share=0.75))
    first, second, third = below(1_000), below(1_001), below(1_002)

    assert await indexed(shard, first) is not None
    assert await indexed(shard, second) is not None
    assert held(shard, first) is not None  # used again
    assert await indexed(shard, third) is not None

    assert [held(shard, filter) is not None for filter in (first, second, third)] == [True, False, True]
    core = snapshot_of(shard).spaces["default"].index
    assert core is not None
    assert shard._partials.memory_bytes <= 0.75 * core.core_bytes


@pytest.mark.parametrize(
    ("limits", "filter"),
    [
        pytest.param(replace(ALWAYS, partial_share=0), FILTER, id="none wanted"),
        pytest.param(replace(ALWAYS, partial_share=0.3), FILTER, id="too many rows"),
        pytest.param(ALWAYS, b"", id="no filter"),
    ],
)
async def test_what_has_no_index_is_answered_without(started: Started, limits: ShardLimits, filter: bytes) -> None:
    shard = await started(stored(ROWS), limits=limits)

    assert await indexed(shard, filter) is None
    assert not (await shard.search(QUERIES, ROUGH._replace(filter=filter))).plan.partial_index


@pytest.mark.parametrize("kind", ["flat", "HNSW16,Flat", "IVF16,Flat"])
async def test_other_indexes_earn_none(started: Started, kind: str) -> None:
    shard = await started(stored(ROWS, IndexSpec(kind=kind)), limits=ALWAYS)

    await shard.search(QUERIES, TEN._replace(filter=FILTER, exact=False))

    assert not shard._partials._earned


async def test_a_filter_of_hardly_any_rows_gets_none(started: Started) -> None:
    shard = await started(stored(ROWS), limits=ALWAYS)

    assert await indexed(shard, below(10)) is None
    assert await indexed(shard, below(11)) is not None


async def test_filters_that_change_with_every_search_are_forgotten(started: Started) -> None:
    shard = await started(stored(ROWS), limits=ALWAYS)

    for count in range(900, 900 + FILTERS + 20):
        await shard.search(QUERIES[:1], ROUGH._replace(filter=below(count)))

    assert len(shard._partials._earned) == FILTERS
    assert not shard._partials.due


async def test_a_graph_whose_rows_do_not_find_themselves_is_not_used(started: Started) -> None:
    shard = await started(stored(ROWS, IndexSpec(kind="hnsw", m=2, ef_construction=1)), limits=ALWAYS)

    assert await indexed(shard) is None
    assert not shard._partials.due
    assert await indexed(shard) is None


async def test_a_build_that_fails_is_told_and_not_tried_again(
    started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    shard = await started(stored(ROWS), limits=ALWAYS)
    snapshot = snapshot_of(shard)
    tries = 0

    def broken(snapshot: Snapshot, filter: bytes) -> Any:
        nonlocal tries
        tries += 1
        raise MemoryError("no memory")

    with ThreadPoolExecutor(1) as builder, caplog.at_level(logging.ERROR):
        partials = PartialIndexes(lambda: snapshot, broken, builder=builder)
        partials.moved(snapshot)
        allowed = shard._masks.allowed(snapshot, FILTER)
        for _ in range(2):
            partials.earn(snapshot, allowed, "default", LONG_S)
            partials.begin()
            await partials.settled()

    assert tries == 1
    assert "no memory" in caplog.text


async def test_a_build_gives_way_to_that_of_the_rows(started: Started) -> None:
    shard = await started(stored(ROWS), limits=ALWAYS)
    snapshot, needed = snapshot_of(shard), [True]
    allowed = shard._masks.allowed(snapshot, FILTER)

    with ThreadPoolExecutor(1) as builder:
        partials = PartialIndexes(
            lambda: snapshot, shard._masks.allowed, builder=builder, share=1.0, give_up=lambda: needed[0]
        )
        partials.moved(snapshot)
        counts = []
        for needed[0] in (True, False):
            partials.earn(snapshot, allowed, "default", LONG_S)
            partials.begin()
            await partials.settled()
            counts.append(partials.count)

    assert counts == [0, 1]


async def test_a_shard_that_closes_waits_for_its_build(tmp_path: Path) -> None:
    class Counting(ThreadPoolExecutor):
        running = 0

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            def counted() -> Any:
                self.running += 1
                try:
                    return fn(*args, **kwargs)
                finally:
                    self.running -= 1

            return super().submit(counted)

    store = stored(ROWS)
    with Counting(1) as builder:
        shard = Shard(store.spec, 0, store.source(), limits=ALWAYS, builder=builder)
        await shard.start()
        await shard.settled()
        snapshot = snapshot_of(shard)
        shard._partials.earn(snapshot, shard._masks.allowed(snapshot, FILTER), "default", LONG_S)
        shard._partials.begin()

        await shard.close()

        assert builder.running == 0
        assert shard._partials.count == 0


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
