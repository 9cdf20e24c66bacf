"""How a gallery lies in columns: Arrow schemas, stamps, and which rows belong to which shard.

A row version is named by its stamp, `store version << 24 | row in the commit`. Versions only grow, so stamps are unique
and growing over restarts, compaction and deletes without any counter being kept.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from likewise.shards.protocols import I64, Delta
from likewise.shards.spec import GallerySpec, shard_hash
from likewise.v1 import common_pb2 as pb

STAMP_ROW_BITS: Final = 24
MAX_COMMIT_ROWS: Final = 1 << STAMP_ROW_BITS
"""Rows one commit can hold, exclusive."""

_ARROW_TYPES: Final[dict[int, pa.DataType]] = {
    pb.ATTRIBUTE_TYPE_STRING: pa.string(),
    pb.ATTRIBUTE_TYPE_INT64: pa.int64(),
    pb.ATTRIBUTE_TYPE_DOUBLE: pa.float64(),
    pb.ATTRIBUTE_TYPE_BOOL: pa.bool_(),
    pb.ATTRIBUTE_TYPE_TIMESTAMP: pa.timestamp("us", "UTC"),
    pb.ATTRIBUTE_TYPE_STRING_LIST: pa.list_(pa.string()),
}


def arrow_type(attribute_type: int) -> pa.DataType:
    """Column type of a `likewise.v1.AttributeType` number.

    Raises:
        KeyError: If it has none.
    """
    return _ARROW_TYPES[attribute_type]


def input_schema(spec: GallerySpec) -> pa.Schema:
    """What a writer is given: id, content, vector_<space> and norm_<space> for each space, then the attributes."""
    return pa.schema([pa.field("id", pa.string()), pa.field("content", pa.int64()), *_payload(spec)])


def store_schema(spec: GallerySpec) -> pa.Schema:
    """What the store holds: as `input_schema`, with shard_hash and stamp after the id."""
    head = [pa.field("id", pa.string()), *(pa.field(name, pa.int64()) for name in ("shard_hash", "stamp", "content"))]
    return pa.schema([*head, *_payload(spec)])


def _payload(spec: GallerySpec) -> list[pa.Field]:
    fields: list[pa.Field] = []
    for space in spec.spaces:
        fields.append(pa.field(f"vector_{space.name}", pa.list_(pa.float32(), space.dim)))
        fields.append(pa.field(f"norm_{space.name}", pa.float32()))
    fields.extend(pa.field(attribute.name, arrow_type(attribute.type)) for attribute in spec.attributes)
    return fields


def row_bytes(spec: GallerySpec) -> int:
    """About how many bytes a row takes: vectors exactly, 32 bytes for each other column."""
    return sum(4 * space.dim + 4 for space in spec.spaces) + 32 * (4 + len(spec.attributes))


def shard_hashes(ids: Sequence[str]) -> I64:
    """`spec.shard_hash` of every id, (n,) int64."""
    return np.fromiter((shard_hash(item_id) for item_id in ids), dtype=np.int64, count=len(ids))


def first_stamp(version: int) -> int:
    """Smallest stamp that a row written by that store version can have."""
    return version << STAMP_ROW_BITS


def stamped(rows: pa.Table, spec: GallerySpec, version: int) -> pa.RecordBatch:
    """Rows in `input_schema`, by name, as one batch in `store_schema` as version `version` will hold them.

    Raises:
        ValueError: If there are more rows than a commit can hold.
    """
    if rows.num_rows >= MAX_COMMIT_ROWS:
        raise ValueError(f"a commit holds fewer than {MAX_COMMIT_ROWS} rows, got {rows.num_rows}")
    return stamped_from(rows, spec, first_stamp(version))


def stamped_from(rows: pa.Table, spec: GallerySpec, first: int) -> pa.RecordBatch:
    """Rows in `input_schema`, by name, as one batch in `store_schema` with stamps from `first` on."""
    n = rows.num_rows
    made = {
        "shard_hash": pa.array(shard_hashes(rows["id"].to_pylist())),
        "stamp": pa.array(np.arange(n, dtype=np.int64) + first),
    }
    schema = store_schema(spec)
    return pa.record_batch(
        [made[name] if name in made else _one_array(rows[name]) for name in schema.names], schema=schema
    )


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with exactly the columns of `schema`, in its order; a column that it lacks is null.

    A version of the store from before an attribute was added lacks the attribute's column.
    """
    have = set(batch.schema.names)
    columns = [
        batch.column(field.name) if field.name in have else pa.nulls(batch.num_rows, field.type) for field in schema
    ]
    return pa.record_batch(columns, schema=schema)


def empty_batch(spec: GallerySpec) -> pa.RecordBatch:
    """No rows, in `store_schema`."""
    return pa.RecordBatch.from_pylist([], schema=store_schema(spec))


def in_partition(hashes: I64, shard: int, shards: int) -> npt.NDArray[np.bool_]:
    """Which of the hashes belong to the shard, (n,) booleans."""
    mask: npt.NDArray[np.bool_] = hashes % shards == shard
    return mask


def partition_delta(delta: Delta, shard: int, shards: int) -> Delta:
    """The part of a commit that one shard of `shards` holds; versions are kept, so that a shard sees every commit."""
    if shards == 1:
        return delta
    upserts = delta.upserts
    if upserts.num_rows:
        upserts = upserts.filter(pa.array(in_partition(upserts.column("shard_hash").to_numpy(), shard, shards)))
    deleted = [item_id for item_id in delta.deleted_ids if shard_hash(item_id) % shards == shard]
    return Delta(base_version=delta.base_version, version=delta.version, upserts=upserts, deleted_ids=deleted)
