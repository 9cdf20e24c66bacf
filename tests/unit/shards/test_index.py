import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.shards.fakes import F32, gallery, unit

from likewise.shards import index, index_build
from likewise.shards.cache import SUFFIX, SealedCache, sweep
from likewise.shards.index import SealedIndex
from likewise.shards.index_build import BuildStopped
from likewise.shards.protocols import I64
from likewise.shards.recipe import Recipe, recipe
from likewise.shards.spec import AUTO_HNSW_ROWS, AttributeSpec, GallerySpec, IndexSpec, SpecError, generation
from likewise.v1 import common_pb2

DIM = 16
ROWS = 1_500
VECTORS = unit(np.random.default_rng(3).standard_normal((ROWS, DIM)))
STAMPS = np.arange(ROWS) * 3 + 1


def built(spec: IndexSpec, vectors: F32 = VECTORS) -> SealedIndex:
    return index_build.build(len(vectors), DIM, recipe(spec, len(vectors)), spec, gather=vectors.__getitem__)


def nearest(sealed: SealedIndex, queries: F32) -> list[int]:
    traits = sealed.traits
    return [int(row[0]) for row in sealed.search(queries, 5, ef=64, nprobe=traits.nprobe).positions]


@pytest.mark.parametrize(
    ("kind", "planned_as", "lossy"),
    [
        ("hnsw", "hnsw", False),
        ("ivf", "ivf", False),
        ("HNSW16,SQ8", "hnsw", True),
        ("IVF16,SQ8", "ivf", True),
        ("PCA16,IVF16,Flat", "ivf", True),
        ("SQ8", "other", True),
        ("SQ8,RFlat", "other", True),
    ],
)
def test_an_index_of_any_kind_finds_its_own_rows_and_survives_its_file(
    kind: str, planned_as: str, lossy: bool, tmp_path: Path
) -> None:
    spec = gallery(dim=DIM, index=IndexSpec(kind=kind))
    index_build.validate_index(spec.index, DIM)
    sealed = built(spec.index)
    cache = SealedCache(tmp_path, spec, 0)

    cache.store(spec.spaces[0], sealed, STAMPS)
    kept = cache.load(spec.spaces[0])

    assert kept is not None
    assert nearest(sealed, VECTORS[:9]) == nearest(kept.index, VECTORS[:9]) == list(range(9))
    assert kept.stamps.tolist() == STAMPS.tolist()
    assert kept.index.recipe == sealed.recipe
    assert (sealed.traits.kind, sealed.traits.lossy) == (planned_as, lossy)
    assert sealed.memory_bytes > ROWS * 4


def test_vectors_inside_an_index_are_seen_without_a_copy() -> None:
    sealed = built(IndexSpec(kind="hnsw"))

    assert sealed.vectors is not None
    np.testing.assert_array_equal(sealed.vectors, VECTORS)
    assert not sealed.vectors.flags.owndata
    assert not sealed.vectors.flags.writeable
    assert built(IndexSpec(kind="ivf")).vectors is None


@pytest.mark.parametrize(
    ("spec", "rows", "factory"),
    [
        (IndexSpec(), AUTO_HNSW_ROWS - 1, "flat"),
        (IndexSpec(), AUTO_HNSW_ROWS, "HNSW32,Flat"),
        (IndexSpec(kind="flat"), 10**7, "flat"),
        (IndexSpec(kind="hnsw", m=8), 5_000, "HNSW8,Flat"),
        (IndexSpec(kind="hnsw"), 100, "flat"),
        (IndexSpec(kind="ivf"), 10_000, "IVF256,Flat"),
        (IndexSpec(kind="ivf"), 1_000_000, "IVF4000,Flat"),
        (IndexSpec(kind="ivf", nlist=7), 10_000, "IVF7,Flat"),
        (IndexSpec(kind="IVF64,PQ8"), 10_000, "IVF64,PQ8"),
    ],
)
def test_a_spec_means_an_index_for_a_row_count(spec: IndexSpec, rows: int, factory: str) -> None:
    assert recipe(spec, rows).factory == factory


@pytest.mark.parametrize("kind", ["nonsense", "IDMap,Flat", "PQ7", ""])
def test_an_index_that_cannot_be_made_is_refused(kind: str) -> None:
    with pytest.raises(SpecError) as caught:
        index_build.validate_index(IndexSpec(kind=kind), DIM)

    assert caught.value.field == "spec.index.kind"
    assert repr(kind) in str(caught.value)


def test_an_index_is_extended_without_touching_the_one_in_use() -> None:
    spec = IndexSpec(kind="hnsw")
    first = built(spec, VECTORS[:1_200])
    assert index_build.extendable(first, first.recipe, rows=ROWS, dead=10)

    second = index_build.build(ROWS, DIM, first.recipe, spec, gather=VECTORS.__getitem__, base=first)

    assert (first.rows, second.rows) == (1_200, ROWS)
    assert nearest(second, VECTORS[1_200:1_210]) == list(range(1_200, 1_210))


def test_an_index_is_not_extended_past_its_training_or_its_dead() -> None:
    ivf, hnsw = built(IndexSpec(kind="IVF16,Flat")), built(IndexSpec(kind="hnsw"))

    assert not index_build.extendable(ivf, ivf.recipe, rows=3 * ROWS, dead=0)
    assert index_build.extendable(hnsw, hnsw.recipe, rows=3 * ROWS, dead=0)
    assert not index_build.extendable(hnsw, hnsw.recipe, rows=ROWS, dead=ROWS // 2)
    assert not index_build.extendable(hnsw, Recipe("HNSW16,Flat", 100), rows=ROWS, dead=0)


def test_an_index_near_the_row_count_that_asks_for_another_stays() -> None:
    hnsw = replace(built(IndexSpec(kind="hnsw")), recipe=recipe(IndexSpec(), AUTO_HNSW_ROWS))

    assert index_build.serves(hnsw, IndexSpec(), AUTO_HNSW_ROWS - 100, DIM)
    assert not index_build.serves(hnsw, IndexSpec(), AUTO_HNSW_ROWS // 2, DIM)
    assert not index_build.serves(None, IndexSpec(), AUTO_HNSW_ROWS, DIM)


def test_a_build_stops_when_asked_to() -> None:
    with pytest.raises(BuildStopped):
        index_build.build(ROWS, DIM, Recipe("HNSW8,Flat"), IndexSpec(), gather=VECTORS.__getitem__, stop=lambda: True)


def test_pieces_of_a_build_end_in_time_to_look_at_stop_and_hold_few_copies() -> None:
    assert index_build.next_piece(1_000, index_build.PIECE_S, DIM) == 1_000
    assert index_build.next_piece(1_000, 2 * index_build.PIECE_S, DIM) == 500
    assert index_build.next_piece(1_000, 0.5 * index_build.PIECE_S, DIM) == 2_000
    assert index_build.next_piece(1_000, 1e-9, DIM) == 4_000
    assert index_build.next_piece(1_000_000, 1e-9, 512) == index_build.PIECE_BYTES // (512 * 4)
    assert index_build.next_piece(1_000, 1_000.0, DIM) == index_build.LEAST_PIECE


def test_an_index_of_many_pieces_has_each_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_build, "FIRST_PIECE", 100)
    monkeypatch.setattr(index_build, "LEAST_PIECE", 7)
    monkeypatch.setattr(index_build, "PIECE_BYTES", 4 * DIM * 150)
    asked: list[list[int]] = []

    def gather(positions: I64) -> F32:
        asked.append(positions.tolist())
        return VECTORS[positions]

    found = index_build.build(ROWS, DIM, Recipe("HNSW8,Flat"), IndexSpec(), gather=gather)

    assert [position for piece in asked for position in piece] == list(range(ROWS))
    assert max(map(len, asked)) <= 150
    assert nearest(found, VECTORS[:20]) == list(range(20))


@pytest.fixture
def spec() -> GallerySpec:
    return gallery(dim=DIM, index=IndexSpec(kind="HNSW4,Flat"))


@pytest.fixture
def cache(spec: GallerySpec, tmp_path: Path) -> SealedCache:
    cache = SealedCache(tmp_path, spec, 0)
    cache.store(spec.spaces[0], built(spec.index), STAMPS)
    return cache


@pytest.mark.parametrize("at", [0, 60, 5_000, -5_000, -200, -52, -49, -40, -1])
def test_a_flipped_byte_anywhere_is_noticed_and_the_file_removed(
    cache: SealedCache, spec: GallerySpec, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = cache.path(spec.spaces[0])
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 1
    path.write_bytes(damaged)

    with caplog.at_level(logging.WARNING):
        assert cache.load(spec.spaces[0]) is None

    assert not path.exists()
    assert "will be built anew" in caplog.text


@pytest.mark.parametrize("length", [0, 10, 48, 51, 52, 4_000, -1])
def test_a_file_cut_short_is_noticed(cache: SealedCache, spec: GallerySpec, length: int) -> None:
    path = cache.path(spec.spaces[0])
    path.write_bytes(path.read_bytes()[:length])

    assert cache.load(spec.spaces[0]) is None
    assert not path.exists()


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(gallery(dim=DIM, gallery_id="1" * 32), id="gallery"),
        pytest.param(gallery(dim=DIM, shards=2), id="shard count"),
        pytest.param(gallery(dim=DIM, spaces=("other",)), id="space"),
    ],
)
def test_a_file_of_another_gallery_in_its_place_is_not_used(
    cache: SealedCache, spec: GallerySpec, other: GallerySpec, tmp_path: Path
) -> None:
    foreign = SealedCache(tmp_path, other, 0)
    cache.path(spec.spaces[0]).rename(foreign.path(other.spaces[0]))

    assert foreign.load(other.spaces[0]) is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_release_is_built_anew_and_says_why(
    cache: SealedCache, spec: GallerySpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("likewise.shards.cache.FORMAT", 4)

    with caplog.at_level(logging.WARNING):
        assert cache.load(spec.spaces[0]) is None

    assert "will be built anew: it has format 3, this release reads 4" in caplog.text
    assert not cache.path(spec.spaces[0]).exists()


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"shards": 2}, id="shard count"),
        pytest.param({"index": IndexSpec(kind="hnsw", m=8)}, id="index"),
        pytest.param({"index": IndexSpec()}, id="index by default"),
    ],
)
def test_files_of_two_generations_lie_side_by_side_until_one_is_swept(
    cache: SealedCache, spec: GallerySpec, changed: dict[str, Any], tmp_path: Path
) -> None:
    other_spec = replace(spec, **changed)
    other = SealedCache(tmp_path, other_spec, 0)

    other.store(spec.spaces[0], built(spec.index), STAMPS)

    assert {path.suffix for path in tmp_path.iterdir()} == {SUFFIX}
    assert len(list(tmp_path.iterdir())) == 2
    sweep(tmp_path, other_spec)
    assert list(tmp_path.iterdir()) == [other.path(spec.spaces[0])]
    assert cache.load(spec.spaces[0]) is None


def test_search_parameters_and_attributes_make_no_other_generation(cache: SealedCache, spec: GallerySpec) -> None:
    tuned = replace(
        spec,
        index=replace(spec.index, ef=200),
        attributes=(AttributeSpec("price", common_pb2.ATTRIBUTE_TYPE_INT64),),
        replicas=2,
    )

    assert generation(tuned) == generation(spec)
    assert generation(replace(spec, index=replace(spec.index, ef_construction=200))) != generation(spec)


def test_a_failed_write_leaves_what_was_there(
    cache: SealedCache, spec: GallerySpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(_sealed: SealedIndex, _put: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(index, "write", full)

    with pytest.raises(OSError, match="no space left"):
        cache.store(spec.spaces[0], built(spec.index, VECTORS[:1_100]), STAMPS[:1_100])

    kept = cache.load(spec.spaces[0])
    assert kept is not None
    assert kept.index.rows == ROWS
    assert len(list(tmp_path.iterdir())) == 1


def test_no_file_is_no_news(spec: GallerySpec, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert SealedCache(tmp_path / "absent", spec, 0).load(spec.spaces[0]) is None
    assert caplog.text == ""
