"""Galleries made of snapshots: exact, whole or not there at all, and on their own from then on."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.shards.gated_gallery import stored, writing
from tests.unit.shards.store_fixtures import SPEC, restore, rows, table

from likewise.shards import snapshots
from likewise.shards.fence import Fenced, GalleryReadOnly
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.protocols import StoreFailure
from likewise.shards.snapshots import SnapshotNotFound
from likewise.shards.spec import AttributeSpec, SpecError
from likewise.shards.staging import STAGING_PREFIX
from likewise.shards.store import GalleryExists, Store
from likewise.v1 import common_pb2 as pb


def leftovers(store: Store) -> list[Path]:
    assert store.folder is not None
    return list(store.folder.glob(f"{STAGING_PREFIX}*"))


def test_a_snapshot_of_an_earlier_version_brings_deleted_items_back(store: Store, gallery: GalleryStore) -> None:
    snapshots.create(gallery, "oops", version=2)

    assert stored(restore(store, gallery, "oops", "saved")) == {"a": 1, "b": 2}
    assert stored(gallery) == {"b": 3}


def test_a_restored_gallery_has_the_rows_and_the_schema_of_its_version(store: Store, gallery: GalleryStore) -> None:
    snapshots.create(gallery, "s")
    wider = replace(SPEC, shards=5, attributes=(*SPEC.attributes, AttributeSpec("weight", pb.ATTRIBUTE_TYPE_DOUBLE)))
    gallery.update_spec(wider)
    gallery.commit(None, ["b"])

    made = restore(store, gallery, "s", "again")

    assert stored(made) == {"b": 3}
    assert replace(made.spec, name="shapes", gallery_id=SPEC.gallery_id, created_micros=0) == SPEC
    assert made.spec.gallery_id != SPEC.gallery_id
    assert made.spec.created_micros > 0
    assert Store(store.uri).galleries() == ["again", "shapes"]
    assert leftovers(store) == []


def test_a_restored_gallery_lives_on_when_its_source_is_deleted(store: Store, gallery: GalleryStore) -> None:
    snapshots.create(gallery, "s")
    made = restore(store, gallery, "s", "again")
    made.take_over()
    made.commit(table({"c": 4, "b": 5}))

    store.delete("shapes")

    reopened = Store(store.uri).open("again")
    assert stored(reopened) == {"b": 5, "c": 4}
    reopened.compact([fragment.id for fragment in reopened.fragments()])
    reopened.clean_up(older_than_s=0, keep=1)
    assert stored(reopened) == {"b": 5, "c": 4}
    stamps = [row["stamp"] for batch in reopened.scan(["stamp"]) for row in batch.to_pylist()]
    assert len(set(stamps)) == 2
    assert min(stamps) >= 4 << 24, "stamps go on from the source's"


def test_writes_and_clean_ups_of_a_restored_gallery_leave_the_source_alone(store: Store, gallery: GalleryStore) -> None:
    snapshots.create(gallery, "s")
    made = restore(store, gallery, "s", "again")

    made.commit(None, ["b"])
    made.compact([fragment.id for fragment in made.fragments()])
    made.clean_up(older_than_s=0, keep=1)
    store.delete("again")

    assert stored(Store(store.uri).open("shapes")) == {"b": 3}
    assert stored(restore(store, gallery, "s", "third")) == {"b": 3}


def test_a_file_system_without_hard_links_gets_copies(
    store: Store, gallery: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(source: object, target: object) -> None:
        raise OSError(1, "Operation not permitted")

    snapshots.create(gallery, "s")
    monkeypatch.setattr(os, "link", no_link)

    made = restore(store, gallery, "s", "again")

    assert {path.stat().st_nlink for path in Path(made.uri).rglob("*.lance") if path.is_file()} == {1}
    assert stored(made) == {"b": 3}


def test_a_read_only_gallery_answers_and_takes_nothing(store: Store, gallery: GalleryStore) -> None:
    snapshots.create(gallery, "s")
    made = restore(store, gallery, "s", "frozen", read_only=True)
    version = made.newest_version()

    writes: list[Callable[[], object]] = [
        lambda: made.commit(table({"x": 1})),
        lambda: made.commit(None, ["b"]),
        lambda: made.update_spec(replace(made.spec, shards=3)),
        made.take_over,
        lambda: made.compact([0]),
        lambda: made.renew_barrier(after=0),
    ]
    for write in writes:
        with pytest.raises(GalleryReadOnly, match="'frozen' takes no writes"):
            write()

    assert made.read_only
    assert not gallery.read_only
    assert made.newest_version() == version
    assert stored(made) == {"b": 3}
    snapshots.create(made, "again")
    thawed = restore(store, made, "again", "thawed")
    assert not thawed.read_only
    thawed.commit(table({"x": 1}))


async def test_a_writer_on_a_read_only_gallery_serves_reads_and_refuses_each_write(
    store: Store, gallery: GalleryStore
) -> None:
    snapshots.create(gallery, "s")
    made = restore(store, gallery, "s", "frozen", read_only=True)

    async with writing(made) as writer:
        with pytest.raises(StoreFailure, match="takes no writes"):
            await writer.upsert(rows({"x": 1}))
        await writer.maintain()

    assert stored(made) == {"b": 3}


@pytest.mark.parametrize(
    ("snapshot", "name", "error", "words"),
    [
        pytest.param("other", "new", SnapshotNotFound, "no snapshot 'other'", id="unknown snapshot"),
        pytest.param("s", "shapes", GalleryExists, "'shapes' exists already", id="taken name"),
        pytest.param("s", "New", SpecError, "name: 'New' does not match", id="bad name"),
    ],
)
def test_a_restore_that_cannot_be_leaves_nothing(
    store: Store, gallery: GalleryStore, snapshot: str, name: str, error: type[Exception], words: str
) -> None:
    snapshots.create(gallery, "s")

    with pytest.raises(error, match=words):
        restore(store, gallery, snapshot, name)

    assert store.galleries() == ["shapes"]
    assert leftovers(store) == []


def test_a_name_taken_while_it_was_restored_is_not_overwritten(store: Store, gallery: GalleryStore) -> None:
    snapshots.create(gallery, "s")

    with snapshots.restored(store, gallery, "s", "new") as staged:
        store.create(replace(SPEC, name="new")).commit(table({"other": 1}))
        with pytest.raises(GalleryExists):
            store.publish(staged, "new")

    assert stored(store.open("new")) == {"other": 1}
    assert leftovers(store) == []


def test_a_restore_that_a_full_disk_stops_leaves_nothing(
    store: Store, gallery: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    snapshots.create(gallery, "s")
    monkeypatch.setattr(os, "link", full)

    with pytest.raises(StoreFailure, match=r"restoring the snapshot: No space left on device"):
        restore(store, gallery, "s", "new")

    assert store.galleries() == ["shapes"]
    assert leftovers(store) == []


def test_a_process_killed_in_a_restore_leaves_nothing_visible_and_the_next_start_sweeps_up(
    store: Store, gallery: GalleryStore
) -> None:
    snapshots.create(gallery, "s")
    program = """
import os, signal, sys
from likewise.shards import snapshots
from likewise.shards.store import Store
store = Store(sys.argv[1])
with snapshots.restored(store, store.open("shapes"), "s", "new"):
    os.kill(os.getpid(), signal.SIGKILL)
"""

    done = subprocess.run([sys.executable, "-c", program, store.uri], check=False, capture_output=True)

    assert done.returncode == -9, done.stderr
    assert len(leftovers(store)) == 1
    assert store.galleries() == ["shapes"]
    again = Store(store.uri)
    assert again.galleries() == ["shapes"]
    assert leftovers(again) == []
    assert stored(restore(again, again.open("shapes"), "s", "new")) == {"b": 3}


def test_opening_a_store_leaves_a_running_restore_alone(store: Store, gallery: GalleryStore) -> None:
    snapshots.create(gallery, "s")

    with snapshots.restored(store, gallery, "s", "new") as staged:
        opened = threading.Thread(target=Store, args=(store.uri,))
        opened.start()
        opened.join()
        made = store.publish(staged, "new")

    assert stored(made) == {"b": 3}


def test_a_restored_gallery_is_written_by_its_own_writer(store: Store, gallery: GalleryStore) -> None:
    gallery.take_over()
    snapshots.create(gallery, "s")
    made = restore(store, gallery, "s", "new")
    other = store.open("new")

    made.take_over()

    with pytest.raises(Fenced, match="'new'"):
        other.commit(table({"x": 1}))
    made.commit(table({"x": 1}))
    gallery.commit(table({"y": 1}))


def test_a_shallow_clone_is_not_taken_for_a_whole_gallery(store: Store, gallery: GalleryStore) -> None:
    gallery.checkout(3).shallow_clone(f"{store.uri}/clone.lance", 3)
    clone = store.open("clone")
    snapshots.create(clone, "s")

    with pytest.raises(StoreFailure, match="shallow clone"):
        restore(store, clone, "s", "new")

    assert store.galleries() == ["clone", "shapes"]
