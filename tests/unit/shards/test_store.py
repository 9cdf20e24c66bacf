"""A store of galleries: made, listed and deleted as a whole, opened whatever wrote them."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from tests.unit.shards.store_fixtures import SPEC, prices, table

from likewise.shards import layout
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.layout import shard_hashes
from likewise.shards.partition import Partition
from likewise.shards.spec import FORMAT, SpecError, from_json, to_json
from likewise.shards.store import GalleryExists, GalleryNotFound, NewerFormat, Store, local_folder


@pytest.fixture
def gallery(tmp_path: Path) -> GalleryStore:
    return Store(str(tmp_path / "store"), sync=False).create(SPEC)


def everything(gallery: GalleryStore, version: int | None = None) -> dict[str, int]:
    return prices(Partition(gallery, 0, 1).load(gallery.version if version is None else version))


def test_a_gallery_keeps_its_rows_and_its_description_over_a_reopen(tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    Store(uri).create(SPEC).commit(table({"a": 1, "b": 2}))

    reopened = Store(uri).open("shapes")

    assert reopened.spec == SPEC
    assert everything(reopened) == {"a": 1, "b": 2}


def test_every_column_comes_back_as_it_was_given(gallery: GalleryStore) -> None:
    given_rows = table({"a": 1, "b": 2, "c": 3})

    gallery.commit(given_rows)

    (stored,) = Partition(gallery, 0, 1).load(gallery.version)
    assert stored.schema == layout.store_schema(SPEC)
    assert pa.Table.from_batches([stored]).select(given_rows.schema.names).to_pylist() == given_rows.to_pylist()
    assert stored.column("shard_hash").to_pylist() == shard_hashes(["a", "b", "c"]).tolist()


def test_a_store_of_a_newer_format_is_refused_naming_both_numbers(tmp_path: Path) -> None:
    Store(str(tmp_path))
    (tmp_path / "likewise.json").write_text(json.dumps({"format": FORMAT + 6}))

    with pytest.raises(NewerFormat, match=rf"format {FORMAT + 6}, this release reads up to {FORMAT}"):
        Store(str(tmp_path))


def test_a_gallery_of_a_newer_format_is_refused(gallery: GalleryStore, tmp_path: Path) -> None:
    newer = (
        gallery.checkout(gallery.version).schema.metadata[b"likewise"].decode().replace('"format": 1', '"format": 9')
    )
    gallery.checkout(gallery.version).update_schema_metadata({"likewise": newer})

    with pytest.raises(SpecError, match="format 9"):
        Store(str(tmp_path / "store")).open("shapes")


def test_a_description_with_a_flipped_bit_is_read_or_refused_as_one() -> None:
    whole = to_json(SPEC).encode()
    refused = 0
    for flip in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[flip // 8] ^= 1 << flip % 8
        try:
            from_json(damaged.decode(errors="replace"))
        except SpecError:
            refused += 1

    assert refused > len(whole)


def test_galleries_are_listed_made_once_and_deleted_for_good(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.create(SPEC).commit(table({"a": 1}))
    store.create(replace(SPEC, name="other"))

    with pytest.raises(GalleryExists, match="'shapes'"):
        store.create(SPEC)
    assert store.galleries() == ["other", "shapes"]
    store.delete("shapes")

    assert store.galleries() == ["other"]
    with pytest.raises(GalleryNotFound, match="'shapes'"):
        store.open("shapes")
    assert everything(store.create(SPEC)) == {}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["../shapes", "", "nope", "Shapes"])
def test_names_that_are_no_gallery_are_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(GalleryNotFound):
        Store(str(tmp_path)).open(name)


def test_a_store_works_through_the_object_store_interface(tmp_path: Path) -> None:
    # Lance's own stand-in for a bucket: the same code paths as for S3, backed by a folder.
    uri = f"file-object-store://{tmp_path}/bucket"
    store = Store(uri)
    gallery = store.create(SPEC)
    gallery.commit(table({"a": 1, "b": 2}))
    gallery.commit(table({"a": 3}), ["b"])

    assert (local_folder(uri), store.folder) == (None, None)
    assert everything(Store(uri).open("shapes")) == {"a": 3}
    store.delete("shapes")
    assert Store(uri).galleries() == []


KILLED_WHILE_CREATING = """
import os, sys
from pathlib import Path
from tests.unit.shards.store_fixtures import SPEC
from likewise.shards import store

def cut_off(table, uri, **options):
    (Path(uri) / "_transactions").mkdir(parents=True)
    os._exit(9)

opened = store.Store(sys.argv[1])
store.lance.write_dataset = cut_off
opened.create(SPEC)
"""


def test_a_process_killed_while_it_makes_a_gallery_leaves_nothing_of_it(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED_WHILE_CREATING, str(tmp_path)], check=False)

    assert ended.returncode == 9
    store = Store(str(tmp_path))
    assert store.galleries() == []
    assert list(tmp_path.iterdir()) == [tmp_path / "likewise.json"]
    assert store.create(SPEC).count() == 0


def test_what_is_left_of_a_gallery_without_a_manifest_is_none_in_an_object_store(tmp_path: Path) -> None:
    store = Store(f"file-object-store://{tmp_path}")
    (tmp_path / f"{SPEC.name}.lance" / "_transactions").mkdir(parents=True)
    (tmp_path / f"{SPEC.name}.lance" / "_transactions" / "0-cut-off.txn").write_bytes(b"")

    assert store.galleries() == []
    assert store.create(SPEC).count() == 0
    assert store.galleries() == [SPEC.name]


@pytest.mark.parametrize("hint", ['{"version":2}', "", '{"version":99}'])
def test_the_newest_version_is_found_whatever_the_hint_file_says(tmp_path: Path, hint: str) -> None:
    gallery = Store(str(tmp_path)).create(SPEC)
    for i in range(5):
        gallery.commit(table({f"{i}": i}))
    (tmp_path / "shapes.lance/_versions/latest_version_hint.json").write_text(hint)

    assert Store(str(tmp_path)).open("shapes").version == gallery.version
