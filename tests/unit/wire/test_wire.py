"""What is packed comes back, and what cannot be is refused with its reason."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from likewise import wire
from likewise.v1 import common_pb2 as pb

FLOATS = st.floats(width=32, allow_nan=False)


@given(hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(1, 7)), elements=FLOATS))
def test_vectors_come_back_bit_for_bit(array: np.ndarray) -> None:
    decoded = wire.decode_vectors(wire.encode_vectors(array))

    np.testing.assert_array_equal(decoded, array)
    assert decoded.dtype == np.float32


def test_half_precision_travels_as_it_is() -> None:
    array = np.array([[0.5, -2.0]], dtype=np.float16)

    message = wire.encode_vectors(array)

    assert message.dtype == pb.DTYPE_FLOAT16
    assert len(message.data) == 4
    np.testing.assert_array_equal(wire.decode_vectors(message), array.astype(np.float32))


def test_big_endian_and_strided_arrays_are_written_little_endian_and_dense() -> None:
    array = np.arange(12, dtype=">f8").reshape(3, 4)[:, ::2]

    np.testing.assert_array_equal(wire.decode_vectors(wire.encode_vectors(array)), [[0, 2], [4, 6], [8, 10]])


def test_a_decoded_float32_matrix_is_a_view_and_not_writable() -> None:
    decoded = wire.decode_vectors(wire.encode_vectors(np.ones((2, 2), np.float32)))

    assert not decoded.flags.owndata
    assert not decoded.flags.writeable


@pytest.mark.parametrize(
    ("message", "said"),
    [
        pytest.param(pb.Vectors(dim=0, data=b""), "dim must be at least 1", id="no dim"),
        pytest.param(pb.Vectors(dim=2, data=b"1234567"), "7 bytes are not whole rows of 2 numbers", id="odd bytes"),
        pytest.param(pb.Vector(dim=1, data=b"12345678"), "8 bytes are not one row of 1 numbers", id="two rows"),
        pytest.param(pb.Vectors(dtype=9, dim=1, data=b"1234"), "unknown dtype 9", id="dtype"),  # type: ignore[arg-type]
    ],
)
def test_bytes_that_do_not_fit_are_refused(message: pb.Vectors, said: str) -> None:
    with pytest.raises(wire.WireError, match=said):
        wire.decode_vectors(message)


COLUMNS = st.one_of(
    st.tuples(st.just(pb.ATTRIBUTE_TYPE_STRING), st.lists(st.none() | st.text())),
    st.tuples(st.just(pb.ATTRIBUTE_TYPE_INT64), st.lists(st.none() | st.integers(-(1 << 63), (1 << 63) - 1))),
    st.tuples(st.just(pb.ATTRIBUTE_TYPE_DOUBLE), st.lists(st.none() | st.floats(allow_nan=False))),
    st.tuples(st.just(pb.ATTRIBUTE_TYPE_BOOL), st.lists(st.none() | st.booleans())),
    st.tuples(st.just(pb.ATTRIBUTE_TYPE_TIMESTAMP), st.lists(st.none() | st.datetimes(timezones=st.just(UTC)))),
    st.tuples(st.just(pb.ATTRIBUTE_TYPE_STRING_LIST), st.lists(st.none() | st.lists(st.text()))),
)


@given(COLUMNS)
def test_columns_come_back_with_their_gaps(
    column: tuple[pb.AttributeType.ValueType, list[wire.AttributeValue]],
) -> None:
    attribute_type, values = column

    decoded = wire.decode_column(wire.encode_column("a", attribute_type, values))

    assert decoded == values


@pytest.mark.parametrize(
    ("attribute_type", "values", "said"),
    [
        pytest.param(pb.ATTRIBUTE_TYPE_STRING, ["a", 1], "row 1: 1 is a int", id="int for string"),
        pytest.param(pb.ATTRIBUTE_TYPE_INT64, [True], "row 0: True is a bool", id="bool for int"),
        pytest.param(pb.ATTRIBUTE_TYPE_INT64, [1 << 63], "does not fit 64 bits", id="too large"),
        pytest.param(pb.ATTRIBUTE_TYPE_DOUBLE, ["1.0"], "row 0: '1.0' is a str", id="string for double"),
        pytest.param(pb.ATTRIBUTE_TYPE_BOOL, [1], "row 0: 1 is a int", id="int for bool"),
        pytest.param(pb.ATTRIBUTE_TYPE_STRING_LIST, [["a", 1]], "is no list of strings", id="mixed list"),
        pytest.param(pb.ATTRIBUTE_TYPE_UNSPECIFIED, [], "unknown type", id="no type"),
    ],
)
def test_values_of_the_wrong_type_are_refused_by_row(
    attribute_type: pb.AttributeType.ValueType, values: list[wire.AttributeValue], said: str
) -> None:
    with pytest.raises(wire.WireError, match=said):
        wire.encode_column("a", attribute_type, values)


def test_a_naive_datetime_is_taken_as_utc() -> None:
    assert wire.to_micros(datetime(1970, 1, 1, 0, 0, 1)) == 1_000_000
