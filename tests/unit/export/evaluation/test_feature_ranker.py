from pathlib import Path

import numpy as np
import pytest
from tests.unit.export.evaluation import oracle
from tests.unit.export.evaluation.folders import (
    DIM,
    circo_folder,
    cirr_folder,
    fashioniq_folder,
    lists_of,
    object_template,
    object_templates,
    pool_of,
    random_features,
    right_of,
    write_features,
    write_json,
)

from likewise.export.evaluation import feature_ranker, reports
from likewise.export.evaluation.circo import read_circo
from likewise.export.evaluation.cirr import read_cirr
from likewise.export.evaluation.composers import make_composer
from likewise.export.evaluation.fashioniq import Captions, Pool, read_fashioniq
from likewise.export.evaluation.feature_ranker import FeatureRanker
from likewise.export.evaluation.features import read_features
from likewise.export.evaluation.genecis import read_genecis
from likewise.export.evaluation.problems import EvaluationError
from likewise.export.evaluation.task import Benchmark

CASES = [("image", "image", 0.0), ("text", "text", 1.0), ("sum:0.3", "sum", 0.3)]


class Measured:
    """A benchmark measured on random features of its own keys and texts, with the features at hand."""

    def __init__(self, folder: Path, benchmark: Benchmark, composer: str, *, dim: int = DIM, seed: int = 0) -> None:
        self.images = random_features((k for t in benchmark.tasks for k in t.image_keys()), dim=dim, seed=seed)
        texts = {text for task in benchmark.tasks for every in task.conditions for text in every}
        self.texts = random_features(texts, dim=dim, seed=seed + 1)
        self.ranker = FeatureRanker(
            read_features(write_features(folder / "images.parquet", self.images)),
            read_features(write_features(folder / "texts.parquet", self.texts, "text"), key="text"),
            make_composer(composer),
        )
        self.report = reports.run(benchmark, [self.ranker])
        self.tasks = self.report.to_json()["tasks"]

    def query(self, kind: str, weight: float, reference: str, conditions: tuple[str, ...]) -> np.ndarray:
        made = [oracle.compose(kind, self.images[reference], self.texts[text], weight) for text in conditions]
        return oracle.unit(np.sum(made, axis=0))


@pytest.mark.parametrize(("name", "kind", "weight"), CASES)
def test_genecis_at_its_real_size_is_what_plain_loops_find(tmp_path: Path, name: str, kind: str, weight: float) -> None:
    templates = object_templates(1960)
    write_json(tmp_path / "change_object.json", templates)

    measured = Measured(tmp_path, read_genecis(tmp_path), name, dim=32)

    hits = {1: 0.0, 2: 0.0, 3: 0.0}
    for template in templates:
        query = measured.query(kind, weight, str(template["reference"]["val_image_id"]), (template["condition"],))
        target = str(template["target"]["val_image_id"])
        candidates = [target, *(str(image["val_image_id"]) for image in template["gallery"])]
        ranking = oracle.ranked(query, candidates, measured.images, {target})
        for k in hits:
            hits[k] += oracle.recall(ranking, {target}, k)
    found = measured.tasks["change_object"]
    assert found["n"] == 1960
    assert found["candidates"] == 15
    for k, count in hits.items():
        assert found[f"R@{k}"] == pytest.approx(100 * count / 1960, abs=1e-9)
        assert found["chance"][f"R@{k}"] == pytest.approx(100 * k / 15, abs=1e-9)


@pytest.mark.parametrize(("name", "kind", "weight"), CASES)
def test_cirr_is_what_plain_loops_find(tmp_path: Path, name: str, kind: str, weight: float) -> None:
    benchmark = read_cirr(cirr_folder(tmp_path))
    measured = Measured(tmp_path, benchmark, name)
    whole, subset = benchmark.tasks

    rows: dict[str, list[float]] = {metric: [] for metric in (*whole.metric_names(), *subset.metric_names())}
    for index, reference in enumerate(whole.references):
        query, right = measured.query(kind, weight, reference, whole.conditions[index]), set(right_of(whole)[index])
        ranking = oracle.ranked(query, set(pool_of(whole)) - {reference}, measured.images, right)
        members = [key for key in ranking if key in lists_of(subset)[index]]
        assert len(members) == 5
        for k in (1, 5, 10, 50):
            rows[f"R@{k}"].append(oracle.recall(ranking, right, k))
        for k in (1, 2, 3):
            rows[f"R_subset@{k}"].append(oracle.recall(members, right, k))
    for metric, values in rows.items():
        assert measured.tasks["val"][metric] == pytest.approx(100 * np.mean(values), abs=1e-9)


@pytest.mark.parametrize("captions", ["joined", "both-orders"])
@pytest.mark.parametrize("pool", ["original", "val"])
def test_fashioniq_is_what_plain_loops_find(tmp_path: Path, captions: Captions, pool: Pool) -> None:
    benchmark = read_fashioniq(fashioniq_folder(tmp_path), captions=captions, pool=pool)
    measured = Measured(tmp_path, benchmark, "sum:0.5")

    means: dict[str, list[float]] = {"R@10": [], "R@50": []}
    for task in benchmark.tasks:
        for metric, k in (("R@10", 10), ("R@50", 50)):
            hits = []
            for index, reference in enumerate(task.references):
                query, right = measured.query("sum", 0.5, reference, task.conditions[index]), set(right_of(task)[index])
                hits.append(oracle.recall(oracle.ranked(query, pool_of(task), measured.images, right), right, k))
            means[metric].append(100 * float(np.mean(hits)))
            assert measured.tasks[task.name][metric] == pytest.approx(means[metric][-1], abs=1e-9)
    for metric, values in means.items():
        assert measured.report.to_json()["mean"][metric] == pytest.approx(np.mean(values), abs=1e-9)


@pytest.mark.parametrize("block", [8192, 7])
def test_circo_is_what_plain_loops_find_in_blocks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(feature_ranker, "_ROWS", block)
    monkeypatch.setattr(feature_ranker, "_QUERIES", min(block, 1024))
    benchmark = read_circo(circo_folder(tmp_path))
    measured = Measured(tmp_path, benchmark, "sum:0.5")
    precision, recall = benchmark.tasks

    rows: dict[str, list[float]] = {name: [] for name in (*precision.metric_names(), *recall.metric_names())}
    for index, reference in enumerate(precision.references):
        query = measured.query("sum", 0.5, reference, precision.conditions[index])
        right, target = set(right_of(precision)[index]), set(right_of(recall)[index])
        for k in (5, 10, 25, 50):
            ranking = oracle.ranked(query, pool_of(precision), measured.images, right)
            rows[f"mAP@{k}"].append(oracle.average_precision(ranking, right, k))
            ranking = oracle.ranked(query, pool_of(recall), measured.images, target)
            rows[f"R@{k}"].append(oracle.recall(ranking, target, k))
    for metric, values in rows.items():
        assert measured.tasks["val"][metric] == pytest.approx(100 * np.mean(values), abs=1e-9)
    aspects = measured.tasks["val"]["slices"]["addition"]
    assert aspects["n"] == 10
    assert aspects["mAP@10"] == pytest.approx(100 * np.mean(rows["mAP@10"][1::2]), abs=1e-9)


@pytest.mark.parametrize("block", [8192, 7])
def test_the_best_of_a_pool_are_by_score_then_key_in_blocks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(feature_ranker, "_ROWS", block)
    benchmark = read_cirr(cirr_folder(tmp_path))
    measured = Measured(tmp_path, benchmark, "image")
    whole, subset = benchmark.tasks

    for task in (whole, subset):
        ranked = measured.ranker.top(task, 5)
        for index, reference in enumerate(task.references):
            query = oracle.unit(measured.images[reference])
            candidates = set(task.pool or lists_of(task)[index]) - {reference}
            assert list(ranked[index].keys) == oracle.ranked(query, candidates, measured.images)[:5]
            assert (np.diff(ranked[index].scores) <= 0).all()


def test_a_constant_scorer_never_exceeds_chance(tmp_path: Path) -> None:
    write_json(tmp_path / "g" / "change_object.json", object_templates(200))
    for benchmark in (
        read_genecis(tmp_path / "g"),
        read_circo(circo_folder(tmp_path)),
        read_cirr(cirr_folder(tmp_path)),
    ):
        keys = {key for task in benchmark.tasks for key in task.image_keys()}
        # The same direction at every length, with numbers that rounding does not keep.
        features = {key: np.full(DIM, 0.1) * (1 + index / 7) for index, key in enumerate(sorted(keys))}
        images = read_features(write_features(tmp_path / "same.parquet", features))

        report = reports.run(benchmark, [FeatureRanker(images, None, make_composer("image"))])

        for task in report.outcomes[0].tasks:
            for metric, value in task.values.items():
                assert value.value <= task.chance[metric], metric


def test_random_features_score_at_chance(tmp_path: Path) -> None:
    write_json(tmp_path / "change_object.json", object_templates(1960))

    (task,) = Measured(tmp_path, read_genecis(tmp_path), "image").report.outcomes[0].tasks

    for metric, value in task.values.items():
        assert value.low - 2 <= task.chance[metric] <= value.high + 2


def test_figures_do_not_depend_on_the_order_of_galleries_templates_or_files(tmp_path: Path) -> None:
    templates = object_templates(60)
    rng = np.random.default_rng(3)
    shuffled = [
        template | {"gallery": [template["gallery"][i] for i in rng.permutation(14)]}
        for template in (templates[i] for i in rng.permutation(60))
    ]
    write_json(tmp_path / "a" / "change_object.json", templates)
    write_json(tmp_path / "b" / "change_object.json", shuffled)

    one, other = (Measured(tmp_path, read_genecis(tmp_path / name), "sum:0.5").tasks for name in "ab")

    for k in (1, 2, 3):
        assert one["change_object"][f"R@{k}"] == other["change_object"][f"R@{k}"]


def test_a_contradictory_template_is_missed_and_reported_apart(tmp_path: Path) -> None:
    rows = [object_template(7, "dog", 1, [2, 3]), object_template(7, "dog", 1, [2, 1])]
    write_json(tmp_path / "change_object.json", rows)
    features = {"7": [1.0, 0.0], "1": [1.0, 0.1], "2": [0.0, 1.0], "3": [-1.0, 0.0]}
    images = read_features(write_features(tmp_path / "i.parquet", {key: np.array(v) for key, v in features.items()}))

    report = reports.run(read_genecis(tmp_path), [FeatureRanker(images, None, make_composer("image"))])

    found = report.to_json()["tasks"]["change_object"]
    assert (found["R@1"], found["R@2"]) == (50, 100)
    assert found["slices"]["without_contradictory"] == {"n": 1, "R@1": 100, "R@2": 100, "R@3": 100}
    assert report.to_json()["mean"]["without_contradictory"]["R@1"] == 100


def test_a_query_without_a_condition_is_searched_by_its_image(tmp_path: Path) -> None:
    write_json(tmp_path / "change_object.json", [object_template(7, " ", 1, [2]), object_template(7, "x", 1, [2])])
    images = {"7": np.array([1.0, 0.0]), "1": np.array([1.0, 0.1]), "2": np.array([0.0, 1.0])}
    ranker = FeatureRanker(
        read_features(write_features(tmp_path / "i.parquet", images)),
        read_features(write_features(tmp_path / "t.parquet", {"x": np.array([0.0, 3.0])}, "text"), key="text"),
        make_composer("text"),
    )

    positions = ranker.positions(read_genecis(tmp_path).tasks[0])

    assert [places.tolist() for places in positions] == [[1], [2]]


def test_what_is_missing_is_refused_before_any_task_is_ranked(tmp_path: Path) -> None:
    write_json(tmp_path / "focus_object.json", [object_template(7, "dog", 1, [2])])
    write_json(tmp_path / "change_object.json", [object_template(7, "cat", 1, [99])])
    images = read_features(write_features(tmp_path / "i.parquet", random_features(["7", "1", "2"])))
    texts = read_features(write_features(tmp_path / "t.parquet", random_features(["dog"]), "text"), key="text")
    benchmark = read_genecis(tmp_path)

    with pytest.raises(EvaluationError, match=r"i\.parquet: 1 of 2 candidate keys .* '99'"):
        reports.run(benchmark, [FeatureRanker(images, texts, make_composer("sum:0.5"))])
    with pytest.raises(EvaluationError, match=r"t\.parquet: 1 of 1 condition texts .* 'cat'"):
        FeatureRanker(images, texts, make_composer("text")).check(
            read_genecis(
                write_json(tmp_path / "b" / "change_object.json", [object_template(7, "cat", 1, [2])]).parent
            ).tasks[0]
        )
    with pytest.raises(EvaluationError, match="give their features with --text-features"):
        FeatureRanker(images, None, make_composer("text")).check(benchmark.tasks[0])


def test_features_of_two_spaces_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "focus_object.json", [object_template(7, "dog", 1, [2])])
    images = read_features(write_features(tmp_path / "i.parquet", random_features(["7", "1", "2"], dim=5)))
    texts = read_features(write_features(tmp_path / "t.parquet", random_features(["dog"], dim=4), "text"), key="text")
    (task,) = read_genecis(tmp_path).tasks

    with pytest.raises(EvaluationError, match="image features have 5 numbers, the text features 4"):
        FeatureRanker(images, texts, make_composer("sum:0.5")).check(task)
    with pytest.raises(EvaluationError, match="192 numbers for its reference, the image features have 5"):
        FeatureRanker(images, texts, make_composer("shapes-composer")).check(task)
