"""`likewise train` as a user meets it: what it shows, what it refuses, and in which words."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.unit.export.training.scenes import sample_scene, write_folder
from typer.testing import CliRunner, Result

from likewise.cli.train import app


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "pictures"
    rng = np.random.default_rng(3)
    write_folder(folder, [sample_scene(rng) for _ in range(200)], rng)
    return folder


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_dry_run_shows_counts_attributes_and_examples_and_writes_nothing(pictures: Path, tmp_path: Path) -> None:
    result = _run(pictures, "--out", tmp_path / "models", "--held-out", 0.4, "--dry-run")

    assert result.exit_code == 0, result.output
    assert "200 captioned images: 120 to learn from, 40 to stop by, 40 to measure on" in result.stdout
    assert "colour: " in result.stdout
    assert "focus attribute" in result.stdout
    assert "Examples" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_json_holds_the_same_and_nothing_else(pictures: Path) -> None:
    result = _run(pictures, "--held-out", 0.4, "--dry-run", "--json")

    printed = json.loads(result.stdout)
    assert printed["survey"]["split"] == {"training": 120, "validation": 40, "test": 40}
    assert {row["kind"] for row in printed["examples"]} == set(printed["survey"]["triplets"])


def test_too_few_triplets_are_refused_with_the_numbers(pictures: Path) -> None:
    result = _run(pictures, "--min-triplets", 100_000, "--dry-run")

    assert result.exit_code == 1
    assert "likewise train: only " in result.stderr
    assert "at least 100000 are needed (--min-triplets)" in result.stderr


def test_a_row_that_cannot_be_used_is_named_and_too_many_are_refused(pictures: Path, tmp_path: Path) -> None:
    lines = [f"{file},a {file.stem} star" for file in sorted(pictures.glob("*.png"))[:20]]
    lines[4] = f"{pictures / 'gone.png'},a star"
    (tmp_path / "t.csv").write_text("path,caption\n" + "\n".join(lines) + "\n", encoding="utf-8")

    kept = _run(tmp_path / "t.csv", "--dry-run", "--max-bad", 0.05)
    refused = _run(tmp_path / "t.csv", "--dry-run", "--max-bad", 0.04)

    assert "likewise train: t.csv, row 5: there is no image" in kept.stderr
    assert "likewise train: only " in kept.stderr
    assert refused.exit_code == 1
    assert "1 of 20 rows (5.0 %) cannot be used, the limit is 4.0 % (--max-bad)" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "magic"), "--method must be one of combiner, sum, phrase-basis, got 'magic'"),
        (("--encoders", "thawed"), "--encoders must be one of frozen, fine-tune, train, got 'thawed'"),
        (("--attribute", "colour"), "--attribute must look like colour=teal,lime, got 'colour'"),
    ],
)
def test_a_wrong_option_names_what_is_allowed(pictures: Path, arguments: tuple[str, ...], message: str) -> None:
    result = _run(pictures, *arguments)

    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_source_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    result = _run(tmp_path / "gone")

    assert result.exit_code == 1
    assert result.stderr == f"likewise train: there is no {tmp_path / 'gone'}\n"


def test_the_name_of_the_built_in_family_is_refused_before_anything_is_encoded(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")

    result = _run(pictures, "--held-out", 0.4, "--out", tmp_path / "models", "--name", "shapes", "--json")

    assert result.exit_code == 1
    assert "'shapes' is the name of a built-in family; choose another --name" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_family_that_is_not_there_is_named(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")

    result = _run(pictures, "--held-out", 0.4, "--out", tmp_path / "models", "--family", "clip", "--json")

    assert result.exit_code == 1
    assert "no family 'clip' in" in result.stderr


def test_words_of_an_attribute_may_be_given(pictures: Path) -> None:
    result = _run(pictures, "--held-out", 0.4, "--dry-run", "--json", "--attribute", "finish=hollow,wavy")

    names = {slot["name"]: slot["values"] for slot in json.loads(result.stdout)["survey"]["attributes"]}
    assert set(names["finish"]) == {"hollow", "wavy", "speckled"}
