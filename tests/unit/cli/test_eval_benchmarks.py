import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.unit.export.evaluation.folders import (
    circo_folder,
    cirr_folder,
    fashioniq_folder,
    object_templates,
    random_features,
    write_csv,
    write_features,
    write_json,
)
from typer.testing import CliRunner

from likewise.cli import evaluate
from likewise.export.evaluation.circo import read_circo
from likewise.export.evaluation.cirr import read_cirr
from likewise.export.evaluation.fashioniq import read_fashioniq
from likewise.export.evaluation.genecis import read_genecis
from likewise.export.evaluation.task import Benchmark


def _run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(evaluate.app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, " ".join(done.stderr.replace("│", " ").split())


def _features(folder: Path, benchmark: Benchmark, *, dim: int = 12) -> list[object]:
    images = random_features((key for task in benchmark.tasks for key in task.image_keys()), dim=dim)
    texts = random_features((t for task in benchmark.tasks for every in task.conditions for t in every), dim=dim)
    return [
        "--image-features",
        write_features(folder / "images.parquet", images),
        "--text-features",
        write_features(folder / "texts.parquet", texts, "text"),
    ]


def _genecis(folder: Path) -> Path:
    for seed, name in enumerate(("focus_object", "change_object")):
        write_json(folder / f"{name}.json", object_templates(40, seed=seed))
    return folder


def test_genecis_prints_one_json_object_with_every_task(tmp_path: Path) -> None:
    folder = _genecis(tmp_path)

    code, out, err = _run(
        "genecis", "--annotations", folder, *_features(folder, read_genecis(folder)), "--composer", "sum:0.5", "--json"
    )

    content = json.loads(out)
    assert (code, err) == (0, "")
    assert set(content["tasks"]) == {"focus_object", "change_object"}
    assert content["mean"]["label"] == "object half (2 of 4 tasks)"
    for task in content["tasks"].values():
        assert task["n"] == 40
        assert set(task["interval"]) == set(task["chance"]) == {"R@1", "R@2", "R@3"}


def test_the_table_has_value_interval_chance_and_notes(tmp_path: Path) -> None:
    folder = _genecis(tmp_path)
    features = _features(folder, read_genecis(folder))

    code, out, _ = _run("genecis", "--annotations", folder, *features, "--composer", "image", "--composer", "text")

    assert code == 0
    assert all(word in out for word in ("focus_object", "R@3", "chance", "20.00", "object half", "text minus image"))
    assert "Note: focus_object: 40 templates, the official file has 1,960" in out


def test_a_composer_of_the_repository_is_measured(tmp_path: Path) -> None:
    folder = _genecis(tmp_path)
    features = _features(folder, read_genecis(folder), dim=192)

    code, out, _ = _run("genecis", "--annotations", folder, *features, "--composer", "shapes-composer", "--json")

    assert code == 0
    assert json.loads(out)["how"]["prompts"] == {"": "{}", "focus": "same {}", "change": "now {}"}


def test_the_mode_of_a_task_frames_its_conditions(tmp_path: Path) -> None:
    folder = _genecis(tmp_path)
    features = _features(folder, read_genecis(folder), dim=192)

    code, _, err = _run(
        "genecis", "--annotations", folder, *features, "--composer", "shapes-composer", "--mode", "task"
    )

    assert code == 1
    assert "condition texts are not in it: 'same thing" in err


@pytest.mark.parametrize(
    ("command", "make", "read", "metrics"),
    [
        ("cirr", cirr_folder, read_cirr, {"R@1", "R@5", "R@10", "R@50", "R_subset@1", "R_subset@2", "R_subset@3"}),
        ("fashioniq", fashioniq_folder, read_fashioniq, {"R@10", "R@50"}),
        ("circo", circo_folder, read_circo, {*(f"{name}@{k}" for name in ("mAP", "R") for k in (5, 10, 25, 50))}),
    ],
)
def test_the_other_benchmarks_have_their_own_metrics(
    tmp_path: Path,
    command: str,
    make: Callable[[Path], Path],
    read: Callable[[Path], Benchmark],
    metrics: set[str],
) -> None:
    folder = make(tmp_path)

    code, out, _ = _run(
        command, "--annotations", folder, *_features(folder, read(folder)), "--composer", "image", "--json"
    )

    assert code == 0
    for task in json.loads(out)["tasks"].values():
        assert set(task["interval"]) == metrics


def test_a_hidden_split_writes_its_submission_and_prints_no_figures(tmp_path: Path) -> None:
    folder = cirr_folder(tmp_path, split="test1")
    arguments = ["--annotations", folder, "--split", "test1", "--composer", "image"]
    arguments += _features(folder, read_cirr(folder, split="test1"))

    code, out, err = _run("cirr", *arguments, "--submission", tmp_path / "out")

    assert (code, out) == (0, "")
    assert "wrote" in err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cirr_test1_recall.json",
        "cirr_test1_recall_subset.json",
    ]
    code, _, err = _run("cirr", *arguments)
    assert code == 2
    assert "give --submission a folder" in err


def test_own_templates_are_measured_at_their_own_cutoffs(tmp_path: Path) -> None:
    rows = [{"reference": "r", "target": f"k{i}", "condition": "x"} for i in range(9)]
    path = write_json(tmp_path / "t.json", rows)
    keys = ["r", *(f"k{i}" for i in range(9))]
    images = write_features(tmp_path / "i.parquet", random_features(keys))

    code, out, _ = _run(
        "templates",
        "--annotations",
        path,
        "--image-features",
        images,
        "--composer",
        "image",
        "--cutoffs",
        "1,9",
        "--json",
    )

    task = json.loads(out)["tasks"]["templates"]
    assert code == 0
    # Nine candidates without the reference; each is the target once, and each is somewhere among nine.
    assert (task["candidates"], task["R@9"]) == (9, 100)
    assert task["R@1"] == pytest.approx(100 / 9)


def test_landmarks_through_a_server_need_images_in_their_folders(tmp_path: Path) -> None:
    for task, folder in (("retrieval", "index/"), ("recognition", "train/")):
        write_csv(tmp_path / "train.csv", [{"id": "p", "url": "", "landmark_id": 3}])
        write_csv(tmp_path / "recognition_solution_v2.1.csv", [{"id": "t", "landmarks": "3", "Usage": "Public"}])

        code, _, err = _run("gldv2", "--annotations", tmp_path, "--server", "s", "--images", tmp_path, "--tasks", task)

        assert code == 1
        assert f"image below {folder} of the folders given with --images" in err


def test_landmarks_by_features_and_by_submission(tmp_path: Path) -> None:
    write_csv(tmp_path / "retrieval_solution_v2.1.csv", [{"id": "t", "images": "a b", "Usage": "Private"}])
    write_csv(tmp_path / "recognition_solution_v2.1.csv", [{"id": "t", "landmarks": "3", "Usage": "Public"}])
    write_csv(tmp_path / "train.csv", [{"id": "p", "url": "", "landmark_id": 3}])
    tests = write_features(tmp_path / "t.parquet", {"t": np.array([1.0, 0.0])})
    index = {"a": [2.0, 0.1], "b": [0.0, 1.0], "c": [1.0, 1.0]}
    others = write_features(tmp_path / "i.parquet", {key: np.array(vector) for key, vector in index.items()})
    train = write_features(tmp_path / "p.parquet", {"p": np.array([1.0, 1.0])})
    mine = write_csv(tmp_path / "mine.csv", [{"id": "t", "landmarks": "3 0.5"}])
    base = ["gldv2", "--annotations", tmp_path, "--json"]

    code, out, _ = _run(*base, "--image-features", tests, "--index-features", others, "--train-features", train)

    tasks = json.loads(out)["tasks"]
    assert code == 0
    # a is first, c is wrong, b third.
    assert tasks["retrieval private"]["mAP@100"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert tasks["recognition public"]["GAP"] == 100
    code, out, _ = _run(*base, "--recognition-predictions", mine)
    assert (code, json.loads(out)["tasks"]["recognition public"]["GAP"]) == (0, 100)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("genecis", "no folder /nowhere: give --annotations"),
        ("cirr", "no folder /nowhere: give --annotations"),
        ("fashioniq", "no folder /nowhere: give --annotations"),
        ("circo", "no folder /nowhere: give --annotations"),
        ("templates", "no file /nowhere: give --annotations"),
    ],
)
def test_absent_annotations_are_said_in_one_line(command: str, expected: str) -> None:
    code, out, err = _run(command, "--annotations", "/nowhere", "--image-features", "/no", "--composer", "image")

    assert (code, out) == (1, "")
    assert err.startswith(f"likewise eval: {expected}")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        pytest.param([], 2, "either --image-features (and --text-features) or --server", id="no way"),
        pytest.param(["--image-features", "i", "--server", "s"], 2, "either --image-features", id="both ways"),
        pytest.param(["--image-features", "i"], 2, "--composer is missing", id="no composer"),
        pytest.param(["--image-features", "i", "--composer", "text"], 2, "give --text-features", id="no texts"),
        pytest.param(["--image-features", "/no", "--composer", "image"], 1, "no file /no", id="absent features"),
        pytest.param(
            ["--image-features", "i", "--composer", "image", "--images", "d"],
            2,
            "--images belongs to --server",
            id="images",
        ),
        pytest.param(
            ["--server", "s", "--composer", "sum:0.5"], 2, "is not something a server answers", id="served sum"
        ),
        pytest.param(["--server", "s", "--text-features", "t"], 2, "--text-features belongs to", id="served texts"),
        pytest.param(["--image-features", "i", "--tasks", "focus"], 1, "not 'focus'", id="task"),
        pytest.param(["--image-features", "i", "--tasks", "attribute"], 1, "focus_attribute.json", id="no such half"),
        pytest.param(["--image-features", "i", "--mode", "focus"], 2, "must be none or task, got 'focus'", id="mode"),
        pytest.param(
            ["--image-features", "i", "--composer", "image", "--composer", "image"], 2, "given twice", id="twice"
        ),
    ],
)
def test_options_that_fit_nothing_are_refused(tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    code, out, err = _run("genecis", "--annotations", _genecis(tmp_path), *arguments)

    assert (code, out) == (status, "")
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cirr", "--split", "test"], "--split must be val or test1, got 'test'"),
        (["fashioniq", "--pool", "all"], "--pool must be original or val, got 'all'"),
        (["fashioniq", "--captions", "one"], "--captions must be joined or both-orders, got 'one'"),
        (["circo", "--split", "dev"], "--split must be val or test, got 'dev'"),
        (["templates", "--cutoffs", "3,1"], "--cutoffs must be ascending numbers from 1"),
        (["templates", "--cutoffs", "a"], "--cutoffs must be ascending numbers from 1"),
        (["gldv2"], "give --image-features with --index-features"),
        (["gldv2", "--index-features", "x"], "--image-features is missing"),
        (["gldv2", "--server", "s", "--tasks", "gap"], "--tasks must be of retrieval, recognition, got 'gap'"),
        (["gldv2", "--server", "s", "--image-features", "x"], "leave features and submissions out"),
    ],
)
def test_options_of_one_benchmark_are_checked_first(tmp_path: Path, arguments: list[str], message: str) -> None:
    code, _, err = _run(arguments[0], "--annotations", tmp_path, *arguments[1:])

    assert code == 2
    assert message in err
