"""What new shards are held against, with shards that are made to be wrong."""

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from tests.unit.server.fakes import FakeShard

from likewise.server import reshape
from likewise.server.errors import FailedPrecondition
from likewise.shards import recipe
from likewise.shards.protocols import F32, HistoryGone, SearchOptions, ShardHits
from likewise.shards.spec import GallerySpec, IndexSpec, SpaceSpec
from likewise.v1 import gallery_service_pb2

SPEC = GallerySpec("shop", "0" * 32, (SpaceSpec("default", 4, "vectors:4"),), shards=2, index=IndexSpec("hnsw", m=8))
ROWS = 40


class Forgetful(FakeShard):
    """Its index loses the first `lost` hits; a comparison with every row does not."""

    lost = 0
    states: tuple["gallery_service_pb2.IndexState.ValueType", ...] = ()

    async def search(self, queries: F32, options: SearchOptions) -> ShardHits:
        found = await super().search(queries, options)
        if options.exact or not self.lost:
            return found
        kept = np.concatenate([np.arange(low + self.lost, high) for low, high in itertools.pairwise(found.offsets)])
        offsets = np.arange(len(found.offsets)) * (len(kept) // (len(found.offsets) - 1))
        return found._replace(ids=[found.ids[row] for row in kept], scores=found.scores[kept], offsets=offsets)

    async def stats(self) -> gallery_service_pb2.ShardStats:
        stats = await super().stats()
        if self.states:
            stats.state, self.states = self.states[0], self.states[1:]
        stats.index = "flat"
        return stats


@dataclass
class FakeTruth:
    """The store of shards that hold `rows` each; the first `gone` answers come too late."""

    rows_each: int = ROWS
    gone: int = 0
    asked: list[tuple[int, int, int]] = field(default_factory=list)

    async def version(self) -> int:
        return 1

    async def rows(self, version: int, shard: int, shards: int) -> int:
        self.asked.append((version, shard, shards))
        if len(self.asked) <= self.gone:
            raise HistoryGone("cleaned up")
        return self.rows_each

    async def sample(self, space: str, count: int) -> F32:
        return _unit(count, seed=9)


def _unit(n: int, *, seed: int) -> F32:
    vectors = np.random.default_rng(seed).normal(size=(n, 4))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.fixture
def shards() -> list[Forgetful]:
    return [
        Forgetful(
            SPEC,
            number,
            rows={
                f"item-{number}-{row:02}": {"content": row, "vector": vector, "norm": 1.0}
                for row, vector in enumerate(_unit(ROWS, seed=number))
            },
        )
        for number in range(2)
    ]


async def test_good_shards_pass_with_what_was_seen(shards: list[Forgetful]) -> None:
    truth = FakeTruth()

    verdict = await reshape.check(shards, SPEC, truth)

    assert verdict == reshape.Verdict(rows=2 * ROWS, recall=1.0, probes=reshape.PROBES)
    assert sorted(truth.asked) == [(1, 0, 2), (1, 1, 2)]


async def test_recall_is_that_of_the_merged_answer(shards: list[Forgetful]) -> None:
    for shard in shards:
        shard.lost = 1

    # Of ten, those that are the best of their shard are lost: one or two.
    with pytest.raises(
        FailedPrecondition, match=r"recall@10 over 48 stored vectors is 0\.8\d\d .* 0\.900 is asked for"
    ):
        await reshape.check(shards, SPEC, FakeTruth())
    verdict = await reshape.check(shards, SPEC, FakeTruth(), min_recall=0.8)

    assert verdict.recall == pytest.approx(0.8)


async def test_a_count_whose_version_went_is_asked_again(shards: list[Forgetful]) -> None:
    await reshape.check(shards, SPEC, FakeTruth(gone=2))

    with pytest.raises(FailedPrecondition, match="were cleaned up 5 times before"):
        await reshape.check(shards, SPEC, FakeTruth(gone=100))


async def test_a_row_too_many_or_too_few_is_told_with_both_counts(shards: list[Forgetful]) -> None:
    with pytest.raises(FailedPrecondition, match="holds 40 rows at version 1, the store has 41 for it"):
        await reshape.check(shards, SPEC, FakeTruth(rows_each=41))


async def test_a_build_is_waited_for_and_its_failure_told(
    shards: list[Forgetful], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reshape, "POLL_S", (0.0, 0.0))
    spec = replace(SPEC, index=IndexSpec("IVF16,SQ8"))
    monkeypatch.setattr(recipe, "MIN_SEALED_ROWS", 0)  # so that forty rows are worth an index
    building, failed = gallery_service_pb2.INDEX_STATE_BUILDING, gallery_service_pb2.INDEX_STATE_FAILED
    shards[1].states = (building, building, failed)

    with pytest.raises(FailedPrecondition, match=r"\(2 shards, IVF16,SQ8\) failed the check of build: shard 1"):
        await reshape.check(shards, spec, FakeTruth())

    assert len(shards[1].states) == 0


def test_shapes_are_told_in_words() -> None:
    assert reshape.shape(SPEC) == "2 shards, hnsw (m 8)"
    assert reshape.shape(replace(SPEC, shards=1, index=IndexSpec())) == "1 shard, auto"
