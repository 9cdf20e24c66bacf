"""Attributes of items: rows or columns of Python values, typed by the gallery's schema, as columns of the wire."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time
from types import GenericAlias
from typing import Any, Final, cast

import numpy as np

from likewise.client.errors import InvalidArgument, InvalidType
from likewise.v1 import common_pb2 as pb
from likewise.wire import AttributeValue, WireError, encode_column

Schema = Mapping[str, "pb.AttributeType.ValueType"]
"""Attribute name to type."""

Columns = dict[str, list[AttributeValue]]

_STRING, _INT64 = pb.ATTRIBUTE_TYPE_STRING, pb.ATTRIBUTE_TYPE_INT64
_DOUBLE, _BOOL = pb.ATTRIBUTE_TYPE_DOUBLE, pb.ATTRIBUTE_TYPE_BOOL
_TIMESTAMP, _LIST = pb.ATTRIBUTE_TYPE_TIMESTAMP, pb.ATTRIBUTE_TYPE_STRING_LIST

TYPE_NAMES: Final[Mapping["pb.AttributeType.ValueType", str]] = {
    _STRING: "string",
    _INT64: "int64",
    _DOUBLE: "double",
    _BOOL: "bool",
    _TIMESTAMP: "timestamp",
    _LIST: "string_list",
}

_TYPES: Final[Mapping[Any, "pb.AttributeType.ValueType"]] = {
    **{name: number for number, name in TYPE_NAMES.items()},
    **{"str": _STRING, "int": _INT64, "float": _DOUBLE, "datetime": _TIMESTAMP, "strings": _LIST},
    **{str: _STRING, int: _INT64, float: _DOUBLE, bool: _BOOL, datetime: _TIMESTAMP, date: _TIMESTAMP, list: _LIST},
}


def attribute_type(name: str, given: object) -> "pb.AttributeType.ValueType":
    """The type that a schema's "double", float or list[str] means.

    Raises:
        InvalidArgument: If it means none.
    """
    key = list if isinstance(given, GenericAlias) and given == list[str] else given
    found = _TYPES.get(key) if isinstance(key, str | type) else None
    if found is None:
        known = ", ".join(TYPE_NAMES.values())
        raise InvalidArgument(f"attribute {name!r}: unknown type {given!r}, known are {known}", field="attributes")
    return found


def to_columns(attributes: Any, rows: int) -> Columns:
    """Attributes as columns of plain Python values, one a row.

    Args:
        attributes: A sequence of mappings (rows; a key that is left out is None), a mapping of columns, a pandas
            DataFrame or a pyarrow Table. Not-a-number, NaT and NA of those two mean None.
        rows: How many items there are.

    Raises:
        InvalidArgument: If a column has another length, or the whole has.
        InvalidType: If it is none of these.
    """
    if callable(getattr(attributes, "to_pydict", None)):  # pyarrow.Table, RecordBatch
        columns = {str(name): list(values) for name, values in attributes.to_pydict().items()}
    elif hasattr(attributes, "columns") and callable(getattr(attributes, "isna", None)):  # pandas.DataFrame
        columns = {str(name): _series(attributes[name]) for name in attributes.columns}
    elif isinstance(attributes, Mapping):
        columns = {str(name): _column(name, values) for name, values in attributes.items()}
    elif isinstance(attributes, Sequence) and not isinstance(attributes, str | bytes):
        columns = _transposed(attributes, rows)
    else:
        raise InvalidType(
            f"attributes must be a list of dicts (rows) or a dict of columns, got a {type(attributes).__name__}",
            field="attributes",
        )
    for name, values in columns.items():
        if len(values) != rows:
            raise InvalidArgument(
                f"attribute {name!r} has {len(values)} values for {rows} ids", field=f"attributes[{name!r}]"
            )
    return columns


def encode_columns(columns: Columns, schema: Schema, rows: slice = slice(None)) -> list[pb.AttributeColumn]:
    """Rows of some columns as messages; values must fit their attributes' types, and an int is taken for a double.

    Raises:
        InvalidArgument: If an attribute is not in the schema or a value does not fit; the message names the row.
    """
    return [_encode(name, values, schema, rows) for name, values in columns.items()]


def unknown_names(columns: Columns, schema: Schema) -> list[str]:
    """Names of columns that the schema lacks."""
    return [name for name in columns if name not in schema]


def _encode(name: str, values: list[AttributeValue], schema: Schema, rows: slice) -> pb.AttributeColumn:
    if name not in schema:
        known = ", ".join(sorted(schema)) or "none"
        raise InvalidArgument(f"unknown attribute {name!r}, the gallery has: {known}", field=f"attributes[{name!r}]")
    kind = schema[name]
    try:
        taken = [_fitted(value, kind) for value in values[rows]]
        if kind == _DOUBLE:
            _require_finite(name, taken, rows.start or 0)
        return encode_column(name, kind, taken)
    except (WireError, OverflowError) as error:
        raise InvalidArgument(
            f"{error}; the attribute is a {TYPE_NAMES.get(kind, 'value of a newer release')}",
            field=f"attributes[{name!r}]",
        ) from error


def _fitted(value: Any, kind: int) -> Any:
    """Values that mean the same in the attribute's own Python type."""
    if isinstance(value, np.datetime64):
        value = None if np.isnat(value) else value.astype("datetime64[us]").item()
    elif isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    if kind == _TIMESTAMP and isinstance(value, date) and not isinstance(value, datetime):
        return datetime.combine(value, time())
    return value


def _require_finite(name: str, values: Sequence[Any], first: int) -> None:
    for row, value in enumerate(values, first):
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidArgument(
                f"attribute {name!r}, row {row}: {value} is not finite; use None for no value",
                field=f"attributes[{name!r}]",
            )


def _transposed(rows_given: Sequence[Any], rows: int) -> Columns:
    if len(rows_given) != rows:
        raise InvalidArgument(f"attributes has {len(rows_given)} rows for {rows} ids", field="attributes")
    columns: Columns = {}
    for row, values in enumerate(rows_given):
        if not isinstance(values, Mapping):
            raise InvalidType(
                f"attributes[{row}] must be a dict, got a {type(values).__name__}", field=f"attributes[{row}]"
            )
        for name, value in values.items():
            if name not in columns:
                columns[name] = [None] * rows
            columns[name][row] = value
    return columns


def _column(name: object, values: Any) -> list[AttributeValue]:
    if callable(getattr(values, "isna", None)):
        return _series(values)
    if isinstance(values, np.ndarray):
        return list(values)
    for method in ("to_pylist", "to_list", "tolist"):
        if callable(getattr(values, method, None)):
            return cast("Callable[[], list[AttributeValue]]", getattr(values, method))()
    if isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping):
        return list(values)
    raise InvalidType(
        f"attribute {name!r} must be a list of values, one an item, got a {type(values).__name__}",
        field=f"attributes[{name!r}]",
    )


def _series(values: Any) -> list[AttributeValue]:
    absent = values.isna().tolist()
    return [None if gone else value for value, gone in zip(values.tolist(), absent, strict=True)]
