"""How a shard keeps up: with pushed changes, with the store after a gap, and with writes while it seals."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.unit.shards.conftest import Started
from tests.unit.shards.fakes import MemorySource, MemoryStore, gallery, hits_of, oracle, unit
from tests.unit.shards.shard_rows import files

from likewise.shards.protocols import SearchOptions, Unavailable
from likewise.shards.search_threads import SearchThreads
from likewise.shards.shard import Shard, ShardLimits, build_executor
from likewise.shards.spec import IndexSpec
from likewise.v1 import gallery_service_pb2 as galleries
from likewise.v1 import search_service_pb2 as pb

DIM = 8
VECTORS = unit(np.random.default_rng(5).standard_normal((4_000, DIM)))
IDS = [f"i{i:04d}" for i in range(4_000)]
QUERY = VECTORS[:1]
TEN = SearchOptions(space="", k=10)


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore(gallery(dim=DIM))
    store.commit(IDS[:20], VECTORS[:20])
    return store


def source_of(shard: Shard) -> MemorySource:
    source = shard._follower._source
    assert isinstance(source, MemorySource)
    return source


async def test_a_pushed_change_is_searched_without_reading_the_store(started: Started, store: MemoryStore) -> None:
    shard = await started(store)

    await shard.apply(store.commit(["new"], QUERY, deleted=[IDS[0]]))

    hits = await shard.search(QUERY, TEN._replace(min_version=store.version))
    assert (hits.ids[0], hits.version) == ("new", store.version)
    assert IDS[0] not in hits.ids
    assert source_of(shard).reads == 0


async def test_a_change_pushed_twice_or_late_changes_nothing(started: Started, store: MemoryStore) -> None:
    shard = await started(store)
    first, second = store.commit(["new"], QUERY), store.commit(deleted=["new"])

    for delta in (first, second, first, second, first):
        await shard.apply(delta)

    assert await shard.count(b"") == (20, store.version)


async def test_a_change_that_overlaps_what_is_known_is_taken(started: Started, store: MemoryStore) -> None:
    shard = await started(store)
    first = store.commit(["a"], QUERY)
    await shard.apply(first)
    second = store.commit(["b"], QUERY)
    both = replace(second, base_version=first.base_version, upserts=source_of(shard).changes(2, 4).upserts)

    await shard.apply(both)

    stats = await shard.stats()
    assert (stats.live, stats.tombstones, stats.version) == (22, 0, 4)


async def test_a_gap_is_filled_from_the_store(started: Started, store: MemoryStore) -> None:
    shard = await started(store)
    store.commit(["missed"], QUERY, deleted=[IDS[1]])

    await shard.apply(store.commit(["seen"], QUERY))

    assert list((await shard.search(QUERY, TEN)).ids[:3]) == [IDS[0], "missed", "seen"]
    assert await shard.count(b"") == (21, store.version)
    assert (source_of(shard).reads, source_of(shard).loads) == (1, 1)


async def test_a_gap_older_than_the_history_is_loaded_anew(started: Started, store: MemoryStore) -> None:
    shard = await started(store)
    store.commit(["missed"], QUERY, deleted=[IDS[1]])
    store.keep_from = store.version

    await shard.apply(store.commit(["seen"], QUERY))

    assert await shard.count(b"") == (21, store.version)
    assert source_of(shard).loads == 2
    rows = await shard.fetch(["missed", IDS[1], "seen"], space="")
    assert rows.batch.column("id").to_pylist() == ["missed", "seen"]


async def test_a_reader_of_its_own_write_waits_for_it_and_fetches_it_if_need_be(
    started: Started, store: MemoryStore
) -> None:
    shard = await started(store)
    store.commit(["written"], QUERY)

    rows = await shard.fetch(["written"], space="", min_version=store.version)

    assert rows.batch.num_rows == 1
    assert rows.version == store.version


async def test_a_version_of_the_future_is_waited_for_until_it_comes(started: Started, store: MemoryStore) -> None:
    shard = await started(store)
    future = store.version + 1
    counting = asyncio.create_task(shard.count(b"", min_version=future))
    while source_of(shard).store.version < future and not counting.done():
        await asyncio.sleep(0)
        await shard.apply(store.commit(["later"], QUERY))

    assert await counting == (21, future)


async def test_waiting_for_a_version_ends_when_the_shard_closes(store: MemoryStore) -> None:
    shard = Shard(store.spec, 0, store.source())
    await shard.start()
    waiting = asyncio.create_task(shard.count(b"", min_version=99))
    await asyncio.sleep(0)

    await shard.close()

    with pytest.raises(Unavailable):
        await waiting


async def test_a_shard_that_polls_sees_commits_nobody_pushed(started: Started, store: MemoryStore) -> None:
    shard = await started(store, limits=ShardLimits(poll_s=0.001))
    moved = shard._follower._moved
    store.commit(["unpushed"], QUERY)

    async with moved:
        await asyncio.wait_for(moved.wait_for(lambda: shard.version == store.version), 30)

    assert (await shard.count(b""))[0] == 21


async def test_a_replaced_row_is_found_by_its_new_vector_only(started: Started, store: MemoryStore) -> None:
    shard = await started(store)

    await shard.apply(store.commit([IDS[0]], VECTORS[50:51]))

    near_old, near_new = await shard.search(QUERY, TEN), await shard.search(VECTORS[50:51], TEN)
    vectors = np.concatenate((VECTORS[50:51], VECTORS[1:20]))
    assert list(near_old.ids) == oracle(IDS[:20], vectors, QUERY[0], 10)[0]
    assert near_new.ids[0] == IDS[0]
    assert (await shard.stats()).tombstones == 1


class Held:
    """A builder that does nothing until it is let."""

    def __init__(self) -> None:
        self.executor = build_executor()
        self._let = threading.Event()
        self.executor.submit(self._let.wait)

    def let(self) -> None:
        self._let.set()


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.let()
    held.executor.shutdown()


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
async def test_what_is_written_while_an_index_is_built_is_neither_lost_nor_waited_for(
    held: Held, kind: str, tmp_path: Path
) -> None:
    store = MemoryStore(gallery(dim=DIM, index=IndexSpec(kind=kind)))
    store.commit(IDS[:1_500], VECTORS[:1_500])
    shard = Shard(store.spec, 0, store.source(), builder=held.executor, cache=tmp_path)
    await shard.start()
    await shard.apply(store.commit(IDS[1_500:3_000], VECTORS[1_500:3_000]))  # more fresh rows than are borne
    assert (await shard.stats()).state == galleries.INDEX_STATE_BUILDING

    changed = store.commit([*IDS[10:20], *IDS[3_000:3_100]], VECTORS[3_000:3_110], deleted=IDS[2_000:2_050])
    await shard.apply(changed)
    during = await shard.search(QUERY, TEN._replace(exact=True))
    held.let()
    await shard.settled()
    after = await shard.search(QUERY, TEN._replace(exact=True))

    kept = {**dict(zip(IDS[:3_000], VECTORS, strict=False))}
    kept |= dict(zip([*IDS[10:20], *IDS[3_000:3_100]], VECTORS[3_000:3_110], strict=True))
    for item_id in IDS[2_000:2_050]:
        del kept[item_id]
    expected = oracle(list(kept), np.stack(list(kept.values())), QUERY[0], 10)[0]
    assert hits_of(during, 0) == hits_of(after, 0) == expected
    stats = await shard.stats()
    assert (stats.live, stats.version, stats.state) == (len(kept), store.version, galleries.INDEX_STATE_READY)
    assert stats.index == ("flat" if kind == "flat" else "HNSW32,Flat")
    assert len(files(tmp_path)) == (0 if kind == "flat" else 1)
    await shard.close()


async def test_a_build_for_an_index_nobody_wants_any_more_is_thrown_away(held: Held) -> None:
    store = MemoryStore(gallery(dim=DIM, index=IndexSpec(kind="hnsw")))
    store.commit(IDS[:1_500], VECTORS[:1_500])
    shard = Shard(store.spec, 0, store.source(), builder=held.executor)
    await shard.start()

    await shard.update(replace(store.spec, index=IndexSpec(kind="HNSW4,Flat")))
    held.let()
    await shard.settled()

    assert (await shard.stats()).index == "HNSW4,Flat"
    await shard.close()


async def test_many_dead_rows_are_swept_out(started: Started) -> None:
    store = MemoryStore(gallery(dim=DIM, index=IndexSpec(kind="hnsw")))
    store.commit(IDS, VECTORS)
    shard = await started(store)

    await shard.apply(store.commit(deleted=IDS[:1_500]))
    before = await shard.stats()
    await shard.settled()
    after = await shard.stats()

    assert (before.sealed, before.tombstones, before.live) == (4_000, 1_500, 2_500)
    assert (after.sealed, after.tombstones, after.live) == (2_500, 0, 2_500)


async def test_a_deleted_cluster_does_not_hide_what_is_behind_it(started: Started) -> None:
    store = MemoryStore(gallery(dim=DIM, index=IndexSpec(kind="hnsw")))
    store.commit(IDS, VECTORS)
    shard = await started(store, limits=ShardLimits(exact_rows=0))
    near = np.argsort(-(VECTORS @ QUERY[0]))[:500]
    await shard.apply(store.commit(deleted=[IDS[i] for i in near]))

    hits = await shard.search(QUERY, TEN._replace(exact=False))

    left = [i not in set(near.tolist()) for i in range(4_000)]
    assert hits.plan.kind == pb.PLAN_KIND_ANN
    assert list(hits.ids) == oracle(IDS, VECTORS, QUERY[0], 10, allowed=left)[0]


async def test_a_shard_may_be_closed_while_it_builds(held: Held) -> None:
    store = MemoryStore(gallery(dim=DIM, index=IndexSpec(kind="hnsw")))
    store.commit(IDS[:1_500], VECTORS[:1_500])
    shard = Shard(store.spec, 0, store.source(), builder=held.executor)
    await shard.start()

    closing = asyncio.create_task(shard.close())
    await asyncio.sleep(0)
    held.let()
    await closing

    assert (await shard.stats()).index == "flat"


async def test_executors_given_to_a_shard_outlive_it(store: MemoryStore) -> None:
    executor = SearchThreads(1, name="search")
    shard = Shard(store.spec, 0, store.source(), executor=executor)
    await shard.start()
    await shard.close()

    assert executor.submit(int, "3").result() == 3
    executor.shutdown()
