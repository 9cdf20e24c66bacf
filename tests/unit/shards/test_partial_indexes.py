"""Which filters of a shard have an index of their own, and when they have none any more."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.shards.conftest import Started
from tests.unit.shards.shard_rows import TEN, below
from tests.unit.shards.steady_filters import (
    ALLOWED,
    ALWAYS,
    FILTER,
    IDS,
    LONG_S,
    QUERIES,
    ROUGH,
    ROWS,
    N,
    clusters,
    held,
    indexed,
    snapshot_of,
)
from tests.unit.shards.surfaces import stored

from likewise.shards import partial_indexes
from likewise.shards.partial_indexes import FAR_QUERIES, FILTERS, PartialIndexes
from likewise.shards.rows import Snapshot
from likewise.shards.shard import Shard, ShardLimits
from likewise.shards.spec import IndexSpec
from likewise.v1 import search_service_pb2 as pb

PRICE = partial_indexes.EARNED_S_PER_ROW


@pytest.fixture(autouse=True, scope="module")
def _dear() -> Iterator[None]:
    """No search of a test pays for an index by itself, however slow the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial_indexes, "EARNED_S_PER_ROW", 1.0)
        yield


async def test_a_filter_in_steady_use_comes_to_have_an_index(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_indexes, "EARNED_S_PER_ROW", PRICE)
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
        hits = await shard.search(QUERIES[:1], ROUGH._replace(filter=below(count)))
        assert not hits.plan.partial_index

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


async def test_a_shard_that_closes_waits_for_its_build() -> None:
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    class Held(ThreadPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            def work() -> Any:
                begun.set()
                go.wait()
                try:
                    return fn(*args, **kwargs)
                finally:
                    ended.set()

            return super().submit(work)

    store = stored(ROWS)
    with Held(1) as builder:
        shard = Shard(store.spec, 0, store.source(), limits=ALWAYS, builder=builder)
        await shard.start()
        go.set()
        await shard.settled()
        for event in (begun, go, ended):
            event.clear()
        snapshot = snapshot_of(shard)
        shard._partials.earn(snapshot, shard._masks.allowed(snapshot, FILTER), "default", LONG_S)
        shard._partials.begin()
        await asyncio.to_thread(begun.wait)

        closing = asyncio.create_task(shard.close())
        for _ in range(50):
            await asyncio.sleep(0)
        waits = not closing.done()
        go.set()
        await closing

    assert waits
    assert ended.is_set()
    assert shard._partials.count == 0
