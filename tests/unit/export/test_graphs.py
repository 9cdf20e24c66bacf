from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402 - only where torch is installed

from likewise.export.combiner import Combiner, CombinerConfig  # noqa: E402
from likewise.export.model_repository import load_repository  # noqa: E402
from likewise.export.networks import ImageConfig, TextConfig, TextEncoder  # noqa: E402
from likewise.export.parity import Parity, ParityError, check_parity  # noqa: E402
from likewise.export.repository import write_family  # noqa: E402
from likewise.export.shapes.publish import FAMILY, TorchFamily, publish  # noqa: E402
from likewise.export.shapes.train import ShapesModel, masked_cross_entropy, pixels  # noqa: E402
from likewise.export.to_onnx import export_graph  # noqa: E402
from likewise.export.tokenizer import Tokenizer, write_word_tokenizer  # noqa: E402

_SMALL = CombinerConfig(dim=12, projection=16, hidden=24, dropout=0.5)


def _features(batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    reference, condition = 3 * torch.randn((2, batch, 12), generator=generator)
    return reference, condition


@pytest.fixture(scope="module")
def combiner() -> Combiner:
    torch.manual_seed(0)
    return Combiner(_SMALL).eval()


@pytest.fixture(scope="module")
def graph(combiner: Combiner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_graph(combiner, _features(2), path, names=("reference", "condition"), output="query")
    return path


def test_the_exported_combiner_agrees_with_torch_at_every_batch(combiner: Combiner, graph: Path) -> None:
    parity = check_parity(combiner, graph, _features, max_batch=33)

    assert isinstance(parity, Parity)
    assert parity.largest_difference < 1e-5


def test_a_graph_of_other_weights_is_refused(graph: Path) -> None:
    torch.manual_seed(1)

    with pytest.raises(ParityError, match="batch 1: unit vectors differ by"):
        check_parity(Combiner(_SMALL).eval(), graph, _features)


def test_the_combiner_gives_unit_vectors_and_tells_reference_from_condition(combiner: Combiner) -> None:
    reference, condition = _features(5)

    query, swapped = combiner(reference, condition), combiner(condition, reference)

    assert torch.allclose(query.norm(dim=1), torch.ones(5), atol=1e-6)
    assert not torch.allclose(query, swapped, atol=1e-2)


def test_the_combiner_follows_the_papers_formula(combiner: Combiner) -> None:
    reference, condition = _features(3)

    joint = torch.cat([combiner.text(condition), combiner.image(reference)], 1)
    share = combiner.gate(joint)
    expected = combiner.output(combiner.combine(joint)) + share * condition + (1 - share) * reference

    assert torch.allclose(combiner(reference, condition), nn.functional.normalize(expected, dim=1))


def test_a_module_in_training_mode_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="training mode"):
        export_graph(Combiner(_SMALL).train(), _features(2), tmp_path / "m.onnx", names=("a", "b"), output="q")


def test_an_example_batch_of_one_is_refused(combiner: Combiner, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have a batch of 2"):
        export_graph(combiner, _features(1), tmp_path / "m.onnx", names=("a", "b"), output="q")


def test_padding_does_not_change_a_text() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(20, dim=12, width=16, max_length=8)).eval()
    ids = torch.tensor([[3, 4, 5]], dtype=torch.int32)
    padded = torch.tensor([[3, 4, 5, 0, 0, 0, 0, 0]], dtype=torch.int32)

    assert torch.allclose(encoder(ids), encoder(padded), atol=1e-6)


def test_an_empty_text_has_finite_features() -> None:
    encoder = TextEncoder(TextConfig(20, dim=12, width=16, max_length=8)).eval()

    assert torch.isfinite(encoder(torch.zeros((1, 8), dtype=torch.int32))).all()


def test_excused_candidates_take_no_part_in_the_loss() -> None:
    logits = torch.tensor([[2.0, 9.0, 1.0]])
    excused = torch.tensor([[False, True, False]])

    loss = masked_cross_entropy(logits, torch.tensor([0]), excused)

    assert loss.item() == pytest.approx(np.log(1 + np.exp(-1.0)), abs=1e-6)


def _model(tmp_path: Path) -> tuple[ShapesModel, Path]:
    torch.manual_seed(0)
    file = tmp_path / "tokenizer.json"
    size = write_word_tokenizer(file, ["a red star", "same colour"])
    image = ImageConfig(dim=12, widths=(4, 4, 6, 6), conjunctions=8, hidden=8)
    text = TextConfig(size, dim=12, width=16, max_length=40)
    return ShapesModel(image, text, _SMALL).eval(), file


def test_a_published_family_reads_back_and_computes_what_torch_computes(tmp_path: Path) -> None:
    from likewise.export.runtime import load_family

    model, file = _model(tmp_path)

    publish(model, file, tmp_path / "repository", evaluation={"mean": 1.0})

    onnx = load_family(tmp_path / "repository", FAMILY)
    ours = TorchFamily(model, Tokenizer(file, max_length=40))
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    texts = ["a red star", "same colour", "zebra"]
    np.testing.assert_allclose(onnx.encode_images(images), ours.encode_images(images), atol=1e-4)
    np.testing.assert_allclose(onnx.encode_texts(texts), ours.encode_texts(texts), atol=1e-4)
    query = onnx.compose(onnx.encode_images(images), onnx.encode_texts(texts))
    np.testing.assert_allclose(np.linalg.norm(query, axis=1), 1, atol=1e-5)
    config = (tmp_path / "repository" / "shapes-composer" / "config.pbtxt").read_text()
    assert 'platform: "onnxruntime_onnx"' in config


def test_a_failed_check_leaves_the_repository_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from likewise.export import repository

    model, file = _model(tmp_path)
    publish(model, file, tmp_path / "repository", evaluation={"run": 1})
    before = {p: p.read_bytes() for p in (tmp_path / "repository").rglob("*") if p.is_file()}
    checked: list[str] = []

    def fail_on_the_last(module: nn.Module, path: Path, sample: Callable[..., object], **_: int) -> None:
        checked.append(path.parent.parent.name)
        if path.parent.parent.name == "shapes-composer":
            raise ParityError("forced")

    monkeypatch.setattr(repository, "check_parity", fail_on_the_last)
    with pytest.raises(ParityError, match="forced"):
        publish(model, file, tmp_path / "repository", evaluation={"run": 2})

    assert checked == ["shapes-image", "shapes-text", "shapes-composer"]
    assert {p: p.read_bytes() for p in (tmp_path / "repository").rglob("*") if p.is_file()} == before
    assert load_repository(tmp_path / "repository").latest("shapes-image").manifest.evaluation["run"] == 1
    assert callable(write_family)


def test_training_pixels_equal_served_pixels() -> None:
    from PIL import Image

    from likewise.export.preprocess import to_tensor
    from likewise.export.shapes.publish import PREPROCESSING

    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)

    trained = pixels(image[None])[0].numpy()

    np.testing.assert_allclose(trained, to_tensor(Image.fromarray(image), PREPROCESSING), atol=1e-6)
