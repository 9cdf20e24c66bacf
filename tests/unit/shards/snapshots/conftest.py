"""A gallery of one row at version 3, which had two at version 2."""

from pathlib import Path

import pytest
from tests.unit.shards.store_fixtures import SPEC, table

from likewise.shards.gallery_store import GalleryStore
from likewise.shards.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), sync=False)


@pytest.fixture
def gallery(store: Store) -> GalleryStore:
    made = store.create(SPEC)
    made.commit(table({"a": 1, "b": 2}))
    made.commit(table({"b": 3}), ["a"])
    return made
