"""A gallery as a folder: out and in again unchanged; what stops on the way leaves nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.shards.gated_gallery import stored
from tests.unit.shards.store_fixtures import SPEC, table
from tests.unit.shards.transfer.transfer_calls import export, leftovers, load

from likewise.shards import snapshots, transfer
from likewise.shards.copying import NotLocal, Progress
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.protocols import HistoryGone, ShardError, StoreFailure
from likewise.shards.store import Store
from likewise.shards.transfer import ExportExists


def test_a_gallery_comes_back_as_it_was(gallery: GalleryStore, exported: Path, other: Store) -> None:
    snapshots.create(gallery, "not-exported")
    gallery.commit(table({"later": 9}))

    made = load(other, exported)

    assert stored(made) == {"b": 3, "c": 4}
    assert made.spec.attributes == SPEC.attributes
    assert made.spec.gallery_id != SPEC.gallery_id
    assert snapshots.snapshots(made) == []
    made.take_over()
    made.commit(table({"d": 5}), ["b"])
    made.compact([fragment.id for fragment in made.fragments()])
    made.clean_up(older_than_s=0, keep=1)
    assert stored(Store(other.uri).open("shapes")) == {"c": 4, "d": 5}


def test_the_clean_up_of_another_process_leaves_what_is_being_exported(
    store: Store, gallery: GalleryStore, root: Path, other: Store
) -> None:
    mine, version = store.open("shapes"), gallery.version
    seen: list[list[str]] = []

    def busy(_: Progress) -> None:
        if not seen:  # the writer's process goes on meanwhile
            gallery.commit(table({"d": 5}), ["c"])
            gallery.compact([fragment.id for fragment in gallery.fragments()])
            gallery.take_over()  # versions before the newest barrier may go
            gallery.clean_up(older_than_s=0, keep=1)
            seen.append([one.name for one in snapshots.snapshots(gallery)])

    made = export(mine, root / "backup", version=version, shared=True, report=busy)
    gallery.clean_up(older_than_s=0, keep=1)

    assert seen == [[]], "what is held is no snapshot"
    assert (made.version, stored(load(other, root / "backup"))) == (version, {"b": 3, "c": 4})
    with pytest.raises(HistoryGone):
        gallery.checkout(version)


def test_what_a_killed_export_held_is_forgotten_at_the_next_start(store: Store, gallery: GalleryStore) -> None:
    version = gallery.version
    held = gallery.history.held(version)
    held.__enter__()  # and nobody leaves it
    snapshots.create(gallery, "kept", version=version - 1)
    gallery.commit(table({"d": 5}))
    gallery.compact([fragment.id for fragment in gallery.fragments()])
    gallery.take_over()
    again = store.open("shapes")
    again.clean_up(older_than_s=0, keep=1)
    assert again.checkout(version).count_rows() == 2

    again.history.drop_holds()
    again.clean_up(older_than_s=0, keep=1)

    with pytest.raises(HistoryGone):
        again.checkout(version)
    assert [one.name for one in snapshots.snapshots(again)] == ["kept"]


def test_a_hold_that_is_gone_already_is_no_failure(gallery: GalleryStore) -> None:
    with gallery.history.held(gallery.version):
        gallery.history.drop_holds()


def test_an_export_says_what_it_holds_and_is_plain_lance(gallery: GalleryStore, exported: Path) -> None:
    manifest = transfer.read_manifest(exported)

    assert (manifest.gallery, manifest.version, manifest.rows) == ("shapes", gallery.version, 2)
    assert json.loads((exported / "spec.json").read_text())["name"] == "shapes"
    sizes = {
        str(path.relative_to(exported)): path.stat().st_size
        for path in exported.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert {entry.path: entry.bytes for entry in manifest.files} == sizes
    assert manifest.bytes == sum(sizes.values())
    assert GalleryStore(str(exported / "gallery.lance")).count() == 2


def test_it_may_come_in_under_another_name_and_read_only_beside_its_source(
    gallery: GalleryStore, exported: Path, store: Store
) -> None:
    made = load(store, exported, "copy", read_only=True)

    assert made.read_only
    assert stored(made) == stored(gallery)
    assert store.galleries() == ["copy", "shapes"]


def test_a_snapshot_can_be_exported_after_its_rows_are_gone(gallery: GalleryStore, root: Path, other: Store) -> None:
    made = snapshots.create(gallery, "s")
    gallery.commit(None, ["b", "c"])
    gallery.renew_barrier(after=0)
    gallery.clean_up(older_than_s=0, keep=1)

    export(gallery, root / "s", version=made.version)

    assert stored(load(other, root / "s")) == {"b": 3, "c": 4}
    with pytest.raises(HistoryGone):
        export(gallery, root / "gone", version=made.version - 1)
    assert sorted(path.name for path in root.iterdir()) == ["s"]


def test_an_empty_gallery_travels_too(store: Store, other: Store, root: Path) -> None:
    export(store.create(SPEC), root / "empty")

    assert load(other, root / "empty").count() == 0


def test_clean_ups_and_writes_during_an_export_do_not_disturb_it(
    gallery: GalleryStore, root: Path, other: Store
) -> None:
    def busy(_: Progress) -> None:
        gallery.commit(table({"x": gallery.version}), ["b"])
        gallery.compact([fragment.id for fragment in gallery.fragments()])
        gallery.renew_barrier(after=0)
        gallery.clean_up(older_than_s=0, keep=1)

    export(gallery, root / "backup", report=busy)

    assert stored(load(other, root / "backup")) == {"b": 3, "c": 4}


def test_progress_grows_to_the_whole_and_giving_up_leaves_nothing(
    gallery: GalleryStore, root: Path, other: Store
) -> None:
    out: list[Progress] = []
    back: list[Progress] = []
    export(gallery, root / "backup", report=out.append)
    load(other, root / "backup", report=back.append)

    for steps in (out, back):
        assert [step.bytes_done for step in steps] == sorted(step.bytes_done for step in steps)
        assert (steps[-1].bytes_done, steps[-1].files_done) == (steps[-1].bytes, steps[-1].files)
        assert steps[-1].bytes > 0

    def give_up(progress: Progress) -> None:
        if progress.files_done == 1:
            raise ShardError("nobody waits")

    with pytest.raises(ShardError, match="nobody waits"):
        export(gallery, root / "second", report=give_up)
    with pytest.raises(ShardError, match="nobody waits"):
        load(other, root / "backup", "second", report=give_up)
    assert other.galleries() == ["shapes"]
    assert [path.name for path in root.iterdir()] == ["backup"]
    assert leftovers(Path(other.uri), root) == []


def test_an_export_overwrites_nothing(gallery: GalleryStore, exported: Path) -> None:
    before = (exported / "manifest.json").read_bytes()

    with pytest.raises(ExportExists, match="'backup' exists already"):
        export(gallery, exported)

    assert (exported / "manifest.json").read_bytes() == before


def test_a_full_disk_stops_an_export_with_its_cause_and_leaves_nothing(
    gallery: GalleryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Progress) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreFailure, match="writing the export: No space left on device"):
        export(gallery, root / "backup", report=full)

    assert list(root.iterdir()) == []


def test_a_process_killed_in_an_export_leaves_no_export_and_the_next_one_sweeps_up(
    gallery: GalleryStore, root: Path
) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from likewise.shards import transfer
from likewise.shards.store import Store
gallery = Store(sys.argv[1]).open("shapes")
killed = lambda _: os.kill(os.getpid(), signal.SIGKILL)
transfer.export(gallery, Path(sys.argv[2]), version=gallery.version, report=killed)
"""
    store = str(Path(gallery.uri).parent)

    done = subprocess.run([sys.executable, "-c", program, store, root / "backup"], check=False, capture_output=True)

    assert done.returncode == -9, done.stderr
    assert len(leftovers(root)) == 1
    export(gallery, root / "backup")
    assert [path.name for path in root.iterdir()] == ["backup"]


def test_a_process_killed_in_an_import_leaves_no_gallery_and_the_next_start_sweeps_up(
    exported: Path, other: Store
) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from likewise.shards import transfer
from likewise.shards.store import Store
with transfer.imported(Store(sys.argv[1]), Path(sys.argv[2]), "new", report=lambda _: None):
    os.kill(os.getpid(), signal.SIGKILL)
"""

    done = subprocess.run([sys.executable, "-c", program, other.uri, exported], check=False, capture_output=True)

    assert done.returncode == -9, done.stderr
    assert len(leftovers(Path(other.uri))) == 1
    assert Store(other.uri).galleries() == []
    assert leftovers(Path(other.uri)) == []


def test_a_gallery_of_an_object_store_says_that_it_cannot_be_exported_yet(gallery: GalleryStore, root: Path) -> None:
    gallery.uri = "s3://bucket/shapes.lance"

    with pytest.raises(NotLocal, match="local folders only"):
        export(gallery, root / "backup")
