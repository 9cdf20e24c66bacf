"""Filters on attributes, written with Python's operators.

    from likewise.client import F

    (F.price < 50) & F.colour.isin(["red", "pink"])
    ~F.sold.exists() | (F["in stock"] == True)

An item without the attribute matches no comparison; its negation does. Python's `and`, `or`, `not` and chained
comparisons cannot be overloaded and raise TypeError; write `&`, `|`, `~`, each comparison in parentheses.
"""

import math
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from typing import Any, Final, NoReturn

import numpy as np

from likewise.client.errors import InvalidArgument, InvalidType
from likewise.v1 import common_pb2 as pb
from likewise.wire import from_micros, to_micros

FilterValue = str | int | float | bool | datetime | date

_SYMBOLS: Final[Mapping[int, str]] = {
    pb.COMPARISON_OPERATOR_EQUAL: "=",
    pb.COMPARISON_OPERATOR_NOT_EQUAL: "!=",
    pb.COMPARISON_OPERATOR_LESS: "<",
    pb.COMPARISON_OPERATOR_LESS_OR_EQUAL: "<=",
    pb.COMPARISON_OPERATOR_GREATER: ">",
    pb.COMPARISON_OPERATOR_GREATER_OR_EQUAL: ">=",
    pb.COMPARISON_OPERATOR_CONTAINS: "contains",
}

_NO_TRUTH: Final = (
    "a filter has no truth value: write (a) & (b) for `a and b`, (a) | (b) for `a or b`, ~(a) for `not a`, "
    "and (F.x > 1) & (F.x < 5) for 1 < F.x < 5"
)


class Filter:
    """A condition on attributes; combine with `&`, `|` and `~`."""

    __slots__ = ("_bytes", "_message")

    def __init__(self, message: pb.Filter) -> None:
        self._message = message
        self._bytes = b""

    def to_message(self) -> pb.Filter:
        """The filter as it is sent; not to be changed."""
        return self._message

    def __and__(self, other: "Filter") -> "Filter":
        return _joined("all_of", self, other)

    def __or__(self, other: "Filter") -> "Filter":
        return _joined("any_of", self, other)

    __rand__ = __and__
    __ror__ = __or__

    def __invert__(self) -> "Filter":
        if self._message.WhichOneof("node") == "negation":
            return Filter(self._message.negation)
        return Filter(pb.Filter(negation=self._message))

    def __bool__(self) -> NoReturn:
        raise InvalidType(_NO_TRUTH)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and self._message == other._message

    def __hash__(self) -> int:
        # Made once, as each search with the filter asks for it; bytes keep their hash themselves. Not the hash: that is
        # another one in another process, where a pickled filter may come to.
        self._bytes = self._bytes or self._message.SerializeToString(deterministic=True)
        return hash(self._bytes)

    def __repr__(self) -> str:
        return f"Filter({_text(self._message)})"

    def __str__(self) -> str:
        return _text(self._message)


class Field:
    """One attribute, to be compared; made by `F`."""

    __slots__ = ("_name",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        self._name = name

    def __eq__(self, value: FilterValue) -> Filter:  # type: ignore[override]
        return self._compare(pb.COMPARISON_OPERATOR_EQUAL, value)

    def __ne__(self, value: FilterValue) -> Filter:  # type: ignore[override]
        return self._compare(pb.COMPARISON_OPERATOR_NOT_EQUAL, value)

    def __lt__(self, value: FilterValue) -> Filter:
        return self._compare(pb.COMPARISON_OPERATOR_LESS, value)

    def __le__(self, value: FilterValue) -> Filter:
        return self._compare(pb.COMPARISON_OPERATOR_LESS_OR_EQUAL, value)

    def __gt__(self, value: FilterValue) -> Filter:
        return self._compare(pb.COMPARISON_OPERATOR_GREATER, value)

    def __ge__(self, value: FilterValue) -> Filter:
        return self._compare(pb.COMPARISON_OPERATOR_GREATER_OR_EQUAL, value)

    def isin(self, values: Iterable[FilterValue]) -> Filter:
        """The attribute has one of these values; a list attribute has at least one of them. None given: none match."""
        if isinstance(values, str | bytes):
            raise InvalidType(f"isin takes a list of values, got the text {values!r}: write isin([{values!r}])")
        members = [to_value(self._name, value) for value in values]
        return Filter(pb.Filter(membership=pb.Membership(attribute=self._name, values=members)))

    def contains(self, text: str) -> Filter:
        """The list attribute has this string."""
        if not isinstance(text, str):
            raise InvalidType(f"attribute {self._name!r}: contains takes a string, got {text!r}")
        return self._compare(pb.COMPARISON_OPERATOR_CONTAINS, text)

    def exists(self) -> Filter:
        """The item has a value for the attribute."""
        return Filter(pb.Filter(existence=pb.Existence(attribute=self._name)))

    def _compare(self, operator: pb.ComparisonOperator.ValueType, value: FilterValue) -> Filter:
        return comparison(self._name, operator, value)

    def __bool__(self) -> NoReturn:
        raise InvalidType(_NO_TRUTH)

    def _bare(self, other: object = None) -> NoReturn:
        raise InvalidType(
            f"F.{self._name} alone is no filter; & and | bind tighter than comparisons, so write each one in "
            f"parentheses: (F.{self._name} == 1) & (F.other == 2)"
        )

    __and__ = __rand__ = __or__ = __ror__ = __invert__ = _bare

    def __repr__(self) -> str:
        return f"F[{self._name!r}]"


class Fields:
    """Attributes by name: `F.price`, or `F["price"]` for a name known at run time only."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Field:
        if name.startswith("__"):
            raise AttributeError(name)
        return Field(name)

    def __getitem__(self, name: str) -> Field:
        return Field(name)

    def __repr__(self) -> str:
        return "F"


F: Final = Fields()
"""Makes filters: `F.price < 50`."""


def filter_message(where: Filter | None) -> pb.Filter | None:
    """A `where` argument as it is sent.

    Raises:
        InvalidType: If it is no filter.
    """
    if where is None or isinstance(where, Filter):
        return None if where is None else where.to_message()
    raise InvalidType(
        f"where must be a filter such as F.price < 50, got a {type(where).__name__}; parse_filter reads text",
        field="where",
    )


def comparison(attribute: str, operator: pb.ComparisonOperator.ValueType, value: FilterValue) -> Filter:
    """The filter "attribute OPERATOR value"."""
    compared = pb.Comparison(attribute=attribute, operator=operator, value=to_value(attribute, value))
    return Filter(pb.Filter(comparison=compared))


def to_value(attribute: str, value: Any) -> pb.Value:
    """A Python value as a message; its Python type decides which member is set.

    Raises:
        InvalidType: If it is None or of a type that attributes do not have.
        InvalidArgument: If an int does not fit 64 bits or a float is not a number.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool):
        return pb.Value(bool_value=value)
    if isinstance(value, str):
        return pb.Value(string_value=value)
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise InvalidArgument(f"attribute {attribute!r}: {value} does not fit 64 bits", field="where")
        return pb.Value(int64_value=value)
    if isinstance(value, float):
        if math.isnan(value):
            raise InvalidArgument(f"attribute {attribute!r}: nothing compares with nan", field="where")
        return pb.Value(double_value=value)
    if isinstance(value, date):
        moment = value if isinstance(value, datetime) else datetime.combine(value, time())
        return pb.Value(timestamp_micros=to_micros(moment))
    if value is None:
        raise InvalidType(
            f"attribute {attribute!r}: nothing compares with None; write ~F.{attribute}.exists() for items without it"
        )
    raise InvalidType(
        f"attribute {attribute!r} cannot be compared with {value!r}, a {type(value).__name__}: "
        "a filter takes str, int, float, bool or datetime"
    )


def _joined(kind: str, left: Filter, right: object) -> Filter:
    # One flat list however long the chain: the tree may be only 16 deep.
    operands: list[pb.Filter] = []
    for side in (left, right):
        if not isinstance(side, Filter):
            raise InvalidType(
                f"& and | join filters, got {side!r}, a {type(side).__name__}: write each comparison in parentheses"
            )
        message = side.to_message()
        operands.extend(getattr(message, kind).filters if message.WhichOneof("node") == kind else [message])
    return Filter(pb.Filter(**{kind: pb.FilterList(filters=operands)}))  # type: ignore[arg-type]


def _text(message: pb.Filter) -> str:
    node = message.WhichOneof("node")
    if node in ("all_of", "any_of"):
        word = " and " if node == "all_of" else " or "
        return word.join(_operand(part) for part in getattr(message, node).filters)
    if node == "negation":
        return f"not ({_text(message.negation)})"
    if node == "comparison":
        compared = message.comparison
        return f"{compared.attribute} {_SYMBOLS.get(compared.operator, '?')} {_literal(compared.value)}"
    if node == "membership":
        members = ", ".join(_literal(value) for value in message.membership.values)
        return f"{message.membership.attribute} in ({members})"
    return f"{message.existence.attribute} exists"


def _operand(message: pb.Filter) -> str:
    text = _text(message)
    return f"({text})" if message.WhichOneof("node") in ("all_of", "any_of") else text


def _literal(value: pb.Value) -> str:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        escaped = value.string_value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if kind == "timestamp_micros":
        return from_micros(value.timestamp_micros).isoformat()
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    return repr(getattr(value, kind)) if kind else "?"
