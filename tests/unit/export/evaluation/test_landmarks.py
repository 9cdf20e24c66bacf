from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.export.evaluation import oracle
from tests.unit.export.evaluation.folders import (
    random_features,
    right_of,
    write_csv,
    write_features,
)

from likewise.export.evaluation.composers import make_composer
from likewise.export.evaluation.feature_ranker import FeatureRanker
from likewise.export.evaluation.features import read_features
from likewise.export.evaluation.gldv2 import (
    read_recognition,
    read_recognition_predictions,
    read_retrieval,
    read_retrieval_predictions,
    read_train_labels,
    recognition_task,
)
from likewise.export.evaluation.landmarks import (
    predictions_from,
    recognition_report,
    retrieval_report,
    submission_report,
)
from likewise.export.evaluation.problems import EvaluationError

INDEX = [f"i{number:03d}" for number in range(300)]
TESTS = [f"t{number}" for number in range(12)]


def _retrieval(folder: Path, **changes: str) -> Path:
    rng = np.random.default_rng(0)
    rows = [
        {"id": test, "images": " ".join(rng.choice(INDEX, size=1 + rng.integers(20), replace=False)), "Usage": usage}
        for test, usage in zip(TESTS, ["Public", "Private", "Private"] * 4, strict=True)
    ]
    rows.append({"id": "t99", "images": "None", "Usage": "Ignored"})
    rows[0] |= changes
    return write_csv(folder / "retrieval_solution_v2.1.csv", rows).parent


def _recognition(folder: Path) -> Path:
    answers = {"a": "1", "b": "2 5", "c": "", "d": "4", "e": ""}
    rows = [{"id": test, "landmarks": landmarks, "Usage": "Public"} for test, landmarks in answers.items()]
    write_csv(folder / "recognition_solution_v2.1.csv", [*rows, {"id": "z", "landmarks": "", "Usage": "Ignored"}])
    return folder


def _ranker(folder: Path, tests: dict[str, Any], others: dict[str, Any]) -> FeatureRanker:
    images = read_features(write_features(folder / "t.parquet", tests))
    return FeatureRanker(
        images, None, make_composer("image"), read_features(write_features(folder / "o.parquet", others))
    )


def test_retrieval_is_what_plain_loops_find(tmp_path: Path) -> None:
    tests, index = random_features(TESTS), random_features(INDEX, seed=1)
    ranker = _ranker(tmp_path, tests, index)

    for task in read_retrieval(_retrieval(tmp_path), INDEX).tasks:
        report = retrieval_report(task, ranker.positions(task))

        values, first = [], []
        for test, right in zip(task.ids, right_of(task), strict=True):
            ranking = oracle.ranked(oracle.unit(tests[test]), INDEX, index, set(right))
            values.append(oracle.average_precision(ranking, set(right), 100))
            first.append(next((place for place, key in enumerate(ranking[:100], 1) if key in right), 101))
        assert report.values["mAP@100"].value == pytest.approx(100 * np.mean(values), abs=1e-9)
        assert report.facts["mean_first_place"] == pytest.approx(np.mean(first))
        assert report.facts["median_first_place"] == np.median(first)


def test_a_retrieval_submission_scores_what_it_leaves_out_as_zero(tmp_path: Path) -> None:
    rows = [
        {"id": "t0", "images": "x z", "Usage": "Public"},
        {"id": "t1", "images": "q", "Usage": "Public"},
    ]
    write_csv(tmp_path / "retrieval_solution_v2.1.csv", rows)
    path = write_csv(tmp_path / "mine.csv", [{"id": "t0", "images": "x y x z"}])
    (task,) = read_retrieval(tmp_path, None).tasks

    report = submission_report(task, read_retrieval_predictions(path, task.ids))

    # t0: (1/1 + 2/4) / 2 = .75, the repeated x taking a place; t1 is not answered.
    assert report.values["mAP@100"].value == pytest.approx(37.5)
    assert (report.answered, report.facts["repeated_predictions"]) == (1, 1)
    assert report.facts["mean_first_place"] == (1 + 101) / 2


def test_recognition_counts_every_answer_and_every_landmark(tmp_path: Path) -> None:
    (part,) = read_recognition(_recognition(tmp_path))
    answers = {"a": (1, 0.9), "b": (9, 0.8), "c": (3, 0.7), "d": (4, 0.6)}

    report = recognition_report(part, [answers.get(test) for test in part.ids])

    # Of three landmarks a and d are found: (1/1 + 2/4) / 3; the answer to c, which shows none, costs precision.
    assert report.values["GAP"].value == pytest.approx(50)
    assert report.values["top-1"].value == pytest.approx(100 * 2 / 3)
    assert (report.queries, report.answered, report.facts["with_landmark"]) == (5, 4, 3)


def test_any_of_several_landmarks_is_right(tmp_path: Path) -> None:
    (part,) = read_recognition(_recognition(tmp_path))

    report = recognition_report(part, [None, (5, 0.5), None, None, None])

    assert report.values["GAP"].value == pytest.approx(100 / 3)


def test_neighbours_vote_for_the_landmark(tmp_path: Path) -> None:
    write_csv(tmp_path / "train_clean.csv", [{"landmark_id": 1, "images": "p q"}, {"landmark_id": 4, "images": "r"}])
    (part,) = read_recognition(_recognition(tmp_path))
    labels = read_train_labels(tmp_path)
    train = {"p": [1.0, 0.0], "q": [1.0, 0.2], "r": [0.0, 1.0]}
    tests = {"a": [2.0, 0.1], "b": [0.0, 1.0], "c": [1.0, 1.0], "d": [0.1, 3.0], "e": [1.0, 0.0]}
    ranker = _ranker(tmp_path, tests, train)

    rankings = ranker.top(recognition_task(part, list(train), 2), 2)
    predictions = predictions_from(rankings, labels)

    assert labels == {"p": 1, "q": 1, "r": 4}
    answered = [answer for answer in predictions if answer is not None]
    assert [label for label, _ in answered] == [1, 4, 1, 4, 1]
    assert answered[0][1] == pytest.approx(float(rankings[0].scores.sum()))


def test_labels_come_from_the_whole_training_file_where_the_clean_one_is_not_there(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [{"id": "p", "url": "http://x", "landmark_id": 7}])

    assert read_train_labels(tmp_path) == {"p": 7}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": "i000 nope"}, r"line 2: right image 'nope' not among the 300 index images"),
        ({"images": ""}, r"line 2: 't0' has no right image and is not ignored"),
        ({"Usage": "Secret"}, r"Usage must be Public, Private or Ignored, got 'Secret'"),
    ],
)
def test_a_solution_that_cannot_be_scored_is_refused(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        read_retrieval(_retrieval(tmp_path, **changes), INDEX)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "a", "landmarks": "1"}], "one class and one score, got '1'"),
        ([{"id": "a", "landmarks": "1 nan"}], "a finite number, got 'nan'"),
        ([{"id": "a", "landmarks": "x 0.5"}], "a landmark is an integer, got 'x'"),
        ([{"id": "q", "landmarks": "1 0.5"}], "test image 'q' is not in the solution"),
        ([{"id": "a", "landmarks": ""}, {"id": "a", "landmarks": ""}], "test image 'a' is answered twice"),
        ([{"id": "a", "answer": ""}], "no column 'landmarks'"),
    ],
)
def test_a_submission_of_another_shape_is_refused(tmp_path: Path, rows: list[dict[str, str]], message: str) -> None:
    path = write_csv(tmp_path / "mine.csv", rows)

    with pytest.raises(EvaluationError, match=message):
        read_recognition_predictions(path, ["a", "b"])


def test_absent_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"retrieval_solution_v2\.1\.csv"):
        read_retrieval(tmp_path, INDEX)
    with pytest.raises(EvaluationError, match=r"recognition_solution_v2\.1\.csv"):
        read_recognition(tmp_path)
    with pytest.raises(EvaluationError, match=r"train_clean\.csv or train\.csv"):
        read_train_labels(tmp_path)
    with pytest.raises(EvaluationError, match="no folder"):
        read_retrieval(tmp_path / "nowhere", INDEX)
