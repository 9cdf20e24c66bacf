"""A source into a repository: its parts made, checked and written in one step."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from torch import nn

from likewise.export.manifest import PRECISIONS
from likewise.export.model_repository import Model, load_repository
from likewise.export.preprocess import Preprocessing
from likewise.export.repository import Part, write_family
from likewise.export.sources import golden
from likewise.export.sources.checkpoint import SourceError
from likewise.export.sources.composer import composer_part
from likewise.export.sources.module import image_tower, text_tower
from likewise.export.sources.signature import Signature
from likewise.export.sources.towers import Pictures, Source, image_part, text_part
from likewise.export.to_onnx import EXTERNAL_DATA_OVER

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how models are written.

    Attributes:
        repository: The model repository's folder; made if it is not there.
        family: Name of the family; made of the source's if not given.
        version: Of all models written; None for the next free one.
        overwrite: Replace that version if it is there.
        precision: Of the encoders: "fp32", "fp16" or "int8".
        max_batch: Largest batch that is checked and served.
        compatible_with: Digests of older spaces whose vectors stay comparable, see ``Manifest``.
        external_data_over: Bytes of weights from which they go into a file of their own.
        pictures: A folder of one's own pictures to check on, better than those made up here.
    """

    repository: Path
    family: str | None = None
    version: int | None = None
    overwrite: bool = False
    precision: str = "fp32"
    max_batch: int = 32
    compatible_with: Mapping[str, int] = field(default_factory=dict)
    external_data_over: int = EXTERNAL_DATA_OVER
    pictures: Path | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise SourceError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.max_batch < 1:
            raise SourceError(f"max_batch must be at least 1, got {self.max_batch}")
        if self.version is not None and self.version < 1:
            raise SourceError(f"version must be at least 1, got {self.version}")
        for digest, leading in self.compatible_with.items():
            if not _DIGEST.fullmatch(digest) or leading < 1:
                raise SourceError(
                    "a compatible space is sha256:<64 hex digits> and a number of leading numbers from 1, got "
                    f"{digest!r} "
                    f"and {leading}"
                )


def family_name(text: str) -> str:
    """A name of a family or model out of any text: lower case, "-" for what names cannot hold."""
    return _NOT_IN_NAMES.sub("-", text.lower()).strip("-._")[:96] or "model"


def publish_source(source: Source, target: Target, *, preprocess: Mapping[str, Any] | None = None) -> tuple[Model, ...]:
    """Export the towers of a source as a family.

    Args:
        source: From `openclip.load` or `hugging_face.load`.
        target: Where and how.
        preprocess: Fields of ``Preprocessing`` to set other than the model's own ("targetpad": 1.25).

    Returns:
        What was published: the image encoder, then the text encoder if there is one.

    Raises:
        SourceError: The parts do not fit each other.
        ExportError: See ``write_family``, as for the others there.
    """
    family = target.family or family_name(source.name)
    image = source.image
    if preprocess:
        # No longer the original's transform, so it is not compared with it.
        image = replace(image, preprocessing=with_fields(image.preprocessing, preprocess), reference=None)
    with tempfile.TemporaryDirectory() as folder:
        parts = [image_part(family, image, pictures=_pictures(target), precision=target.precision)]
        if source.text is not None:
            parts.append(text_part(family, source.text, Path(folder), precision=target.precision))
        dims = {part.output.shape[1] for part in parts}
        if len(dims) != 1:
            raise SourceError(
                f"the image tower gives {parts[0].output.shape[1]} numbers, the text tower {parts[1].output.shape[1]}: "
                "they are of two spaces"
            )
        return _write(family, parts, target, libraries=source.libraries)


def publish_module(
    module: nn.Module,
    signature: Signature,
    target: Target,
    *,
    preprocess: Mapping[str, Any] | None = None,
    tokenizer: Path | None = None,
    pad_id: int = 0,
    template: str = "{}",
    truncate: str = "end",
    condition_templates: Mapping[str, str] | None = None,
) -> tuple[Model, ...]:
    """Export one module of one's own as a model of a family; encoders of text and composers join one that is there.

    Raises:
        SourceError: What belongs to the signature's kind is missing or does not fit.
        ManifestError: There is no family to join.
    """
    family = target.family
    if family is None:
        raise SourceError("a module of one's own needs the name of its family: --family NAME")
    if signature.kind == "composer":
        return publish_composer(module, target, templates=condition_templates)
    if signature.kind == "image_encoder":
        settings = with_fields(None, preprocess) if preprocess else None
        tower = image_tower(module, signature, settings)
        part = image_part(family, tower, pictures=_pictures(target), precision=target.precision)
        return _write(family, [_as_signed(part, signature)], target)
    with tempfile.TemporaryDirectory() as folder:
        text = text_tower(module, signature, tokenizer, pad_id=pad_id, template=template, truncate=truncate)
        part = text_part(family, text, Path(folder), precision=target.precision)
        return _write(family, [_as_signed(part, signature)], target)


def publish_composer(
    module: nn.Module, target: Target, *, templates: Mapping[str, str] | None = None
) -> tuple[Model, ...]:
    """Export a composer into a family that has both encoders.

    Raises:
        SourceError: It does not fit the family.
        ManifestError: There is no such family.
    """
    if target.family is None:
        known = ", ".join(load_repository(target.repository).families()) if target.repository.is_dir() else "none yet"
        raise SourceError(f"a composer belongs to a family: --family NAME; there are: {known}")
    part = composer_part(
        module,
        target.repository,
        target.family,
        templates=templates,
        pictures=_pictures(target),
        precision=target.precision,
    )
    return _write(target.family, [part], target)


def with_fields(base: Preprocessing | None, fields: Mapping[str, Any]) -> Preprocessing:
    """Preprocessing with some fields set.

    Raises:
        SourceError: There is no such field, or no such value of it.
    """
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    try:
        return Preprocessing(**values) if base is None else replace(base, **values)
    except (TypeError, ValueError) as error:
        raise SourceError(f"preprocessing {dict(fields)} cannot be: {error}") from error


def _as_signed(part: Part, signature: Signature) -> Part:
    if part.output.shape != signature.output.shape:
        raise SourceError(
            f"the module gives {part.output.shape[1]} numbers, its signature says {signature.output.shape[1]}"
        )
    return replace(part, inputs=signature.inputs, output=signature.output)


def _write(family: str, parts: list[Part], target: Target, *, libraries: tuple[str, ...] = ()) -> tuple[Model, ...]:
    if target.version is not None and not target.overwrite:
        for part in parts:
            folder = target.repository / part.name / str(target.version)
            if folder.exists():
                raise SourceError(
                    f"{part.name}/{target.version} is there already; overwrite it (--overwrite) or leave the "
                    "version out"
                )
    return write_family(
        target.repository,
        family,
        tuple(parts),
        dim=parts[0].output.shape[1],
        number=target.version,
        max_batch=target.max_batch,
        compatible_with=target.compatible_with,
        external_data_over=target.external_data_over,
        libraries=libraries,
    )


def _pictures(target: Target) -> Pictures:
    folder = target.pictures
    return golden.pictures if folder is None else lambda count: golden.pictures_of(folder, count)
