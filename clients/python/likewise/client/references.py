"""What a query is like: references and conditions, as messages."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from likewise.client.errors import InvalidArgument, InvalidType
from likewise.client.images import Image, image_bytes
from likewise.v1 import common_pb2 as pb
from likewise.v1 import search_service_pb2 as search_pb
from likewise.wire import PackedVector, WireError, encode_vectors, pack_vector

Mode = Literal["focus", "change"]

_AS_SENT: Final = np.dtype("<f4")

_MODES: Final[Mapping[str | None, "search_pb.ConditionMode.ValueType"]] = {
    None: search_pb.CONDITION_MODE_UNSPECIFIED,
    "focus": search_pb.CONDITION_MODE_FOCUS,
    "change": search_pb.CONDITION_MODE_CHANGE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What an answer is to be like; exactly one of these.

    Attributes:
        image: See `likewise.client.images.Image`.
        text: A description.
        id: A stored item.
        vector: (d,) floats in the gallery's space; (t, d) for a multi-vector reference.
    """

    image: Image | None = None
    text: str | None = None
    id: str | None = None
    vector: npt.ArrayLike | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Similarity shown by examples."""

    positive: Sequence[Reference] = ()
    negative: Sequence[Reference] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """What "similar" means for a query; exactly one of text, aspects, gate, examples and preset.

    Attributes:
        text: In words ("the same colour", "but in red").
        aspects: Weights of named aspects.
        gate: Name of a registered gate, or one weight in [0, 1] a dimension.
        examples: Similarity shown by examples.
        preset: Name of a stored condition.
        weight: Relative to the other conditions; default 1.
        negative: Push away instead of drawing towards.
        mode: "focus" (what the text names stays the same), "change" (the text names what is different), or None when
            the text says it itself.
    """

    text: str | None = None
    _: KW_ONLY
    aspects: Mapping[str, float] | None = None
    gate: str | npt.ArrayLike | None = None
    examples: Examples | None = None
    preset: str | None = None
    weight: float | None = None
    negative: bool = False
    mode: Mode | None = None


def condition_message(given: str | Condition, field: str) -> search_pb.Condition:
    """A condition as it is sent.

    Args:
        given: The condition, or its text.
        field: What errors call it ("conditions[0]").

    Raises:
        InvalidArgument: If it is not exactly one kind of condition, or a part does not fit its field.
    """
    condition = Condition(given) if isinstance(given, str) else given
    if not isinstance(condition, Condition):
        raise InvalidType(f"{field} must be a string or a Condition, got a {type(given).__name__}", field=field)
    kinds = ("text", "aspects", "gate", "examples", "preset")
    set_kinds = [kind for kind in kinds if getattr(condition, kind) is not None]
    if len(set_kinds) != 1:
        raise InvalidArgument(f"{field} must have one of {', '.join(kinds)}, got {set_kinds or 'none'}", field=field)
    if condition.mode not in _MODES:
        raise InvalidArgument(
            f"{field}: mode must be 'focus' or 'change', got {condition.mode!r}", field=f"{field}.mode"
        )
    polarity = search_pb.POLARITY_NEGATIVE if condition.negative else search_pb.POLARITY_POSITIVE
    message = search_pb.Condition(polarity=polarity, mode=_MODES[condition.mode])
    if condition.weight is not None:
        set_field(message, "weight", condition.weight)
    if condition.aspects is not None:
        message.aspects.weights.update({name: float(weight) for name, weight in condition.aspects.items()})
        message.aspects.SetInParent()
    elif isinstance(condition.gate, str):
        message.gate.name = condition.gate
    elif condition.gate is not None:
        gate = vector_message(condition.gate, f"{field}.gate")
        if isinstance(gate, pb.MultiVector):
            raise InvalidArgument(f"{field}.gate must have the shape (d,)", field=f"{field}.gate")
        message.gate.values.CopyFrom(gate)
    elif condition.examples is not None:
        for side in ("positive", "negative"):
            references = getattr(condition.examples, side)
            messages = [reference_message(one, f"{field}.{side}[{index}].") for index, one in enumerate(references)]
            getattr(message.examples, side).extend(messages)
        message.examples.SetInParent()
    else:
        set_field(message, set_kinds[0], getattr(condition, set_kinds[0]))
    return message


def given_kinds(reference: Reference) -> list[str]:
    """Which of image, text, id and vector are set."""
    return [kind for kind in Reference.__slots__ if getattr(reference, kind) is not None]


def reference_message(reference: Reference, field: str) -> search_pb.Reference:
    """A reference as it is sent; an image is read or packed here.

    Args:
        reference: The reference.
        field: Prefix of what errors call its parts.

    Raises:
        InvalidArgument: If it is not exactly one kind of reference, or that cannot be read.
    """
    given = given_kinds(reference)
    if len(given) != 1:
        raise InvalidArgument(
            f"a reference is one of image, text, id and vector, got {' and '.join(given) or 'none'}", field="reference"
        )
    message = search_pb.Reference()
    if reference.image is not None:
        message.image = image_bytes(reference.image, field=f"{field}image")
    elif reference.text is not None:
        set_field(message, "text", reference.text)
    elif reference.id is not None:
        if not isinstance(reference.id, str):
            raise InvalidType(f"an id is a string, got {reference.id!r}; write str(id)", field=f"{field}id")
        set_field(message, "item_id", reference.id)
    else:
        vector = vector_message(reference.vector, f"{field}vector")
        if isinstance(vector, pb.MultiVector):
            message.multi_vector.CopyFrom(vector)
        else:
            message.vector.CopyFrom(vector)
    return message


def vector_message(given: npt.ArrayLike | None, field: str) -> pb.Vector | pb.MultiVector:
    """A (d,) or (1, d) array as a vector, any other (t, d) array as a multi-vector.

    Raises:
        InvalidArgument: If it is no array of numbers of such a shape.
    """
    packed = packed_vector(given, field)
    return packed if isinstance(packed, pb.MultiVector) else packed.message()


def packed_vector(given: npt.ArrayLike | None, field: str) -> PackedVector | pb.MultiVector:
    """As `vector_message`, a vector without its message."""
    if type(given) is np.ndarray and given.ndim == 1 and given.dtype == _AS_SENT and len(given):
        return PackedVector(given.tobytes(), len(given), pb.DTYPE_FLOAT32)  # as most come: nothing to look into
    array = float_array(given, field)
    try:
        if array.ndim == 2 and array.shape[0] != 1:
            return pb.MultiVector(vectors=encode_vectors(array))
        return pack_vector(array[0] if array.ndim == 2 else array)
    except WireError as error:
        raise InvalidArgument(f"{field}: {error}", field=field) from error


def float_array(given: npt.ArrayLike | None, field: str) -> npt.NDArray[Any]:
    """An array of numbers, as it is.

    Raises:
        InvalidArgument: If its rows have different lengths.
        InvalidType: If it holds something else than real numbers.
    """
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise InvalidArgument(f"{field} is no array: {error}", field=field) from error
    if array.dtype.kind not in "fiub":
        raise InvalidType(f"{field} must be numbers, got an array of {array.dtype}", field=field)
    return array


def set_field(message: Any, field: str, value: Any) -> None:
    """Set a scalar field.

    Raises:
        InvalidType: If the value has the wrong type.
        InvalidArgument: If it does not fit.
    """
    plain = value.item() if isinstance(value, np.generic) else value
    try:
        setattr(message, field, plain)
    except TypeError as error:
        raise InvalidType(f"{field} cannot be {value!r}, a {type(value).__name__}", field=field) from error
    except ValueError as error:
        raise InvalidArgument(f"{field} cannot be {value!r}: {error}", field=field) from error
