"""Attribute columns in memory: Arrow types, alignment to the schema, and appends that keep the chunks few."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from likewise.shards.protocols import UnknownAttribute
from likewise.shards.spec import AttributeSpec
from likewise.v1 import common_pb2

CONTENT: Final = "content"
"""Column of content digests, kept beside the attributes, so that a table without attributes still has rows."""

ARROW_TYPES: Final[dict[int, pa.DataType]] = {
    common_pb2.ATTRIBUTE_TYPE_STRING: pa.string(),
    common_pb2.ATTRIBUTE_TYPE_INT64: pa.int64(),
    common_pb2.ATTRIBUTE_TYPE_DOUBLE: pa.float64(),
    common_pb2.ATTRIBUTE_TYPE_BOOL: pa.bool_(),
    common_pb2.ATTRIBUTE_TYPE_TIMESTAMP: pa.timestamp("us", tz="UTC"),
    common_pb2.ATTRIBUTE_TYPE_STRING_LIST: pa.list_(pa.string()),
}
"""How each `likewise.v1.AttributeType` is held."""


def table_schema(attributes: Sequence[AttributeSpec]) -> pa.Schema:
    """Columns held for each row: the content digest and the attributes in schema order."""
    fields = [pa.field(CONTENT, pa.int64())]
    fields += [pa.field(attribute.name, ARROW_TYPES[attribute.type]) for attribute in attributes]
    return pa.schema(fields)


def align(rows: pa.RecordBatch | pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of `schema` out of `rows`, cast where the store returned another width; absent ones are null."""
    columns = []
    for field in schema:
        at = rows.schema.get_field_index(field.name)
        column = rows.column(at) if at >= 0 else pa.nulls(rows.num_rows, field.type)
        columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.table(columns, schema=schema)


def append(table: pa.Table, rows: pa.Table) -> pa.Table:
    """`table` followed by `rows`, in O(log rows) chunks.

    A chunk is merged into the one before as soon as it is more than half as long, so a row is copied O(log rows) times
    in its life and a long first chunk is left alone.
    """
    if rows.num_rows == 0:
        return table
    # combine_chunks may leave several chunks when offsets would overflow; to_batches keeps those.
    batches = [*(b for b in table.to_batches() if b.num_rows), *rows.combine_chunks().to_batches()]
    last = len(batches) - 1
    rows_behind = batches[last].num_rows
    while last > 0 and rows_behind * 2 > batches[last - 1].num_rows:
        last -= 1
        rows_behind += batches[last].num_rows
    tail = pa.Table.from_batches(batches[last:], schema=table.schema).combine_chunks()
    return pa.Table.from_batches([*batches[:last], *tail.to_batches()], schema=table.schema)


def take(table: pa.Table, slots: npt.NDArray[np.int64], names: Sequence[str]) -> pa.RecordBatch:
    """The named columns of the rows at `slots`, in that order."""
    taken = table.select(list(names)).take(pa.array(slots))
    batches = taken.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_arrays([c.combine_chunks() for c in taken.columns], names)


def check_names(names: Sequence[str], attributes: Sequence[AttributeSpec], *, field: str) -> None:
    """Raise for the first name that is no attribute.

    Raises:
        UnknownAttribute: Naming it and the attributes there are.
    """
    known = {attribute.name for attribute in attributes}
    for i, name in enumerate(names):
        if name not in known:
            raise UnknownAttribute(
                f"{field}[{i}]", f"{name!r} is no attribute of the gallery, which has {sorted(known)}"
            )
