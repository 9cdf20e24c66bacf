from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.unit.export.training.families import write_tiny  # noqa: E402 - only where torch is installed

from likewise.export.model_repository import Family, load_repository  # noqa: E402
from likewise.export.runtime import open_session, run_graph  # noqa: E402
from likewise.export.tokenizer import tokenizer_of  # noqa: E402
from likewise.export.training.encoders import EncodersError, restore  # noqa: E402

TEXTS = ["a red star on a white background", "a blue circle", "a green star"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return write_tiny(tmp_path_factory.mktemp("tiny"), TEXTS)


def _graph_texts(family: Family, texts: list[str]) -> np.ndarray:
    assert family.text_encoder is not None
    ids = tokenizer_of(family.text_encoder)(texts).ids
    return run_graph(open_session(family.text_encoder.file()), ids)


def test_weights_read_back_from_graphs_compute_what_the_graphs_compute(tiny: Family, tmp_path: Path) -> None:
    family = restore(tiny, TEXTS, tmp_path, seed=0)

    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        images = family.image(torch.from_numpy(pixels)).numpy()
        texts = family.text(torch.from_numpy(family.tokenise(TEXTS))).numpy()
    np.testing.assert_allclose(images, run_graph(open_session(tiny.image_encoder.file()), pixels), atol=1e-4)
    np.testing.assert_allclose(texts, _graph_texts(tiny, TEXTS), atol=1e-4)


def test_new_words_get_vectors_and_old_ones_keep_theirs(tiny: Family, tmp_path: Path) -> None:
    family = restore(tiny, [*TEXTS, "a zaffre hexagon"], tmp_path, seed=0)

    assert (family.tokenise(["a zaffre hexagon"])[0, :3] > 1).all()
    with torch.no_grad():
        known = family.text(torch.from_numpy(family.tokenise(TEXTS))).numpy()
        first, second = family.text(torch.from_numpy(family.tokenise(["zaffre", "hexagon"])))
    np.testing.assert_allclose(known, _graph_texts(tiny, TEXTS), atol=1e-4)
    assert not torch.allclose(first, second, atol=1e-3)


def test_the_built_in_family_can_be_trained_on(tmp_path: Path) -> None:
    built_in = load_repository().family("shapes")

    family = restore(built_in, ["a teal hexagon"], tmp_path, seed=0)

    assert sum(p.numel() for p in family.image.parameters()) > 100_000


def test_graphs_of_another_form_are_refused_with_the_ways_that_are_left(tiny: Family, tmp_path: Path) -> None:
    assert tiny.text_encoder is not None
    wrong = replace(tiny, image_encoder=replace(tiny.image_encoder, folder=tiny.text_encoder.folder))

    with pytest.raises(EncodersError, match=r"family 'tiny' cannot be fine-tuned.*--encoders frozen"):
        restore(wrong, TEXTS, tmp_path, seed=0)


def test_a_family_without_texts_cannot_be_fine_tuned(tiny: Family, tmp_path: Path) -> None:
    with pytest.raises(EncodersError, match="has no text encoder"):
        restore(replace(tiny, text_encoder=None), TEXTS, tmp_path, seed=0)
