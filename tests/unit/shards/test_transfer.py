"""A gallery as a folder: out and in again unchanged; a damaged, foreign or newer one never comes in."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.shards.gated_gallery import stored
from tests.unit.shards.store_fixtures import SPEC, table

from likewise.shards import snapshots, transfer
from likewise.shards.copying import Damaged, NotLocal, Progress
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.protocols import HistoryGone, ShardError, StoreFailure
from likewise.shards.spec import SpecError
from likewise.shards.staging import STAGING_PREFIX
from likewise.shards.store import GalleryExists, NewerFormat, Store
from likewise.shards.transfer import ExportExists, ExportNotFound, Manifest, NotAnExport


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


def export(gallery: GalleryStore, folder: Path, **options: Any) -> Manifest:
    wanted = {"version": gallery.version, "report": lambda _: None, **options}
    return transfer.export(gallery, folder, **wanted)


def load(store: Store, folder: Path, name: str = "shapes", **options: Any) -> GalleryStore:
    with transfer.imported(store, folder, name, **{"report": lambda _: None, **options}) as staged:
        return store.publish(staged, name)


def leftovers(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.glob(f"{STAGING_PREFIX}*")]


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / transfer.MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


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


def _flip(path: Path, at: int = -9) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _data(folder: Path) -> Path:
    return min((folder / "gallery.lance" / "data").iterdir())


def _manifest_of_lance(folder: Path) -> Path:
    return min((folder / "gallery.lance" / "_versions").glob("*.manifest"))


def _without_a_file(folder: Path) -> None:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    rewrite(folder, files=[entry for entry in files if "/data/" not in entry["path"]])


def _with_path(path: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        rewrite(folder, files=[*files, {"path": path, "bytes": 1, "sha256": "0"}])

    return change


def _link_out(folder: Path) -> None:
    data = _data(folder)
    secret = folder.parent / "secret"
    shutil.move(data, secret)
    data.symlink_to(secret)


def _linked_folder(folder: Path) -> None:
    data = folder / "gallery.lance" / "data"
    shutil.move(data, folder.parent / "elsewhere")
    data.symlink_to(folder.parent / "elsewhere")


def _newer_spec(folder: Path) -> None:
    spec = folder / "spec.json"
    spec.write_text(spec.read_text().replace('"shards": 2', '"shards": 3'))
    entry = {"path": "spec.json", "bytes": spec.stat().st_size, "sha256": _sha256(spec)}
    files = json.loads((folder / "manifest.json").read_text())["files"]
    rewrite(folder, files=[entry, *(one for one in files if one["path"] != "spec.json")])


def _sha256(path: Path) -> str:
    return subprocess.run(["sha256sum", path], check=True, capture_output=True, text=True).stdout.split()[0]


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        pytest.param(lambda f: _flip(_data(f)), Damaged, r"data/.* is damaged: its SHA-256 is", id="flipped row"),
        pytest.param(lambda f: _flip(_manifest_of_lance(f)), Damaged, "is damaged", id="flipped Lance manifest"),
        pytest.param(
            lambda f: _flip(f / "spec.json"), Damaged, r"spec\.json of the export is damaged", id="flipped spec"
        ),
        pytest.param(lambda f: os.truncate(_data(f), 10), Damaged, "has 10 bytes, it was written with", id="cut file"),
        pytest.param(lambda f: _data(f).unlink(), Damaged, "is missing, or no plain file", id="missing file"),
        pytest.param(_link_out, Damaged, "is missing, or no plain file", id="symbolic link"),
        pytest.param(_linked_folder, Damaged, "is missing, or no plain file", id="linked folder"),
        pytest.param(lambda f: rewrite(f, rows=3), Damaged, "its rows should be 3, the dataset has 2", id="rows"),
        pytest.param(lambda f: rewrite(f, version=9), Damaged, "its version should be 9", id="version"),
        pytest.param(_newer_spec, Damaged, "its description should be", id="another description"),
        pytest.param(_without_a_file, Damaged, "its files should be", id="unlisted file"),
        pytest.param(lambda f: rewrite(f, format=2), NewerFormat, "format 2, this release reads up to 1", id="newer"),
        pytest.param(lambda f: rewrite(f, kind="tar"), NotAnExport, "its kind is 'tar'", id="kind"),
        pytest.param(lambda f: rewrite(f, files=None), NotAnExport, "not of an export", id="no files"),
        pytest.param(lambda f: rewrite(f, files=[]), NotAnExport, r"spec\.json not once", id="empty files"),
        pytest.param(lambda f: (f / "manifest.json").write_text("[]"), NotAnExport, "not of an export", id="a list"),
        pytest.param(lambda f: (f / "manifest.json").write_text("{"), NotAnExport, "not of an export", id="no JSON"),
        pytest.param(lambda f: (f / "manifest.json").write_text("{}"), NotAnExport, "it has no 'kind'", id="empty"),
        pytest.param(
            lambda f: (f / "manifest.json").unlink(), NotAnExport, "has no manifest.json", id="foreign folder"
        ),
        pytest.param(_with_path("../../etc/passwd"), NotAnExport, "is none of an export", id="path out"),
        pytest.param(_with_path("/etc/passwd"), NotAnExport, "is none of an export", id="absolute path"),
        pytest.param(_with_path("gallery.lance/../x"), NotAnExport, "is none of an export", id="path up"),
        pytest.param(shutil.rmtree, ExportNotFound, "there is no export 'backup'", id="no folder"),
    ],
)
def test_what_is_not_a_whole_export_never_comes_in(
    exported: Path, other: Store, spoil: Callable[[Path], Any], error: type[Exception], words: str
) -> None:
    spoil(exported)

    with pytest.raises(error, match=words):
        load(other, exported)

    assert other.galleries() == []
    assert leftovers(Path(other.uri)) == []


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_comes_in_unnoticed(exported: Path, store: Store, data: st.DataObject) -> None:
    files = sorted(path for path in exported.rglob("*") if path.is_file() and path.name != "manifest.json")
    path = data.draw(st.sampled_from(files))
    before = path.read_bytes()
    at = data.draw(st.integers(0, len(before) - 1))
    flipped = bytearray(before)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(flipped)
    try:
        with pytest.raises(Damaged):
            load(store, exported, "copy")
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        pytest.param("shapes", GalleryExists, "'shapes' exists already", id="taken"),
        pytest.param("No Name", SpecError, "name: 'No Name' does not match", id="invalid"),
    ],
)
def test_a_name_that_cannot_be_is_refused_before_anything_is_read(
    exported: Path, store: Store, name: str, error: type[Exception], words: str
) -> None:
    shutil.rmtree(exported)

    with pytest.raises(error, match=words):
        load(store, exported, name)


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
