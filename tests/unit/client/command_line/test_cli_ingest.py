"""Folders of images and files of rows, from the command line into a gallery."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.client.command_line.shell import Shell
from tests.unit.client.fake_server import FakeServer

from likewise.client import Client

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 20


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "b.JPG", "deep/c.webp"):
        (folder / name).write_bytes(PNG)
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_a_folder_of_images_is_ingested(shell: Shell, shapes: Any, images: Path) -> None:
    report = shell.json("ingest", "shapes", images)

    assert report == {"gallery": "shapes", "stored": 3, "already_stored": 0, "bad": []}
    assert [item.id for item in shapes.list()] == ["a.png", "b.JPG", "deep/c.webp"]


def test_a_bad_file_stops_the_folder_before_anything_is_stored(shell: Shell, shapes: Any, images: Path) -> None:
    (images / "broken.png").write_text("just words")
    (images / "empty.jpg").touch()

    said = shell.refused("ingest", "shapes", images)

    assert "broken.png: is no JPEG, PNG or WebP" in said
    assert "empty.jpg: is empty" in said
    assert "2 items cannot be stored" in said
    assert shapes.count() == 0


def test_bad_files_are_left_out_and_counted_when_asked(
    shell: Shell, server: FakeServer, shapes: Any, images: Path
) -> None:
    (images / "broken.png").write_text("just words")
    server.bad_rows = {"b.JPG"}  # looks like an image; the server finds out

    report = shell.json("ingest", "shapes", images, "--skip-bad")

    assert report["stored"] == 2
    assert [Path(one["item"]).name for one in report["bad"]] == ["broken.png", "b.JPG"]
    assert [item.id for item in shapes.list()] == ["a.png", "deep/c.webp"]


def test_a_file_that_the_server_refuses_is_named(shell: Shell, server: FakeServer, shapes: Any, images: Path) -> None:
    server.bad_rows = {"b.JPG"}

    said = shell.refused("ingest", "shapes", images)

    assert "b.JPG: items.images.data[1] is bad" in said
    assert "--resume" in said


def test_resume_sends_only_what_is_not_stored(shell: Shell, server: FakeServer, shapes: Any, images: Path) -> None:
    shapes.upsert(["a.png"], images=[PNG])

    report = shell.json("ingest", "shapes", images, "--resume")

    assert (report["stored"], report["already_stored"]) == (2, 1)
    assert list(server.calls("Upsert")[-1].request.items.ids) == ["b.JPG", "deep/c.webp"]


ROWS: list[dict[str, Any]] = [
    {"id": "x", "vector": [1.0, 0.0], "price": 3, "name": "né", "sold": True, "tags": ["a", "b"]},
    {"id": "y", "vector": [0.0, 1.0], "price": 2.5, "name": None, "sold": None, "tags": None},
]
STORED: list[dict[str, Any]] = [
    {"price": 3.0, "name": "né", "sold": True, "tags": ["a", "b"], "taken": None},
    {"price": 2.5, "name": None, "sold": None, "tags": None, "taken": None},
]


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text('id,vector,price,name,sold,tags\nx,"[1, 0]",3,né,true,a;b\ny,0 1,2.5,,,\n')
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_of_vectors_makes_its_gallery_and_fills_it(
    shell: Shell, client: Client, tmp_path: Path, suffix: str
) -> None:
    path = _write(tmp_path / f"rows{suffix}", ROWS)

    report = shell.json("ingest", "v", path, "--create", "--index", "flat")

    gallery = client.gallery("v")
    info = gallery.info()
    # What a CSV says of lists is text, until a gallery says that it is a list.
    tags = "string" if suffix == ".csv" else "string_list"
    assert report["stored"] == 2
    assert info.attributes == {"price": "double", "name": "string", "sold": "bool", "tags": tags}
    assert (info.dim, info.index.kind) == (2, "flat")
    got = gallery.get(["x", "y"], vectors=True)
    assert got.vectors is not None
    np.testing.assert_array_equal(got.vectors, np.eye(2))
    first = got[0].attributes
    assert (first["price"], first["name"], first["sold"]) == (3.0, "né", True)
    assert got[1].attributes["sold"] is None


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_text_is_read_as_the_gallerys_types_want_it(shell: Shell, client: Client, tmp_path: Path, suffix: str) -> None:
    types: dict[str, object] = {"price": float, "name": str, "sold": bool, "tags": list[str], "taken": "timestamp"}
    gallery = client.create_gallery("v", dim=2, attributes=types)
    path = _write(tmp_path / f"rows{suffix}", ROWS)

    shell.run("ingest", "v", path)

    wanted: list[dict[str, Any]] = [{**row} for row in STORED]
    if suffix == ".csv":
        wanted[1]["name"] = ""  # an empty cell of a text column is an empty text
    assert gallery.get(["x", "y"]).attributes == wanted


def test_rows_of_paths_are_relative_to_their_file(shell: Shell, shapes: Any, images: Path) -> None:
    rows = images / "rows.csv"
    rows.write_text("key,path\none,a.png\ntwo,deep/c.webp\n")

    assert shell.json("ingest", "shapes", rows, "--id-column", "key")["stored"] == 2
    assert [item.id for item in shapes.list()] == ["one", "two"]


def test_bad_rows_are_listed_with_their_line(shell: Shell, client: Client, tmp_path: Path) -> None:
    gallery = client.create_gallery("v", dim=2, attributes={"n": "int64"})
    path = tmp_path / "rows.jsonl"
    lines = [
        '{"id": "good", "vector": [1, 0], "n": 1}',
        '{"id": "short", "vector": [1], "n": 1}',
        "{no json",
        '{"vector": [1, 0]}',
        '{"id": "zero", "vector": [0, 0]}',
        '{"id": "word", "vector": [1, 0], "n": "many"}',
        '{"id": "nan", "vector": [1, NaN]}',
    ]
    path.write_text("\n".join(lines))

    said = shell.refused("ingest", "v", path)
    report = shell.json("ingest", "v", path, "--skip-bad")

    assert "6 items cannot be stored" in said
    assert "line 2 (short): vector has 1 numbers, the gallery's vectors have 2" in said
    assert report["stored"] == gallery.count() == 1
    assert [one["item"].split(" (")[0] for one in report["bad"]] == [f"line {line}" for line in range(2, 8)]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        pytest.param("none.csv", None, "there is no", id="no file"),
        pytest.param("rows.xls", "x", "must be a folder", id="unknown kind"),
        pytest.param("rows.csv", "id,price\na,1\n", "must have a column", id="no content"),
        pytest.param("rows.csv", "id,vector\n", "no rows", id="no rows"),
        pytest.param("rows.csv", "id,vector,size\na,1 0,3\n", "'size' is no attribute", id="unknown column"),
        pytest.param("rows.parquet", "text", "cannot read", id="no parquet"),
    ],
)
def test_a_source_that_cannot_be_used_says_why(
    shell: Shell, client: Client, tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    client.create_gallery("v", dim=2)
    path = tmp_path / name
    if text is not None:
        path.write_text(text)

    assert said in shell.refused("ingest", "v", path)


def test_an_empty_folder_and_a_missing_encoder_are_refused(shell: Shell, tmp_path: Path, images: Path) -> None:
    (tmp_path / "none").mkdir()

    assert "has no images" in shell.refused("ingest", "g", tmp_path / "none", "--create", "--encoder", "shapes")
    assert "--encoder" in shell.refused("ingest", "g", images, "--create")
