"""A shard that loads, fails, is told of other descriptions, and starts again."""

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.unit.shards.conftest import Started
from tests.unit.shards.fakes import MemorySource, MemoryStore, gallery, hits_of, oracle
from tests.unit.shards.shard_rows import DIM, HNSW, IDS, QUERIES, TEN, VECTORS, filled

from likewise.shards.filter import filter_key
from likewise.shards.protocols import I64, SearchOptions, Unavailable
from likewise.shards.shard import Shard
from likewise.shards.spec import AttributeSpec, IndexSpec
from likewise.v1 import common_pb2 as common
from likewise.v1 import gallery_service_pb2 as galleries
from likewise.v1 import search_service_pb2 as pb


def damage(folder: Path) -> Path:
    """Flip a bit in the middle of the only file."""
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)
    return path


async def test_a_shard_that_is_not_loaded_is_unavailable_and_says_so() -> None:
    store = filled()
    shard = Shard(store.spec, 0, store.source())

    with pytest.raises(Unavailable, match="loading"):
        await shard.search(QUERIES, TEN)
    assert (await shard.stats()).state == galleries.INDEX_STATE_LOADING
    await shard.close()
    with pytest.raises(Unavailable, match="closing"):
        await shard.search(QUERIES, TEN)


async def test_a_store_that_cannot_be_read_leaves_a_failed_shard_that_may_try_again() -> None:
    class Failing(MemorySource):
        broken = True

        def load(self, version: int, *, held: I64 | None = None) -> Iterator[pa.RecordBatch]:
            if self.broken:
                raise OSError("the disk is gone")
            return super().load(version)

    source = Failing(filled(), 0)
    shard = Shard(source.store.spec, 0, source)

    with pytest.raises(OSError, match="the disk is gone"):
        await shard.start()
    stats = await shard.stats()
    source.broken = False
    await shard.start()

    assert (stats.state, "the disk is gone" in stats.message) == (galleries.INDEX_STATE_FAILED, True)
    assert (await shard.stats()).state == galleries.INDEX_STATE_READY
    await shard.close()


async def test_an_apply_during_a_search_is_seen_whole_or_not_at_all(started: Started) -> None:
    store = MemoryStore(gallery(dim=DIM, index=HNSW))
    store.commit(IDS[:20], VECTORS[:20], {"count": [0] * 20})
    shard = await started(store)
    versions = []

    async def write() -> None:
        for version in range(1, 30):
            await shard.apply(store.commit(IDS[:20], VECTORS[:20], {"count": [version] * 20}))

    async def read() -> None:
        for _ in range(60):
            hits = await shard.search(QUERIES[:1], SearchOptions(space="", k=20, attributes=("count",)))
            assert hits.attributes is not None
            counts = set(hits.attributes.column("count").to_pylist())
            assert len(counts) == 1
            assert len(hits.ids) == 20
            versions.append((hits.version, counts.pop()))

    await asyncio.gather(write(), read(), read())

    assert all(version == count + 2 for version, count in versions)


async def test_a_cancelled_search_leaves_the_shard_working(started: Started) -> None:
    shard = await started(filled())
    search = asyncio.create_task(shard.search(QUERIES, TEN))
    await asyncio.sleep(0)
    search.cancel()
    await asyncio.gather(search, return_exceptions=True)

    assert len((await shard.search(QUERIES, TEN)).ids) == 50


async def test_a_failed_build_is_reported_while_all_is_compared(
    started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        shard = await started(filled(index=IndexSpec(kind="IVF4096,Flat")))

    stats = await shard.stats()
    hits = await shard.search(QUERIES, TEN)

    assert stats.state == galleries.INDEX_STATE_FAILED
    assert "4096" in stats.message
    assert hits.plan.kind == pb.PLAN_KIND_EXACT
    assert hits_of(hits, 0) == oracle(IDS, VECTORS, QUERIES[0], 10)[0]


async def test_a_changed_index_is_built_and_a_changed_parameter_is_used(started: Started) -> None:
    shard = await started(filled())
    assert (await shard.stats()).index == "flat"

    await shard.update(replace(filled().spec, index=HNSW))
    await shard.settled()
    assert (await shard.stats()).index == "HNSW8,Flat"
    await shard.update(replace(filled().spec, index=replace(HNSW, ef=123)))
    hits = await shard.search(QUERIES, TEN._replace(exact=False))

    assert (hits.plan.kind, hits.plan.ef) == (pb.PLAN_KIND_ANN, 123)


async def test_a_new_attribute_is_missing_in_old_rows_and_there_in_new_ones(started: Started) -> None:
    store = filled()
    shard = await started(store)
    size = AttributeSpec("size", common.ATTRIBUTE_TYPE_INT64)
    store.spec = replace(store.spec, attributes=(*store.spec.attributes, size))
    await shard.update(store.spec)
    await shard.apply(store.commit(["new"], VECTORS[:1], {"size": [3]}))

    has_size = filter_key(common.Filter(existence=common.Existence(attribute="size")))
    hits = await shard.search(QUERIES, TEN._replace(filter=has_size, attributes=("size",)))

    assert set(hits.ids) == {"new"}
    assert await shard.count(b"") == (1_501, 3)


async def test_a_shard_does_not_become_another_partition(started: Started) -> None:
    shard = await started(filled())

    with pytest.raises(ValueError, match="make a new shard"):
        await shard.update(replace(filled().spec, shards=2))


async def test_a_restart_uses_the_kept_index_and_does_not_build(started: Started, tmp_path: Path) -> None:
    store = filled(index=HNSW)
    first = await started(store, cache=tmp_path)
    before = await first.search(QUERIES, TEN._replace(exact=False))
    await first.close()
    store.commit(["new"], VECTORS[:1], deleted=[IDS[3]])
    builder = ThreadPoolExecutor(1)
    builder.shutdown()  # a build would fail

    second = await started(store, cache=tmp_path, builder=builder)

    stats = await second.stats()
    assert (stats.index, stats.sealed, stats.fresh, stats.live) == ("HNSW8,Flat", 1_500, 1, 1_500)
    assert stats.state == galleries.INDEX_STATE_READY
    after = await second.search(QUERIES, TEN._replace(exact=False))
    assert before.plan.kind == after.plan.kind == pb.PLAN_KIND_ANN
    assert set(before.ids) - {IDS[3]} <= set(after.ids) | {"new"}
    exact = await second.search(QUERIES, TEN._replace(exact=True))
    ids, vectors = [*IDS[:3], *IDS[4:], "new"], np.concatenate((VECTORS[:3], VECTORS[4:], VECTORS[:1]))
    assert hits_of(exact, 0) == oracle(ids, vectors, QUERIES[0], 10)[0]


async def test_a_damaged_kept_index_is_built_anew(started: Started, tmp_path: Path) -> None:
    store = filled(index=HNSW)
    await (await started(store, cache=tmp_path)).close()
    path = damage(tmp_path)
    damaged = path.read_bytes()

    shard = await started(store, cache=tmp_path)

    assert (await shard.stats()).index == "HNSW8,Flat"
    assert damaged != path.read_bytes()
    hits = await shard.search(QUERIES, TEN._replace(exact=True))
    assert hits_of(hits, 0) == oracle(IDS, VECTORS, QUERIES[0], 10)[0]
