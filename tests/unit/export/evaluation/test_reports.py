import json
from pathlib import Path

import numpy as np
import pytest
from tests.unit.export.evaluation.folders import object_templates, random_features, write_features, write_json

from likewise.export.evaluation import reports
from likewise.export.evaluation.bootstrap import mean_of, means_of_tasks, of_statistic
from likewise.export.evaluation.composers import make_composer
from likewise.export.evaluation.feature_ranker import FeatureRanker
from likewise.export.evaluation.features import read_features
from likewise.export.evaluation.genecis import read_genecis


def _report(
    folder: Path, *composers: str, tasks: tuple[str, ...] = ("focus_object", "change_object")
) -> reports.Report:
    for number, name in enumerate(tasks):
        write_json(folder / f"{name}.json", object_templates(120, references=20, seed=number))
    benchmark = read_genecis(folder)
    images = write_features(folder / "i.parquet", random_features(k for t in benchmark.tasks for k in t.image_keys()))
    texts = random_features(text for task in benchmark.tasks for every in task.conditions for text in every)
    features = read_features(images), read_features(write_features(folder / "t.parquet", texts, "text"), key="text")
    return reports.run(benchmark, [FeatureRanker(*features, make_composer(name)) for name in composers])


def test_the_report_has_what_the_field_reports(tmp_path: Path) -> None:
    content = json.loads(json.dumps(_report(tmp_path, "sum:0.5").to_json()))

    task = content["tasks"]["focus_object"]
    assert (content["benchmark"], content["composer"], content["unit"]) == ("genecis", "sum:0.5", "percent")
    assert (task["n"], task["candidates"], task["references"]) == (120, 15, 20)
    for metric in ("R@1", "R@2", "R@3"):
        low, high = task["interval"][metric]
        assert low <= task[metric] <= high
        rows = [content["tasks"][name][metric] for name in content["tasks"]]
        assert content["mean"][metric] == pytest.approx(np.mean(rows), abs=1e-9)
    assert content["mean"]["label"] == "object half (2 of 4 tasks)"
    assert content["how"]["way"] == "features"


def test_a_second_composer_is_compared_with_the_first_on_the_same_queries(tmp_path: Path) -> None:
    report = _report(tmp_path, "image", "sum:0.5", "sum:0")

    content = report.to_json()
    assert [one["composer"] for one in content["others"]] == ["sum:0.5", "sum:0"]
    one, same = content["differences"]
    assert (one["composer"], one["minus"]) == ("sum:0.5", "image")
    for task in ("focus_object", "change_object"):
        gap = content["others"][0]["tasks"][task]["R@1"] - content["tasks"][task]["R@1"]
        assert one["values"][task]["R@1"]["value"] == pytest.approx(gap, abs=1e-9)
    # sum:0 is the image alone: paired, their difference is zero in every resample.
    assert same["values"]["mean"]["R@1"] == {"value": 0, "interval": [0, 0]}


def test_queries_that_share_a_reference_count_as_one_observation() -> None:
    values = np.repeat([0.0, 1.0] * 20, 25)

    alone = mean_of(values, [str(number) for number in range(1000)])
    shared = mean_of(values, [str(number // 25) for number in range(1000)])

    assert shared.high - shared.low > 3 * (alone.high - alone.low)


def test_a_reference_shared_by_two_tasks_is_drawn_for_both_at_once() -> None:
    rng = np.random.default_rng(0)
    row = (rng.random(200) < 0.5).astype(float)
    keys = [str(number) for number in range(200)]
    others = [f"other {number}" for number in range(200)]

    # Opposite outcomes on the same references cancel out in the mean, on different ones they do not.
    shared = means_of_tasks([{"R@1": row}, {"R@1": 1 - row}], [keys, keys])["R@1"]
    apart = means_of_tasks([{"R@1": row}, {"R@1": 1 - row}], [keys, others])["R@1"]

    assert (shared.value, shared.low, shared.high) == pytest.approx((50, 50, 50))
    assert apart.high - apart.low > 5


def test_the_mean_weighs_tasks_equally_whatever_their_size() -> None:
    found = means_of_tasks([{"R@1": np.ones(3)}, {"R@1": np.zeros(500)}], [["a"] * 3, [str(i) for i in range(500)]])

    assert found["R@1"].value == pytest.approx(50)


def test_the_interval_of_a_mean_is_that_of_its_statistic() -> None:
    values = (np.random.default_rng(1).random(300) < 0.3).astype(float)

    by_mean = mean_of(values, [str(number) for number in range(300)])
    by_statistic = of_statistic(lambda weights: float(values @ weights / weights.sum()), 300)

    assert by_statistic.value == pytest.approx(by_mean.value)
    assert (by_statistic.low, by_statistic.high) == pytest.approx((by_mean.low, by_mean.high), abs=1)
