"""Writes models into a repository: exported, compared with their modules, then published together."""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from likewise.export.manifest import (
    MANIFEST,
    MODEL_FILE,
    Kind,
    Manifest,
    PreprocessingSpec,
    TensorSpec,
    TokenizerSpec,
    file_sha256,
    load_repository,
    space_digest,
    write_manifest,
)
from likewise.export.parity import check_parity
from likewise.export.to_onnx import export_graph

_TRITON_TYPES: Final = {"float32": "TYPE_FP32", "int32": "TYPE_INT32"}


@dataclass(frozen=True, slots=True)
class Part:
    """One model to publish.

    Attributes:
        name: Name in the repository.
        kind: What it does.
        module: In eval mode.
        inputs: Of the graph, with -1 for the batch.
        output: Of the graph.
        sample: Inputs for a batch size, in the order of ``inputs``; used to export and to compare.
        extra: Further files to lay beside the graph, by name.
    """

    name: str
    kind: Kind
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    sample: Callable[[int], tuple[Tensor, ...]]
    notes: str
    extra: Mapping[str, Path] = field(default_factory=dict)
    preprocessing: PreprocessingSpec | None = None
    tokenizer: TokenizerSpec | None = None
    condition_templates: Mapping[str, str] = field(default_factory=dict)


def write_family(
    path: Path,
    family: str,
    parts: tuple[Part, ...],
    *,
    dim: int,
    number: int = 1,
    max_batch: int = 64,
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Export, check and publish the models of one family as version ``number``.

    All is made and checked in a folder beside ``path`` first; a failed check leaves ``path`` as it was. Other
    models and versions in the repository stay; the same version is replaced.

    Raises:
        ParityError: A graph differs from its module.
        ManifestError: What was written cannot be read back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as draft_name:
        draft = Path(draft_name)
        for part in parts:
            folder = draft / part.name / str(number)
            folder.mkdir(parents=True)
            graph = folder / MODEL_FILE
            names = tuple(spec.name for spec in part.inputs)
            export_graph(part.module, part.sample(2), graph, names=names, output=part.output.name)
            check_parity(part.module, graph, part.sample, max_batch=max_batch)
            for name, source in part.extra.items():
                shutil.copyfile(source, folder / name)
        space = _space(draft, parts, number, dim)
        for part in parts:
            folder = draft / part.name / str(number)
            manifest = Manifest(
                name=part.name,
                version=number,
                kind=part.kind,
                family=family,
                dim=dim,
                space=space,
                inputs=part.inputs,
                outputs=(part.output,),
                files={file.name: file_sha256(file) for file in sorted(folder.iterdir())},
                preprocessing=part.preprocessing,
                tokenizer=part.tokenizer,
                condition_templates=part.condition_templates,
                notes=part.notes,
                max_batch=max_batch,
                created_with=_versions(),
                evaluation=evaluation or {},
            )
            write_manifest(folder / MANIFEST, manifest)
            config = triton_config(manifest)
            (draft / part.name / "config.pbtxt").write_text(config, encoding="utf-8")
        load_repository(draft)
        for part in parts:
            _publish(draft / part.name, path / part.name, number)


def _space(draft: Path, parts: tuple[Part, ...], number: int, dim: int) -> str:
    image = next(part for part in parts if part.kind == "image_encoder")
    if image.preprocessing is None:
        raise ValueError(f"image encoder {image.name!r} needs preprocessing")
    digest = file_sha256(draft / image.name / str(number) / MODEL_FILE)
    return space_digest(model_sha256=digest, preprocessing=image.preprocessing, dim=dim)


def _publish(source: Path, target: Path, number: int) -> None:
    target.mkdir(parents=True, exist_ok=True)
    version_folder = target / str(number)
    if version_folder.exists():
        shutil.rmtree(version_folder)
    os.replace(source / str(number), version_folder)
    os.replace(source / "config.pbtxt", target / "config.pbtxt")


def triton_config(manifest: Manifest) -> str:
    """The model's Triton ModelConfig as a text proto; the batch is implicit there, so shapes lose it."""
    lines = [
        f'name: "{manifest.name}"',
        'platform: "onnxruntime_onnx"',
        f"max_batch_size: {manifest.max_batch}",
    ]
    for label, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for spec in specs:
            dims = ", ".join(str(n) for n in spec.shape[1:])
            lines += [
                f"{label} [",
                "  {",
                f'    name: "{spec.name}"',
                f"    data_type: {_TRITON_TYPES[spec.dtype]}",
                f"    dims: [ {dims} ]",
                "  }",
                "]",
            ]
    lines += ["dynamic_batching {", "  max_queue_delay_microseconds: 2000", "}"]
    return "\n".join(lines) + "\n"


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow", "tokenizers")
    }
