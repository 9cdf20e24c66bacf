"""What a query means: from a reference and conditions to one unit query vector.

With unit vectors r of the reference and t_i of the condition texts, c_i what the composer makes of the reference under
condition i, weights w_i and signs s_i (-1 for a negative condition):

- a reference alone: q = r
- conditions alone: q = unit(sum of s_i w_i t_i), each text being a description of what is searched for
- both: q = unit(r + mean of s_i w_i (c_i - r)): one positive condition of weight 1 is c_1 itself, a smaller weight
  stays nearer to the reference, a larger one goes on beyond c_1, a negative condition goes the other way
"""

import asyncio
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from likewise.server.errors import FailedPrecondition, InvalidRequest
from likewise.server.protocols import Composer, Encoded, Family, ImageEncoder, TextEncoder
from likewise.shards.protocols import F32
from likewise.v1 import common_pb2, search_service_pb2

_CANCELLED: Final = 1e-6
"""Below this share of the summands' length a sum is rounding, not a direction: float32 embeddings carry 7 digits."""


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An encoded image: JPEG, PNG or WebP."""

    field: ClassVar[str] = "image"
    kind: ClassVar[str] = "image"

    data: bytes


@dataclass(frozen=True, slots=True)
class TextReference:
    """A description."""

    field: ClassVar[str] = "text"
    kind: ClassVar[str] = "text"

    text: str


@dataclass(frozen=True, slots=True)
class VectorReference:
    """The caller's own vector, (dim,) float32, of any length but zero.

    Attributes:
        vector: As it came.
        unit: The same at length 1, where whoever checked it has it already.
    """

    field: ClassVar[str] = "vector"
    kind: ClassVar[str] = "vector"

    vector: F32
    unit: F32 | None = None


@dataclass(frozen=True, slots=True)
class StoredReference:
    """A stored item: its id and raw vector, (dim,) float32, which is its unit vector times its norm."""

    field: ClassVar[str] = "item_id"
    kind: ClassVar[str] = "stored vector"

    id: str
    vector: F32


ReferenceInput = ImageReference | TextReference | VectorReference | StoredReference
"""`field` is the member of `Reference` that it came as, `kind` its name in `Plan.composition`."""


@dataclass(frozen=True, slots=True)
class ConditionInput:
    """One text condition.

    Attributes:
        text: What it says; not blank.
        mode: A `search_service_pb2.ConditionMode`.
        weight: More than 0, finite.
        negative: Whether it pushes away.
    """

    text: str
    mode: int = search_service_pb2.CONDITION_MODE_UNSPECIFIED
    weight: float = 1.0
    negative: bool = False

    @property
    def signed_weight(self) -> float:
        """The weight, below 0 for a negative condition."""
        return -self.weight if self.negative else self.weight


@dataclass(frozen=True, slots=True)
class Composed:
    """A query vector and how it came about.

    Attributes:
        vector: (dim,) float32, unit length.
        composition: For people: "image", "composer shapes-composer/1 over image + 1 text condition", ...
        models: The models that took part, each once.
        decode_us: Decoding and tokenising, microseconds; encoders run side by side, so this is the slower one's.
        encode_us: Queueing and inference of the encoders, microseconds, likewise.
        compose_us: The composer and the arithmetic, microseconds.
        warnings: What the caller should know.
        reference: (dim,) float32 unit vector of the reference alone; None without one.
        conditions: (conditions, dim) float32 unit vectors: what each condition alone, at weight 1, would search for.
    """

    vector: F32
    composition: str
    models: tuple[common_pb2.ModelRef, ...]
    decode_us: int
    encode_us: int
    compose_us: int
    warnings: tuple[common_pb2.Warning, ...]
    reference: F32 | None
    conditions: F32


async def compose_query(
    family: Family | None,
    dim: int,
    *,
    reference: ReferenceInput | None,
    conditions: Sequence[ConditionInput],
    leading: int | None = None,
) -> Composed:
    """Make the query vector.

    Every encoder is called once, with all that the query has for it; image and text encoder run side by side. Fields in
    errors are paths below the request ("reference.vector", "conditions[1].text").

    With `leading` the models are of a newer space than the gallery: the query is encoded and composed whole, in theirs,
    and its first `leading` numbers, brought to unit length, are searched for (`spaces`). A vector of the gallery goes
    into a composer then only if the two spaces have as many numbers, and with a warning.

    Args:
        family: The gallery's models; None for a gallery of vectors only.
        dim: The gallery's dimension.
        reference: What the answer is to be like.
        conditions: In what way; at least one without a reference.
        leading: How many first numbers of the models' vectors are the gallery's, `dim` then; None for one space.

    Raises:
        InvalidRequest: If the input is wrong, or the conditions cancel each other out.
        FailedPrecondition: NO_ENCODER or NO_COMPOSER if the gallery's models cannot make such a query;
            DIMENSION_MISMATCH if they do not fit the gallery; SPACE_MISMATCH for a vector of the gallery under a
            condition that longer vectors are composed for.
        Overloaded: If a model's queue is full.
    """
    _check(dim, reference, conditions)
    if family is None or leading is None:
        return await _compose(family, dim, reference, conditions)
    if not isinstance(reference, VectorReference | StoredReference):
        return _leading(await _compose(family, family.dim, reference, conditions), leading, family)
    if not conditions:
        return await _compose(family, dim, reference, conditions)
    if family.dim != dim:
        raise FailedPrecondition(
            f"the {reference.kind} is of {dim} numbers of the gallery's space, the composer of the models "
            f"{family.name!r} reads {family.dim} of {family.space}: send the image or text itself as the reference, or "
            "fill a new gallery",
            reason="SPACE_MISMATCH",
            field=f"reference.{reference.field}",
            metadata={"got": family.space, "dim": str(dim)},
        )
    composed = await _compose(family, dim, reference, conditions)
    warning = common_pb2.Warning(
        code="REFERENCE_OF_OLDER_SPACE",
        message=f"the {reference.kind} was made by older models than the composer, which took it as compatible",
    )
    return replace(composed, warnings=(*composed.warnings, warning))


async def _compose(
    family: Family | None, dim: int, reference: ReferenceInput | None, conditions: Sequence[ConditionInput]
) -> Composed:
    if reference is not None and conditions:
        return await _composed(family, dim, reference, conditions)
    if isinstance(reference, VectorReference) and reference.unit is not None:
        return Composed(
            vector=reference.unit,
            composition=reference.kind,
            models=(),
            decode_us=0,
            encode_us=0,
            compose_us=0,
            warnings=(),
            reference=reference.unit,
            conditions=_none(dim),
        )
    encoding = await _encode(family, dim, reference, [condition.text for condition in conditions])
    start = time.perf_counter()
    if reference is not None:
        vector = unit(encoding.reference)
        alone = _none(dim)
        composition = reference.kind
    else:
        alone = np.stack([unit(text) for text in encoding.texts])
        vector = describe(alone, [condition.signed_weight for condition in conditions])
        composition = "text" if len(conditions) == 1 else f"sum of {len(conditions)} texts"
    return Composed(
        vector=vector,
        composition=composition,
        models=encoding.models,
        decode_us=encoding.decode_us,
        encode_us=encoding.encode_us,
        compose_us=_micros(start),
        warnings=encoding.warnings,
        reference=vector if reference is not None else None,
        conditions=alone,
    )


def unit(vector: npt.ArrayLike) -> F32:
    """The (d,) float32 vector of length 1 in the direction of a finite vector that is not zero."""
    # float64: the squares of large float32 numbers overflow and those of small ones vanish.
    wide = np.asarray(vector, np.float64)
    return np.asarray(wide / np.linalg.norm(wide), np.float32)


def describe(texts: F32, signed_weights: Sequence[float]) -> F32:
    """unit(sum of s_i w_i t_i) of (n, d) unit vectors.

    Raises:
        InvalidRequest: If they cancel each other out.
    """
    weights = np.asarray(signed_weights, np.float64)
    return _direction(weights @ texts.astype(np.float64), float(np.abs(weights).sum()))


def steer(reference: F32, targets: F32, signed_weights: Sequence[float]) -> F32:
    """unit(r + mean of s_i w_i (c_i - r)) of a (d,) unit vector r and (n, d) unit vectors c_i.

    Raises:
        InvalidRequest: If reference and conditions cancel each other out.
    """
    shares = np.asarray(signed_weights, np.float64) / len(targets)
    # The reference's own share first, so that with a share of 0 it leaves no rounding behind.
    own = 1.0 - shares.sum()
    total = own * reference.astype(np.float64) + shares @ targets.astype(np.float64)
    return _direction(total, abs(own) + float(np.abs(shares).sum()))


def _leading(composed: Composed, leading: int, family: Family) -> Composed:
    """The query as a gallery of the first `leading` numbers sees it."""
    parts = [composed.vector, *composed.conditions]
    parts += [composed.reference] if composed.reference is not None else []
    for part in parts:
        if not part[:leading].any():
            raise InvalidRequest(
                f"the first {leading} numbers that the models {family.name!r} make of this query are zero, and the "
                "gallery has no others",
                reason="ZERO_VECTOR",
            )
    return replace(
        composed,
        vector=unit(composed.vector[:leading]),
        composition=f"{composed.composition}, by the first {leading} of {family.dim} numbers",
        reference=unit(composed.reference[:leading]) if composed.reference is not None else None,
        conditions=np.asarray([unit(row[:leading]) for row in composed.conditions], np.float32).reshape(-1, leading),
    )


@dataclass(frozen=True, slots=True)
class _Encoding:
    reference: F32
    texts: F32
    models: tuple[common_pb2.ModelRef, ...]
    decode_us: int
    encode_us: int
    warnings: tuple[common_pb2.Warning, ...]


async def _composed(
    family: Family | None, dim: int, reference: ReferenceInput, conditions: Sequence[ConditionInput]
) -> Composed:
    composer = _composer(family)
    texts = [composer.condition_text(condition.text, condition.mode) for condition in conditions]
    encoding = await _encode(family, dim, reference, texts)
    start = time.perf_counter()
    raw = np.broadcast_to(encoding.reference, (len(texts), dim))
    try:
        made = await composer.compose(np.ascontiguousarray(raw), encoding.texts)
    except InvalidRequest as error:
        # The composer knows pairs, and all pairs share the one reference.
        raise _moved(error, f"reference.{reference.field}") from error
    _check_model(made, (len(texts), dim), composer.model)
    alone, targets = unit(encoding.reference), np.stack([unit(row) for row in made])
    vector = steer(alone, targets, [condition.signed_weight for condition in conditions])
    many = f"{len(texts)} text condition{'s' if len(texts) > 1 else ''}"
    return Composed(
        vector=vector,
        composition=f"composer {composer.model.name}/{composer.model.version} over {reference.kind} + {many}",
        models=(*encoding.models, composer.model),
        decode_us=encoding.decode_us,
        encode_us=encoding.encode_us,
        compose_us=_micros(start),
        warnings=encoding.warnings,
        reference=alone,
        conditions=targets,
    )


async def _encode(
    family: Family | None, dim: int, reference: ReferenceInput | None, condition_texts: Sequence[str]
) -> _Encoding:
    """Raw embeddings of the reference ((dim,), zeros without one) and of the condition texts ((n, dim))."""
    texts = [*condition_texts]
    fields = [f"conditions[{i}].text" for i in range(len(texts))]
    if isinstance(reference, TextReference):
        texts.insert(0, reference.text)
        fields.insert(0, "reference.text")
    image_encoder = _image_encoder(family) if isinstance(reference, ImageReference) else None
    text_encoder = _text_encoder(family, fields[0]) if texts else None
    pictures = [reference.data] if isinstance(reference, ImageReference) else []
    if image_encoder is None or text_encoder is None:
        images = await _encode_with(image_encoder, pictures, ["reference.image"], dim)
        encoded = await _encode_with(text_encoder, texts, fields, dim)
    else:
        try:
            async with asyncio.TaskGroup() as group:
                first = group.create_task(_encode_with(image_encoder, pictures, ["reference.image"], dim))
                second = group.create_task(_encode_with(text_encoder, texts, fields, dim))
        except BaseExceptionGroup as failures:
            # The first failure withdrew the other; a caller wants the error itself.
            raise failures.exceptions[0] from None
        images, encoded = first.result(), second.result()
    raw, rows = np.zeros(dim, np.float32), encoded.vectors
    match reference:
        case ImageReference():
            raw = images.vectors[0]
        case TextReference():
            raw, rows = rows[0], rows[1:]
        case VectorReference(vector=vector) | StoredReference(vector=vector):
            raw = np.asarray(vector, np.float32)
        case None:
            pass
    encoders = [encoder for encoder in (image_encoder, text_encoder) if encoder is not None]
    return _Encoding(
        reference=raw,
        texts=rows,
        models=tuple(encoder.model for encoder in encoders),
        decode_us=max(images.decode_us, encoded.decode_us),
        encode_us=max(images.encode_us, encoded.encode_us),
        warnings=images.warnings + encoded.warnings,
    )


async def _encode_with(
    encoder: ImageEncoder | TextEncoder | None,
    inputs: Sequence[bytes] | Sequence[str],
    fields: Sequence[str],
    dim: int,
) -> Encoded:
    if encoder is None:
        return Encoded(_none(dim))
    try:
        encoded = await encoder.encode(inputs)  # type: ignore[arg-type]  # the caller pairs encoder and inputs
    except InvalidRequest as error:
        index = error.field.removeprefix("[").partition("]")[0]
        raise _moved(error, fields[int(index)] if index.isdecimal() else fields[0]) from error
    _check_model(encoded.vectors, (len(inputs), dim), encoder.model)
    for row, field in zip(encoded.vectors, fields, strict=True):
        if not row.any():
            raise InvalidRequest(
                f"{encoder.model.name}/{encoder.model.version} gave an embedding of length zero",
                reason="ZERO_VECTOR",
                field=field,
            )
    return encoded


def _check(dim: int, reference: ReferenceInput | None, conditions: Sequence[ConditionInput]) -> None:
    if reference is None and not conditions:
        raise InvalidRequest("a query needs a reference, a text condition, or both; it has neither", field="reference")
    match reference:
        case VectorReference(vector, known):
            if known is None or vector.shape != (dim,):
                _check_vector(vector, dim, "reference.vector")
        case StoredReference(_, vector):
            _check_vector(vector, dim, "reference.item_id")
        case _:
            pass
    for i, condition in enumerate(conditions):
        if reference is None and condition.mode != search_service_pb2.CONDITION_MODE_UNSPECIFIED:
            name = search_service_pb2.ConditionMode.Name(condition.mode).removeprefix("CONDITION_MODE_")  # type: ignore[arg-type]
            raise InvalidRequest(
                f"mode {name} says what stays or changes of a reference, and the query has none: add a reference, or "
                "leave the mode out to search for what the text describes",
                field=f"conditions[{i}].mode",
            )


def _check_vector(vector: F32, dim: int, field: str) -> None:
    if vector.shape != (dim,):
        got = "x".join(map(str, vector.shape))
        raise InvalidRequest(
            f"the vector has {got} numbers, the gallery's have {dim}",
            reason="DIMENSION_MISMATCH",
            field=field,
            metadata={"got": got, "expected": str(dim)},
        )
    if not np.isfinite(vector).all():
        at = int(np.argmin(np.isfinite(vector)))
        raise InvalidRequest(f"number {at} of the vector is {vector[at]}", reason="NOT_FINITE", field=field)
    if not vector.any():
        raise InvalidRequest("the vector is zero: it has no direction", reason="ZERO_VECTOR", field=field)


def _check_model(vectors: F32, expected: tuple[int, int], model: common_pb2.ModelRef) -> None:
    if vectors.shape != expected:
        raise FailedPrecondition(
            f"{model.name}/{model.version} gives vectors of {vectors.shape[-1]} numbers, the gallery's have "
            f"{expected[1]}",
            reason="DIMENSION_MISMATCH",
            metadata={"got": str(vectors.shape[-1]), "expected": str(expected[1])},
        )


def _image_encoder(family: Family | None) -> ImageEncoder:
    if family is None or family.image is None:
        raise _missing(family, "an image", "image encoder", "reference.image")
    return family.image


def _text_encoder(family: Family | None, field: str) -> TextEncoder:
    if family is None or family.text is None:
        raise _missing(family, "a text", "text encoder", field)
    return family.text


def _composer(family: Family | None) -> Composer:
    if family is None or family.composer is None:
        who = "this gallery holds vectors only" if family is None else f"the models {family.name!r} have no composer"
        raise FailedPrecondition(
            f"{who}: a reference under a condition cannot be searched for; leave out the reference or the conditions, "
            "or use a gallery whose models have a composer",
            reason="NO_COMPOSER",
            field="conditions",
        )
    return family.composer


def _missing(family: Family | None, what: str, model: str, field: str) -> FailedPrecondition:
    who = "this gallery holds vectors only" if family is None else f"the models {family.name!r} have no {model}"
    return FailedPrecondition(
        f"{who}: {what} cannot be searched for; send a vector or the id of a stored item, or use a gallery whose "
        "models have one",
        reason="NO_ENCODER",
        field=field,
    )


def _direction(total: npt.NDArray[np.float64], scale: float) -> F32:
    if not np.linalg.norm(total) > _CANCELLED * scale:
        raise InvalidRequest(
            "the conditions cancel each other out: nothing is left to search for",
            reason="CONDITIONS_CANCEL",
            field="conditions",
        )
    return unit(total)


def _moved(error: InvalidRequest, field: str) -> InvalidRequest:
    return InvalidRequest(str(error), reason=error.reason, field=field, metadata=error.metadata)


@functools.lru_cache(maxsize=64)
def _none(dim: int) -> F32:
    """No rows of `dim` numbers, which nobody can write to."""
    return np.empty((0, dim), np.float32)


def _micros(start_s: float) -> int:
    return round((time.perf_counter() - start_s) * 1e6)
