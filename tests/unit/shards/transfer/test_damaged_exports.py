"""What is not a whole, undamaged export of a gallery never comes in."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.shards.transfer.transfer_calls import leftovers, load, rewrite

from likewise.shards.copying import Damaged
from likewise.shards.spec import SpecError
from likewise.shards.store import GalleryExists, NewerFormat, Store
from likewise.shards.transfer import ExportNotFound, NotAnExport


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
