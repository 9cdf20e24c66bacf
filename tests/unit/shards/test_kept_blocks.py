"""What becomes of a sealed block after it is built: which are written, what is let go, and what a restart reads."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.unit.shards.conftest import Started
from tests.unit.shards.fakes import MemoryStore, gallery, hits_of, oracle, unit
from tests.unit.shards.store_fixtures import SPEC as STORED_SPEC
from tests.unit.shards.store_fixtures import table

from likewise.shards import faiss_threads, index_build
from likewise.shards.cache import SealedCache
from likewise.shards.index import SealedIndex
from likewise.shards.partition import Partition
from likewise.shards.protocols import I64, SearchOptions
from likewise.shards.recipe import Recipe
from likewise.shards.rows import Snapshot
from likewise.shards.shard import Shard, ShardLimits
from likewise.shards.spec import IndexSpec, SpaceSpec
from likewise.shards.store import Store

DIM = 8
VECTORS = unit(np.random.default_rng(6).standard_normal((6_000, DIM)))
IDS = [f"i{i:04d}" for i in range(6_000)]
QUERY = VECTORS[:1]
TEN = SearchOptions(space="", k=10)


def store_of(rows: int) -> MemoryStore:
    store = MemoryStore(gallery(dim=DIM, index=IndexSpec(kind="HNSW8,Flat")))
    store.commit(IDS[:rows], VECTORS[:rows])
    return store


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Sequence[int]:
    """Rows of every index that was written to a cache."""
    rows: list[int] = []
    store = SealedCache.store

    def noted(cache: SealedCache, space: SpaceSpec, built: SealedIndex, stamps: I64) -> None:
        rows.append(built.rows)
        store(cache, space, built, stamps)

    monkeypatch.setattr(SealedCache, "store", noted)
    return rows


async def test_of_builds_in_a_row_only_the_last_is_written(tmp_path: Path, written: Sequence[int]) -> None:
    store = store_of(1_500)
    shard = Shard(store.spec, 0, store.source(), cache=tmp_path, limits=ShardLimits(recall_share=0))
    await shard.start()
    deltas = [store.commit(IDS[n : n + 1_500], VECTORS[n : n + 1_500]) for n in (1_500, 3_000, 4_500)]
    async with shard._follower._changing:  # no block is placed before all rows are there
        partition = shard._follower.partition
        assert partition is not None
        for delta in deltas:
            partition.publish(partition.stage(delta.upserts, (), version=delta.version))
    await shard.settled()

    assert written == [6_000]
    assert (await shard.stats()).sealed == 6_000
    await shard.close()


async def test_the_block_before_is_let_go_when_a_new_one_is_in_place(started: Started, tmp_path: Path) -> None:
    store = store_of(1_500)
    shard = await started(store, cache=tmp_path)
    partition = shard._follower.partition
    assert partition is not None
    sealed = partition.snapshot.spaces["default"].index
    assert sealed is not None
    before = weakref.ref(sealed.faiss_index)
    del partition, sealed

    await shard.apply(store.commit(IDS[1_500:4_500], VECTORS[1_500:4_500]))
    await shard.settled()

    async with asyncio.timeout(30):  # a check of its recall may still be under way in a thread
        while before() is not None:
            gc.collect()
            await asyncio.sleep(0.01)


async def test_a_restart_reads_no_vectors_that_the_kept_index_has(started: Started, tmp_path: Path) -> None:
    store = store_of(3_000)
    first = await started(store, cache=tmp_path)
    await first.close()
    store.commit([IDS[7], *IDS[3_000:3_010]], VECTORS[3_000:3_011], deleted=[IDS[8]])

    again = await started(store, cache=tmp_path)

    assert again._follower._source.vectors_read == 11  # type: ignore[attr-defined]
    vectors = dict(zip(IDS[:3_000], VECTORS, strict=False))
    vectors |= dict(zip([IDS[7], *IDS[3_000:3_010]], VECTORS[3_000:3_011], strict=True))
    del vectors[IDS[8]]
    expected = oracle(list(vectors), np.stack(list(vectors.values())), QUERY[0], 10)[0]
    assert hits_of(await again.search(QUERY, TEN._replace(exact=True)), 0) == expected


def test_a_partition_read_beside_an_index_has_vectors_for_the_other_rows_only(tmp_path: Path) -> None:
    gallery_store = Store(str(tmp_path)).create(STORED_SPEC)
    gallery_store.take_over()
    first = gallery_store.commit(table({"a": 1, "b": 2, "c": 3})).upserts
    gallery_store.commit(table({"b": 5, "d": 4}))
    held = np.sort(first.column("stamp").to_numpy())

    batches = list(Partition(gallery_store, 0, 1).load(gallery_store.version, held=held))

    light = {
        item for batch in batches if "vector_default" not in batch.schema.names for item in batch["id"].to_pylist()
    }
    whole = {
        item: vector
        for batch in batches
        if "vector_default" in batch.schema.names
        for item, vector in zip(batch["id"].to_pylist(), batch["vector_default"].to_pylist(), strict=True)
    }
    assert light == {"a", "c"}
    assert whole == {"b": [0, 1, 0, 0], "d": [1, 0, 0, 0]}
    everything = list(Partition(gallery_store, 0, 1).load(gallery_store.version, held=np.zeros(0, dtype=np.int64)))
    assert sum(batch.num_rows for batch in everything) == 4
    assert all("vector_default" in batch.schema.names for batch in everything)


def test_a_build_leaves_cores_to_searches_while_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(faiss_threads, "THREADS", 4)
    monkeypatch.setattr(faiss_threads._calling, "told", 0)
    monkeypatch.setattr(index_build, "next_piece", lambda rows, took_s, dim: rows)
    builder = threading.get_ident()
    # FAISS sets it for the calling thread: what another test has left running in this process is none of the build's.
    note = lambda count: threads.append(count) if threading.get_ident() == builder else None  # noqa: E731
    monkeypatch.setattr("faiss.omp_set_num_threads", note)
    searches = iter([True, False, True])

    index_build.build(
        3 * index_build.FIRST_PIECE,
        DIM,
        Recipe("HNSW4,Flat", 8),
        IndexSpec(),
        gather=lambda positions: np.resize(VECTORS, (3 * index_build.FIRST_PIECE, DIM))[positions],
        busy=lambda: next(searches),
    )

    assert threads == [2, 4, 2]  # for each piece


async def test_a_block_placed_just_before_the_close_is_written(tmp_path: Path, written: Sequence[int]) -> None:
    store = store_of(3_000)
    shard = Shard(store.spec, 0, store.source(), cache=tmp_path, limits=ShardLimits(recall_share=0))
    placed = asyncio.Event()

    def noted(snapshot: Snapshot) -> None:
        if snapshot.spaces["default"].index is not None:
            placed.set()

    shard._follower._on_rows = noted
    await shard.start()

    await placed.wait()
    await shard.close()

    assert written == [3_000]
