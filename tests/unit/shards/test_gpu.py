"""Indexes on a GPU: the self-test before one is served, and, where there is a GPU, what it finds."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.unit.shards.conftest import Started
from tests.unit.shards.fakes import MemoryStore, gallery, oracle, unit

from likewise.shards import gpu
from likewise.shards.gpu import GpuUnfit, Mask
from likewise.shards.protocols import F32, I64, SearchOptions
from likewise.shards.recipe import Recipe
from likewise.shards.spec import IndexSpec, SpecError

N, DIM = 2_000, 32
RNG = np.random.default_rng(21)
VECTORS = unit(RNG.standard_normal((N, DIM)))
TESTED = np.arange(0, N, 125)


def gather(positions: I64) -> F32:
    return VECTORS[positions]


def brute_force(queries: F32, depth: int, mask: Mask | None) -> tuple[F32, I64]:
    scores = queries @ VECTORS.T
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    positions = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return np.take_along_axis(scores, positions, axis=1), positions


def test_an_index_that_does_what_the_cpu_does_passes() -> None:
    gpu.self_test(brute_force, N, gather, TESTED)


def test_an_index_that_ignores_its_filter_is_refused() -> None:
    with pytest.raises(GpuUnfit, match="ignores filters"):
        gpu.self_test(lambda queries, depth, mask: brute_force(queries, depth, None), N, gather, TESTED)


def test_an_index_with_other_scores_is_refused() -> None:
    def doubled(queries: F32, depth: int, mask: Mask | None) -> tuple[F32, I64]:
        scores, positions = brute_force(queries, depth, mask)
        return 2 * scores, positions

    with pytest.raises(GpuUnfit, match="scores of the GPU are off"):
        gpu.self_test(doubled, N, gather, TESTED)


def test_an_index_that_finds_too_little_is_refused() -> None:
    def half(queries: F32, depth: int, mask: Mask | None) -> tuple[F32, I64]:
        scores, positions = brute_force(queries, depth, mask)
        positions[:, depth // 2 :] = -1
        return scores, positions

    with pytest.raises(GpuUnfit, match=r"finds 0\.50 of the nearest rows"):
        gpu.self_test(half, N, gather, TESTED)


def test_scores_in_half_precision_pass() -> None:
    def halves(queries: F32, depth: int, mask: Mask | None) -> tuple[F32, I64]:
        scores, positions = brute_force(queries, depth, mask)
        return scores.astype(np.float16).astype(np.float32), positions

    gpu.self_test(halves, N, gather, TESTED)


@pytest.mark.skipif(gpu.gpus() > 0, reason="there is a GPU")
@pytest.mark.parametrize("kind", gpu.KINDS)
def test_a_gpu_kind_without_a_gpu_is_refused_with_what_is_missing(kind: str) -> None:
    with pytest.raises(SpecError, match=r"needs .*GPU"):
        gpu.check(IndexSpec(kind=kind))


def test_the_other_kinds_need_no_gpu() -> None:
    for kind in ("auto", "flat", "hnsw", "ivf", "HNSW16,SQ8"):
        gpu.check(IndexSpec(kind=kind))


@pytest.mark.gpu
@pytest.mark.skipif(gpu.gpus() == 0, reason="needs a GPU and FAISS built for it")
class TestOnAGpu:
    """What can only be shown on the card."""

    @pytest.mark.parametrize("kind", gpu.KINDS)
    async def test_a_filtered_search_finds_only_what_is_allowed_with_the_scores_of_the_raw_vectors(
        self, started: Started, kind: str
    ) -> None:
        ids = [f"i{i:05d}" for i in range(N)]
        data = MemoryStore(replace(gallery(dim=DIM, attributes=()), index=IndexSpec(kind=kind)))
        data.commit(ids, VECTORS)
        data.commit(deleted=ids[::3])
        shard = await started(data)
        query = unit(RNG.standard_normal((1, DIM)))
        expected, scores = oracle(ids, VECTORS, query[0], 10, allowed=[i % 3 != 0 for i in range(N)])

        hits = await shard.search(query, SearchOptions("", 10, exact=False))

        assert len(set(hits.ids) & set(expected)) >= 9
        right = dict(zip(expected, scores, strict=True))
        assert all(right.get(i, s) == s for i, s in zip(hits.ids, hits.scores.tolist(), strict=True))

    @pytest.mark.parametrize("kind", gpu.KINDS)
    def test_an_index_is_freed_on_the_devices_thread(self, kind: str) -> None:
        made: Any = gpu.build(N, DIM, Recipe(kind), IndexSpec(kind=kind), gather=gather)
        held = made.faiss_index
        del made
        gpu.device().run(lambda _: None)  # whatever was asked of the thread before is done
        assert held.index is None
