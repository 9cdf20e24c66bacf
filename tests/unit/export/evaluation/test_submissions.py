import json
from pathlib import Path

import numpy as np
import pytest
from tests.unit.export.evaluation import oracle
from tests.unit.export.evaluation.folders import (
    circo_folder,
    cirr_folder,
    fashioniq_folder,
    lists_of,
    object_template,
    pool_of,
    random_features,
    write_features,
    write_json,
)

from likewise.export.evaluation.circo import read_circo
from likewise.export.evaluation.cirr import read_cirr
from likewise.export.evaluation.composers import make_composer
from likewise.export.evaluation.fashioniq import read_fashioniq
from likewise.export.evaluation.feature_ranker import FeatureRanker
from likewise.export.evaluation.features import read_features
from likewise.export.evaluation.genecis import read_genecis
from likewise.export.evaluation.problems import EvaluationError
from likewise.export.evaluation.submissions import write_submissions
from likewise.export.evaluation.task import Benchmark


def _ranker(folder: Path, benchmark: Benchmark) -> tuple[FeatureRanker, dict[str, np.ndarray]]:
    features = random_features(key for task in benchmark.tasks for key in task.image_keys())
    images = read_features(write_features(folder / "i.parquet", features))
    return FeatureRanker(images, None, make_composer("image")), features


def test_cirrs_files_are_those_that_its_server_takes(tmp_path: Path) -> None:
    benchmark = read_cirr(cirr_folder(tmp_path, split="test1"), split="test1")
    ranker, features = _ranker(tmp_path, benchmark)

    recall, subset = write_submissions(benchmark, ranker, tmp_path / "out")

    whole, five = (json.loads(path.read_text()) for path in (recall, subset))
    assert (whole.pop("version"), whole.pop("metric")) == ("rc2", "recall")
    assert (five.pop("version"), five.pop("metric")) == ("rc2", "recall_subset")
    assert list(whole) == list(five) == [str(12_000 + query) for query in range(30)]
    assert {len(set(names)) for names in whole.values()} == {50}
    assert {len(set(names)) for names in five.values()} == {3}
    for index, (pair, reference) in enumerate(zip(whole, benchmark.tasks[0].references, strict=True)):
        query = oracle.unit(features[reference])
        others = set(pool_of(benchmark.tasks[0])) - {reference}
        assert whole[pair] == oracle.ranked(query, others, features)[:50]
        assert five[pair] == oracle.ranked(query, set(lists_of(benchmark.tasks[1])[index]) - {reference}, features)[:3]


def test_circos_file_has_exactly_fifty_ids_a_query(tmp_path: Path) -> None:
    benchmark = read_circo(circo_folder(tmp_path, split="test"), split="test")
    ranker, _ = _ranker(tmp_path, benchmark)

    (path,) = write_submissions(benchmark, ranker, tmp_path / "out")

    rows = json.loads(path.read_text())
    assert list(rows) == [str(query) for query in range(20)]
    assert all(len(set(ids)) == 50 and all(isinstance(key, int) for key in ids) for ids in rows.values())
    # The reference stays a candidate, and by its own image it is the best one.
    assert rows["0"][0] == int(benchmark.tasks[0].references[0])


def test_fashioniqs_files_rank_each_candidate_in_order(tmp_path: Path) -> None:
    benchmark = read_fashioniq(fashioniq_folder(tmp_path, split="test"), split="test")
    ranker, _ = _ranker(tmp_path, benchmark)

    paths = write_submissions(benchmark, ranker, tmp_path / "out")

    rows = json.loads(paths[0].read_text())
    assert [path.name for path in paths] == ["dress.pred.json", "shirt.pred.json", "toptee.pred.json"]
    assert [row["candidate"] for row in rows] == list(benchmark.tasks[0].references)
    assert {len(row["ranking"]) for row in rows} == {50}


def test_a_gallery_too_small_for_a_submission_is_refused_and_nothing_written(tmp_path: Path) -> None:
    benchmark = read_circo(circo_folder(tmp_path, images=40, queries=2))
    ranker, _ = _ranker(tmp_path, benchmark)

    with pytest.raises(EvaluationError, match="exactly 50 images a query, val has 40 candidates"):
        write_submissions(benchmark, ranker, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_benchmark_with_public_labels_has_no_submission(tmp_path: Path) -> None:
    write_json(tmp_path / "change_object.json", [object_template(7, "dog", 1, [2])])
    benchmark = read_genecis(tmp_path)

    with pytest.raises(EvaluationError, match="its labels are public"):
        write_submissions(benchmark, _ranker(tmp_path, benchmark)[0], tmp_path / "out")


def test_hidden_labels_cannot_be_measured(tmp_path: Path) -> None:
    benchmark = read_cirr(cirr_folder(tmp_path, split="test1"), split="test1")
    ranker, _ = _ranker(tmp_path, benchmark)

    with pytest.raises(EvaluationError, match="hidden labels"):
        ranker.positions(benchmark.tasks[0])
