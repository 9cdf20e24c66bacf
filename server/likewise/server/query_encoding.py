"""What the encoders make of a query: raw embeddings of its reference and condition texts, each encoder called once.

What the gallery's models lack for it, and what they gave that does not fit the gallery, is told here.
"""

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from likewise.server.errors import FailedPrecondition, InvalidRequest
from likewise.server.kept_encodings import Encode, encode_anew
from likewise.server.protocols import Encoded, Family, ImageEncoder, TextEncoder
from likewise.server.query import ImageReference, ReferenceInput, StoredReference, TextReference, VectorReference
from likewise.shards.protocols import F32
from likewise.v1 import common_pb2


@dataclass(frozen=True, slots=True)
class Encoding:
    """What the encoders make of a query.

    Attributes:
        reference: (dim,) float32 raw embedding of the reference; zeros without one.
        texts: (conditions, dim) float32 raw embeddings of the condition texts.
        models: The encoders that took part.
        decode_us: Decoding and tokenising, microseconds, of the slower encoder.
        encode_us: Queueing and inference, microseconds, likewise.
        warnings: What the caller should know.
    """

    reference: F32
    texts: F32
    models: tuple[common_pb2.ModelRef, ...]
    decode_us: int
    encode_us: int
    warnings: tuple[common_pb2.Warning, ...]


async def encode_query(
    family: Family | None,
    dim: int,
    reference: ReferenceInput | None,
    condition_texts: Sequence[str],
    *,
    encode: Encode = encode_anew,
) -> Encoding:
    """Raw embeddings of the reference and of the condition texts; image and text encoder run side by side.

    Args:
        family: The gallery's models; None for a gallery of vectors only.
        dim: Its dimension.
        reference: What the answer is to be like.
        condition_texts: As the composer, or a search by texts alone, reads them.
        encode: How the encoders are asked.

    Raises:
        InvalidRequest: If an encoder refuses an input, or makes a zero vector of it.
        FailedPrecondition: NO_ENCODER if the family lacks one that is needed; DIMENSION_MISMATCH if one does not fit
            the gallery.
        Overloaded: If an encoder's queue is full.
    """
    texts = [*condition_texts]
    fields = [f"conditions[{i}].text" for i in range(len(texts))]
    if isinstance(reference, TextReference):
        texts.insert(0, reference.text)
        fields.insert(0, "reference.text")
    image_encoder = _image_encoder(family) if isinstance(reference, ImageReference) else None
    text_encoder = _text_encoder(family, fields[0]) if texts else None
    pictures = [reference.data] if isinstance(reference, ImageReference) else []
    if image_encoder is None or text_encoder is None:
        images = await _encode_with(image_encoder, pictures, ["reference.image"], dim, encode)
        encoded = await _encode_with(text_encoder, texts, fields, dim, encode)
    else:
        try:
            async with asyncio.TaskGroup() as group:
                first = group.create_task(_encode_with(image_encoder, pictures, ["reference.image"], dim, encode))
                second = group.create_task(_encode_with(text_encoder, texts, fields, dim, encode))
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
    return Encoding(
        reference=raw,
        texts=rows,
        models=tuple(encoder.model for encoder in encoders),
        decode_us=max(images.decode_us, encoded.decode_us),
        encode_us=max(images.encode_us, encoded.encode_us),
        warnings=images.warnings + encoded.warnings,
    )


def check_vectors(vectors: F32, expected: tuple[int, int], model: common_pb2.ModelRef) -> None:
    """Refuse a model's vectors that are not of the gallery's dimension."""
    if vectors.shape != expected:
        raise FailedPrecondition(
            f"{model.name}/{model.version} gives vectors of {vectors.shape[-1]} numbers, the gallery's have "
            f"{expected[1]}",
            reason="DIMENSION_MISMATCH",
            metadata={"got": str(vectors.shape[-1]), "expected": str(expected[1])},
        )


def moved(error: InvalidRequest, field: str) -> InvalidRequest:
    """A model's refusal of an input, under the name that the input has in the request."""
    return InvalidRequest(str(error), reason=error.reason, field=field, metadata=error.metadata)


@functools.lru_cache(maxsize=64)
def no_rows(dim: int) -> F32:
    """No rows of `dim` numbers, which nobody can write to; the same object each time."""
    return np.empty((0, dim), np.float32)


async def _encode_with(
    encoder: ImageEncoder | TextEncoder | None,
    inputs: Sequence[bytes] | Sequence[str],
    fields: Sequence[str],
    dim: int,
    encode: Encode,
) -> Encoded:
    if encoder is None:
        return Encoded(no_rows(dim))
    try:
        encoded = await encode(encoder, inputs)
    except InvalidRequest as error:
        index = error.field.removeprefix("[").partition("]")[0]
        raise moved(error, fields[int(index)] if index.isdecimal() else fields[0]) from error
    check_vectors(encoded.vectors, (len(inputs), dim), encoder.model)
    for row, field in zip(encoded.vectors, fields, strict=True):
        if not row.any():
            raise InvalidRequest(
                f"{encoder.model.name}/{encoder.model.version} gave an embedding of length zero",
                reason="ZERO_VECTOR",
                field=field,
            )
    return encoded


def _image_encoder(family: Family | None) -> ImageEncoder:
    if family is None or family.image is None:
        raise _missing(family, "an image", "image encoder", "reference.image")
    return family.image


def _text_encoder(family: Family | None, field: str) -> TextEncoder:
    if family is None or family.text is None:
        raise _missing(family, "a text", "text encoder", field)
    return family.text


def _missing(family: Family | None, what: str, model: str, field: str) -> FailedPrecondition:
    who = "this gallery holds vectors only" if family is None else f"the models {family.name!r} have no {model}"
    return FailedPrecondition(
        f"{who}: {what} cannot be searched for; send a vector or the id of a stored item, or use a gallery whose "
        "models have one",
        reason="NO_ENCODER",
        field=field,
    )
