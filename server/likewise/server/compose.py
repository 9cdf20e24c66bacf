"""What a query means: from a reference and conditions to one unit query vector.

With unit vectors r of the reference and t_i of the condition texts, c_i what the composer makes of the reference under
condition i, weights w_i and signs s_i (-1 for a negative condition):

- a reference alone: q = r
- conditions alone: q = unit(sum of s_i w_i t_i), each text being a description of what is searched for
- both: q = unit(r + mean of s_i w_i (c_i - r)): one positive condition of weight 1 is c_1 itself, a smaller weight
  stays nearer to the reference, a larger one goes on beyond c_1, a negative condition goes the other way
"""

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from likewise.server.errors import FailedPrecondition, InvalidRequest
from likewise.server.kept_encodings import Encode, encode_anew
from likewise.server.protocols import Composer, Family
from likewise.server.query import ConditionInput, ReferenceInput, StoredReference, VectorReference, check_query
from likewise.server.query_encoding import check_vectors, encode_query, moved, no_rows
from likewise.shards.protocols import F32
from likewise.v1 import common_pb2

_CANCELLED: Final = 1e-6
"""Below this share of the summands' length a sum is rounding, not a direction: float32 embeddings carry 7 digits."""


class Composed(NamedTuple):
    """A query vector and how it came about; a named tuple for the reason that `Prepared` is one.

    Attributes:
        vector: (dim,) float32, unit length; (n, dim) where n vectors of the caller's own are searched for at once.
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
    encode: Encode = encode_anew,
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
        encode: How the encoders are asked.

    Raises:
        InvalidRequest: If the input is wrong, or the conditions cancel each other out.
        FailedPrecondition: NO_ENCODER or NO_COMPOSER if the gallery's models cannot make such a query;
            DIMENSION_MISMATCH if they do not fit the gallery; SPACE_MISMATCH for a vector of the gallery under a
            condition that longer vectors are composed for.
        Overloaded: If a model's queue is full.
    """
    check_query(dim, reference, conditions)
    if family is None or leading is None:
        return await _compose(family, dim, reference, conditions, encode)
    if not isinstance(reference, VectorReference | StoredReference):
        return _leading(await _compose(family, family.dim, reference, conditions, encode), leading, family)
    if not conditions:
        return await _compose(family, dim, reference, conditions, encode)
    if family.dim != dim:
        raise FailedPrecondition(
            f"the {reference.kind} is of {dim} numbers of the gallery's space, the composer of the models "
            f"{family.name!r} reads {family.dim} of {family.space}: send the image or text itself as the reference, or "
            "fill a new gallery",
            reason="SPACE_MISMATCH",
            field=f"reference.{reference.field}",
            metadata={"got": family.space, "dim": str(dim)},
        )
    composed = await _compose(family, dim, reference, conditions, encode)
    warning = common_pb2.Warning(
        code="REFERENCE_OF_OLDER_SPACE",
        message=f"the {reference.kind} was made by older models than the composer, which took it as compatible",
    )
    return composed._replace(warnings=(*composed.warnings, warning))


def as_given(unit: F32, kind: str = VectorReference.kind) -> Composed:
    """The query that is a vector which is there already, (dim,) of length 1, or (n, dim) of them: nothing to encode."""
    return Composed(
        vector=unit,
        composition=kind,
        models=(),
        decode_us=0,
        encode_us=0,
        compose_us=0,
        warnings=(),
        reference=unit,
        conditions=no_rows(unit.shape[-1]),
    )


async def _compose(
    family: Family | None,
    dim: int,
    reference: ReferenceInput | None,
    conditions: Sequence[ConditionInput],
    encode: Encode,
) -> Composed:
    if reference is not None and conditions:
        return await _composed(family, dim, reference, conditions, encode)
    if isinstance(reference, VectorReference | StoredReference) and reference.unit is not None:
        return as_given(reference.unit, reference.kind)
    encoding = await encode_query(family, dim, reference, [condition.text for condition in conditions], encode=encode)
    start = time.perf_counter()
    if reference is not None:
        vector = unit(encoding.reference)
        alone = no_rows(dim)
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
    return composed._replace(
        vector=unit(composed.vector[:leading]),
        composition=f"{composed.composition}, by the first {leading} of {family.dim} numbers",
        reference=unit(composed.reference[:leading]) if composed.reference is not None else None,
        conditions=np.asarray([unit(row[:leading]) for row in composed.conditions], np.float32).reshape(-1, leading),
    )


async def _composed(
    family: Family | None,
    dim: int,
    reference: ReferenceInput,
    conditions: Sequence[ConditionInput],
    encode: Encode,
) -> Composed:
    composer = _composer(family)
    texts = [composer.condition_text(condition.text, condition.mode) for condition in conditions]
    encoding = await encode_query(family, dim, reference, texts, encode=encode)
    start = time.perf_counter()
    raw = np.broadcast_to(encoding.reference, (len(texts), dim))
    try:
        made = await composer.compose(np.ascontiguousarray(raw), encoding.texts)
    except InvalidRequest as error:
        # The composer knows pairs, and all pairs share the one reference.
        raise moved(error, f"reference.{reference.field}") from error
    check_vectors(made, (len(texts), dim), composer.model)
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


def _direction(total: npt.NDArray[np.float64], scale: float) -> F32:
    if not np.linalg.norm(total) > _CANCELLED * scale:
        raise InvalidRequest(
            "the conditions cancel each other out: nothing is left to search for",
            reason="CONDITIONS_CANCEL",
            field="conditions",
        )
    return unit(total)


def _micros(start_s: float) -> int:
    return round((time.perf_counter() - start_s) * 1e6)
