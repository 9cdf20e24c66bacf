"""`likewise.v1.Filter` compiled to Arrow kernels over attribute columns.

The logic is two-valued: a comparison with a missing value is false, and its negation is true. Strings compare by their
UTF-8 bytes, which is the order of their code points.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.message import DecodeError

from likewise.shards.attributes import ARROW_TYPES
from likewise.shards.protocols import UnknownAttribute
from likewise.shards.spec import AttributeSpec
from likewise.v1 import common_pb2 as pb

Mask = npt.NDArray[np.bool_]

MAX_DEPTH: Final = 16
MAX_OPERANDS: Final = 256
MAX_VALUES: Final = 10_000
MAX_NODES: Final = 4_096
"""Nodes of a whole tree: without it, depth and operands alone would allow trees as large as a message may be."""


class InvalidFilter(UnknownAttribute):
    """A filter that does not fit the schema or the limits; `field` is the path of what is wrong."""


class Predicate(Protocol):
    """A compiled filter."""

    def mask(self, rows: pa.Table) -> Mask:
        """(rows,) booleans, true where the row matches."""
        ...


def filter_key(message: pb.Filter) -> bytes:
    """The bytes that stand for a filter in `SearchOptions` and in caches; b"" for an empty one."""
    return message.SerializeToString(deterministic=True)


def compile_filter(data: bytes, attributes: Sequence[AttributeSpec], *, field: str = "filter") -> Predicate | None:
    """Compile a serialised filter; None for b"", which lets every row through.

    Raises:
        InvalidFilter: If it is no filter, does not fit the attributes, or is over a limit.
    """
    if not data:
        return None
    message = pb.Filter()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise InvalidFilter(field, f"{len(data)} bytes are no filter, or one nested too deep") from error
    return compile_message(message, attributes, field=field)


def compile_message(message: pb.Filter, attributes: Sequence[AttributeSpec], *, field: str = "filter") -> Predicate:
    """Compile a filter message; see `compile_filter`."""
    return _Compiler({attribute.name: _known_type(attribute.type) for attribute in attributes}).node(message, field, 1)


def matcher(attributes: Callable[[], Sequence[AttributeSpec]]) -> Callable[[pa.Table, pb.Filter], Mask]:
    """A function from rows and a filter to the (rows,) mask of those that match.

    Args:
        attributes: The schema at the time of each call: attributes may be added to a gallery in use.
    """
    return lambda rows, message: compile_message(message, attributes()).mask(rows)


@dataclass(frozen=True, slots=True)
class _All:
    operands: tuple[Predicate, ...]

    def mask(self, rows: pa.Table) -> Mask:
        result = self.operands[0].mask(rows)
        for operand in self.operands[1:]:
            if not result.any():
                break
            result = result & operand.mask(rows)
        return result


@dataclass(frozen=True, slots=True)
class _Any:
    operands: tuple[Predicate, ...]

    def mask(self, rows: pa.Table) -> Mask:
        result = self.operands[0].mask(rows)
        for operand in self.operands[1:]:
            if result.all():
                break
            result = result | operand.mask(rows)
        return result


@dataclass(frozen=True, slots=True)
class _Not:
    operand: Predicate

    def mask(self, rows: pa.Table) -> Mask:
        return ~self.operand.mask(rows)


@dataclass(frozen=True, slots=True)
class _Compare:
    attribute: str
    kernel: Callable[[pa.ChunkedArray, pa.Scalar], pa.ChunkedArray]
    value: pa.Scalar

    def mask(self, rows: pa.Table) -> Mask:
        return _booleans(self.kernel(rows.column(self.attribute), self.value))


@dataclass(frozen=True, slots=True)
class _Among:
    attribute: str
    values: pa.Array

    def mask(self, rows: pa.Table) -> Mask:
        return _booleans(pc.is_in(rows.column(self.attribute), value_set=self.values))


@dataclass(frozen=True, slots=True)
class _ListHas:
    """The list has at least one of the values."""

    attribute: str
    values: pa.Array

    def mask(self, rows: pa.Table) -> Mask:
        result = np.zeros(rows.num_rows, dtype=bool)
        start = 0
        for chunk in rows.column(self.attribute).chunks:
            found = pc.is_in(pc.list_flatten(chunk), value_set=self.values)
            parents = pc.list_parent_indices(chunk).to_numpy()
            result[start + parents[_booleans(found)]] = True
            start += len(chunk)
        return result


@dataclass(frozen=True, slots=True)
class _Exists:
    attribute: str

    def mask(self, rows: pa.Table) -> Mask:
        return _booleans(pc.is_valid(rows.column(self.attribute)))


def _booleans(array: pa.Array | pa.ChunkedArray) -> Mask:
    filled = pc.fill_null(array, False) if array.null_count else array
    mask: Mask = filled.to_numpy(zero_copy_only=False) if isinstance(filled, pa.Array) else filled.to_numpy()
    return mask.astype(bool, copy=False)  # an empty column comes back as object


_KERNELS: Final[Mapping[pb.ComparisonOperator.ValueType, Any]] = {
    pb.COMPARISON_OPERATOR_EQUAL: pc.equal,
    pb.COMPARISON_OPERATOR_NOT_EQUAL: pc.not_equal,
    pb.COMPARISON_OPERATOR_LESS: pc.less,
    pb.COMPARISON_OPERATOR_LESS_OR_EQUAL: pc.less_equal,
    pb.COMPARISON_OPERATOR_GREATER: pc.greater,
    pb.COMPARISON_OPERATOR_GREATER_OR_EQUAL: pc.greater_equal,
}

_EQUALITY: Final = frozenset({pb.COMPARISON_OPERATOR_EQUAL, pb.COMPARISON_OPERATOR_NOT_EQUAL})

_ALLOWED: Final[Mapping[int, frozenset[pb.ComparisonOperator.ValueType]]] = {
    pb.ATTRIBUTE_TYPE_STRING: frozenset(_KERNELS),
    pb.ATTRIBUTE_TYPE_INT64: frozenset(_KERNELS),
    pb.ATTRIBUTE_TYPE_DOUBLE: frozenset(_KERNELS),
    pb.ATTRIBUTE_TYPE_BOOL: _EQUALITY,
    pb.ATTRIBUTE_TYPE_TIMESTAMP: frozenset(_KERNELS),
    pb.ATTRIBUTE_TYPE_STRING_LIST: frozenset({pb.COMPARISON_OPERATOR_CONTAINS}),
}

_LITERALS: Final[Mapping[int, tuple[str, ...]]] = {
    pb.ATTRIBUTE_TYPE_STRING: ("string_value",),
    pb.ATTRIBUTE_TYPE_INT64: ("int64_value",),
    pb.ATTRIBUTE_TYPE_DOUBLE: ("double_value", "int64_value"),
    pb.ATTRIBUTE_TYPE_BOOL: ("bool_value",),
    pb.ATTRIBUTE_TYPE_TIMESTAMP: ("timestamp_micros",),
    pb.ATTRIBUTE_TYPE_STRING_LIST: ("string_value",),
}


class _Compiler:
    def __init__(self, types: Mapping[str, pb.AttributeType.ValueType]) -> None:
        self._types = types
        self._nodes = 0

    def node(self, message: pb.Filter, path: str, depth: int) -> Predicate:
        if depth > MAX_DEPTH:
            raise InvalidFilter(path, f"the filter is nested deeper than {MAX_DEPTH}")
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise InvalidFilter(path, f"the filter has more than {MAX_NODES} nodes")
        match message.WhichOneof("node"):
            case "all_of":
                return _All(self._operands(message.all_of, f"{path}.all_of", depth))
            case "any_of":
                return _Any(self._operands(message.any_of, f"{path}.any_of", depth))
            case "negation":
                return _Not(self.node(message.negation, f"{path}.negation", depth + 1))
            case "comparison":
                return self._comparison(message.comparison, f"{path}.comparison")
            case "membership":
                return self._membership(message.membership, f"{path}.membership")
            case "existence":
                self._type(message.existence.attribute, f"{path}.existence.attribute")
                return _Exists(message.existence.attribute)
            case _:
                raise InvalidFilter(
                    path, "needs one of all_of, any_of, negation, comparison, membership, existence; got none"
                )

    def _operands(self, message: pb.FilterList, path: str, depth: int) -> tuple[Predicate, ...]:
        if not 1 <= len(message.filters) <= MAX_OPERANDS:
            raise InvalidFilter(path, f"needs 1 to {MAX_OPERANDS} operands, got {len(message.filters)}")
        return tuple(self.node(operand, f"{path}[{i}]", depth + 1) for i, operand in enumerate(message.filters))

    def _comparison(self, message: pb.Comparison, path: str) -> Predicate:
        kind = self._type(message.attribute, f"{path}.attribute")
        if message.operator not in _ALLOWED[kind]:
            allowed = ", ".join(sorted(_operator_name(operator) for operator in _ALLOWED[kind]))
            raise InvalidFilter(
                f"{path}.operator",
                f"{_operator_name(message.operator)} does not compare the {_type_name(kind)} {message.attribute!r}; "
                f"use one of {allowed}",
            )
        value = self._literal(message.value, kind, message.attribute, f"{path}.value")
        if message.operator == pb.COMPARISON_OPERATOR_CONTAINS:
            return _ListHas(message.attribute, pa.array([value], pa.string()))
        return _Compare(message.attribute, _KERNELS[message.operator], pa.scalar(value, ARROW_TYPES[kind]))

    def _membership(self, message: pb.Membership, path: str) -> Predicate:
        kind = self._type(message.attribute, f"{path}.attribute")
        if len(message.values) > MAX_VALUES:
            raise InvalidFilter(f"{path}.values", f"takes at most {MAX_VALUES} values, got {len(message.values)}")
        values = [
            self._literal(value, kind, message.attribute, f"{path}.values[{i}]")
            for i, value in enumerate(message.values)
        ]
        if kind == pb.ATTRIBUTE_TYPE_STRING_LIST:
            return _ListHas(message.attribute, pa.array(values, pa.string()))
        if kind == pb.ATTRIBUTE_TYPE_DOUBLE and 0.0 in values:
            values += [0.0, -0.0]  # is_in compares bits, where the two zeros differ
        return _Among(message.attribute, pa.array(values, ARROW_TYPES[kind]))

    def _type(self, attribute: str, path: str) -> pb.AttributeType.ValueType:
        kind = self._types.get(attribute)
        if kind is None:
            raise InvalidFilter(path, f"{attribute!r} is no attribute of the gallery, which has {sorted(self._types)}")
        return kind

    @staticmethod
    def _literal(
        value: pb.Value, kind: pb.AttributeType.ValueType, attribute: str, path: str
    ) -> str | int | float | bool:
        member = value.WhichOneof("kind")
        if member not in _LITERALS[kind]:
            got = "no value" if member is None else f"{member} {_shown(getattr(value, member))}"
            raise InvalidFilter(path, f"the {_type_name(kind)} {attribute!r} takes {_LITERALS[kind][0]}, got {got}")
        literal: str | int | float | bool = getattr(value, member)
        if kind == pb.ATTRIBUTE_TYPE_DOUBLE:
            literal = float(literal)
            if math.isnan(literal):
                raise InvalidFilter(path, f"NaN compares with nothing; the {_type_name(kind)} is {attribute!r}")
        return literal


def _known_type(number: int) -> pb.AttributeType.ValueType:
    return cast("pb.AttributeType.ValueType", number)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _operator_name(operator: pb.ComparisonOperator.ValueType) -> str:
    known = operator in pb.ComparisonOperator.values()
    return pb.ComparisonOperator.Name(operator).removeprefix("COMPARISON_OPERATOR_") if known else str(operator)


def _type_name(kind: pb.AttributeType.ValueType) -> str:
    return pb.AttributeType.Name(kind).removeprefix("ATTRIBUTE_TYPE_")
