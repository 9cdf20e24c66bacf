"""The light half of the command line."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from grpc import StatusCode
from tests.unit.client.fake_failures import Failure
from tests.unit.client.fake_server import FakeServer
from typer.testing import CliRunner, Result

from likewise.client import Client
from likewise.client.cli import commands
from likewise.client.cli.app import app

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 20


class Shell:
    """`likewise` against the fake server."""

    def __init__(self, address: str) -> None:
        self._address = address

    def run(self, *arguments: object, code: int = 0, typed: str = "") -> Result:
        environment = {"LIKEWISE_ADDRESS": self._address, "COLUMNS": "200"}
        result = CliRunner().invoke(app, [str(one) for one in arguments], env=environment, input=typed)
        assert result.exit_code == code, result.output
        return result

    def json(self, *arguments: object) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    def refused(self, *arguments: object) -> str:
        """What it says when it fails: to stderr, without a traceback."""
        result = self.run(*arguments, code=1)
        assert "Traceback" not in result.stderr
        return result.stderr


@pytest.fixture
def shell(server: FakeServer) -> Shell:
    return Shell(server.address)


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.address) as made:
        yield made


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "b.JPG", "deep/c.webp"):
        (folder / name).write_bytes(PNG)
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def shapes(client: Client) -> Any:
    return client.create_gallery("shapes", encoder="shapes")


def test_a_gallery_is_made_shown_listed_and_deleted(shell: Shell) -> None:
    made = shell.json(
        "gallery", "create", "g", "--dim", 2, "--shards", 3, "--index", "hnsw",
        "--attribute", "price:double", "--attribute", "tags:string_list",
    )  # fmt: skip

    assert made["attributes"] == {"price": "double", "tags": "string_list"}
    assert shell.json("gallery", "show", "g") == made
    assert [one["name"] for one in shell.json("gallery", "list")] == ["g"]
    assert shell.json("gallery", "stats", "g")["items"] == 0
    assert "hnsw" in shell.run("gallery", "show", "g").stdout
    assert "flat" in shell.run("gallery", "stats", "g").stdout
    assert shell.json("gallery", "delete", "g", "--yes") == {"deleted": "g"}
    assert shell.json("gallery", "list") == []


def test_a_gallery_is_changed(shell: Shell) -> None:
    shell.run("gallery", "create", "g", "--dim", 2)

    changed = shell.json(
        "gallery", "update", "g", "--shards", 4, "--index", "hnsw", "--m", 16, "--attribute", "price:double",
        "--min-recall", 0.95,
    )  # fmt: skip

    assert (changed["shards"], changed["index"]["kind"], changed["index"]["m"]) == (4, "hnsw", 16)
    assert changed["attributes"] == {"price": "double"}
    assert shell.json("gallery", "show", "g") == changed
    assert "need --index" in shell.run("gallery", "update", "g", "--m", 8, code=2).stderr


def test_a_gallery_is_deleted_only_after_a_yes(shell: Shell, shapes: Any, client: Client) -> None:
    shell.run("gallery", "delete", "shapes", code=1, typed="n\n")

    assert [one.name for one in client.galleries()] == ["shapes"]


def test_models_are_listed_and_shown(shell: Shell) -> None:
    assert [(one["name"], one["version"]) for one in shell.json("model", "list")] == [("a", 1), ("a", 2), ("b", 1)]
    assert shell.json("model", "show", "a", "--version", 1)["version"] == 1
    assert "model.onnx" in shell.run("model", "show", "b").stdout


def test_models_are_loaded_promoted_rolled_back_and_unloaded(shell: Shell, server: FakeServer) -> None:
    assert [one["version"] for one in shell.json("model", "load", "a", "a/1")] == [2, 1]
    promoted = shell.json("model", "promote", "a/2", "b/1", "--min-overlap", 0.5)
    assert (promoted["overlap"], promoted["compared"], len(promoted["models"])) == (0.75, 4, 2)
    told = shell.run("model", "promote", "a/2").stdout
    assert "in use" in told
    assert "75.0% of the top 10 of 4 recent queries stays" in told
    assert "compared" not in shell.run("model", "promote", "a/2", "--force").stdout
    assert shell.json("model", "rollback", "a")["model"]["version"] == 1
    assert shell.json("model", "unload", "a/2") == {"unloaded": "a/2"}
    assert [one.name for one in server.calls("Promote")[0].request.also] == ["b"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("promote", "a"),
        ("promote", "a/0"),
        ("promote", "a/x"),
        ("promote", "/2"),
        ("promote", "a/1", "a/2"),
        ("promote", "a/1", "--min-overlap", "2"),
        ("unload", "a"),
        ("load", "a/0"),
        ("load",),
    ],
)
def test_a_model_without_a_version_that_can_be_is_wrong_usage(
    shell: Shell, server: FakeServer, arguments: tuple[str, ...]
) -> None:
    shell.run("model", *arguments, code=2)

    assert not server.calls("Promote") + server.calls("Load") + server.calls("Unload")


def test_an_error_is_one_line_and_status_1(shell: Shell, server: FakeServer) -> None:
    server.fail("Stats", Failure(StatusCode.RESOURCE_EXHAUSTED, "the queue\nis full", "QUEUE_FULL", retry_after_s=2))

    assert shell.refused("gallery", "show", "nowhere") == "likewise: no gallery 'nowhere'\n"
    assert shell.refused("gallery", "stats", "g") == "likewise: the queue is full (try again in 2 s)\n"
    assert "no answer from 127.0.0.1:1" in shell.refused("gallery", "list", "--address", "127.0.0.1:1")


def test_wrong_usage_has_status_2(shell: Shell) -> None:
    shell.run("gallery", "create", "g", "--dim", 2, "--attribute", "price", code=2)
    shell.run("no-such-command", code=2)


def test_a_search_says_all_it_was_asked(shell: Shell, server: FakeServer, client: Client, tmp_path: Path) -> None:
    gallery = client.create_gallery("g", dim=2, attributes={"price": "double", "colour": "string"})
    gallery.upsert(["a", "b"], vectors=np.eye(2), attributes={"price": [1, 99], "colour": ["[red]", "blue"]})
    query = tmp_path / "q.npy"
    np.save(query, np.array([1.0, 0.0]))

    found = shell.json(
        "search", "g", "--vector-file", query, "--condition", "in red", "--condition", "round", "--mode", "focus",
        "--where", "price < 50", "-k", 5, "--exact", "--min-score", 0.5,
    )  # fmt: skip

    request = server.calls("Search")[-1].request
    assert [(one.text, one.mode) for one in request.conditions] == [("in red", 1), ("round", 1)]
    assert (request.k, request.params.exact, request.cutoff.min_score) == (5, True, 0.5)
    assert [hit["id"] for hit in found["hits"]] == ["a"]
    assert found["hits"][0]["attributes"] == {"price": 1.0, "colour": "[red]"}
    assert found["coverage"]["fraction"] == 1.0
    assert found["plan"]["summary"] == "exact over 2"


def test_a_search_prints_a_table_for_people(shell: Shell, client: Client) -> None:
    gallery = client.create_gallery("g", dim=2, attributes={"colour": "string"})
    gallery.upsert(["a", "b"], vectors=np.eye(2), attributes={"colour": ["[red]", None]})

    result = shell.run("search", "g", "--id", "a")

    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[:3] == [["#", "id", "score", "colour"], ["1", "a", "1.0000", "[red]"], ["2", "b", "0.0000", "-"]]
    assert "exact over 2" in result.stdout
    assert "TEXT_CUT: the text was cut" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--text", "a", "--where", "price <"], "expected a value"),
        (["--text", "a", "--mode", "focus"], "--condition"),
        (["--text", "a", "--id", "b"], "text and id"),
        (["--image", "/no/such.png"], "/no/such.png"),
        (["--vector-file", "/no/such.npy"], "/no/such.npy"),
        ([], "reference"),
    ],
)
def test_a_search_that_makes_no_sense_says_why(shell: Shell, shapes: Any, arguments: list[str], said: str) -> None:
    assert said in shell.refused("search", "shapes", *arguments)


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


def test_heavy_commands_are_listed_without_being_imported() -> None:
    program = """
import sys
from typer.testing import CliRunner
from likewise.client.cli.app import app
print(CliRunner().invoke(app, ["--help"]).stdout)
print([name for name in sys.modules if name.startswith(("likewise.cli.", "likewise.server", "torch", "faiss"))])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.rstrip().endswith("[]")
    for name in ("serve", "demo", "eval", "train", "bench", "doctor", "ingest", "search"):
        assert f" {name} " in done.stdout


class _Missing(EntryPoint):
    """An entry point whose module needs what is not there."""

    def load(self) -> Any:
        raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")


def test_a_command_without_its_extra_says_which(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = _Missing("train", "nowhere:app", commands.ENTRY_POINTS)
    monkeypatch.setattr(commands, "_plugins", lambda: {"train": missing})

    said = shell.refused("train", "--rows", "3")

    assert said == "likewise: this needs torch, which is not installed: pip install 'likewise[export]'\n"


def test_a_loaded_command_gets_its_arguments(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_point = EntryPoint("extra", f"{__name__}:plugin", commands.ENTRY_POINTS)
    monkeypatch.setattr(commands, "_plugins", lambda: {"extra": entry_point})

    assert shell.run("extra", "--times", 3).stdout == "ho ho ho\n"


plugin = typer.Typer()


@plugin.command()
def _say(times: Annotated[int, typer.Option()]) -> None:
    typer.echo(" ".join(["ho"] * times))
