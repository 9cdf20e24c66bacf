"""The recall guard on real shards: what it measures, what it chooses, what it may cost."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.unit.shards.conftest import Started
from tests.unit.shards.fakes import MemoryStore, gallery, hits_of, unit

from likewise.shards.effort import ENOUGH
from likewise.shards.filter import filter_key
from likewise.shards.protocols import SearchOptions
from likewise.shards.recall import recall_at_k
from likewise.shards.recall_guard import STAND_INS, RecallGuard, bucket_of
from likewise.shards.shard import Shard, ShardLimits
from likewise.shards.spec import AttributeSpec, IndexSpec
from likewise.v1 import common_pb2 as common
from likewise.v1 import search_service_pb2 as pb

N, DIM, K = 3_000, 32, 10
RNG = np.random.default_rng(3)
VECTORS = unit(RNG.standard_normal((N, DIM)))  # 32 dimensions of noise: hard for a graph of few links
IDS = [f"i{i:05d}" for i in range(N)]
QUERIES = unit(RNG.standard_normal((64, DIM)))
TRUTH = [[IDS[row] for row in np.argsort(-(VECTORS @ query), kind="stable")[:K]] for query in QUERIES]
PRICES = RNG.random(N)

ALWAYS = ShardLimits(recall_share=1e9)
"""No check is too dear."""


@pytest.fixture
def checker() -> Iterator[Executor]:
    """A thread for checks that does not give way: on a busy machine the guard's own would hardly ever run."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def guarded(started: Started, checker: Executor) -> Started:
    """Makes started shards whose stand-ins have been checked."""

    async def start(data: MemoryStore, **options: Any) -> Shard:
        shard = await started(data, checker=checker, **options)
        await shard.checked()
        return shard

    return start


def store(**index: Any) -> MemoryStore:
    spec = gallery(dim=DIM, attributes=(AttributeSpec("price", common.ATTRIBUTE_TYPE_DOUBLE),))
    made = MemoryStore(replace(spec, index=IndexSpec(**{"kind": "HNSW8,Flat", "ef_construction": 40, **index})))
    made.commit(IDS, VECTORS, {"price": PRICES})
    return made


def cheaper_than(price: float) -> bytes:
    comparison = common.Comparison(
        attribute="price", operator=common.COMPARISON_OPERATOR_LESS, value=common.Value(double_value=price)
    )
    return filter_key(common.Filter(comparison=comparison))


async def recall(shard: Shard, **options: Any) -> tuple[float, pb.ShardPlan]:
    hits = await shard.search(QUERIES, SearchOptions("", K, **options))
    return recall_at_k([hits_of(hits, i) for i in range(len(QUERIES))], TRUTH, K), hits.plan


async def ask(shard: Shard, guard: RecallGuard, *, times: int, **options: Any) -> None:
    """Single searches, each checked before the next; the guard's own clock would leave most of them out."""
    for query in QUERIES[:times]:
        guard._sampled_s = float("-inf")
        await shard.search(query[np.newaxis], SearchOptions("", K, **options))
        await guard.settled()


@pytest.mark.parametrize(
    ("kind", "target"),
    [("HNSW8,Flat", 0.5), ("HNSW8,Flat", 0.9), ("HNSW8,Flat", 0.99), ("IVF64,Flat", 0.9), ("SQ4", 0.9)],
)
async def test_a_target_is_reached(guarded: Started, kind: str, target: float) -> None:
    shard = await guarded(store(kind=kind), limits=ALWAYS)
    await ask(shard, shard._guard, times=64, exact=False)

    options = shard._guard.resolve(SearchOptions("default", K, target_recall=target))
    found, _ = await recall(
        shard, ef=options.ef, nprobe=options.nprobe, over_fetch=options.over_fetch, exact=options.exact or False
    )

    # The steps were chosen by the recall of these very queries.
    assert found >= target


async def test_a_target_is_about_reached_before_there_are_queries(guarded: Started) -> None:
    shard = await guarded(store(), limits=ALWAYS)

    ef = shard._guard.resolve(SearchOptions("default", K, target_recall=0.8)).ef
    found, plan = await recall(shard, ef=ef, exact=False)  # the planner would compare so few rows exactly

    assert found >= 0.75
    assert plan.kind == pb.PLAN_KIND_ANN


async def test_a_higher_target_costs_a_longer_list(guarded: Started) -> None:
    shard = await guarded(store(), limits=ALWAYS)
    guard = shard._guard

    efs = [guard.resolve(SearchOptions("default", K, target_recall=target)).ef or 0 for target in (0.3, 0.7, 0.9)]

    assert all(efs)
    assert efs == sorted(efs)
    assert efs[0] != efs[-1]
    assert guard.resolve(SearchOptions("default", K, target_recall=1.0)).exact is True


async def test_an_index_that_cannot_reach_the_target_is_passed_by(guarded: Started) -> None:
    shard = await guarded(store(kind="PQ2x4"), limits=ALWAYS)

    found, plan = await recall(shard, target_recall=0.999)

    assert (found, plan.kind) == (1.0, pb.PLAN_KIND_EXACT)


async def test_the_gallerys_target_counts_for_searches_that_set_nothing(guarded: Started) -> None:
    shard = await guarded(store(target_recall=0.9), limits=ALWAYS)
    guard = shard._guard

    assert (
        guard.resolve(SearchOptions("default", K)).ef
        == guard.resolve(SearchOptions("default", K, target_recall=0.9)).ef
    )
    assert guard.resolve(SearchOptions("default", K, ef=3)).ef == 3
    assert guard.resolve(SearchOptions("default", K, exact=True)).ef is None


async def test_a_changed_target_needs_no_new_index(guarded: Started) -> None:
    data = store(target_recall=0.5)
    shard = await guarded(data, limits=ALWAYS)
    before = shard._guard.resolve(SearchOptions("default", K)).ef

    await shard.update(replace(data.spec, index=replace(data.spec.index, target_recall=0.95)))

    assert not shard._follower.building
    after = shard._guard.resolve(SearchOptions("default", K)).ef
    assert before is not None
    assert after is not None
    assert after > before


async def test_stats_tell_the_recall_of_stored_rows_before_there_are_queries(guarded: Started) -> None:
    shard = await guarded(store(), limits=ALWAYS)

    (estimate,) = (await shard.stats()).recall

    assert not estimate.live
    assert (estimate.space, estimate.max_share, estimate.queries) == ("default", 1.0, STAND_INS)
    assert 0.0 < estimate.low <= estimate.recall <= estimate.high <= 1.0
    assert estimate.local_dimension > 4


async def test_stats_tell_the_recall_of_live_queries_as_they_were_asked(guarded: Started) -> None:
    shard = await guarded(store(), limits=ALWAYS)
    expected, _ = await recall(shard, ef=16, exact=False)
    await shard._guard.settled()
    shard._guard._known["default"].live.clear()

    await ask(shard, shard._guard, times=64, ef=16, exact=False)

    (estimate,) = (await shard.stats()).recall
    assert estimate.live
    assert estimate.queries == 64
    assert estimate.recall == pytest.approx(expected, abs=1e-6)


async def test_filters_are_told_apart_by_what_they_leave(guarded: Started) -> None:
    shard = await guarded(store(), limits=replace(ALWAYS, exact_rows=0))

    await ask(shard, shard._guard, times=3, filter=cheaper_than(0.6), exact=False)
    await ask(shard, shard._guard, times=2, filter=cheaper_than(0.2), exact=False)

    found = {one.max_share: one.queries for one in (await shard.stats()).recall if one.live}
    assert found == {0.9: 3, 0.3: 2}
    assert bucket_of(1.0, filtered=True) == bucket_of(1.0, filtered=False) == 1.0


async def test_checks_cost_no_more_than_their_share(guarded: Started) -> None:
    shard = await guarded(store(), limits=ShardLimits(recall_share=0.5))
    guard = shard._guard

    await ask(shard, guard, times=64, ef=16, exact=False)

    # One check may be under way when the share is used up; each is bounded by the rows.
    dearest = max(0.05, guard._cost_s / STAND_INS * 4)
    assert guard._spent_s <= 0.5 * guard._earned_s + dearest


async def test_a_share_of_nothing_checks_nothing(guarded: Started) -> None:
    shard = await guarded(store(), limits=ShardLimits(recall_share=0.0))

    await ask(shard, shard._guard, times=4, ef=16, exact=False)
    found, _ = await recall(shard, target_recall=0.9)

    stats = await shard.stats()
    assert (list(stats.recall), stats.recall_seconds) == ([], 0.0)
    assert found >= 0.9  # from what is expected of such an index


async def test_a_new_index_begins_anew_and_goes_by_the_old_one_until_it_knows_enough(guarded: Started) -> None:
    data = store()
    shard = await guarded(data, limits=ALWAYS)
    await ask(shard, shard._guard, times=ENOUGH, ef=16, exact=False)
    before = shard._guard._known["default"]

    await shard.update(replace(data.spec, index=replace(data.spec.index, kind="HNSW16,Flat")))
    await shard.settled()
    await shard.checked()

    known = shard._guard._known["default"]
    assert known is not before
    assert not known.live
    assert known.stand_ins.queries == STAND_INS
    assert known.before is None  # it knows enough by now


async def test_checks_hold_no_index_that_was_replaced(guarded: Started) -> None:
    data = store()
    shard = await guarded(data, limits=ALWAYS)
    old = shard._guard._known["default"].index

    await shard.update(replace(data.spec, index=replace(data.spec.index, kind="HNSW16,Flat")))
    await shard.settled()
    await shard.checked()

    assert old() is None


async def test_a_flat_shard_answers_any_target_exactly(guarded: Started) -> None:
    shard = await guarded(store(kind="flat", ef_construction=None), limits=ALWAYS)

    found, plan = await recall(shard, target_recall=0.5)

    assert (found, plan.kind) == (1.0, pb.PLAN_KIND_EXACT)
    assert not (await shard.stats()).recall
