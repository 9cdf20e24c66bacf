import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from likewise.export.manifest import (
    MANIFEST,
    Manifest,
    ManifestError,
    PreprocessingSpec,
    TensorSpec,
    TokenizerSpec,
    file_sha256,
    read_manifest,
    space_digest,
    weights_sha256,
    write_manifest,
)
from likewise.export.model_repository import builtin_repository, load_repository

_SPEC = PreprocessingSpec(64, "shortest", "center", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _image_manifest(folder: Path, *, name: str = "toy-image", version: int = 1) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(b"graph " + name.encode())
    digest = file_sha256(folder / "model.onnx")
    return Manifest(
        name=name,
        version=version,
        kind="image_encoder",
        family="toy",
        dim=8,
        space=space_digest(model_sha256=digest, preprocessing=_SPEC, dim=8),
        inputs=(TensorSpec("pixels", "float32", (-1, 3, 64, 64)),),
        outputs=(TensorSpec("features", "float32", (-1, 8)),),
        files={"model.onnx": digest},
        preprocessing=_SPEC,
        evaluation={"mean": 81.5},
    )


def _repository(path: Path, *, versions: tuple[int, ...] = (1,)) -> Path:
    for version in versions:
        folder = path / "toy-image" / str(version)
        write_manifest(folder / MANIFEST, _image_manifest(folder, version=version))
    return path


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path) -> None:
    manifest = _image_manifest(tmp_path)

    write_manifest(tmp_path / MANIFEST, manifest)

    assert read_manifest(tmp_path / MANIFEST) == manifest


def test_a_text_encoder_manifest_reads_back_with_its_tokenizer(tmp_path: Path) -> None:
    manifest = replace(
        _image_manifest(tmp_path),
        kind="text_encoder",
        preprocessing=None,
        tokenizer=TokenizerSpec("tokenizer.json", 40, 0, "a photo of {}", "error"),
        files={"model.onnx": "0" * 64, "tokenizer.json": "1" * 64},
    )

    write_manifest(tmp_path / MANIFEST, manifest)

    assert read_manifest(tmp_path / MANIFEST) == manifest


def test_a_changed_byte_in_a_model_file_is_refused(tmp_path: Path) -> None:
    graph = _repository(tmp_path) / "toy-image" / "1" / "model.onnx"
    content = bytearray(graph.read_bytes())
    content[0] ^= 1
    graph.write_bytes(bytes(content))

    with pytest.raises(ManifestError, match="damaged or replaced"):
        load_repository(tmp_path)


def test_a_missing_model_file_is_refused_by_name(tmp_path: Path) -> None:
    (_repository(tmp_path) / "toy-image" / "1" / "model.onnx").unlink()

    with pytest.raises(ManifestError, match=r"model\.onnx is missing"):
        load_repository(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        pytest.param("format", 2, "manifest format 2", id="a newer format"),
        pytest.param("kind", "reranker", "kind must be one of", id="an unknown kind"),
        pytest.param("dim", 0, "dim must be an integer from 1, got 0", id="no dimensions"),
        pytest.param("files", {"../model.onnx": "0" * 64}, "must name model.onnx", id="a path"),
        pytest.param("surprise", 1, "unknown fields", id="an unknown field"),
        pytest.param("preprocessing", None, "needs preprocessing", id="no preprocessing"),
        pytest.param("condition_templates", {"focus": "same"}, "must hold '{}' once", id="a frame without text"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_reason(tmp_path: Path, field: str, value: object, message: str) -> None:
    file = _repository(tmp_path) / "toy-image" / "1" / MANIFEST
    content = json.loads(file.read_text())
    content[field] = value
    file.write_text(json.dumps(content))

    with pytest.raises(ManifestError) as caught:
        read_manifest(file)

    assert message in str(caught.value)


def test_a_file_name_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    file = _repository(tmp_path) / "toy-image" / "1" / MANIFEST
    content = json.loads(file.read_text())
    content["files"]["../../secret"] = "0" * 64
    file.write_text(json.dumps(content))

    with pytest.raises(ManifestError, match="plain name"):
        read_manifest(file)


def test_text_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("not json")

    with pytest.raises(ManifestError, match="cannot be read as a manifest"):
        read_manifest(tmp_path / MANIFEST)


def test_the_latest_version_is_the_highest_number(tmp_path: Path) -> None:
    repository = load_repository(_repository(tmp_path, versions=(2, 10, 9)))

    assert repository.latest("toy-image").manifest.version == 10


def test_an_unknown_model_or_family_is_refused_with_what_there_is(tmp_path: Path) -> None:
    repository = load_repository(_repository(tmp_path))

    with pytest.raises(ManifestError, match="only \\['toy-image'\\]"):
        repository.latest("other")
    with pytest.raises(ManifestError, match="only families \\['toy'\\]"):
        repository.family("other")


def test_a_folder_name_that_contradicts_the_manifest_is_refused(tmp_path: Path) -> None:
    _repository(tmp_path)
    shutil.move(tmp_path / "toy-image", tmp_path / "renamed")

    with pytest.raises(ManifestError, match="not the folder it lies in"):
        load_repository(tmp_path)


def test_an_empty_or_missing_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no model in"):
        load_repository(tmp_path)
    with pytest.raises(ManifestError, match="no model repository at"):
        load_repository(tmp_path / "nowhere")


def test_a_family_whose_models_disagree_on_the_space_is_refused(tmp_path: Path) -> None:
    _repository(tmp_path)
    folder = tmp_path / "toy-composer" / "1"
    other = _image_manifest(folder, name="toy-composer")
    write_manifest(folder / MANIFEST, replace(other, kind="composer", preprocessing=None))

    with pytest.raises(ManifestError, match="is of space"):
        load_repository(tmp_path).family("toy")


def test_the_space_digest_depends_on_graph_preprocessing_and_dimension_only() -> None:
    digest = space_digest(model_sha256="0" * 64, preprocessing=_SPEC, dim=8)

    assert digest == space_digest(model_sha256="0" * 64, preprocessing=replace(_SPEC), dim=8)
    assert digest.startswith("sha256:")
    assert len(digest) == 7 + 64
    changed = {
        space_digest(model_sha256="1" * 64, preprocessing=_SPEC, dim=8),
        space_digest(model_sha256="0" * 64, preprocessing=replace(_SPEC, size=65), dim=8),
        space_digest(model_sha256="0" * 64, preprocessing=_SPEC, dim=9),
    }
    assert digest not in changed
    assert len(changed) == 3


def test_weights_beside_the_graph_take_part_in_the_space() -> None:
    # Two trainings of one architecture have the same graph: only their data files differ.
    graph, first, second = "0" * 64, "1" * 64, "2" * 64

    inside = weights_sha256({"model.onnx": graph, "tokenizer.json": first})
    one, other = (weights_sha256({"model.onnx": graph, "model.onnx.data": data}) for data in (first, second))

    assert inside == graph
    assert len({graph, one, other}) == 3


def test_what_preprocessing_learnt_to_say_later_leaves_older_spaces_as_they_are() -> None:
    spec = {"model_sha256": "0" * 64, "dim": 8}

    digest = space_digest(preprocessing=_SPEC, **spec)  # type: ignore[arg-type]

    # Computed by the release before the fields were there.
    assert digest == "sha256:8d26084a7b61b19470d68f11d7930f458417d62f29e463c43964b9bdb567d8e7"
    assert digest != space_digest(preprocessing=replace(_SPEC, rounding="torchvision"), **spec)  # type: ignore[arg-type]
    assert digest != space_digest(preprocessing=replace(_SPEC, resize_to=80), **spec)  # type: ignore[arg-type]


def test_the_built_in_repository_verifies_and_its_family_shares_one_space() -> None:
    repository = load_repository()

    family = repository.family("shapes")

    assert repository.path == builtin_repository()
    assert family.text_encoder is not None
    assert family.composer is not None
    assert family.image_encoder.manifest.name == "shapes-image"
    assert family.text_encoder.manifest.name == "shapes-text"
    assert family.composer.manifest.name == "shapes-composer"
    image = family.image_encoder.manifest
    assert image.preprocessing is not None
    assert image.space == space_digest(
        model_sha256=image.files["model.onnx"], preprocessing=image.preprocessing, dim=image.dim
    )


def test_the_built_in_repository_takes_at_most_12_megabytes() -> None:
    total = sum(file.stat().st_size for file in builtin_repository().rglob("*") if file.is_file())

    assert total <= 12_000_000
