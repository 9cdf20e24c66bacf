"""What a shard answers to searches and reads, and what it refuses."""

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest
from tests.unit.shards.conftest import Started
from tests.unit.shards.fakes import MemoryStore, arrow_rows, gallery, hits_of, oracle
from tests.unit.shards.shard_rows import DIM, HNSW, IDS, QUERIES, TEN, VECTORS, below, filled

from likewise.shards.filter import InvalidFilter, filter_key
from likewise.shards.protocols import Delta, DeltaSink, Exclusion, SearchOptions, ShardSearch, UnknownAttribute
from likewise.shards.search_threads import SearchThreads
from likewise.shards.shard import ShardLimits
from likewise.v1 import common_pb2 as common
from likewise.v1 import search_service_pb2 as pb


async def test_a_flat_shard_answers_as_numpy_does(started: Started) -> None:
    shard = await started(filled())

    hits = await shard.search(QUERIES, TEN._replace(attributes=("colour", "count"), vectors=True))

    for query, vector in enumerate(QUERIES):
        ids, scores = oracle(IDS, VECTORS, vector, 10)
        assert hits_of(hits, query) == ids
        np.testing.assert_allclose(hits.scores[10 * query : 10 * query + 10], scores, atol=1e-6)
    assert hits.attributes is not None
    assert hits.attributes.column("count").to_pylist() == [IDS.index(item_id) for item_id in hits.ids]
    np.testing.assert_array_equal(hits.vectors, VECTORS[[IDS.index(item_id) for item_id in hits.ids]])
    assert hits.plan == pb.ShardPlan(kind=pb.PLAN_KIND_EXACT, live=1_500, allowed=1_500, compared=1_500)
    assert hits.version == 2


async def test_a_shard_is_what_its_protocols_say(started: Started) -> None:
    shard = await started(filled())
    search: ShardSearch = shard
    sink: DeltaSink = shard

    assert (await search.stats()).live == 1_500
    await sink.apply(Delta(1, 1, arrow_rows(gallery(dim=DIM), [], VECTORS[:0], stamps=[]), []))
    assert await search.count(b"") == (1_500, 2)


async def test_an_empty_shard_answers_with_nothing(started: Started) -> None:
    shard = await started(MemoryStore(gallery(dim=DIM)))

    hits = await shard.search(QUERIES, TEN)
    rows = await shard.fetch(["x"], space="", vectors=True)
    page = await shard.page(after="", limit=5, filter=b"", space="")

    assert hits.plan.kind == pb.PLAN_KIND_EMPTY
    assert (list(hits.ids), hits.offsets.tolist()) == ([], [0] * 6)
    assert rows.vectors is not None
    assert (rows.batch.num_rows, rows.vectors.shape, page.batch.num_rows) == (0, (0, DIM), 0)


async def test_a_filter_that_lets_nothing_through_gives_the_empty_plan(started: Started) -> None:
    shard = await started(filled())

    hits = await shard.search(QUERIES, TEN._replace(filter=below(0)))

    assert hits.plan == pb.ShardPlan(kind=pb.PLAN_KIND_EMPTY, live=1_500)
    assert len(hits.ids) == 0


async def test_fewer_hits_than_k_come_only_when_fewer_are_allowed(started: Started) -> None:
    shard = await started(filled(index=HNSW))

    hits = await shard.search(QUERIES, TEN._replace(filter=below(7), exact=False))

    assert np.diff(hits.offsets).tolist() == [7] * 5
    assert set(hits.ids) == set(IDS[:7])


async def test_a_filter_whose_rows_are_too_many_to_keep_side_by_side_goes_through_the_index(started: Started) -> None:
    few = ShardLimits(exact_rows=1_000)
    asked = TEN._replace(filter=below(700), ef=10)
    kept = await started(filled(index=HNSW), limits=few)
    copied = await started(filled(index=HNSW), limits=replace(few, filter_cache_bytes=1 << 16))

    assert (await kept.search(QUERIES, asked)).plan.kind == pb.PLAN_KIND_EXACT_FILTERED
    assert (await copied.search(QUERIES, asked)).plan.kind == pb.PLAN_KIND_ANN_FILTERED


async def test_an_index_that_comes_short_falls_back_to_comparing_all(started: Started) -> None:
    shard = await started(filled(index=HNSW), limits=ShardLimits(exact_rows=0))
    worst = np.argsort(VECTORS @ QUERIES[0])[:100]
    far = common.Filter(
        membership=common.Membership(attribute="count", values=[common.Value(int64_value=int(i)) for i in worst])
    )

    hits = await shard.search(QUERIES[:1], TEN._replace(filter=filter_key(far), exact=False))

    assert (hits.plan.kind, hits.plan.fallback) == (pb.PLAN_KIND_ANN_FILTERED, True)
    allowed = [i in set(worst.tolist()) for i in range(1_500)]
    assert list(hits.ids) == oracle(IDS, VECTORS, QUERIES[0], 10, allowed=allowed)[0]


async def test_excluding_a_reference_and_its_copies_does_not_starve_k(started: Started) -> None:
    store = MemoryStore(gallery(dim=DIM))
    copies = np.repeat(VECTORS[:1], 100, axis=0)
    ids = [*IDS[:50], *(f"copy{i}" for i in range(100))]
    store.commit(ids, np.concatenate((VECTORS[:50], copies)), content=[0, *range(1, 50), *[0] * 100])
    shard = await started(store)

    few = await shard.search(VECTORS[:1], TEN._replace(exclusions=(Exclusion((IDS[0],)),)))
    all_copies = await shard.search(VECTORS[:1], TEN._replace(exclusions=(Exclusion((IDS[0], IDS[1]), 0),)))

    assert (few.excluded, len(few.ids), set(few.ids) & set(IDS)) == ([0], 10, set())
    assert all_copies.excluded == [101]
    assert list(all_copies.ids) == oracle(IDS[2:50], VECTORS[2:50], VECTORS[0], 10)[0]


async def test_queries_of_one_call_leave_out_each_what_is_its_own(started: Started) -> None:
    store = MemoryStore(gallery(dim=DIM, index=HNSW))
    store.commit(IDS, VECTORS, content=[0] * 100 + [*range(1, 1_401)])
    shard = await started(store)
    ten = TEN._replace(exact=False, vectors=True)
    asked = [Exclusion((IDS[200],), 101), Exclusion(), Exclusion(content=0), Exclusion((IDS[7], "absent")), Exclusion()]

    together = await shard.search(QUERIES, ten._replace(exclusions=tuple(asked)))
    alone = [
        await shard.search(QUERIES[i : i + 1], ten._replace(exclusions=(exclusion,)))
        for i, exclusion in enumerate(asked)
    ]

    assert list(together.excluded) == [1, 0, 100, 0, 0]
    assert list(together.ids) == [item_id for one in alone for item_id in one.ids]
    assert together.offsets.tolist() == [0, 10, 20, 30, 40, 50]
    assert together.scores.tobytes() == b"".join(one.scores.tobytes() for one in alone)
    assert together.vectors is not None
    np.testing.assert_array_equal(together.vectors, VECTORS[[IDS.index(item_id) for item_id in together.ids]])
    assert not set(together.ids[20:30]) & set(IDS[:100])
    with pytest.raises(ValueError, match="5 queries need as many exclusions or none, got 1"):
        await shard.search(QUERIES, TEN._replace(exclusions=(Exclusion(),)))


async def test_searches_from_different_references_share_a_batch(started: Started) -> None:
    executor = SearchThreads(1, name="search")
    held = threading.Event()
    shard = await started(filled(), executor=executor)
    blocker = executor.submit(held.wait)

    each = [TEN._replace(exclusions=(Exclusion((IDS[i],)),)) for i in range(5)]
    searches = [asyncio.create_task(shard.search(VECTORS[i : i + 1], options)) for i, options in enumerate(each)]
    await asyncio.sleep(0)
    held.set()
    answers = await asyncio.gather(*searches)

    assert blocker.result()
    assert len({hits.search_us for hits in answers}) == 1
    for i, hits in enumerate(answers):
        allowed = [j != i for j in range(1_500)]
        assert list(hits.ids) == oracle(IDS, VECTORS, VECTORS[i], 10, allowed=allowed)[0]
    executor.shutdown()


async def test_rows_are_fetched_in_the_order_asked_for(started: Started) -> None:
    shard = await started(filled())
    asked = [IDS[5], "absent", IDS[3], *IDS[100:300]]

    rows = await shard.fetch(asked, space="", attributes=("count",), vectors=True)

    held = [5, 3, *range(100, 300)]
    assert rows.batch.schema.names == ["id", "content", "count"]
    assert rows.batch.column("count").to_pylist() == held
    assert rows.norms is not None
    np.testing.assert_array_equal(rows.vectors, VECTORS[held])
    assert rows.norms.tolist() == [2.0] * len(held)


async def test_pages_follow_each_other_in_byte_order_of_the_ids(started: Started) -> None:
    store = MemoryStore(gallery(dim=DIM))
    ids = ["b", "a", "é", "Z", "😀", "\uffff", "aa", "B"]
    store.commit(ids, VECTORS[:8])
    shard = await started(store)

    pages, after = [], ""
    while batch := (await shard.page(after=after, limit=3, filter=b"", space="")).batch.column("id").to_pylist():
        pages += batch
        after = batch[-1]

    assert pages == sorted(ids, key=str.encode)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (TEN._replace(space="other"), "space"),
        (TEN._replace(attributes=("colour", "size")), "mask.attributes[1]"),
    ],
)
async def test_names_the_gallery_does_not_have_are_refused(
    started: Started, options: SearchOptions, field: str
) -> None:
    shard = await started(filled())

    with pytest.raises(UnknownAttribute) as caught:
        await shard.search(QUERIES, options)

    assert caught.value.field == field


async def test_a_wrong_filter_is_refused_everywhere(started: Started) -> None:
    shard = await started(filled())
    wrong = filter_key(common.Filter(existence=common.Existence(attribute="size")))

    for call in (
        shard.search(QUERIES, TEN._replace(filter=wrong)),
        shard.page(after="", limit=1, filter=wrong, space=""),
        shard.count(wrong),
    ):
        with pytest.raises(InvalidFilter, match="'size' is no attribute"):
            await call


async def test_queries_of_another_dimension_are_refused(started: Started) -> None:
    shard = await started(filled())

    with pytest.raises(ValueError, match=r"\(n, 16\).*got \(1, 3\)"):
        await shard.search(np.ones((1, 3), dtype=np.float32), TEN)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        await shard.search(QUERIES, TEN._replace(k=0))


async def test_two_spaces_are_searched_apart(started: Started) -> None:
    store = MemoryStore(gallery(dim=DIM, spaces=("image", "text"), index=HNSW))
    store.commit(IDS, {"image": VECTORS, "text": VECTORS[::-1].copy()})
    shard = await started(store)

    image = await shard.search(VECTORS[:1], TEN._replace(exact=True))
    text = await shard.search(VECTORS[:1], TEN._replace(space="text"))

    assert (image.ids[0], text.ids[0]) == (IDS[0], IDS[-1])


async def test_rows_in_other_partitions_are_left_to_them(started: Started) -> None:
    store = filled(shards=4)
    shards = [await started(store, number) for number in range(4)]
    delta = store.commit(["x", "y", "z", "w"], VECTORS[:4])
    for shard in shards:
        await shard.apply(delta)

    live = [(await shard.stats()).live for shard in shards]

    assert sum(live) == 1_504
    assert min(live) > 300
    assert arrow_rows(store.spec, [], np.zeros((0, DIM), np.float32), stamps=[]).num_rows == 0
