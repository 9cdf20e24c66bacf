"""Flat shards: all rows are compared, first in the directions that they vary in where there are such."""

from pathlib import Path

import numpy as np
import pytest
from tests.unit.shards.conftest import Started
from tests.unit.shards.fakes import F32, hits_of, oracle, unit
from tests.unit.shards.shard_rows import TEN, below, files
from tests.unit.shards.surfaces import DIM, stored, surface

from likewise.shards import index_build, seal
from likewise.shards.recipe import MIN_SEALED_ROWS, recipe
from likewise.shards.spec import IndexSpec
from likewise.v1 import gallery_service_pb2 as gallery_pb
from likewise.v1 import search_service_pb2 as pb

FLAT = IndexSpec(kind="flat")
ROWS = surface(3_000, latent=12)
QUERIES = surface(20, latent=12, seed=1)
IDS = [f"i{i:04d}" for i in range(len(ROWS))]
SCATTERED = unit(np.random.default_rng(1).standard_normal((3_000, DIM)))


@pytest.mark.parametrize("index", [FLAT, IndexSpec()], ids=["flat", "auto"])
async def test_rows_are_compared_in_fewer_numbers_with_the_answers_of_all(started: Started, index: IndexSpec) -> None:
    shard = await started(stored(ROWS, index))
    assert (await shard.stats()).index == "flat over 32 of 96 numbers"

    hits = await shard.search(QUERIES, TEN)

    assert hits.plan.kind == pb.PLAN_KIND_EXACT
    for i, query in enumerate(QUERIES):
        assert hits_of(hits, i) == oracle(IDS, ROWS, query, 10)[0]


async def test_a_filter_what_is_gone_and_what_is_new_are_heeded(started: Started) -> None:
    store = stored(ROWS, FLAT)
    shard = await started(store)
    new = surface(50, latent=12, seed=2)
    await shard.apply(
        store.commit([f"n{i}" for i in range(50)], new, {"count": list(range(50))}, deleted=IDS[:1_000:3])
    )

    hits = await shard.search(QUERIES, TEN._replace(filter=below(1_500)))

    ids, rows = [*IDS, *(f"n{i}" for i in range(50))], np.concatenate((ROWS, new))
    allowed = [i >= 3_000 or (i < 1_500 and not (i < 1_000 and i % 3 == 0)) for i in range(len(ids))]
    for i, query in enumerate(QUERIES):
        assert hits_of(hits, i) == oracle(ids, rows, query, 10, allowed=allowed)[0]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(SCATTERED, id="in all directions"),
        pytest.param(surface(3_000, latent=8, dim=48), id="of few numbers"),
        pytest.param(ROWS[: MIN_SEALED_ROWS - 1], id="few"),
    ],
)
async def test_rows_with_which_nothing_is_gained_are_compared_as_they_are(started: Started, rows: F32) -> None:
    shard = await started(stored(rows, FLAT))

    await shard.settled()  # comes to an end: nothing is built again and again
    hits = await shard.search(rows[:5], TEN)

    stats = await shard.stats()
    assert (stats.index, stats.state) == ("flat", gallery_pb.INDEX_STATE_READY)
    for i in range(5):
        assert hits_of(hits, i) == oracle(IDS[: len(rows)], rows, rows[i], 10)[0]


async def test_nothing_is_kept_on_disk_and_a_start_makes_it_again(started: Started, tmp_path: Path) -> None:
    store = stored(ROWS, FLAT)
    first = await started(store, cache=tmp_path)
    before = await first.search(QUERIES, TEN)
    await first.close()

    second = await started(store, cache=tmp_path)
    after = await second.search(QUERIES, TEN)

    assert files(tmp_path) == []
    assert (await second.stats()).index == "flat over 32 of 96 numbers"
    assert (after.ids, after.scores.tolist()) == (before.ids, before.scores.tolist())


async def test_there_is_no_recall_to_check_and_a_target_is_met(started: Started) -> None:
    shard = await started(stored(ROWS, FLAT))

    hits = await shard.search(QUERIES, TEN._replace(target_recall=0.9))
    await shard.checked()

    assert hits.plan.kind == pb.PLAN_KIND_EXACT
    assert list((await shard.stats()).recall) == []


def test_vectors_that_lie_in_memory_as_they_are_wanted_are_not_copied() -> None:
    store = stored(ROWS, FLAT)
    snapshot = seal.load(store.spec, lambda _: store.source().load(store.version), {}, version=store.version).snapshot

    block = seal.seal(snapshot, store.spec).spaces["default"]

    assert block.index is not None
    assert block.index.reduced is not None
    assert np.shares_memory(block.vectors, snapshot.spaces["default"].sealed)
    np.testing.assert_array_equal(block.vectors, ROWS)


def test_a_flat_index_is_added_to() -> None:
    wanted = recipe(FLAT, 2_000)
    first = index_build.build(2_000, DIM, wanted, FLAT, gather=ROWS.__getitem__)

    second = index_build.build(3_000, DIM, wanted, FLAT, gather=ROWS.__getitem__, base=first)

    assert index_build.extendable(first, wanted, rows=3_000, dead=0)
    assert second.reduction is first.reduction
    assert second.vectors is not None
    assert second.reduced is not None
    assert first.reduction is not None
    np.testing.assert_array_equal(second.vectors, ROWS)
    np.testing.assert_array_equal(second.reduced, first.reduction.of(ROWS))
