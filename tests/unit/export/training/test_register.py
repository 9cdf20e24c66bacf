from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.unit.export.training.families import TINY, write_tiny  # noqa: E402 - only where torch is installed

from likewise.export.combiner import Combiner, CombinerConfig  # noqa: E402
from likewise.export.manifest import ManifestError  # noqa: E402
from likewise.export.model_repository import Family, load_repository  # noqa: E402
from likewise.export.parity import ParityError  # noqa: E402
from likewise.export.runtime import load_family  # noqa: E402
from likewise.export.training import register as registering  # noqa: E402
from likewise.export.training.closed_form import PhraseBasis, phrase_root, two_block_images, two_block_texts  # noqa: E402
from likewise.export.training.progress import TrainingError  # noqa: E402
from likewise.export.training.register import check_target, register  # noqa: E402

DIM = TINY.dim


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return write_tiny(tmp_path_factory.mktemp("tiny"), ["a red star", "a blue circle"])


def _samples(dim: int = DIM) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((5, dim)).astype(np.float32) for _ in range(2))  # type: ignore[return-value]


def _composer(seed: int = 0) -> Combiner:
    torch.manual_seed(seed)
    return Combiner(CombinerConfig(DIM, 16, 32)).eval()


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_frozen_encoders_keep_their_space_so_that_galleries_stay_valid(tiny: Family, tmp_path: Path) -> None:
    done = register(tmp_path / "models", "mine", tiny, _composer(), _samples(), evaluation={"mean": 1})

    assert done.versions == {"mine-image": 1, "mine-text": 1, "mine-composer": 1}
    assert done.space == tiny.image_encoder.manifest.space
    family = load_repository(tmp_path / "models").family("mine")
    assert family.composer is not None
    assert family.composer.manifest.evaluation == {"mean": 1}
    assert set(family.composer.manifest.condition_templates) == {"unspecified", "focus", "change"}
    query = load_family(tmp_path / "models", "mine").compose(*_samples())
    np.testing.assert_allclose(query, _composer()(*map(torch.from_numpy, _samples())).detach().numpy(), atol=1e-5)
    assert 'name: "mine-composer"' in (tmp_path / "models" / "mine-composer" / "config.pbtxt").read_text()


def test_a_second_composer_becomes_the_next_version_and_encoders_are_not_written_again(
    tiny: Family, tmp_path: Path
) -> None:
    register(tmp_path / "models", "mine", tiny, _composer(0), _samples())
    before = _files(tmp_path / "models")

    done = register(tmp_path / "models", "mine", tiny, _composer(1), _samples())

    assert done.versions == {"mine-image": 1, "mine-text": 1, "mine-composer": 2}
    after = _files(tmp_path / "models")
    assert {path: after[path] for path in before} == before
    assert {path.parent.name for path in set(after) - set(before)} == {"2"}


def test_other_encoders_become_the_next_version_with_their_space(tiny: Family, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other", ["a red star", "a green leaf"], seed=1)
    register(tmp_path / "models", "mine", tiny, _composer(), _samples())

    done = register(tmp_path / "models", "mine", other, _composer(), _samples())

    assert set(done.versions.values()) == {2}
    assert (
        load_repository(tmp_path / "models").family("mine").image_encoder.manifest.space
        == done.space
        != (tiny.image_encoder.manifest.space)
    )


def test_the_phrase_basis_brings_encoders_of_twice_the_dimension(tiny: Family, tmp_path: Path) -> None:
    root = phrase_root(_samples()[0])
    images, texts = _samples()
    samples = (two_block_images(images, root), two_block_texts(texts))

    done = register(tmp_path / "models", "two", tiny, PhraseBasis(0.4).eval(), samples, root=root)

    family = load_repository(tmp_path / "models").family("two")
    assert {m.manifest.dim for m in (family.image_encoder, family.text_encoder, family.composer) if m} == {2 * DIM}
    assert done.space == family.image_encoder.manifest.space != tiny.image_encoder.manifest.space
    served = load_family(tmp_path / "models", "two")
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32)
    blocks = served.encode_images(pixels)
    np.testing.assert_allclose(np.linalg.norm(blocks, axis=1), np.sqrt(2), atol=1e-5)
    assert served.compose(blocks, served.encode_texts(["a star", "red"])).shape == (2, 2 * DIM)


def test_a_failed_check_leaves_the_repository_as_it_was(
    tiny: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tmp_path / "models", "mine", tiny, _composer(), _samples())
    before = _files(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise ParityError("forced")

    monkeypatch.setattr(registering, "check_parity", fail)
    with pytest.raises(ParityError, match="forced"):
        register(tmp_path / "models", "mine", tiny, _composer(1), _samples())

    assert _files(tmp_path) == before


def test_a_name_that_another_family_holds_is_refused(tiny: Family, tmp_path: Path) -> None:
    register(tmp_path / "models", "a", tiny, _composer(), _samples())
    (tmp_path / "models" / "a-image").rename(tmp_path / "models" / "b-image")

    with pytest.raises(ManifestError):
        register(tmp_path / "models", "b", tiny, _composer(), _samples())
    with pytest.raises(TrainingError, match="'shapes' is the name of a built-in family; choose another --name"):
        check_target(tmp_path / "models", "shapes")


def test_a_target_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "damaged" / "a" / "1").mkdir(parents=True)
    (tmp_path / "damaged" / "a" / "1" / "manifest.json").write_text("{}")

    check_target(tmp_path / "new", "mine")
    with pytest.raises(TrainingError, match=r"--name must match .*, got 'Bad Name'"):
        check_target(tmp_path / "new", "Bad Name")
    with pytest.raises(ManifestError, match="is a file, not a folder"):
        check_target(tmp_path / "file", "mine")
    with pytest.raises(ManifestError, match="manifest format None"):
        check_target(tmp_path / "damaged", "mine")
