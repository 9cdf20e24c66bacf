"""Writes models into a repository: exported, compared with their modules, then published together.

The layout is Triton's, and every model has its ``config.pbtxt``, so that Triton can serve the same folder.
"""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
    ManifestError,
    PreprocessingSpec,
    TensorSpec,
    TokenizerSpec,
    file_sha256,
    space_digest,
    weights_sha256,
    write_manifest,
)
from likewise.export.model_repository import Model, Repository, load_repository
from likewise.export.parity import ParityError, check_parity, figures
from likewise.export.precision import convert
from likewise.export.to_onnx import EXTERNAL_DATA_OVER, export_graph

_CONVERTED_ON: Final = 16
"""Rows on which a conversion looks at the range of a graph's tensors."""

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
        precision: Of the published graph, see ``precision.convert``; the module is fp32.
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
    precision: str = "fp32"


def write_family(
    path: Path,
    family: str,
    parts: tuple[Part, ...],
    *,
    dim: int,
    number: int | None = 1,
    max_batch: int = 64,
    evaluation: Mapping[str, Any] | None = None,
    compatible_with: Mapping[str, int] | None = None,
    external_data_over: int = EXTERNAL_DATA_OVER,
    libraries: Sequence[str] = (),
) -> tuple[Model, ...]:
    """Export, check and publish models of one family as version ``number``.

    All is made and checked in a folder beside ``path`` first; a failed check leaves ``path`` as it was. Other
    models and versions in the repository stay; the same version is replaced.

    Args:
        path: The repository's folder; made if it is not there.
        family: Its name.
        parts: Its models, or those that are new: without an image encoder they join the space of the one that the
            repository has.
        dim: Of its space.
        number: Version of all parts; None for the one after the highest that any of them has.
        max_batch: Largest batch that is checked and served.
        evaluation: Figures to keep in the manifests; those of the parity check are added as "parity".
        compatible_with: See ``Manifest``.
        external_data_over: Bytes of a model's weights from which they go into a file of their own.
        libraries: Distributions whose versions are kept besides those always kept.

    Returns:
        The published models, in the order of ``parts``.

    Raises:
        StaticBatchError: A module works for one batch only; see ``export_graph``.
        ExportError: A module cannot be exported.
        ParityError: A graph differs from its module.
        ManifestError: What was written cannot be read back, or would not fit the rest of the family.
    """
    if number is None:
        number = next_version(path, [part.name for part in parts])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as draft_name:
        draft = Path(draft_name)
        checked: dict[str, Mapping[str, Any]] = {}
        for part in parts:
            folder = draft / part.name / str(number)
            folder.mkdir(parents=True)
            checked[part.name] = _export(part, folder, max_batch=max_batch, external_data_over=external_data_over)
        space = _space(draft, path, family, parts, number, dim)
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
                files=_digests(folder),
                preprocessing=part.preprocessing,
                tokenizer=part.tokenizer,
                condition_templates=part.condition_templates,
                precision=part.precision,
                compatible_with=compatible_with or {},
                notes=part.notes,
                max_batch=max_batch,
                created_with=_versions(libraries),
                evaluation={**(evaluation or {}), **({"parity": checked[part.name]} if checked[part.name] else {})},
            )
            write_manifest(folder / MANIFEST, manifest)
            config = triton_config(manifest)
            (draft / part.name / "config.pbtxt").write_text(config, encoding="utf-8")
        made = {model.manifest.name: model for model in load_repository(draft).models}
        _check_family(path, family, tuple(made.values()))
        for part in parts:
            _publish(draft / part.name, path / part.name, number)
    return tuple(Model(made[part.name].manifest, path / part.name / str(number)) for part in parts)


def next_version(path: Path, names: Sequence[str]) -> int:
    """The version after the highest that any model of these names has in a repository; 1 where there is none."""
    versions = [m.manifest.version for m in _models(path) if m.manifest.name in names]
    return max(versions, default=0) + 1


def _export(part: Part, folder: Path, *, max_batch: int, external_data_over: int) -> dict[str, Any]:
    graph = folder / MODEL_FILE
    names = tuple(spec.name for spec in part.inputs)
    examples = part.sample(2)
    export_graph(
        part.module, examples, graph, names=names, output=part.output.name, external_data_over=external_data_over
    )
    facts = convert(graph, part.precision, [x.numpy() for x in part.sample(_CONVERTED_ON)])
    try:
        parity = check_parity(part.module, graph, part.sample, max_batch=max_batch, precision=part.precision)
    except ParityError as error:
        raise ParityError(f"{part.name}: {error}; nothing was written") from error
    for name, source in part.extra.items():
        shutil.copyfile(source, folder / name)
    return {**figures(parity, part.precision), **facts}


def _models(path: Path) -> tuple[Model, ...]:
    there = path.is_dir() and any(path.glob(f"*/*/{MANIFEST}"))
    return load_repository(path, verify=False).models if there else ()


def _digests(folder: Path) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in sorted(folder.iterdir())}


def _space(draft: Path, path: Path, family: str, parts: Sequence[Part], number: int, dim: int) -> str:
    image = next((part for part in parts if part.kind == "image_encoder"), None)
    if image is None:
        of = Repository(path, _models(path)).family(family).image_encoder.manifest
        if of.dim != dim:
            raise ManifestError(
                f"family {family!r} has vectors of {of.dim} numbers, {parts[0].name!r} gives {dim}: they cannot be "
                "compared"
            )
        return of.space
    if image.preprocessing is None:
        raise ValueError(f"image encoder {image.name!r} needs preprocessing")
    digest = weights_sha256(_digests(draft / image.name / str(number)))
    return space_digest(model_sha256=digest, preprocessing=image.preprocessing, dim=dim)


def _check_family(path: Path, family: str, made: tuple[Model, ...]) -> None:
    """A server would refuse the whole repository for a family whose models are of two spaces."""
    new = {(model.manifest.name, model.manifest.version) for model in made}
    old = tuple(m for m in _models(path) if (m.manifest.name, m.manifest.version) not in new)
    try:
        Repository(path, (*old, *made)).family(family)
    except ManifestError as error:
        raise ManifestError(
            f"{error}; nothing was written: export all models of the family together, or give it another name"
        ) from error


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


def _versions(further: Sequence[str]) -> dict[str, str]:
    names = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow", "tokenizers", *further)
    return {"python": platform.python_version()} | {name: version(name) for name in names}
