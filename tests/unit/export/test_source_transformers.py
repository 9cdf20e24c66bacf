from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("open_clip")

from tests.unit.export import small_models  # noqa: E402

from likewise.export.model_repository import Model, load_repository  # noqa: E402
from likewise.export.parity import ParityError  # noqa: E402
from likewise.export.preprocess import preprocessing_of, to_tensor  # noqa: E402
from likewise.export.runtime import open_session, run_graph  # noqa: E402
from likewise.export.sources import golden, hugging_face  # noqa: E402
from likewise.export.sources.checkpoint import CheckpointError, SourceError  # noqa: E402
from likewise.export.sources.publish import Target, publish_source  # noqa: E402
from likewise.export.tokenizer import tokenizer_of  # noqa: E402

_TEXTS = ["a red star", "two cats sleeping in a kitchen", "A DOG"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    makers = {
        "clip": small_models.clip_folder,
        "siglip": small_models.siglip_folder,
        "vit": small_models.vit_folder,
        "dino": small_models.dino_folder,
        "dino3": small_models.dino3_folder,
        "siglip2": small_models.siglip2_folder,
    }
    return {name: make(root / name) for name, make in makers.items()}


@pytest.fixture(scope="module")
def published(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Model, ...]]:
    made: dict[str, tuple[Model, ...]] = {}

    def publish(name: str) -> tuple[Model, ...]:
        if name not in made:
            target = Target(tmp_path_factory.mktemp(name) / "models", max_batch=8)
            made[name] = publish_source(hugging_face.load(str(folders[name])), target)
        return made[name]

    return publish


def _served_pixels(model: Model) -> Any:
    spec = preprocessing_of(model)
    return np.stack([to_tensor(picture, spec) for picture in golden.pictures(4)])


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2"])
def test_both_towers_compute_what_transformers_computes(
    name: str, folders: dict[str, Path], published: Callable[[str], tuple[Model, ...]]
) -> None:
    image, text = published(name)
    model = transformers.AutoModel.from_pretrained(folders[name]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[name])
    pixels = _served_pixels(image)
    with torch.no_grad():
        expected_image = model.get_image_features(pixel_values=torch.from_numpy(pixels)).pooler_output.numpy()
        ids = torch.from_numpy(small_models.ids_of(tokenizer, _TEXTS))
        expected_text = model.get_text_features(input_ids=ids).pooler_output.numpy()

    np.testing.assert_allclose(run_graph(open_session(image.file()), pixels), expected_image, atol=1e-4)
    read = run_graph(open_session(text.file()), tokenizer_of(text)(_TEXTS).ids)
    np.testing.assert_allclose(read, expected_text, atol=1e-4)


def test_clips_features_come_after_the_projection(
    folders: dict[str, Path], published: Callable[[str], tuple[Model, ...]]
) -> None:
    # The pooled output before it has 48 numbers here; in most models both have the same length and nobody would notice.
    image, text = published("clip")
    model = transformers.CLIPModel.from_pretrained(folders["clip"])

    assert image.manifest.dim == text.manifest.dim == model.config.projection_dim == small_models.DIM
    assert model.config.vision_config.hidden_size != small_models.DIM


@pytest.mark.parametrize("name", ["clip", "siglip", "vit", "dino", "dino3"])
def test_preprocessing_equals_the_models_own_processor(
    name: str, folders: dict[str, Path], published: Callable[[str], tuple[Model, ...]]
) -> None:
    processor = transformers.AutoImageProcessor.from_pretrained(folders[name])
    spec = preprocessing_of(published(name)[0])
    std = np.asarray(spec.std)[:, None, None]

    for picture in golden.pictures(16):
        expected = np.asarray(processor(images=picture, return_tensors="np")["pixel_values"][0])
        assert (np.abs(to_tensor(picture, spec) - expected) * std * 255).max() <= 1.01


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2"])
def test_token_ids_equal_the_models_own_on_odd_texts(
    name: str, folders: dict[str, Path], published: Callable[[str], tuple[Model, ...]]
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[name])

    ids = tokenizer_of(published(name)[1])(golden.ODD_TEXTS).ids

    np.testing.assert_array_equal(ids, small_models.ids_of(tokenizer, golden.ODD_TEXTS))


def test_siglips_texts_are_filled_up_to_the_models_length_with_its_padding(
    published: Callable[[str], tuple[Model, ...]],
) -> None:
    # SigLIP reads its padding: a shorter row gives another vector (big_vision#157).
    _, text = published("siglip")
    spec = text.manifest.tokenizer
    assert spec is not None

    ids = tokenizer_of(text)(["a dog"]).ids[0]

    assert len(ids) == spec.max_length == small_models.LENGTH
    assert (ids[-8:] == spec.pad_id).all()
    assert spec.pad_id != 0


def test_a_tokenizer_that_fills_up_on_the_left_does_so_here_too(
    published: Callable[[str], tuple[Model, ...]],
) -> None:
    _, text = published("siglip2")

    ids = tokenizer_of(text)(["a star"]).ids[0]

    assert (ids[:10] == 0).all()
    assert ids[-1] != 0


def test_a_vision_model_is_a_family_of_an_image_encoder_alone(
    folders: dict[str, Path], published: Callable[[str], tuple[Model, ...]]
) -> None:
    (image,) = published("vit")
    pixels = _served_pixels(image)
    model = transformers.ViTModel.from_pretrained(folders["vit"], add_pooling_layer=False).eval()
    with torch.no_grad():
        expected = model(pixel_values=torch.from_numpy(pixels)).last_hidden_state[:, 0].numpy()

    family = load_repository(image.folder.parents[1]).family(image.manifest.family)

    assert (family.text_encoder, family.composer) == (None, None)
    np.testing.assert_allclose(run_graph(open_session(image.file()), pixels), expected, atol=1e-4)


def test_dino_resizes_to_more_than_it_keeps_and_stretches_its_positions(
    published: Callable[[str], tuple[Model, ...]],
) -> None:
    (image,) = published("dino")
    spec = preprocessing_of(image)

    assert (spec.size, spec.resize_to, spec.crop) == (small_models.SIZE, 36, "center")
    assert image.manifest.inputs[0].shape == (-1, 3, small_models.SIZE, small_models.SIZE)


@pytest.mark.parametrize("name", ["clip", "siglip", "vit", "dino"])
def test_graphs_are_of_the_stated_opset_with_an_open_batch(
    name: str, published: Callable[[str], tuple[Model, ...]]
) -> None:
    for model in published(name):
        graph = onnx.load(str(model.file()))
        values = (*graph.graph.input, *graph.graph.output)

        assert [o.version for o in graph.opset_import if o.domain in ("", "ai.onnx")] == [18]
        assert {value.type.tensor_type.shape.dim[0].dim_param != "" for value in values} == {True}


def test_an_old_configuration_that_pools_at_the_highest_id_is_exported(tmp_path: Path) -> None:
    # eos_token_id 2 of early checkpoints (transformers#24773): pooled at the highest id, which is the end of the text.
    folder = small_models.clip_folder(tmp_path / "old", end=2)

    _, text = publish_source(hugging_face.load(str(folder)), Target(tmp_path / "models", max_batch=8))

    first, second = run_graph(open_session(text.file()), tokenizer_of(text)(["a dog", "a cat"]).ids)
    assert not np.allclose(first, second, atol=1e-3)


def test_an_end_token_that_the_tokenizer_never_writes_is_refused(tmp_path: Path) -> None:
    folder = small_models.clip_folder(tmp_path / "wrong", end=7)

    with pytest.raises(SourceError, match=r"pooled at token 7 .*its tokenizer ends texts with 2013"):
        hugging_face.load(str(folder))


def test_a_text_tower_that_gives_one_vector_for_all_texts_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    source = hugging_face.load(str(folders["clip"]))
    assert source.text is not None
    # As if it had got past the check above.
    source.text.module.model.text_model.eos_token_id = 7  # type: ignore[union-attr]

    with pytest.raises(ParityError, match="different inputs have one and the same output"):
        publish_source(source, Target(tmp_path / "models", max_batch=8))

    assert not (tmp_path / "models").exists()


def test_a_tokenizer_with_more_tokens_than_the_text_tower_is_refused(tmp_path: Path) -> None:
    folder = small_models.clip_folder(tmp_path / "few", tokens=1000)
    source = hugging_face.load(str(folder))

    with pytest.raises(SourceError, match="ids up to 2013, the text tower vectors for 1000"):
        publish_source(source, Target(tmp_path / "models"))


def test_a_tokenizer_that_is_longer_than_the_text_tower_reads_is_refused_with_the_fix(tmp_path: Path) -> None:
    folder = small_models.clip_folder(tmp_path / "long", length=77)

    with pytest.raises(SourceError, match=r"makes 77 tokens.*reads 20: set its length to 20 \(--max-length\)"):
        publish_source(hugging_face.load(str(folder)), Target(tmp_path / "models"))

    fitted = hugging_face.load(str(folder), max_length=small_models.LENGTH).text
    assert fitted is not None
    assert fitted.tokenizer.max_length == small_models.LENGTH


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda state: [state.pop(name) for name in list(state) if "layers.1.mlp" in name],
            r"8 of \d+ weights are missing \(text_model.encoder.layers.1.mlp.fc1.bias",
            id="missing",
        ),
        pytest.param(
            lambda state: state.update({"adapter.weight": torch.zeros(2)}),
            r"1 are unexpected \(adapter.weight\)",
            id="unexpected",
        ),
        pytest.param(
            lambda state: state.update({"visual_projection.weight": torch.zeros(5, 48)}),
            r"1 have another shape \(visual_projection.weight: \[5, 48\], expected \[24, 48\]\)",
            id="shape",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_counts_and_names(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    folder = small_models.clip_folder(tmp_path / "clip")
    _rewrite(folder, change)

    with pytest.raises(CheckpointError, match=message):
        hugging_face.load(str(folder))


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="its configuration cannot be loaded"):
        hugging_face.load(str(tmp_path))
    with pytest.raises(SourceError, match="nowhere: there is no such folder"):
        hugging_face.load(str(tmp_path / "nowhere"))


def test_a_model_without_a_processor_is_refused(tmp_path: Path) -> None:
    folder = small_models.vit_folder(tmp_path / "vit")
    (folder / "preprocessor_config.json").unlink()

    with pytest.raises(SourceError, match="its image processor cannot be loaded"):
        hugging_face.load(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.0078", id="rescale"),
        pytest.param({"size": {"height": 32, "width": 48}}, "neither a shortest edge nor a square", id="size"),
        pytest.param({"resample": 1}, "number 1 of PIL", id="filter"),
        pytest.param({"do_resize": False}, "does not resize", id="no resize"),
    ],
)
def test_an_image_processor_that_is_not_served_is_refused(changes: dict[str, Any], message: str) -> None:
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    for name, value in changes.items():
        setattr(processor, name, value)

    with pytest.raises(SourceError, match=message):
        hugging_face.preprocessing_from(processor, "mine")


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    transformers.BertModel(config).save_pretrained(tmp_path)

    with pytest.raises(SourceError, match="reads no pictures"):
        hugging_face.load(str(tmp_path))


def test_a_siglip_2_of_variable_resolution_is_refused_with_what_to_take_instead(tmp_path: Path) -> None:
    transformers.Siglip2Config().save_pretrained(tmp_path)

    with pytest.raises(SourceError, match="export a SigLIP 2 model of a fixed resolution"):
        hugging_face.load(str(tmp_path))
