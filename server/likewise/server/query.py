"""What a query is: a reference and conditions, and the checks that need no model.

Fields in errors are paths below the request ("reference.vector", "conditions[1].text").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from likewise.server.errors import InvalidRequest
from likewise.shards.protocols import F32
from likewise.v1 import search_service_pb2


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
    """A stored item.

    Attributes:
        id: Its id.
        vector: (dim,) float32, its raw vector: its unit vector times its norm.
        unit: Its unit vector, where whoever looked it up has it.
    """

    field: ClassVar[str] = "item_id"
    kind: ClassVar[str] = "stored vector"

    id: str
    vector: F32
    unit: F32 | None = None


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


def check_query(dim: int, reference: ReferenceInput | None, conditions: Sequence[ConditionInput]) -> None:
    """Refuse what is no query of a gallery of `dim` numbers, whatever its models.

    Raises:
        InvalidRequest: If there is nothing to search for, a vector has no direction or not `dim` numbers, or a
            condition has a mode and no reference.
    """
    if reference is None and not conditions:
        raise InvalidRequest("a query needs a reference, a text condition, or both; it has neither", field="reference")
    match reference:
        case VectorReference(vector, known) | StoredReference(_, vector, known):
            if known is None or vector.shape != (dim,):
                _check_vector(vector, dim, f"reference.{reference.field}")
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
