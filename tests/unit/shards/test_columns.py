import struct
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.shards.store_fixtures import DIM, SPEC, rows

from likewise.shards.columns import (
    ColumnError,
    array_to_column,
    batch_to_columns,
    check_input,
    check_vectors,
    column_to_array,
    ids_to_array,
    items_to_batch,
)
from likewise.shards.layout import input_schema
from likewise.shards.protocols import F32
from likewise.v1 import common_pb2 as pb
from likewise.wire import decode_column, encode_column

VALUES: dict[int, st.SearchStrategy[Any]] = {
    pb.ATTRIBUTE_TYPE_STRING: st.text(max_size=5),
    pb.ATTRIBUTE_TYPE_INT64: st.integers(-(1 << 63), (1 << 63) - 1),
    pb.ATTRIBUTE_TYPE_DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
    pb.ATTRIBUTE_TYPE_BOOL: st.booleans(),
    pb.ATTRIBUTE_TYPE_TIMESTAMP: st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
    pb.ATTRIBUTE_TYPE_STRING_LIST: st.lists(st.text(max_size=3), max_size=3),
}


@pytest.mark.parametrize("attribute_type", VALUES)
@given(data=st.data())
def test_a_column_survives_the_way_to_arrow_and_back(attribute_type: Any, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.none() | VALUES[attribute_type], max_size=20))
    sent = encode_column("x", attribute_type, values)

    array = column_to_array(sent, len(values))
    array.validate(full=True)

    assert array.to_pylist() == values
    assert decode_column(array_to_column("x", attribute_type, array)) == values
    assert decode_column(array_to_column("x", attribute_type, array.slice(1))) == values[1:]


def column(kind: Any, **parts: Any) -> pb.AttributeColumn:
    return pb.AttributeColumn(name="x", type=kind, **parts)


def int32s(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}i", *numbers)


LIST = pb.ATTRIBUTE_TYPE_STRING_LIST


@pytest.mark.parametrize(
    ("bad", "field", "message"),
    [
        pytest.param(column(pb.ATTRIBUTE_TYPE_INT64, data=bytes(15)), "data", "15 bytes.*take 16", id="short-data"),
        pytest.param(column(pb.ATTRIBUTE_TYPE_BOOL, data=b"\0\2"), "data", "row 1: must be 0 or 1, got 2", id="bool-2"),
        pytest.param(
            column(pb.ATTRIBUTE_TYPE_DOUBLE, data=struct.pack("<2d", 0, float("nan"))),
            "data",
            "row 1: must be finite, got nan",
            id="nan",
        ),
        pytest.param(
            column(pb.ATTRIBUTE_TYPE_DOUBLE, data=struct.pack("<2d", float("-inf"), 0)), "data", "row 0.*-inf", id="inf"
        ),
        pytest.param(column(pb.ATTRIBUTE_TYPE_STRING, strings=["a"]), "strings", "has 1, not 2", id="few-strings"),
        pytest.param(
            column(pb.ATTRIBUTE_TYPE_STRING, strings=["a", "b"], validity=b"\1\1"), "validity", "2 bytes", id="validity"
        ),
        pytest.param(
            column(pb.ATTRIBUTE_TYPE_STRING, strings=["a", "b"], data=b"1"), "data", "must be empty", id="stray-data"
        ),
        pytest.param(
            column(pb.ATTRIBUTE_TYPE_INT64, data=bytes(16), strings=["a"]),
            "strings",
            "must be empty",
            id="stray-text",
        ),
        pytest.param(column(LIST, offsets=int32s(0, 1)), "offsets", "8 bytes.*take 12", id="short-offsets"),
        pytest.param(
            column(LIST, offsets=int32s(0, 2, 1), strings=["a"]), "offsets", "row 1: offsets fall", id="falling-offsets"
        ),
        pytest.param(column(LIST, offsets=int32s(0, 1, 3), strings=["a"]), "offsets", "from 0 to 3", id="past-the-end"),
        pytest.param(column(LIST, offsets=int32s(1, 1, 1), strings=["a"]), "offsets", "from 1 to 1", id="late-start"),
        pytest.param(
            column(LIST, offsets=int32s(0, 1, 1), strings=["a"], validity=b"\2"),
            "offsets",
            "row 0: null",
            id="null-list",
        ),
        pytest.param(column(pb.ATTRIBUTE_TYPE_UNSPECIFIED), "type", "unknown type 0", id="no-type"),
    ],
)
def test_a_column_that_does_not_add_up_is_refused_with_field_and_row(
    bad: pb.AttributeColumn, field: str, message: str
) -> None:
    with pytest.raises(ColumnError, match=message) as refused:
        column_to_array(bad, 2, field="attributes[1]")

    assert refused.value.field == f"attributes[1].{field}"


def test_a_null_double_may_hold_anything() -> None:
    data = struct.pack("<2d", float("nan"), 1.5)

    array = column_to_array(column(pb.ATTRIBUTE_TYPE_DOUBLE, data=data, validity=b"\2"), 2)

    assert array.to_pylist() == [None, 1.5]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        pytest.param("", r"ids\[1\]: must have 1 to 512 bytes, got 0", id="empty"),
        pytest.param("x" * 513, r"ids\[1\]: must have 1 to 512 bytes, got 513", id="long"),
        pytest.param("ü" * 257, r"ids\[1\]: must have 1 to 512 bytes, got 514", id="long-in-bytes"),
        pytest.param("\ud800", r"ids\[1\]: no valid UTF-8", id="surrogate"),
    ],
)
def test_a_bad_id_is_refused_with_its_row(bad: str, message: str) -> None:
    with pytest.raises(ColumnError, match=message):
        ids_to_array(["fine", bad])


def test_ids_of_exactly_512_bytes_are_taken() -> None:
    assert ids_to_array(["ü" * 256]).to_pylist() == ["ü" * 256]


def items(**changes: Any) -> pa.RecordBatch:
    vectors: F32 = np.eye(2, DIM, dtype=np.float32)
    arguments: dict[str, Any] = {
        "ids": ["a", "b"],
        "attributes": [
            encode_column("price", pb.ATTRIBUTE_TYPE_INT64, [1, None]),
            encode_column("colour", pb.ATTRIBUTE_TYPE_STRING, ["red", "blue"]),
        ],
        "vectors": {"default": vectors},
        "norms": {"default": np.array([2, 3], np.float32)},
        "content": np.array([7, 8]),
    }
    arguments |= changes
    return items_to_batch(SPEC, arguments.pop("ids"), **arguments)


def test_items_become_the_writers_layout_with_nulls_for_what_is_not_given() -> None:
    batch = items()

    assert batch.schema == input_schema(SPEC)
    check_input(SPEC, batch)
    assert batch.select(["id", "content", "norm_default", "colour", "price", "tags", "seen"]).to_pylist() == [
        {"id": "a", "content": 7, "norm_default": 2.0, "colour": "red", "price": 1, "tags": None, "seen": None},
        {"id": "b", "content": 8, "norm_default": 3.0, "colour": "blue", "price": None, "tags": None, "seen": None},
    ]
    assert batch.column("vector_default").to_pylist() == np.eye(2, DIM).tolist()
    assert [c.name for c in batch_to_columns(SPEC, batch, ["price", "tags"])] == ["price", "tags"]


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        pytest.param(
            {"attributes": [encode_column("size", pb.ATTRIBUTE_TYPE_INT64, [1, 2])]},
            "attributes[0].name",
            "no attribute 'size'",
            id="unknown-attribute",
        ),
        pytest.param(
            {"attributes": [encode_column("price", pb.ATTRIBUTE_TYPE_INT64, [1, 2])] * 2},
            "attributes[1].name",
            "given twice",
            id="twice",
        ),
        pytest.param(
            {"attributes": [encode_column("price", pb.ATTRIBUTE_TYPE_STRING, ["1", "2"])]},
            "attributes[0].type",
            "'price' is INT64 in this gallery, got STRING",
            id="wrong-type",
        ),
        pytest.param(
            {"attributes": [encode_column("price", pb.ATTRIBUTE_TYPE_INT64, [1])]},
            "attributes[0].data",
            "8 bytes, 2 rows of 8 take 16",
            id="too-few-rows",
        ),
        pytest.param(
            {"vectors": {"default": np.eye(2, DIM + 1, dtype=np.float32)}},
            "vectors of 'default'",
            r"must have the shape \(2, 4\), got \(2, 5\)",
            id="wrong-dim",
        ),
        pytest.param(
            {"vectors": {"default": np.full((2, DIM), [[0], [np.nan]], np.float32)}},
            "vectors of 'default'[1]",
            "must be finite",
            id="nan-vector",
        ),
        pytest.param({"vectors": {}}, "vectors", "'default' has no vectors", id="no-vectors"),
        pytest.param({"content": np.array([1])}, "content", "shape", id="few-contents"),
    ],
)
def test_items_that_do_not_fit_the_gallery_are_refused_with_the_field(
    changes: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(ColumnError, match=message) as refused:
        items(**changes)

    assert refused.value.field == field


def _replaced(name: str, values: pa.Array) -> pa.RecordBatch:
    batch = rows({"a": 1, "b": 2})
    return batch.set_column(batch.schema.get_field_index(name), name, values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: rows({"a": 1}).drop_columns(["price"]), r"missing \['price'\]", id="missing"),
        pytest.param(lambda: rows({"a": 1}).append_column("size", pa.array([1])), r"unknown \['size'\]", id="unknown"),
        pytest.param(
            lambda: _replaced("price", pa.array(["1", "2"])), "price: must be int64, got string", id="wrong-type"
        ),
        pytest.param(
            lambda: _replaced("id", pa.array(["a", None])), r"id\[1\]: must have a value, got null", id="null-id"
        ),
        pytest.param(
            lambda: _replaced("vector_default", pa.array([[1] * DIM, [np.inf] * DIM], pa.list_(pa.float32(), DIM))),
            r"vector_default\[1\]: must be finite",
            id="inf",
        ),
        pytest.param(
            lambda: _replaced("vector_default", pa.array([[1] * DIM, [1, 2, 3, None]], pa.list_(pa.float32(), DIM))),
            "1 numbers are null",
            id="null-number",
        ),
    ],
)
def test_rows_that_cannot_be_stored_are_refused_naming_the_column(
    make: Callable[[], pa.RecordBatch], message: str
) -> None:
    def check(batch: pa.RecordBatch) -> None:
        check_input(SPEC, batch)
        check_vectors(SPEC, batch)

    with pytest.raises(ColumnError, match=message):
        check(make())
