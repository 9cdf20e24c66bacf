"""Raw vectors beside compressed ones: where they lie, and that scores come from them."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.unit.shards.conftest import Started
from tests.unit.shards.fakes import MemoryStore, gallery, oracle, unit

from likewise.shards import raw_vectors
from likewise.shards.protocols import SearchOptions
from likewise.shards.shard import Shard
from likewise.shards.spec import IndexSpec
from likewise.v1 import gallery_service_pb2 as pb

N, DIM = 3_000, 16
RNG = np.random.default_rng(9)
VECTORS = unit(RNG.standard_normal((N, DIM)))
IDS = [f"i{i:05d}" for i in range(N)]
QUERY = unit(RNG.standard_normal((1, DIM)))


def store(kind: str) -> MemoryStore:
    made = MemoryStore(replace(gallery(dim=DIM, attributes=()), index=IndexSpec(kind=kind)))
    made.commit(IDS, VECTORS)
    return made


def sealed_of(shard: Shard) -> np.typing.NDArray[np.float32]:
    partition = shard._follower.partition
    assert partition is not None
    return partition.snapshot.spaces["default"].sealed


def test_vectors_on_disk_are_what_was_put_there(tmp_path: Path) -> None:
    vectors = raw_vectors.allocate(N, DIM, tmp_path)
    vectors[:] = VECTORS

    settled = raw_vectors.settle(vectors)

    assert raw_vectors.is_mapped(settled[10:20])
    assert not settled.flags.writeable
    assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(settled, VECTORS)


def test_without_a_folder_they_are_in_memory() -> None:
    assert not raw_vectors.is_mapped(raw_vectors.settle(raw_vectors.allocate(N, DIM, None)))
    assert raw_vectors.allocate(0, DIM, Path("/nowhere")).shape == (0, DIM)


@pytest.mark.parametrize("kind", ["HNSW16,SQ8", "HNSW16,SQfp16", "SQfp16", "IVF16,SQ8"])
async def test_scores_of_a_compressed_index_are_those_of_the_raw_vectors(
    started: Started, tmp_path: Path, kind: str
) -> None:
    data = store(kind)
    first = await started(data, cache=tmp_path)
    await first.close()
    again = await started(data, cache=tmp_path)  # loaded from the cache and the store
    ids, scores = oracle(IDS, VECTORS, QUERY[0], 10)

    for shard in (first, again):
        assert raw_vectors.is_mapped(sealed_of(shard))
    hits = await again.search(QUERY, SearchOptions("", 10, exact=False))

    assert [Path(name).suffix for name in os.listdir(tmp_path)] == [".sealed"]
    assert len(set(ids) & set(hits.ids)) >= 8
    right = dict(zip(ids, scores, strict=True))
    for item_id, score in zip(hits.ids, hits.scores.tolist(), strict=True):
        expected = right.get(item_id) or float(np.float32(VECTORS[int(item_id[1:])].astype(float) @ QUERY[0]))
        assert score == pytest.approx(expected, abs=1e-7)


async def test_a_compressed_shard_says_that_it_takes_less_memory(started: Started, tmp_path: Path) -> None:
    plain = (await (await started(store("HNSW16,Flat"), cache=tmp_path / "a")).stats()).memory_bytes
    halves = (await (await started(store("HNSW16,SQfp16"), cache=tmp_path / "b")).stats()).memory_bytes
    bytes_ = (await (await started(store("HNSW16,SQ8"), cache=tmp_path / "c")).stats()).memory_bytes

    assert plain - halves == pytest.approx(2 * N * DIM, rel=0.05)
    assert plain - bytes_ == pytest.approx(3 * N * DIM, rel=0.05)


async def test_where_the_disk_is_full_the_rows_are_compared_exactly(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    shard = await started(store("HNSW16,SQ8"), cache=tmp_path)

    hits = await shard.search(QUERY, SearchOptions("", 10))

    assert list(hits.ids) == oracle(IDS, VECTORS, QUERY[0], 10)[0]
    stats = await shard.stats()
    assert stats.state == pb.INDEX_STATE_FAILED
    assert "No space left" in stats.message
