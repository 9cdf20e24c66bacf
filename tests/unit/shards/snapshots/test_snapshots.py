"""Snapshots: named versions that no clean-up forgets."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.unit.shards.gated_gallery import stored, writing
from tests.unit.shards.store_fixtures import SPEC, restore, rows, table

from likewise.shards import snapshots
from likewise.shards.copying import NotLocal
from likewise.shards.fence import Fenced
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.maintenance import MaintenancePolicy
from likewise.shards.protocols import HistoryGone, StoreFailure
from likewise.shards.snapshots import SnapshotExists, SnapshotNotFound
from likewise.shards.spec import SpecError
from likewise.shards.store import Store


def test_a_snapshot_says_what_it_holds(gallery: GalleryStore) -> None:
    made = snapshots.create(gallery, "before-sale", note="prices of the spring")
    gallery.commit(table({"c": 4}))
    snapshots.create(gallery, "after")

    assert (made.name, made.version, made.rows, made.note) == ("before-sale", 3, 1, "prices of the spring")
    assert made.created_micros > 1_600_000_000_000_000
    found = snapshots.snapshots(Store(str(Path(gallery.uri).parent)).open("shapes"))
    assert [(one.name, one.version, one.rows) for one in found] == [("after", 4, 2), ("before-sale", 3, 1)]
    assert snapshots.find(gallery, "before-sale") == made


def test_no_clean_up_forgets_a_snapshot_until_it_is_deleted(gallery: GalleryStore) -> None:
    snapshots.create(gallery, "kept")
    for i in range(5):
        gallery.commit(table({f"{i}": i}))
    gallery.compact([fragment.id for fragment in gallery.fragments()])

    assert gallery.clean_up(older_than_s=0, keep=1) > 5
    assert gallery.checkout(3).count_rows() == 1
    with pytest.raises(HistoryGone):
        gallery.checkout(4)

    snapshots.delete(gallery, "kept")
    gallery.clean_up(older_than_s=0, keep=1)
    with pytest.raises(HistoryGone):
        gallery.checkout(3)


async def test_the_maintenance_of_a_busy_writer_keeps_snapshots_and_goes_on(
    store: Store, gallery: GalleryStore
) -> None:
    policy = MaintenancePolicy(fan_in=4, keep_s=0, keep_versions=3, clean_up_every=5, busy_every=4)
    async with writing(gallery, policy=policy) as writer:
        await writer.upsert(rows({"s": 7}))
        made = snapshots.create(gallery, "kept")
        for i in range(30):
            await writer.upsert(rows({f"{i}": i, "s": i}))
        await writer.maintain()
        await writer.maintain()
        with pytest.raises(HistoryGone):
            gallery.checkout(made.version + 1)

    assert stored(restore(store, gallery, "kept", "old")) == {"b": 3, "s": 7}


def test_a_version_in_use_is_kept_for_as_long_as_it_is_used(gallery: GalleryStore) -> None:
    gallery.compact([fragment.id for fragment in gallery.fragments()])
    with gallery.history.pinned(2) as dataset:
        gallery.clean_up(older_than_s=0, keep=1)
        assert sorted(dataset.to_table(columns=["id"])["id"].to_pylist()) == ["a", "b"]
    gallery.clean_up(older_than_s=0, keep=1)

    with pytest.raises(HistoryGone):
        gallery.checkout(2)
    with pytest.raises(HistoryGone), gallery.history.pinned(2):
        pass


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        pytest.param(lambda g: snapshots.create(g, "one"), SnapshotExists, "has a snapshot 'one' already", id="twice"),
        pytest.param(lambda g: snapshots.create(g, "One"), SpecError, "snapshot: 'One' does not match", id="name"),
        pytest.param(lambda g: snapshots.create(g, ""), SpecError, "snapshot: '' does not match", id="no name"),
        pytest.param(lambda g: snapshots.create(g, "../x"), SpecError, "does not match", id="path"),
        pytest.param(
            lambda g: snapshots.create(g, "two", note="ä" * 513), SpecError, "at most 1024 bytes, got 1026", id="note"
        ),
        pytest.param(lambda g: snapshots.create(g, "two", version=9), StoreFailure, "9 is not there yet", id="future"),
        pytest.param(lambda g: snapshots.create(g, "two", version=1), HistoryGone, "cleaned up", id="forgotten"),
        pytest.param(lambda g: snapshots.find(g, "two"), SnapshotNotFound, r"'two', it has \['one'\]", id="unknown"),
        pytest.param(lambda g: snapshots.delete(g, "two"), SnapshotNotFound, "no snapshot 'two'", id="delete unknown"),
    ],
)
def test_bad_requests_are_refused_and_change_nothing(
    gallery: GalleryStore, call: Any, error: type[Exception], words: str
) -> None:
    before = snapshots.create(gallery, "one")
    gallery.clean_up(older_than_s=0, keep=1)

    with pytest.raises(error, match=words):
        call(gallery)

    assert snapshots.snapshots(gallery) == [before]


def test_tags_of_other_tools_are_kept_and_listed_if_they_can_be_named(gallery: GalleryStore) -> None:
    dataset = gallery.checkout(2)
    dataset.tags.create("mine", 2)
    dataset.tags.create("V1.0", 2)

    (listed,) = snapshots.snapshots(gallery)

    assert (listed.name, listed.version, listed.rows, listed.note) == ("mine", 2, 2, "")
    with pytest.raises(SnapshotNotFound):
        snapshots.delete(gallery, "V1.0")


def test_an_object_store_has_snapshots_and_the_fence_but_no_restore_yet(tmp_path: Path) -> None:
    # Lance's own name for a folder that it treats as an object store.
    store = Store(f"file-object-store://{tmp_path}")
    gallery = store.create(SPEC)
    gallery.take_over()
    gallery.commit(table({"a": 1}))
    made = snapshots.create(gallery, "s", note="n")
    successor = store.open("shapes")
    successor.take_over()

    with pytest.raises(Fenced, match="has been succeeded"):
        gallery.commit(table({"b": 1}))
    with pytest.raises(NotLocal, match="local folders only"):
        restore(store, successor, "s", "new")

    assert snapshots.snapshots(successor) == [made]
    snapshots.delete(successor, "s")
    assert snapshots.snapshots(gallery) == []
    assert stored(successor) == {"a": 1}


def test_a_snapshot_survives_a_copy_of_the_folder(store: Store, gallery: GalleryStore, tmp_path: Path) -> None:
    snapshots.create(gallery, "s", note="n")
    shutil.copytree(store.uri, tmp_path / "copy")

    assert [one.note for one in snapshots.snapshots(Store(str(tmp_path / "copy")).open("shapes"))] == ["n"]
    tag = json.loads((Path(gallery.uri) / "_refs" / "tags" / "s.json").read_text())
    assert tag["version"] == 3


def test_snapshots_come_and_go_while_others_read(store: Store, gallery: GalleryStore) -> None:
    version = gallery.newest_version()
    ended = threading.Event()
    elsewhere = store.open(SPEC.name)  # as another process has it: nothing holds it off while tags change

    def read() -> int:
        looks = 0
        while not ended.is_set() or not looks:
            assert gallery.newest_version() == version
            assert gallery.checkout(version).version == version
            assert {tag.version for tag in elsewhere.history.tags()} <= {version}
            looks += 1
        return looks

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for number in range(30):
                gallery.history.tag(f"at-{number}", version, {})
                gallery.history.untag(f"at-{number}")
        finally:
            ended.set()

        assert all(reader.result() for reader in readers)
