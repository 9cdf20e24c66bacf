"""Small JSON documents beside the galleries of a store."""

import json
from pathlib import Path

import pytest

from likewise.shards.protocols import StoreFailure
from likewise.shards.store import Store


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert store.read_document("models.json") is None

    for value in ({"a": [1, "é"]}, {"b": 2}):
        store.write_document("models.json", value)
        assert Store(str(tmp_path)).read_document("models.json") == value

    assert store.galleries() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["likewise.json", "models.json"]


def test_an_object_store_keeps_documents_too(tmp_path: Path) -> None:
    # Any URI but a plain folder goes through Lance's own object store.
    store = Store(f"file-object-store://{tmp_path}/bucket")

    store.write_document("models.json", {"a": 1})
    store.write_document("models.json", {"a": 2})

    assert store.read_document("models.json") == {"a": 2}


def test_a_damaged_document_is_told_by_name(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / "models.json").write_text("{")

    with pytest.raises(StoreFailure, match=r"models\.json of the store is damaged"):
        store.read_document("models.json")


def test_a_write_that_fails_leaves_the_old_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.write_document("models.json", {"a": 1})

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreFailure, match=r"writing models\.json"):
        store.write_document("models.json", {"a": 2})

    assert json.loads((tmp_path / "models.json").read_text()) == {"a": 1}
