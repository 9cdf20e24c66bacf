"""numpy arrays to messages and back: the only place that knows byte order and layout.

Vectors travel as little-endian bytes with a dtype and a dimension; a decoded array is a read-only view of the message's
bytes wherever the dtype allows, so no number is copied on the way in.
"""

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from likewise.v1 import common_pb2 as pb

_T = TypeVar("_T")

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

MAX_MESSAGE_BYTES: Final = 64 << 20
"""Largest message either side sends or accepts, in bytes."""

_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    pb.DTYPE_UNSPECIFIED: np.dtype("<f4"),
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_FLOAT16: np.dtype("<f2"),
}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

AttributeValue = str | int | float | bool | datetime | list[str] | None
"""What one attribute of one item may be in Python; the attribute's type decides which."""

_NUMERIC: Final[dict[int, np.dtype[Any]]] = {
    pb.ATTRIBUTE_TYPE_INT64: np.dtype("<i8"),
    pb.ATTRIBUTE_TYPE_TIMESTAMP: np.dtype("<i8"),
    pb.ATTRIBUTE_TYPE_DOUBLE: np.dtype("<f8"),
    pb.ATTRIBUTE_TYPE_BOOL: np.dtype("u1"),
}


class WireError(ValueError):
    """Bytes that are not what the fields beside them say."""


def encode_vectors(array: npt.ArrayLike, *, space: str = "") -> pb.Vectors:
    """Pack an (n, d) array of floats.

    float16 stays float16; anything else becomes float32.

    Raises:
        WireError: If the array is not two-dimensional or has no columns.
    """
    matrix = np.asarray(array)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise WireError(f"vectors must have the shape (n, d) with d > 0, got {matrix.shape}")
    half = matrix.dtype == np.float16
    data = np.ascontiguousarray(matrix, dtype="<f2" if half else "<f4").tobytes()
    dtype = pb.DTYPE_FLOAT16 if half else pb.DTYPE_FLOAT32
    return pb.Vectors(dtype=dtype, dim=matrix.shape[1], data=data, space=space)


class PackedVector(NamedTuple):
    """One vector as it travels, not yet in a message: a message of its own costs more than its numbers.

    Attributes:
        data: The numbers, little-endian.
        dim: How many.
        dtype: What each is.
    """

    data: bytes
    dim: int
    dtype: pb.DType.ValueType

    def message(self, *, space: str = "") -> pb.Vector:
        """It in a message."""
        return pb.Vector(dtype=self.dtype, dim=self.dim, data=self.data, space=space)


def pack_vector(array: npt.ArrayLike) -> PackedVector:
    """Pack one (d,) vector; see `encode_vectors`."""
    vector = np.asarray(array)
    if vector.ndim != 1 or vector.shape[0] == 0:
        raise WireError(f"a vector must have the shape (d,) with d > 0, got {vector.shape}")
    if vector.dtype == np.float16:
        return PackedVector(pack(vector, "<f2"), len(vector), pb.DTYPE_FLOAT16)
    return PackedVector(pack(vector, "<f4"), len(vector), pb.DTYPE_FLOAT32)


def encode_vector(array: npt.ArrayLike, *, space: str = "") -> pb.Vector:
    """`pack_vector` as a message."""
    return pack_vector(array).message(space=space)


def decode_vectors(message: pb.Vectors | pb.Vector) -> F32:
    """Unpack to (n, dim) float32; a `Vector` gives n = 1. float32 input is a read-only view.

    Raises:
        WireError: If the dtype is unknown, dim is 0, or the bytes are no whole number of rows.
    """
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise WireError(f"unknown dtype {message.dtype}, known are {sorted(_DTYPES)}")
    if message.dim == 0:
        raise WireError("dim must be at least 1, got 0")
    row_bytes = message.dim * dtype.itemsize
    rows, rest = divmod(len(message.data), row_bytes)
    if rest or (isinstance(message, pb.Vector) and rows != 1):
        raise WireError(
            f"{len(message.data)} bytes are not {'one row' if isinstance(message, pb.Vector) else 'whole rows'} "
            f"of {message.dim} numbers of {dtype.itemsize} bytes"
        )
    matrix: F32 = np.frombuffer(message.data, dtype=dtype).reshape(rows, message.dim).astype(np.float32, copy=False)
    return matrix


def pack(array: npt.ArrayLike, dtype: str) -> bytes:
    """Bytes of a column of numbers, `dtype` as numpy writes it ("<f4", "<f8", "<i8")."""
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def unpack(data: bytes, dtype: str) -> npt.NDArray[Any]:
    """Read-only view of a column of numbers.

    Raises:
        WireError: If the bytes are no whole number of elements.
    """
    size = np.dtype(dtype).itemsize
    if len(data) % size:
        raise WireError(f"{len(data)} bytes are no whole number of {size}-byte elements")
    return np.frombuffer(data, dtype=dtype)


def to_micros(moment: datetime) -> int:
    """Microseconds since the epoch; a naive datetime is taken as UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def from_micros(micros: int) -> datetime:
    """Aware UTC datetime of microseconds since the epoch."""
    return _EPOCH + timedelta(microseconds=micros)


def encode_column(
    name: str, attribute_type: pb.AttributeType.ValueType, values: Sequence[AttributeValue]
) -> pb.AttributeColumn:
    """Pack one attribute of many items; None means the item has no value.

    Raises:
        WireError: If a value does not fit the type; the message names the attribute and the row.
    """
    column = pb.AttributeColumn(name=name, type=attribute_type)
    present = np.fromiter((value is not None for value in values), dtype=bool, count=len(values))
    if not present.all():
        column.validity = np.packbits(present, bitorder="little").tobytes()
    if attribute_type == pb.ATTRIBUTE_TYPE_STRING:
        column.strings.extend(_checked(name, values, str, ""))
    elif attribute_type == pb.ATTRIBUTE_TYPE_STRING_LIST:
        rows = [_string_list(name, row, value) for row, value in enumerate(values)]
        offsets = np.zeros(len(rows) + 1, dtype="<i4")
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        column.offsets = offsets.tobytes()
        column.strings.extend(text for row in rows for text in row)
    elif attribute_type == pb.ATTRIBUTE_TYPE_TIMESTAMP:
        column.data = pack([to_micros(v) for v in _checked(name, values, datetime, _EPOCH)], "<i8")
    elif attribute_type == pb.ATTRIBUTE_TYPE_INT64:
        column.data = pack(_integers(name, values), "<i8")
    elif attribute_type == pb.ATTRIBUTE_TYPE_DOUBLE:
        column.data = pack([float(v) for v in _checked(name, values, (int, float), 0.0)], "<f8")
    elif attribute_type == pb.ATTRIBUTE_TYPE_BOOL:
        column.data = pack(_checked(name, values, bool, False), "u1")
    else:
        raise WireError(f"attribute {name!r} has the unknown type {attribute_type}")
    return column


def decode_column(column: pb.AttributeColumn) -> list[AttributeValue]:
    """Unpack one attribute of many items; None where an item has no value.

    Raises:
        WireError: If lengths do not agree or the type is unknown.
    """
    values: list[AttributeValue]
    if column.type == pb.ATTRIBUTE_TYPE_STRING:
        values = list(column.strings)
    elif column.type == pb.ATTRIBUTE_TYPE_STRING_LIST:
        offsets = unpack(column.offsets, "<i4").tolist()
        strings = list(column.strings)
        values = [strings[a:b] for a, b in itertools.pairwise(offsets)]
    elif column.type in _NUMERIC:
        numbers = np.frombuffer(column.data, dtype=_NUMERIC[column.type])
        if column.type == pb.ATTRIBUTE_TYPE_BOOL:
            values = numbers.astype(bool).tolist()
        elif column.type == pb.ATTRIBUTE_TYPE_TIMESTAMP:
            values = [from_micros(micros) for micros in numbers.tolist()]
        else:
            values = numbers.tolist()
    else:
        raise WireError(f"attribute {column.name!r} has the unknown type {column.type}")
    if column.validity:
        present = decode_validity(column.validity, len(values))
        values = [value if ok else None for value, ok in zip(values, present.tolist(), strict=True)]
    return values


def decode_validity(bitmap: bytes, rows: int) -> npt.NDArray[np.bool_]:
    """(rows,) booleans of a least-significant-bit-first bitmap; all true when it is empty.

    Raises:
        WireError: If the bitmap is too short or too long for the rows.
    """
    if not bitmap:
        return np.ones(rows, dtype=bool)
    if len(bitmap) != (rows + 7) // 8:
        raise WireError(f"a validity bitmap of {len(bitmap)} bytes does not fit {rows} rows")
    return np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), count=rows, bitorder="little").astype(bool)


def _checked(name: str, values: Sequence[AttributeValue], kind: type[_T] | tuple[type, ...], empty: _T) -> list[_T]:
    checked: list[_T] = []
    for row, value in enumerate(values):
        if value is None:
            checked.append(empty)
        elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            checked.append(value)  # type: ignore[arg-type]
        else:
            raise WireError(f"attribute {name!r}, row {row}: {value!r} is a {type(value).__name__}")
    return checked


def _integers(name: str, values: Sequence[AttributeValue]) -> list[int]:
    numbers = _checked(name, [_plain(value) for value in values], int, 0)
    for row, number in enumerate(numbers):
        if not -(1 << 63) <= number < 1 << 63:
            raise WireError(f"attribute {name!r}, row {row}: {number} does not fit 64 bits")
    return numbers


def _plain(value: AttributeValue) -> AttributeValue:
    return value.item() if isinstance(value, np.generic) else value


def _string_list(name: str, row: int, value: AttributeValue) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
        return list(value)
    raise WireError(f"attribute {name!r}, row {row}: {value!r} is no list of strings")
