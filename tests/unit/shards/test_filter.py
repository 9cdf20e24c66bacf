import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.shards.fakes import ATTRIBUTES

from likewise.shards.attributes import ARROW_TYPES, align, append, table_schema
from likewise.shards.filter import (
    MAX_DEPTH,
    MAX_NODES,
    MAX_OPERANDS,
    MAX_VALUES,
    InvalidFilter,
    compile_filter,
    compile_message,
    filter_key,
)
from likewise.shards.protocols import ShardError
from likewise.v1 import common_pb2 as pb

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TEXTS = st.sampled_from(["", "a", "b", "ab", "z", "é", "\uffff", "😀", "B"])
INTS = st.sampled_from([-(1 << 63), -1, 0, 1, 2, (1 << 63) - 1])
DOUBLES = st.sampled_from([-math.inf, -1.5, -0.0, 0.0, 1.0, 2.0, 1e300])
MICROS = st.integers(-3, 3)

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "colour": TEXTS,
    "count": INTS,
    "price": DOUBLES,
    "sold": st.booleans(),
    "made": MICROS,
    "tags": st.lists(TEXTS, max_size=3),
}
ORDER: dict[pb.ComparisonOperator.ValueType, Callable[[Any, Any], bool]] = {
    pb.COMPARISON_OPERATOR_EQUAL: lambda a, b: a == b,
    pb.COMPARISON_OPERATOR_NOT_EQUAL: lambda a, b: a != b,
    pb.COMPARISON_OPERATOR_LESS: lambda a, b: a < b,
    pb.COMPARISON_OPERATOR_LESS_OR_EQUAL: lambda a, b: a <= b,
    pb.COMPARISON_OPERATOR_GREATER: lambda a, b: a > b,
    pb.COMPARISON_OPERATOR_GREATER_OR_EQUAL: lambda a, b: a >= b,
}
EQUALITY = (pb.COMPARISON_OPERATOR_EQUAL, pb.COMPARISON_OPERATOR_NOT_EQUAL)
Row = dict[str, Any]
Meaning = Callable[[Row], bool]


def value(attribute: str, given: Any) -> pb.Value:
    match attribute:
        case "colour" | "tags":
            return pb.Value(string_value=given)
        case "count":
            return pb.Value(int64_value=given)
        case "price":
            return pb.Value(int64_value=given) if isinstance(given, int) else pb.Value(double_value=given)
        case "sold":
            return pb.Value(bool_value=given)
        case _:
            return pb.Value(timestamp_micros=given)


def compare(attribute: str, operator: pb.ComparisonOperator.ValueType, given: Any) -> pb.Filter:
    comparison = pb.Comparison(attribute=attribute, operator=operator, value=value(attribute, given))
    return pb.Filter(comparison=comparison)


def sortable(given: Any) -> Any:
    return bytes(given, "utf-8") if isinstance(given, str) else given


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[pb.Filter, Meaning]:
    attribute = draw(st.sampled_from(sorted(VALUES)))
    if attribute == "tags":
        text = draw(TEXTS)
        contains = compare("tags", pb.COMPARISON_OPERATOR_CONTAINS, text)
        return contains, lambda row: row["tags"] is not None and text in row["tags"]
    operator = draw(st.sampled_from(EQUALITY if attribute == "sold" else sorted(ORDER)))
    other = draw(VALUES[attribute] | st.integers(-2, 2) if attribute == "price" else VALUES[attribute])
    holds = ORDER[operator]
    return (
        compare(attribute, operator, other),
        lambda row: row[attribute] is not None and holds(sortable(row[attribute]), sortable(other)),
    )


@st.composite
def memberships(draw: st.DrawFn) -> tuple[pb.Filter, Meaning]:
    attribute = draw(st.sampled_from(sorted(VALUES)))
    others = draw(st.lists(TEXTS if attribute == "tags" else VALUES[attribute], max_size=3))
    message = pb.Membership(attribute=attribute, values=[value(attribute, other) for other in others])

    def holds(row: Row) -> bool:
        got = row[attribute]
        if got is None:
            return False
        return any(text in others for text in got) if attribute == "tags" else got in others

    return pb.Filter(membership=message), holds


@st.composite
def existences(draw: st.DrawFn) -> tuple[pb.Filter, Meaning]:
    attribute = draw(st.sampled_from(sorted(VALUES)))
    return pb.Filter(existence=pb.Existence(attribute=attribute)), lambda row: row[attribute] is not None


def all_of(parts: Sequence[tuple[pb.Filter, Meaning]]) -> tuple[pb.Filter, Meaning]:
    message = pb.Filter(all_of=pb.FilterList(filters=[part for part, _ in parts]))
    return message, lambda row: all(holds(row) for _, holds in parts)


def any_of(parts: Sequence[tuple[pb.Filter, Meaning]]) -> tuple[pb.Filter, Meaning]:
    message = pb.Filter(any_of=pb.FilterList(filters=[part for part, _ in parts]))
    return message, lambda row: any(holds(row) for _, holds in parts)


def negation(part: tuple[pb.Filter, Meaning]) -> tuple[pb.Filter, Meaning]:
    return pb.Filter(negation=part[0]), lambda row: not part[1](row)


FILTERS = st.recursive(
    comparisons() | memberships() | existences(),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(all_of)
        | st.lists(inner, min_size=1, max_size=3).map(any_of)
        | inner.map(negation)
    ),
    max_leaves=6,
)
ROWS = st.lists(st.fixed_dictionaries({name: st.none() | values for name, values in VALUES.items()}), max_size=12)


def table(rows: Sequence[Row]) -> pa.Table:
    columns = {
        a.name: pa.array(
            [
                EPOCH + timedelta(microseconds=row[a.name])
                if a.name == "made" and row[a.name] is not None
                else row[a.name]
                for row in rows
            ],
            ARROW_TYPES[a.type],
        )
        for a in ATTRIBUTES
    }
    return align(pa.table({"content": pa.array(range(len(rows)), pa.int64()), **columns}), table_schema(ATTRIBUTES))


@given(ROWS, FILTERS, st.integers(0, 12))
def test_a_filter_matches_the_rows_that_plain_python_matches(
    rows: list[Row], case: tuple[pb.Filter, Meaning], cut: int
) -> None:
    message, holds = case
    columns = append(table(rows[:cut]), table(rows[cut:]))
    predicate = compile_filter(filter_key(message), ATTRIBUTES)
    assert predicate is not None

    mask = predicate.mask(columns)

    assert mask.dtype == np.bool_
    assert mask.tolist() == [holds(row) for row in rows]


@given(ROWS, FILTERS, st.integers(0, 12))
def test_a_filter_over_a_slice_matches_what_it_matches_there_in_the_whole(
    rows: list[Row], case: tuple[pb.Filter, Meaning], start: int
) -> None:
    predicate = compile_message(case[0], ATTRIBUTES)
    columns = append(table(rows[:3]), table(rows[3:]))

    assert predicate.mask(columns.slice(start)).tolist() == predicate.mask(columns).tolist()[start:]


def test_equal_filters_have_equal_keys_and_no_filter_has_none() -> None:
    one, two = (compare("count", pb.COMPARISON_OPERATOR_EQUAL, 3) for _ in range(2))

    assert filter_key(one) == filter_key(two) != filter_key(compare("count", pb.COMPARISON_OPERATOR_EQUAL, 4))
    assert filter_key(pb.Filter()) == b""
    assert compile_filter(b"", ATTRIBUTES) is None


def nested(depth: int) -> pb.Filter:
    message = pb.Filter(existence=pb.Existence(attribute="count"))
    for _ in range(depth - 1):
        message = pb.Filter(negation=message)
    return message


def listed(count: int) -> pb.Filter:
    return pb.Filter(any_of=pb.FilterList(filters=[nested(1)] * count))


def among(count: int) -> pb.Filter:
    return pb.Filter(membership=pb.Membership(attribute="count", values=[pb.Value(int64_value=7)] * count))


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(nested(MAX_DEPTH), id="depth"),
        pytest.param(listed(MAX_OPERANDS), id="operands"),
        pytest.param(among(MAX_VALUES), id="values"),
        pytest.param(among(0), id="no values"),
        pytest.param(compare("price", pb.COMPARISON_OPERATOR_LESS, 3), id="an integer for a double"),
    ],
)
def test_a_filter_at_its_limits_is_taken(message: pb.Filter) -> None:
    assert compile_message(message, ATTRIBUTES).mask(table([])).tolist() == []


EQUAL = pb.COMPARISON_OPERATOR_EQUAL


def untyped(attribute: str, given: pb.Value | None = None) -> pb.Filter:
    return pb.Filter(comparison=pb.Comparison(attribute=attribute, operator=EQUAL, value=given))


NO_SIZE = pb.Filter(negation=pb.Filter(existence=pb.Existence(attribute="size")))
MIXED = pb.Filter(
    membership=pb.Membership(attribute="colour", values=[pb.Value(string_value="a"), pb.Value(bool_value=True)])
)


@pytest.mark.parametrize(
    ("message", "field", "says"),
    [
        (pb.Filter(all_of=pb.FilterList(filters=[nested(1), pb.Filter()])), "filter.all_of[1]", "got none"),
        (pb.Filter(all_of=pb.FilterList()), "filter.all_of", "1 to 256 operands, got 0"),
        (listed(MAX_OPERANDS + 1), "filter.any_of", "got 257"),
        (nested(MAX_DEPTH + 1), "filter" + ".negation" * MAX_DEPTH, "deeper than 16"),
        (NO_SIZE, "filter.negation.existence.attribute", "'size'"),
        (compare("colour", pb.COMPARISON_OPERATOR_CONTAINS, "a"), "filter.comparison.operator", "CONTAINS"),
        (compare("colour", pb.COMPARISON_OPERATOR_UNSPECIFIED, "a"), "filter.comparison.operator", "UNSPECIFIED"),
        (compare("sold", pb.COMPARISON_OPERATOR_LESS, True), "filter.comparison.operator", "BOOL"),
        (compare("tags", EQUAL, "a"), "filter.comparison.operator", "CONTAINS"),
        (compare("price", EQUAL, math.nan), "filter.comparison.value", "NaN"),
        (untyped("count", pb.Value(double_value=1)), "filter.comparison.value", "double_value 1.0"),
        (untyped("count"), "filter.comparison.value", "no value"),
        (untyped("made", pb.Value(int64_value=1)), "filter.comparison.value", "timestamp_micros"),
        (MIXED, "filter.membership.values[1]", "bool_value True"),
        (among(MAX_VALUES + 1), "filter.membership.values", "at most 10000 values, got 10001"),
    ],
)
def test_a_filter_that_does_not_fit_is_refused_with_its_field(message: pb.Filter, field: str, says: str) -> None:
    with pytest.raises(InvalidFilter) as caught:
        compile_message(message, ATTRIBUTES)

    assert caught.value.field == field
    assert says in str(caught.value)
    assert isinstance(caught.value, ShardError)


def test_a_filter_with_too_many_nodes_in_all_is_refused() -> None:
    wide = pb.Filter(any_of=pb.FilterList(filters=[listed(MAX_OPERANDS)] * (MAX_NODES // MAX_OPERANDS)))

    with pytest.raises(InvalidFilter, match="more than 4096 nodes"):
        compile_message(wide, ATTRIBUTES)


def test_bytes_that_are_no_filter_are_refused() -> None:
    with pytest.raises(InvalidFilter, match="3 bytes are no filter"):
        compile_filter(b"\xff\xff\xff", ATTRIBUTES)


@given(st.lists(st.integers(0, 40), max_size=30))
def test_appended_tables_keep_their_rows_in_few_chunks(sizes: list[int]) -> None:
    schema = table_schema(ATTRIBUTES[:1])
    result = schema.empty_table()
    expected: list[int] = []
    for size in sizes:
        start = len(expected)
        rows = pa.table(
            {"content": pa.array(range(start, start + size), pa.int64()), "colour": [f"c{i}" for i in range(size)]}
        )
        result = append(result, align(rows, schema))
        expected += list(range(start, start + size))

    assert result.column("content").to_pylist() == expected
    assert result.column("content").num_chunks <= 2 + math.log2(len(expected) + 1)
