"""Rows of a Parquet file as what a gallery stores: checked column by column, bad rows named and left out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from likewise.client.cli.records import convert
from likewise.client.cli.sources import Columns
from likewise.server import content, validate
from likewise.shards import layout
from likewise.shards.columns import MAX_ID_BYTES
from likewise.shards.protocols import F32
from likewise.shards.spec import GallerySpec
from likewise.v1 import common_pb2

Reasons = dict[int, str]
"""Row to what is wrong with it; the first reason counts."""


def vector_rows(table: pa.Table, spec: GallerySpec, columns: Columns) -> tuple[pa.Table, Reasons]:
    """The good rows in `layout.input_schema`, and what is wrong with the others.

    Args:
        table: Rows of a file.
        spec: The gallery.
        columns: Which column means what.

    Raises:
        ValueError: If a column is missing, or no attribute of the gallery.
    """
    bad: Reasons = {}
    names = set(table.column_names)
    if missing := {columns.id, columns.vector} - names:
        raise ValueError(f"there is no column {sorted(missing)[0]!r}, only {table.column_names}")
    wanted = columns.attributes or tuple(n for n in table.column_names if n not in (columns.id, columns.vector))
    known = {attribute.name: attribute.type for attribute in spec.attributes}
    if unknown := [name for name in wanted if name not in known or name not in names]:
        raise ValueError(
            f"column {unknown[0]!r} is no attribute of the gallery, which has: {', '.join(known) or 'none'}; "
            "name the columns to take with --attribute"
        )
    ids = _ids(table[columns.id].combine_chunks(), columns.id, bad)
    matrix = _vectors(table[columns.vector].combine_chunks(), spec.space().dim, columns.vector, bad)
    attributes = {name: _attribute(table[name].combine_chunks(), name, known[name], bad) for name in wanted}
    good = np.ones(table.num_rows, dtype=bool)
    good[list(bad)] = False
    mask = pa.array(good)
    kept = {name: array.filter(mask) for name, array in attributes.items()}
    return stored_rows(ids.filter(mask), matrix[good], spec, content.of_vectors(matrix[good]), kept), bad


def stored_rows(
    ids: pa.Array, raw: F32, spec: GallerySpec, digests: npt.NDArray[np.int64], attributes: Mapping[str, pa.Array]
) -> pa.Table:
    """Rows in `layout.input_schema`; attributes left out are null.

    Args:
        ids: Checked.
        raw: (n, dim) float32 as given, finite and not zero.
        spec: The gallery.
        digests: (n,) content digests.
        attributes: Arrays of the attributes' types.
    """
    space = spec.space()
    unit, norms = validate.normalised(raw, lambda row: f"vectors[{row}]")
    made: dict[str, pa.Array] = {
        "id": ids,
        "content": pa.array(digests),
        f"vector_{space.name}": pa.FixedSizeListArray.from_arrays(pa.array(unit.reshape(-1)), space.dim),
        f"norm_{space.name}": pa.array(norms),
        **attributes,
    }
    schema = layout.input_schema(spec)
    return pa.Table.from_arrays(
        [made.get(field.name, pa.nulls(len(ids), field.type)) for field in schema], schema=schema
    )


def _ids(column: pa.Array, name: str, bad: Reasons) -> pa.Array:
    ids = column.cast(pa.string())
    sizes = pc.binary_length(ids).fill_null(0).to_numpy()
    for row in np.flatnonzero((sizes < 1) | (sizes > MAX_ID_BYTES)).tolist():
        size = int(sizes[row])
        bad.setdefault(row, f"{name} must have 1 to {MAX_ID_BYTES} bytes, got {size}" if size else f"{name} is missing")
    return ids


def _vectors(column: pa.Array, dim: int, name: str, bad: Reasons) -> F32:
    """(rows, dim) float32; what stands in bad rows means nothing."""
    lengths = pc.list_value_length(column).fill_null(-1).to_numpy()
    fits = lengths == dim
    for row in np.flatnonzero(~fits).tolist():
        have = int(lengths[row])
        bad.setdefault(
            row, f"{name} has {have} numbers, the gallery's vectors have {dim}" if have >= 0 else f"{name} is missing"
        )
    matrix = np.zeros((len(column), dim), np.float32)
    numbers = pc.list_flatten(column.filter(pa.array(fits)))
    matrix[fits] = numbers.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, dim)
    finite = np.isfinite(matrix).all(axis=1)
    for row in np.flatnonzero(fits & ~finite).tolist():
        bad.setdefault(row, f"{name} has a number that is missing or not finite")
    for row in np.flatnonzero(fits & finite & ~matrix.any(axis=1)).tolist():
        bad.setdefault(row, f"{name} is zero: it has no direction")
    return matrix


def _attribute(column: pa.Array, name: str, attribute_type: int, bad: Reasons) -> pa.Array:
    wanted = layout.arrow_type(attribute_type)
    try:
        array = column.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        array = pa.array(_converted(column, name, attribute_type, bad), wanted)
    if attribute_type == common_pb2.ATTRIBUTE_TYPE_DOUBLE:
        infinite = pc.invert(pc.is_finite(array)).fill_null(False).to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(infinite).tolist():
            bad.setdefault(row, f"{name} must be finite, got {array[row].as_py()}")
    return array


def _converted(column: pa.Array, name: str, attribute_type: int, bad: Reasons) -> list[Any]:
    """Value by value, so that the one that does not fit is named."""
    enum = common_pb2.AttributeType.ValueType(attribute_type)
    kind = common_pb2.AttributeType.Name(enum).removeprefix("ATTRIBUTE_TYPE_").lower()
    values: list[Any] = []
    for row, value in enumerate(column.to_pylist()):
        try:
            values.append(convert(value, kind))
        except (ValueError, TypeError) as error:
            bad.setdefault(row, f"{name}: {error}")
            values.append(None)
    return values
