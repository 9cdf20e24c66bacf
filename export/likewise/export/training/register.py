"""Publishes a composer with the encoders that it belongs to, as the next version of a family of the user's own."""

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from likewise.export.manifest import (
    MANIFEST,
    MODEL_FILE,
    Manifest,
    ManifestError,
    TensorSpec,
    file_sha256,
    space_digest,
    weights_sha256,
    write_manifest,
)
from likewise.export.model_repository import Family, Model, builtin_repository, load_repository
from likewise.export.parity import check_parity
from likewise.export.repository import triton_config
from likewise.export.to_onnx import export_graph
from likewise.export.training.closed_form import add_blocks, two_block_images, two_block_texts
from likewise.export.training.oracle import GraphModule, sample_inputs
from likewise.export.training.progress import TrainingError
from likewise.export.training.wording import FRAMES

F32 = npt.NDArray[np.float32]
# Room for "-composer" in the manifest's limit of 128.
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_COMPOSER_NOTES: Final = (
    "Takes raw features (unit vector times norm) and gives a unit query in the image encoder's space."
)


@dataclass(frozen=True, slots=True)
class Registered:
    """What was written: each model's version (new, or the one that already held the same files), and the space."""

    versions: Mapping[str, int]
    space: str
    path: Path


def check_target(out: Path, name: str) -> None:
    """Refuse what could not be registered in the end, before hours are spent on it.

    Raises:
        TrainingError: The name cannot be one, or is that of a built-in family: a server that holds both could not
            tell them apart.
        ManifestError: ``out`` is damaged.
    """
    if not _NAME.fullmatch(name):
        raise TrainingError(f"--name must match {_NAME.pattern}, got {name!r}")
    if name in load_repository(builtin_repository(), verify=False).families():
        raise TrainingError(f"{name!r} is the name of a built-in family; choose another --name")
    _existing(out)


def register(
    out: Path,
    name: str,
    encoders: Family,
    composer: nn.Module,
    samples: tuple[F32, F32],
    *,
    notes: str = "",
    evaluation: Mapping[str, Any] | None = None,
    root: F32 | None = None,
    frames: Mapping[str, str] = FRAMES,
) -> Registered:
    """Write the family's three models; all is made and checked beside ``out`` first.

    Encoders whose files ``out`` holds already in their latest version are not written again, so that a new composer
    alone can be swapped in without a new gallery.

    Args:
        out: Model repository; made if there is none.
        name: The family; its models are ``<name>-image``, ``-text`` and ``-composer``.
        encoders: The composer's encoders.
        composer: In eval mode.
        samples: (n, d) raw image and (m, d) raw text features, to compare graph and module on.
        notes: What the composer is, for its manifest.
        evaluation: Held-out figures, for its manifest.
        root: For the phrase basis, H; the encoders get their second block.
        frames: How a server joins mode and text for this composer.

    Raises:
        ParityError: A graph differs from its module; ``out`` is as it was.
        ManifestError: ``out`` is damaged, or what was written cannot be read back.
    """
    text = encoders.text_encoder
    if text is None:
        raise TrainingError(f"family {encoders.name!r} has no text encoder")
    existing = _existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as draft_name:
        draft = Path(draft_name)
        image_folder = _encoder_files(draft / "image", encoders.image_encoder, root, blocks=root is not None)
        text_folder = _encoder_files(draft / "text", text, None, blocks=root is not None)
        dim = encoders.image_encoder.manifest.dim * (1 if root is None else 2)
        files = {folder: _digests(folder) for folder in (image_folder, text_folder)}
        space = encoders.image_encoder.manifest.space
        if root is not None:
            spec = encoders.image_encoder.manifest.preprocessing
            assert spec is not None  # the manifest's own check
            digest = weights_sha256(files[image_folder])
            space = space_digest(model_sha256=digest, preprocessing=spec, dim=dim)
        composer_folder = _composer_files(draft / "composer", composer, samples)
        written: list[tuple[Manifest, Path]] = []
        for suffix, model, folder in (("image", encoders.image_encoder, image_folder), ("text", text, text_folder)):
            changed = _resized(model.manifest, dim)
            changed = replace(changed, name=f"{name}-{suffix}", family=name, space=space, files=files[folder])
            written.append((changed, folder))
        feature = (-1, dim)
        written.append(
            (
                Manifest(
                    name=f"{name}-composer",
                    version=1,
                    kind="composer",
                    family=name,
                    dim=dim,
                    space=space,
                    inputs=(TensorSpec("reference", "float32", feature), TensorSpec("condition", "float32", feature)),
                    outputs=(TensorSpec("query", "float32", feature),),
                    files=_digests(composer_folder),
                    condition_templates=dict(frames),
                    notes=f"{notes} {_COMPOSER_NOTES}".strip(),
                    created_with=_versions(),
                    evaluation=dict(evaluation or {}),
                ),
                composer_folder,
            )
        )
        versions = {}
        made: list[tuple[Manifest, Path]] = []
        for manifest, folder in written:
            number, known = _next(existing, manifest)
            versions[manifest.name] = number
            if not known:
                made.append((replace(manifest, version=number), folder))
        _publish(draft / "repository", out, made)
    load_repository(out)
    return Registered(versions, space, out)


def _existing(out: Path) -> tuple[Model, ...]:
    if out.exists() and not out.is_dir():
        raise ManifestError(f"{out} is a file, not a folder to publish into")
    return load_repository(out).models if any(out.glob(f"*/*/{MANIFEST}")) else ()


def _encoder_files(folder: Path, model: Model, root: F32 | None, *, blocks: bool) -> Path:
    folder.mkdir()
    for file in model.manifest.files:
        shutil.copyfile(model.file(file), folder / file)
    if blocks:
        graph = folder / MODEL_FILE
        graph.write_bytes(add_blocks(graph.read_bytes(), root))
        _check_blocks(folder, model, root)
    return folder


def _check_blocks(folder: Path, model: Model, root: F32 | None) -> None:
    """Compare the grown graph with the old one and numpy."""

    def blocks(features: F32) -> F32:
        return two_block_texts(features) if root is None else two_block_images(features, root)

    check_parity(GraphModule(model.file(), blocks).eval(), folder / MODEL_FILE, sample_inputs(model.manifest))


def _composer_files(folder: Path, composer: nn.Module, samples: tuple[F32, F32]) -> Path:
    folder.mkdir()
    references, conditions = (torch.from_numpy(np.ascontiguousarray(x)) for x in samples)

    def sample(batch: int) -> tuple[Tensor, ...]:
        rows = torch.arange(batch)
        return references[rows % len(references)], conditions[rows % len(conditions)]

    graph = folder / MODEL_FILE
    export_graph(composer, sample(2), graph, names=("reference", "condition"), output="query")
    check_parity(composer, graph, sample)
    return folder


def _resized(manifest: Manifest, dim: int) -> Manifest:
    if manifest.dim == dim:
        return manifest
    (output,) = manifest.outputs
    return replace(manifest, dim=dim, outputs=(replace(output, shape=(-1, dim)),), compatible_with={})


def _digests(folder: Path) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in sorted(folder.iterdir())}


def _next(existing: tuple[Model, ...], manifest: Manifest) -> tuple[int, bool]:
    """The version to write, and whether the latest one there is this very model."""
    same = [m.manifest for m in existing if m.manifest.name == manifest.name]
    if not same:
        return 1, False
    latest = max(same, key=lambda m: m.version)
    if latest.family != manifest.family or latest.kind != manifest.kind:
        raise ManifestError(
            f"model {manifest.name!r} is there already, as {latest.kind} of family {latest.family!r}; "
            "choose another --name"
        )
    known = latest.files == manifest.files and latest.space == manifest.space and manifest.kind != "composer"
    return (latest.version, True) if known else (latest.version + 1, False)


def _publish(draft: Path, out: Path, made: list[tuple[Manifest, Path]]) -> None:
    for manifest, folder in made:
        place = draft / manifest.name / str(manifest.version)
        place.parent.mkdir(parents=True)
        folder.rename(place)
        write_manifest(place / MANIFEST, manifest)
        (place.parent / "config.pbtxt").write_text(triton_config(manifest), encoding="utf-8")
    load_repository(draft)
    for manifest, _ in made:
        target = out / manifest.name
        target.mkdir(parents=True, exist_ok=True)
        os.replace(draft / manifest.name / str(manifest.version), target / str(manifest.version))
        os.replace(draft / manifest.name / "config.pbtxt", target / "config.pbtxt")


def _versions() -> dict[str, str]:
    names = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow", "tokenizers")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
