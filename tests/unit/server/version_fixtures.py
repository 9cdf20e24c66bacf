"""Further versions of the repository of `model_fixtures`: same space, another one, or one that contains the old."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from tests.unit.server.model_fixtures import DIM, PREPROCESSING, write_repository

from likewise.export.manifest import (
    Manifest,
    TensorSpec,
    file_sha256,
    read_manifest,
    space_digest,
    write_manifest,
)

Weights = Mapping[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]]
"""Initializer name to what becomes of it."""


def same_space(folder: Path, version: int, *, family: str = "tiny") -> Path:
    """A version that answers as the first one does."""
    return write_repository(folder, family=family, version=version)


def other_words(folder: Path, version: int, *, family: str = "tiny") -> Path:
    """Same space, but each word has the vector of another: texts and composed queries answer otherwise."""
    write_repository(folder, family=family, version=version)
    edit(folder / f"{family}-text" / str(version), {"rows": lambda rows: np.concatenate([rows[:2], rows[:1:-1]])})
    return folder


def other_space(folder: Path, version: int, *, family: str = "tiny") -> Path:
    """A version whose vectors compare with no others."""
    write_repository(folder, family=family, version=version)
    image = folder / f"{family}-image" / str(version)
    edit(image, {"matrix": lambda matrix: np.ascontiguousarray(matrix[:, ::-1])})
    _in_space(folder, family, version, space_of(image), DIM, {})
    return folder


def wider(folder: Path, version: int, extra: int = 4, *, family: str = "tiny", **changes: Any) -> Path:
    """A version of DIM + extra numbers, the first DIM as in version 1, that declares just that.

    Args:
        folder: With version 1.
        version: Of the new models.
        extra: Further numbers; 0 makes another space of as many.
        family: Its name.
        changes: Instead of the declaration {version 1's space: DIM}, `compatible_with`.
    """
    write_repository(folder, family=family, version=version)
    more = np.random.default_rng(9)

    def widen(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        wide = np.concatenate([rows, more.standard_normal((len(rows), extra)).astype(np.float32)], axis=1)
        return np.asarray(wide * np.float32(1 if extra else 2))

    old = read_manifest(folder / f"{family}-image" / "1" / "manifest.json").space
    image, text, composer = (folder / f"{family}-{kind}" / str(version) for kind in ("image", "text", "composer"))
    edit(image, {"matrix": widen}, dim=DIM + extra)
    edit(text, {"rows": widen}, dim=DIM + extra)
    edit(composer, {}, dim=DIM + extra)
    _in_space(folder, family, version, space_of(image), DIM + extra, changes.get("compatible_with", {old: DIM}))
    return folder


def edit(folder: Path, weights: Weights, *, dim: int = DIM) -> None:
    """Change the weights of a model and the last axis of its vectors, and make its manifest agree."""
    path = folder / "model.onnx"
    graph = onnx.load(path)
    for initializer in graph.graph.initializer:
        if initializer.name in weights:
            changed = weights[initializer.name](numpy_helper.to_array(initializer))
            initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), initializer.name))
    for value in (*graph.graph.input, *graph.graph.output):
        if value.name in ("reference", "condition", "embedding"):
            value.type.tensor_type.shape.dim[1].dim_value = dim
    onnx.save(graph, path)
    rewrite(folder, files={file.name: file_sha256(file) for file in folder.iterdir() if file.name != "manifest.json"})


def rewrite(folder: Path, **changes: Any) -> Manifest:
    """Change fields of a model's manifest."""
    manifest = replace(read_manifest(folder / "manifest.json"), **changes)
    write_manifest(folder / "manifest.json", manifest)
    return manifest


def space_of(image: Path) -> str:
    """Digest of what an image encoder's files encode into; the dimension is in the file."""
    return space_digest(model_sha256=file_sha256(image / "model.onnx"), preprocessing=PREPROCESSING, dim=DIM)


def _in_space(
    folder: Path, family: str, version: int, space: str, dim: int, compatible_with: Mapping[str, int]
) -> None:
    vector = (-1, dim)
    inputs = (TensorSpec("reference", "float32", vector), TensorSpec("condition", "float32", vector))
    for kind in ("image", "text", "composer"):
        changes: dict[str, Any] = {"inputs": inputs} if kind == "composer" else {}
        rewrite(
            folder / f"{family}-{kind}" / str(version),
            space=space,
            dim=dim,
            outputs=(TensorSpec("embedding", "float32", vector),),
            compatible_with=compatible_with,
            **changes,
        )
