from pathlib import Path

import numpy as np
import pytest

from likewise.export.evaluation.composers import framed, make_composer, unit_rows
from likewise.export.evaluation.problems import EvaluationError
from likewise.export.manifest import ManifestError
from likewise.export.runtime import load_family

IMAGE, TEXT = np.array([[4.0, 0.0]]), np.array([[0.0, 1.0]])


def test_the_sum_is_of_raw_features_and_the_unit_sum_of_unit_ones() -> None:
    raw = make_composer("sum:0.5").compose(IMAGE, TEXT)
    unit = make_composer("unit-sum:0.5").compose(IMAGE, TEXT)

    assert raw == pytest.approx(np.array([[4, 1]]) / np.sqrt(17))
    assert unit == pytest.approx(np.array([[1, 1]]) / np.sqrt(2))


def test_the_weight_is_the_texts() -> None:
    assert make_composer("sum:1").compose(IMAGE, TEXT) == pytest.approx(TEXT)
    assert make_composer("sum:0").compose(IMAGE, TEXT) == pytest.approx(unit_rows(IMAGE))
    assert make_composer("text").compose(IMAGE, TEXT) == pytest.approx(TEXT)
    assert make_composer("image").compose(IMAGE, TEXT) == pytest.approx(unit_rows(IMAGE))


def test_only_a_composer_that_reads_the_text_asks_for_it() -> None:
    assert not make_composer("image").reads_text
    assert not make_composer("sum:0").reads_text
    assert make_composer("text").reads_text


def test_what_cancels_out_leaves_zeros_and_no_nan() -> None:
    assert make_composer("sum:0.5").compose(TEXT, -TEXT).tolist() == [[0, 0]]


def test_a_composer_of_the_repository_gives_what_its_graph_gives() -> None:
    rng = np.random.default_rng(0)
    references, conditions = (5 * rng.normal(size=(150, 192)).astype(np.float32) for _ in range(2))

    made = make_composer("shapes-composer/1").compose(references.astype(np.float64), conditions.astype(np.float64))

    graph = load_family(None, "shapes").compose(references[:64], conditions[:64])
    assert made.shape == (150, 192)
    assert made[:64] == pytest.approx(graph, abs=1e-6)
    assert np.linalg.norm(made, axis=1) == pytest.approx(np.ones(150))


def test_conditions_go_into_the_frame_of_their_mode() -> None:
    prompts = make_composer("shapes-composer").prompts

    assert [framed(prompts, "blue", mode) for mode in ("", "focus", "change")] == ["blue", "same blue", "now blue"]
    assert framed(make_composer("text").prompts, "blue", "focus") == "blue"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nope", "no composer 'nope': expected image, text, sum:W.* has shapes-composer"),
        ("shapes-composer/9", "no composer 'shapes-composer/9'"),
        ("shapes-image", "'shapes-image' is no composer, its kind is image encoder"),
        ("sum", "weight must be a number from 0 to 1"),
        ("sum:", "weight must be a number from 0 to 1"),
        ("sum:1.5", "weight must be a number from 0 to 1"),
        ("sum:nan", "weight must be a number from 0 to 1"),
        ("unit-sum:x", "weight must be a number from 0 to 1"),
    ],
)
def test_a_composer_that_is_none_is_refused(name: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        make_composer(name)


def test_an_absent_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no model repository"):
        make_composer("mine", tmp_path / "nowhere")
