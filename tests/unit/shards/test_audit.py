"""The store says how many rows a shard has to hold, and gives vectors to ask for."""

from pathlib import Path

import numpy as np
import pytest
from tests.unit.shards.store_fixtures import DIM, SPEC, table

from likewise.shards.audit import stored_rows, stored_vectors
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.spec import shard_hash
from likewise.shards.store import Store


@pytest.fixture
def gallery(tmp_path: Path) -> GalleryStore:
    """100 rows, of which 45 are gone in the newest version."""
    gallery = Store(str(tmp_path)).create(SPEC)
    gallery.take_over()
    gallery.commit(table({f"i{row}": row for row in range(50)}))
    gallery.commit(table({f"j{row}": row for row in range(50)}), [f"i{row}" for row in range(45)])
    return gallery


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_rows_are_counted_by_partition_and_version(gallery: GalleryStore, shards: int) -> None:
    before = [f"i{row}" for row in range(50)]
    now = [*before[45:], *(f"j{row}" for row in range(50))]

    for version, ids in ((gallery.version, now), (gallery.version - 1, before)):
        expected = np.bincount([shard_hash(item_id) % shards for item_id in ids], minlength=shards)
        assert [stored_rows(gallery, version, shard, shards) for shard in range(shards)] == expected.tolist()


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (10, 10), (55, 55), (80, 55)])
def test_vectors_are_of_distinct_live_rows(gallery: GalleryStore, asked: int, given: int) -> None:
    vectors = stored_vectors(gallery, "default", asked)

    assert vectors.shape == (given, DIM)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(np.linalg.norm(vectors, axis=1), np.ones(given))
    if given == 55:  # i45 to i49 and j0 to j49; item n has its one at n % DIM
        assert vectors.sum(axis=0).tolist() == [14, 15, 13, 13]


def test_an_empty_gallery_has_none(tmp_path: Path) -> None:
    gallery = Store(str(tmp_path)).create(SPEC)

    assert stored_vectors(gallery, "default", 10).shape == (0, DIM)
    assert stored_rows(gallery, gallery.version, 1, 2) == 0
