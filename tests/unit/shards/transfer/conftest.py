"""Two stores, a gallery of two rows in one of them, and a folder for exports."""

from pathlib import Path

import pytest
from tests.unit.shards.store_fixtures import SPEC, table
from tests.unit.shards.transfer.transfer_calls import export

from likewise.shards.gallery_store import GalleryStore
from likewise.shards.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), sync=False)


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "other"), sync=False)


@pytest.fixture
def gallery(store: Store) -> GalleryStore:
    made = store.create(SPEC)
    made.take_over()
    made.commit(table({"a": 1, "b": 2}))
    made.commit(table({"b": 3, "c": 4}), ["a"])
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "exports"
    folder.mkdir()
    return folder


@pytest.fixture
def exported(gallery: GalleryStore, root: Path) -> Path:
    export(gallery, root / "backup")
    return root / "backup"
