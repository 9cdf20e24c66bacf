"""The light half of the command line."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import typer
from grpc import StatusCode
from tests.unit.client.command_line.shell import Shell
from tests.unit.client.fake_failures import Failure
from tests.unit.client.fake_server import FakeServer

from likewise.client import Client
from likewise.client.cli import commands


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
