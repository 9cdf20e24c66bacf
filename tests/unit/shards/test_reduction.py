"""Reduced vectors: which rows are reduced, what their scores promise, and that a shard finds the same with them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.shards.conftest import Started
from tests.unit.shards.fakes import F32, gallery, hits_of, unit
from tests.unit.shards.shard_rows import TEN, below
from tests.unit.shards.surfaces import DIM, HNSW, stored, surface

from likewise.shards import index_build, reduction, seal
from likewise.shards.cache import SealedCache
from likewise.shards.index import SealedIndex
from likewise.shards.masks import Allowed
from likewise.shards.recall_check import Asked, check
from likewise.shards.recipe import recipe
from likewise.shards.reduction import Reduction, fit
from likewise.shards.spec import IndexSpec

AS_THEY_ARE = IndexSpec(kind="HNSW16,Flat")


def reduced(rows: F32, *, dim: int = DIM) -> Reduction:
    found = fit(rows[reduction.sample_positions(len(rows), dim)])
    assert found is not None
    return found


def built(rows: F32, spec: IndexSpec = HNSW, base: SealedIndex | None = None) -> SealedIndex:
    wanted = recipe(spec, len(rows))
    return index_build.build(len(rows), rows.shape[1], wanted, spec, gather=rows.__getitem__, base=base)


@given(seed=st.integers(0, 2**32 - 1), dim=st.integers(2, 200), data=st.data())
def test_a_reduced_score_is_never_below_the_one_it_stands_for(seed: int, dim: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    width = data.draw(st.integers(1, dim))
    directions = np.linalg.qr(rng.standard_normal((dim, width)))[0].T.astype(np.float32)
    vectors = unit(rng.standard_normal((20, dim)))

    made = Reduction(directions, slack=0.1).of(vectors)

    assert made.shape == (20, width + 1)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1.0, atol=1e-5)
    # A length near 0 is the root of a difference of ones: good for three digits.
    assert (made @ made.T >= vectors @ vectors.T - 5e-4).all()


def test_one_vector_is_reduced_as_many_are() -> None:
    rows = surface(2_000, latent=12)
    made = reduced(rows)

    np.testing.assert_allclose(made.of(rows[:1]), made.of(rows)[:1], atol=5e-4)


@pytest.mark.parametrize(("latent", "width"), [(8, 32), (40, 48)])
def test_rows_are_reduced_to_about_the_dimensions_of_their_surface(latent: int, width: int) -> None:
    made = reduced(surface(4_000, latent=latent))

    assert made.width == width
    np.testing.assert_allclose(made.directions @ made.directions.T, np.eye(width - 1), atol=1e-5)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(unit(np.random.default_rng(1).standard_normal((4_000, DIM))), id="in all directions"),
        pytest.param(surface(4_000, latent=8, dim=48), id="of few numbers"),
        pytest.param(surface(150, latent=8), id="too few"),
    ],
)
def test_rows_that_nothing_is_gained_with_stay_as_they_are(rows: F32) -> None:
    assert fit(rows[reduction.sample_positions(len(rows), rows.shape[1])]) is None
    if len(rows) > 1_000:
        assert built(rows).reduction is None


def test_no_directions_are_sought_where_vectors_are_too_long_for_it() -> None:
    assert len(reduction.sample_positions(10_000, reduction.MAX_DIM + 1)) == 0


@pytest.mark.parametrize("ef", [None, 32])
@pytest.mark.parametrize("filter", [b"", below(1_500)], ids=["all rows", "a filter"])
async def test_a_shard_finds_over_reduced_rows_what_it_finds_over_all_of_them(
    started: Started, filter: bytes, ef: int | None
) -> None:
    shard = await started(stored(surface(3_000, latent=12)))
    assert (await shard.stats()).index == "HNSW16,Flat over 32 of 96 numbers"
    queries = surface(50, latent=12, seed=1)
    options = TEN._replace(filter=filter, ef=ef)

    hits = await shard.search(queries, options._replace(exact=False))
    exact = await shard.search(queries, options._replace(exact=True))

    found = [len({*hits_of(hits, i)} & {*hits_of(exact, i)}) / 10 for i in range(50)]  # ids with their scores
    assert np.mean(found) > 0.98
    assert hits.plan.compared < 60


async def test_queries_from_off_the_surface_have_more_rows_scored(started: Started) -> None:
    shard = await started(stored(surface(3_000, latent=12, noise=0.05)))
    near = surface(40, latent=12, seed=1, noise=0.05)
    off = unit(near + np.random.default_rng(2).standard_normal(near.shape) / np.sqrt(DIM))

    exact = await shard.search(off, TEN._replace(exact=True))
    hits = await shard.search(off, TEN._replace(exact=False))
    compared_near = (await shard.search(near, TEN._replace(exact=False))).plan.compared

    assert compared_near < hits.plan.compared
    assert np.mean([len({*hits_of(hits, i)} & {*hits_of(exact, i)}) / 10 for i in range(40)]) > 0.97


@pytest.mark.parametrize("filter", [b"", below(2_000)], ids=["all rows", "a filter"])
async def test_no_answer_depends_on_whom_it_was_found_with(
    started: Started, filter: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Margins that now and then are too narrow, which those of one query in many thousands may be.
    monkeypatch.setattr(reduction, "_SAFETY", 0.0)
    shard = await started(stored(surface(3_000, latent=12, noise=0.05)))
    near = surface(60, latent=12, seed=1, noise=0.05)
    off = unit(near + np.random.default_rng(2).standard_normal(near.shape) / np.sqrt(DIM))
    options = TEN._replace(filter=filter, exact=False, ef=32)

    together = await shard.search(off, options)

    for i, query in enumerate(off):
        alone = await shard.search(query[np.newaxis], options)
        assert hits_of(alone, 0) == hits_of(together, i)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 40), dim=st.integers(2, 200))
def test_a_vector_is_reduced_the_same_in_any_company(seed: int, n: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((dim, max(1, dim // 2))))[0].T.astype(np.float32)
    vectors = unit(rng.standard_normal((n, dim)))
    made = Reduction(directions, slack=0.1)

    alone = np.concatenate([made.of(vector[np.newaxis]) for vector in vectors])

    np.testing.assert_array_equal(made.of(vectors), alone)


def test_rows_that_came_later_and_lie_elsewhere_are_found() -> None:
    rng = np.random.default_rng(5)
    elsewhere = unit(rng.standard_normal((10, DIM)))
    there = unit(np.repeat(elsewhere, 10, axis=0) + 0.02 * rng.standard_normal((100, DIM)))
    rows = np.concatenate((surface(2_000, latent=12), there))
    sealed = built(rows, base=built(rows[:2_000]))

    found = np.sort(sealed.search(elsewhere, 10, ef=64, nprobe=0).positions, axis=1)

    np.testing.assert_array_equal(found, np.arange(2_000, 2_100).reshape(10, 10))


def test_an_index_grows_in_its_directions_until_they_are_made_anew() -> None:
    rows = surface(4_000, latent=12)
    first = built(rows[:1_500])

    assert index_build.extendable(first, first.recipe, rows=3_000, dead=0)
    assert not index_build.extendable(first, first.recipe, rows=3_001, dead=0)
    settled = replace(first, trained_rows=100_000)
    assert index_build.extendable(settled, first.recipe, rows=800_000, dead=0)
    assert not index_build.extendable(settled, first.recipe, rows=800_001, dead=0)
    grown = built(rows[:3_000], base=first)
    np.testing.assert_array_equal(grown.vectors, rows[:3_000])

    assert (grown.rows, grown.trained_rows, grown.reduction) == (3_000, 1_500, first.reduction)
    assert grown.search(rows[2_990:3_000], 1, ef=64, nprobe=0).positions[:, 0].tolist() == list(range(2_990, 3_000))


def test_a_kept_index_has_its_directions_again(tmp_path: Path) -> None:
    spec = gallery(dim=DIM, index=HNSW)
    rows = surface(2_000, latent=12)
    sealed, cache = built(rows), SealedCache(tmp_path, spec, 0)

    cache.store(spec.spaces[0], sealed, np.arange(2_000))
    kept = cache.load(spec.spaces[0])

    assert kept is not None
    assert kept.index.reduction is not None
    assert sealed.reduction is not None
    assert kept.index.reduction.slack == sealed.reduction.slack
    np.testing.assert_array_equal(kept.index.reduction.directions, sealed.reduction.directions)
    np.testing.assert_array_equal(kept.index.vectors, rows)
    np.testing.assert_array_equal(
        kept.index.search(rows[:9], 5, ef=64, nprobe=0).scores, sealed.search(rows[:9], 5, ef=64, nprobe=0).scores
    )


async def test_a_shard_that_starts_again_has_the_same_answers_and_its_rows_in_memory(
    started: Started, tmp_path: Path
) -> None:
    store = stored(surface(2_000, latent=12))
    queries = surface(20, latent=12, seed=1)
    first = await started(store, cache=tmp_path)
    before = await first.search(queries, TEN._replace(exact=False))
    was = (await first.stats()).index
    await first.close()

    second = await started(store, cache=tmp_path)
    after = await second.search(queries, TEN._replace(exact=False))

    assert (await second.stats()).index == was
    assert (after.ids, after.scores.tolist()) == (before.ids, before.scores.tolist())
    assert (await second.stats()).memory_bytes > 4 * DIM * 2_000


def test_the_recall_that_is_checked_is_that_of_the_rows_that_are_scored() -> None:
    rows = surface(3_000, latent=12)
    sealed = built(rows)
    assert sealed.reduction is not None
    store = stored(rows)
    partition = seal.load(store.spec, lambda _: store.source().load(store.version), {}, version=store.version)
    snapshot = replace(
        partition.snapshot,
        spaces={"default": replace(partition.snapshot.spaces["default"], index=sealed)},
    )
    everything = Allowed(snapshot.alive, count=3_000, sealed=3_000, filtered=False)
    asked = Asked(surface(1, latent=12, seed=7)[0], "default", k=10)

    checked = check(snapshot, everything, asked, stop=lambda: False)
    blind = replace(sealed, reduction=replace(sealed.reduction, slack=-10.0))  # scores none beside the best
    unscored = check(
        replace(snapshot, spaces={"default": replace(snapshot.spaces["default"], index=blind)}),
        everything,
        asked,
        stop=lambda: False,
    )

    assert checked is not None
    assert unscored is not None
    assert checked.recalls[-4:].tolist() == [1.0] * 4
    assert unscored.recalls[0] < checked.recalls[0]


async def test_a_factory_string_means_rows_as_they_are(started: Started) -> None:
    rows = surface(2_000, latent=12)
    shard = await started(stored(rows, AS_THEY_ARE))

    assert (await shard.stats()).index == "HNSW16,Flat"
