"""The composers without training against their definitions, and against CRL's own form of the phrase basis."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402 - only where torch is installed
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from likewise.export.evaluate import Features, best_sum, unit  # noqa: E402
from likewise.export.parity import check_parity  # noqa: E402
from likewise.export.runtime import open_session, run_graph  # noqa: E402
from likewise.export.to_onnx import export_graph  # noqa: E402
from likewise.export.training.closed_form import (  # noqa: E402
    PhraseBasis,
    WeightedSum,
    add_blocks,
    compose_ranks,
    phrase_root,
    tune,
    two_block_features,
    two_block_images,
    two_block_texts,
    unframed,
)

DIM = 12


def _draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _features(seed: int, templates: int = 60) -> Features:
    rng = np.random.default_rng(seed)
    return Features(
        references=3 * _draw(templates, DIM, seed=seed),
        candidates=unit(_draw(templates, 10, DIM, seed=seed + 1)),
        targets=rng.integers(10, size=templates),
        bare=_draw(templates, DIM, seed=seed + 2),
        composed=5 * _draw(templates, DIM, seed=seed + 3),
        clusters=np.arange(templates),
    )


@given(st.integers(0, 1000), st.floats(0, 5))
@settings(max_examples=20, deadline=None)
def test_one_inner_product_ranks_as_crls_two_similarities_do(seed: int, beta: float) -> None:
    reference, gallery, condition = (_draw(n, DIM, seed=seed + n) for n in (1, 40, 2))
    condition = condition[:1]
    phrases = unit(_draw(30, DIM, seed=seed + 9))
    scene = unit(unit(reference) @ phrases.T) @ unit(unit(gallery) @ phrases.T).T
    wanted = unit(condition) @ unit(gallery).T
    expected = (scene + beta * wanted)[0]

    root = phrase_root(phrases)
    query = PhraseBasis(beta)(
        torch.from_numpy(two_block_images(reference, root)), torch.from_numpy(two_block_texts(condition))
    ).numpy()
    scores = (query @ unit(two_block_images(gallery, root)).T)[0]

    assert np.linalg.norm(query) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(scores * np.sqrt(2) * np.sqrt(1 + beta**2), expected, atol=2e-5)


def test_the_root_squared_is_the_phrases_inner_products() -> None:
    phrases = _draw(30, DIM)

    root = phrase_root(phrases)

    np.testing.assert_allclose(root @ root, unit(phrases).T @ unit(phrases), atol=1e-4)
    np.testing.assert_allclose(root, root.T, atol=1e-6)


def test_the_weighted_sum_ranks_as_the_baseline_of_the_same_weight() -> None:
    features = _features(3)
    ranks, setup = best_sum(features)
    weight = float(setup.split()[2].rstrip(","))
    composed = unframed(features) if "bare" in setup else features

    assert np.array_equal(compose_ranks(WeightedSum(weight).eval(), composed), ranks)


def test_the_raw_length_of_a_feature_does_not_weigh_in_a_sum() -> None:
    reference, condition = torch.from_numpy(_draw(4, DIM)), torch.from_numpy(_draw(4, DIM, seed=1))
    composer = WeightedSum(0.3)

    assert torch.allclose(composer(reference, condition), composer(9 * reference, condition / 5), atol=1e-6)


def test_tuning_takes_the_number_with_the_best_mean_and_the_first_of_equals() -> None:
    features = _features(5)
    text_only = Features(
        features.references,
        features.candidates,
        (unit(features.composed)[:, None] * features.candidates).sum(2).argmax(1),
        features.bare,
        features.composed,
        features.clusters,
    )

    assert tune(WeightedSum, (0.0, 0.5, 1.0), {"task": text_only}) == (1.0, True, 100.0)
    assert tune(WeightedSum, (0.9, 0.9), {"task": text_only})[0] == 0.9


def test_tuning_takes_texts_as_typed_where_frames_do_harm() -> None:
    features = _features(7)
    named = replace(features, targets=(unit(features.bare)[:, None] * features.candidates).sum(2).argmax(1))

    assert tune(WeightedSum, (0.0, 1.0), {"task": named}) == (1.0, False, 100.0)


@pytest.mark.parametrize("make", [lambda: WeightedSum(0.35), lambda: PhraseBasis(0.4)])
def test_it_exports_like_any_composer(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    module = make().eval()

    def sample(batch: int) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(_draw(batch, DIM, seed=batch + i)) for i in range(2))

    export_graph(module, sample(2), tmp_path / "model.onnx", names=("reference", "condition"), output="query")

    assert check_parity(module, tmp_path / "model.onnx", sample).largest_difference < 1e-5


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, DIM)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.linear(x)
        return features


def test_an_encoders_graph_gets_its_second_block_without_its_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export_graph(_Encoder().eval(), (torch.randn(2, 7),), tmp_path / "one.onnx", names=("x",), output="features")
    source, root = (tmp_path / "one.onnx").read_bytes(), phrase_root(_draw(30, DIM))
    (tmp_path / "image.onnx").write_bytes(add_blocks(source, root))
    (tmp_path / "text.onnx").write_bytes(add_blocks(source, None))

    for batch in (1, 2, 7):
        x = _draw(batch, 7, seed=batch)
        features = run_graph(open_session(tmp_path / "one.onnx"), x)
        image, text = (run_graph(open_session(tmp_path / f"{name}.onnx"), x) for name in ("image", "text"))
        np.testing.assert_allclose(image, two_block_images(features, root), atol=1e-5)
        np.testing.assert_allclose(text, two_block_texts(features), atol=1e-6)
    assert [out.name for out in open_session(tmp_path / "image.onnx").get_outputs()] == ["features"]


def test_templates_keep_their_unit_candidates_in_the_two_block_space() -> None:
    features = two_block_features(_features(1), phrase_root(_draw(20, DIM)))

    np.testing.assert_allclose(np.linalg.norm(features.candidates, axis=2), 1, atol=1e-5)
    assert features.references.shape[1] == features.composed.shape[1] == 2 * DIM
