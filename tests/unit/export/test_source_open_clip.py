import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

import open_clip  # noqa: E402 - tests.unit.export.conftest makes torchvision importable
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from open_clip.tokenizer import SimpleTokenizer  # noqa: E402
from tests.unit.export import small_models  # noqa: E402

from likewise.export.manifest import TokenizerSpec, read_manifest  # noqa: E402
from likewise.export.model_repository import Model, load_repository  # noqa: E402
from likewise.export.preprocess import preprocessing_of, to_tensor  # noqa: E402
from likewise.export.runtime import open_session, run_graph  # noqa: E402
from likewise.export.sources import golden, openclip  # noqa: E402
from likewise.export.sources.checkpoint import CheckpointError, SourceError  # noqa: E402
from likewise.export.sources.publish import Target, publish_source  # noqa: E402
from likewise.export.sources.towers import TOKENIZER_FILE, TextTower, check_tokenizer  # noqa: E402
from likewise.export.tokenizer import Tokenizer, tokenizer_of  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.open_clip_folder(tmp_path_factory.mktemp("open_clip") / "small")


@pytest.fixture(scope="module")
def published(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, ...]:
    target = Target(tmp_path_factory.mktemp("repository") / "models", max_batch=8)
    return publish_source(openclip.load(str(folder)), target)


@pytest.fixture(scope="module")
def original(folder: Path) -> Any:
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), transform, open_clip.get_tokenizer(f"local-dir:{folder}")


def test_both_towers_compute_what_open_clip_computes(published: tuple[Model, ...], original: Any) -> None:
    image, text = published
    model, transform, tokenizer = original
    pictures, texts = golden.pictures(5), ["a red star", "A DOG!", ""]
    with torch.no_grad():
        pixels = torch.stack([transform(picture) for picture in pictures])
        expected_image = model.encode_image(pixels).numpy()
        expected_text = model.encode_text(tokenizer(texts)).numpy()

    spec = preprocessing_of(image)
    served = run_graph(open_session(image.file()), np.stack([to_tensor(picture, spec) for picture in pictures]))
    read = run_graph(open_session(text.file()), tokenizer_of(text)(texts).ids)

    # A resized pixel may round one step apart; the features follow.
    np.testing.assert_allclose(served, expected_image, atol=2e-2 * float(np.abs(expected_image).max()))
    np.testing.assert_allclose(read, expected_text, atol=1e-4)


def test_features_are_raw(published: tuple[Model, ...]) -> None:
    image, _ = published
    spec = preprocessing_of(image)

    features = run_graph(open_session(image.file()), np.stack([to_tensor(p, spec) for p in golden.pictures(4)]))

    assert not np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-2)


def test_the_manifests_say_what_was_made_and_how_it_was_checked(published: tuple[Model, ...]) -> None:
    image, text = (read_manifest(model.folder / "manifest.json") for model in published)

    assert (image.name, image.kind, image.dim) == ("small-image", "image_encoder", small_models.DIM)
    assert text.inputs[0].dtype == "int32"
    assert text.inputs[0].shape == (-1, small_models.LENGTH)
    assert image.space == text.space
    parity = image.evaluation["parity"]
    assert parity["batches"] == [1, 2, 3, 7, 8]
    assert parity["precision"] == image.precision == "fp32"
    assert parity["lowest_cosine"] > 0.99999
    assert {"torch", "open_clip_torch", "onnxruntime"} <= set(image.created_with)


def test_token_ids_stay_int32_up_to_the_search_for_the_end_of_the_text(published: tuple[Model, ...]) -> None:
    # Some providers have no ArgMax over int64 (openai/CLIP#219).
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(published[1].file()))).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}

    searched = [types[node.input[0]] for node in graph.node if node.op_type == "ArgMax"]

    assert searched == [onnx.TensorProto.INT32]


def test_what_comes_after_the_end_of_a_text_changes_nothing(published: tuple[Model, ...]) -> None:
    # A lost causal mask gives plausible and wrong vectors (Lednik7/CLIP-ONNX#3).
    ids = tokenizer_of(published[1])(["a red star"]).ids
    session = open_session(published[1].file())
    end = int(ids[0].argmax())
    other, moved = ids.copy(), ids.copy()
    other[0, end + 1 :] = 320
    moved[0, 1] = 400

    assert np.allclose(run_graph(session, ids), run_graph(session, other), atol=1e-6)
    assert not np.allclose(run_graph(session, ids), run_graph(session, moved), atol=1e-3)


@pytest.fixture(scope="module")
def ours(published: tuple[Model, ...]) -> Tokenizer:
    return tokenizer_of(published[1])


def test_token_ids_equal_open_clips_on_odd_texts(ours: Tokenizer) -> None:
    expected = SimpleTokenizer(context_length=small_models.LENGTH)(list(golden.ODD_TEXTS)).numpy()

    np.testing.assert_array_equal(ours(golden.ODD_TEXTS).ids, expected)


# Left out: characters newer than this Python's Unicode, of which the two libraries' tables differ, and "<", which
# begins the special tokens that open_clip finds in a text only where no other punctuation stands before them.
_ASSIGNED = st.characters(codec="utf-8", exclude_characters="<", exclude_categories=("Cn", "Cs", "Co"))


@settings(max_examples=150, deadline=None)
@given(text=st.text(_ASSIGNED, max_size=40))
def test_token_ids_equal_open_clips_on_any_text(ours: Tokenizer, text: str) -> None:
    expected = SimpleTokenizer(context_length=small_models.LENGTH)([text]).numpy()

    np.testing.assert_array_equal(ours([text]).ids, expected)


def test_a_long_text_is_cut_before_its_end_token_and_said_to_be(ours: Tokenizer) -> None:
    batch = ours(["a " * 100, "a"])

    end = SimpleTokenizer().eot_token_id
    assert batch.truncated.tolist() == [True, False]
    assert batch.ids[0, -1] == end
    assert batch.ids[1, 2] == end
    assert batch.lengths.tolist() == [small_models.LENGTH, 3]


@pytest.mark.parametrize(
    ("changes", "resize", "rounding"),
    [
        pytest.param({}, "shortest", "torchvision", id="shortest"),
        pytest.param({"resize_mode": "squash", "interpolation": "bilinear"}, "squash", "nearest", id="squash"),
        pytest.param({"mean": [0.5] * 3, "std": [0.25] * 3}, "shortest", "torchvision", id="mean and std"),
    ],
)
def test_preprocessing_equals_open_clips_transform(changes: dict[str, Any], resize: str, rounding: str) -> None:
    config = {"size": 37, "mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28), "interpolation": "bicubic"} | changes

    spec = openclip.preprocessing_from(config)

    assert (spec.resize, spec.rounding) == (resize, rounding)
    # Larger than some of the pictures too.
    for side in (37, 224):
        transform = open_clip.transform.image_transform_v2(
            open_clip.transform.PreprocessCfg(**config | {"size": side}), is_train=False
        )
        for picture in golden.pictures(16):
            steps = np.abs(to_tensor(picture, replace(spec, size=side)) - transform(picture).numpy()) * 255
            assert (steps * np.asarray(spec.std)[:, None, None]).max() <= 1.01


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param({"size": (224, 336)}, "224 x 336; only square ones", id="not square"),
        pytest.param({"size": 224, "resize_mode": "longest"}, "'longest' is not served", id="longest"),
    ],
)
def test_preprocessing_that_is_not_served_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        openclip.preprocessing_from({"mean": (0.5,) * 3, "std": (0.5,) * 3} | config)


@pytest.mark.parametrize(
    ("name", "tag", "fix"),
    [
        pytest.param("ViT-B-32", "openai", "Export ViT-B-32-quickgelu", id="QuickGELU weights"),
        pytest.param(
            "ViT-B-32-quickgelu", "laion2b_s34b_b79k", "neither a file nor a tag", id="a tag of the other form"
        ),
    ],
)
def test_weights_of_another_activation_are_refused_with_the_fix(name: str, tag: str, fix: str) -> None:
    with pytest.raises(SourceError, match=fix):
        openclip.load(name, pretrained=tag)


def test_quick_gelu_asked_for_weights_without_it_is_refused() -> None:
    with pytest.raises(SourceError, match=r"trained with GELU, ViT-B-32 computes QuickGELU.*without --quick-gelu"):
        openclip.load("ViT-B-32", pretrained="laion2b_s34b_b79k", quick_gelu=True)


def _without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: [state.pop(key) for key in list(state) if key.startswith(name)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(_without("visual.ln_post"), r"2 weights are missing \(visual.ln_post.weight", id="missing"),
        pytest.param(
            lambda state: state.update({f"extra.{i}": torch.zeros(1) for i in range(6)}),
            r"6 are unexpected \(extra.0, extra.1, extra.2, extra.3, and 2 more\)",
            id="unexpected",
        ),
        pytest.param(
            lambda state: state.update({"visual.proj": torch.zeros(48, 7)}),
            r"1 have another shape \(visual.proj: \[48, 7\], expected \[48, 24\]\)",
            id="shape",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_counts_and_names(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    state = torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())

    with pytest.raises(CheckpointError, match=message):
        openclip.load(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"name": "ViT-B-33"}, "no model 'ViT-B-33'.* did you mean ViT-B-32", id="name"),
        pytest.param({"name": "ViT-B-32"}, "random weights; name them with --pretrained.*openai", id="no weights"),
        pytest.param({"name": "ViT-B-32", "pretrained": "nowhere.pt"}, "neither a file nor a tag", id="no such tag"),
        pytest.param({"name": "hf-hub:a/b", "pretrained": "openai"}, "comes with its weights", id="two weights"),
    ],
)
def test_a_model_that_cannot_be_meant_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        openclip.load(**arguments)


@pytest.fixture(scope="module")
def text(folder: Path) -> TextTower:
    tower = openclip.load(str(folder)).text
    assert tower is not None
    return tower


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"vocabulary": 40_000}, "ids up to 49407, the text tower vectors for 40000", id="vocabulary"),
        pytest.param({"positions": 16}, "makes 20 tokens.*reads 16.*--max-length", id="length"),
        pytest.param({"reference": lambda texts: np.zeros((len(texts), 20))}, "differs from the model's own", id="ids"),
    ],
)
def test_a_tokenizer_that_does_not_fit_the_text_tower_is_refused(
    text: TextTower, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        check_tokenizer(replace(text, **changes))


def test_a_padding_id_outside_the_text_tower_is_refused(text: TextTower) -> None:
    spec = TokenizerSpec(TOKENIZER_FILE, small_models.LENGTH, pad_id=60_000)

    with pytest.raises(SourceError, match="ids up to 60000"):
        check_tokenizer(replace(text, tokenizer=spec))


def test_a_second_export_is_the_next_version_in_a_space_of_its_own(folder: Path, tmp_path: Path) -> None:
    # Only the text tower is the same in both: the family's latest versions fit together.
    source = openclip.load(str(folder))
    publish_source(source, Target(tmp_path / "models", family="mine", max_batch=8))

    second = publish_source(
        source, Target(tmp_path / "models", family="mine", max_batch=8), preprocess={"targetpad": 1.25}
    )

    repository = load_repository(tmp_path / "models")
    assert [model.manifest.version for model in second] == [2, 2]
    first = next(m.manifest for m in repository.models if m.manifest.name == "mine-image" and m.manifest.version == 1)
    assert repository.family("mine").image_encoder.manifest.space != first.space
    assert json.loads((second[0].folder / "manifest.json").read_text())["preprocessing"]["targetpad"] == 1.25
