"""Filters by operators and as text."""

import contextlib
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likewise.client import F, Filter, InvalidArgument, InvalidType, parse_filter
from likewise.v1 import common_pb2 as pb
from likewise.wire import to_micros

EQUAL, LESS, AT_LEAST = (
    pb.COMPARISON_OPERATOR_EQUAL,
    pb.COMPARISON_OPERATOR_LESS,
    pb.COMPARISON_OPERATOR_GREATER_OR_EQUAL,
)
NOON = datetime(2024, 5, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("made", "operator"),
    [
        (F.x == 1, pb.COMPARISON_OPERATOR_EQUAL),
        (F.x != 1, pb.COMPARISON_OPERATOR_NOT_EQUAL),
        (F.x < 1, pb.COMPARISON_OPERATOR_LESS),
        (F.x <= 1, pb.COMPARISON_OPERATOR_LESS_OR_EQUAL),
        (F.x > 1, pb.COMPARISON_OPERATOR_GREATER),
        (F.x >= 1, pb.COMPARISON_OPERATOR_GREATER_OR_EQUAL),
        (1 > F.x, pb.COMPARISON_OPERATOR_LESS),  # noqa: SIM300 - the point is the turned side
    ],
)
def test_an_operator_becomes_a_comparison(made: Filter, operator: int) -> None:
    assert made.to_message() == pb.Filter(
        comparison=pb.Comparison(attribute="x", operator=operator, value=pb.Value(int64_value=1))  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("red", pb.Value(string_value="red")),
        (3, pb.Value(int64_value=3)),
        (3.5, pb.Value(double_value=3.5)),
        (True, pb.Value(bool_value=True)),
        (np.float32(0.5), pb.Value(double_value=0.5)),
        (np.int8(4), pb.Value(int64_value=4)),
        (np.bool_(False), pb.Value(bool_value=False)),
        (NOON, pb.Value(timestamp_micros=to_micros(NOON))),
        (NOON.astimezone(timezone(timedelta(hours=2))), pb.Value(timestamp_micros=to_micros(NOON))),
        (date(2024, 5, 31), pb.Value(timestamp_micros=to_micros(datetime(2024, 5, 31, tzinfo=UTC)))),
    ],
)
def test_the_python_type_decides_the_type_of_a_value(value: Any, wanted: pb.Value) -> None:
    assert (F.x == value).to_message().comparison.value == wanted


def test_the_rest_of_the_tree() -> None:
    made = (F.a.isin(["x", "y"]) | ~F["b c"].exists() | F.tags.contains("new")) & (F.n < 2) & (F.n >= 0)

    members = pb.Membership(attribute="a", values=[pb.Value(string_value="x"), pb.Value(string_value="y")])
    contains = pb.Comparison(
        attribute="tags", operator=pb.COMPARISON_OPERATOR_CONTAINS, value=pb.Value(string_value="new")
    )
    either = pb.FilterList(
        filters=[
            pb.Filter(membership=members),
            pb.Filter(negation=pb.Filter(existence=pb.Existence(attribute="b c"))),
            pb.Filter(comparison=contains),
        ]
    )
    low = pb.Comparison(attribute="n", operator=LESS, value=pb.Value(int64_value=2))
    high = pb.Comparison(attribute="n", operator=AT_LEAST, value=pb.Value(int64_value=0))
    assert made.to_message() == pb.Filter(
        all_of=pb.FilterList(filters=[pb.Filter(any_of=either), pb.Filter(comparison=low), pb.Filter(comparison=high)])
    )


def test_a_long_chain_stays_flat() -> None:
    made = F.x == 0
    for number in range(1, 200):
        made = made | (F.x == number)

    assert len(made.to_message().any_of.filters) == 200


def test_joining_changes_neither_side() -> None:
    left = (F.a == 1) & (F.b == 2)
    before = str(left)

    _ = left & (F.c == 3)

    assert str(left) == before


def test_a_double_negation_is_none() -> None:
    assert ~~(F.a == 1) == (F.a == 1)


@pytest.mark.parametrize(
    "misuse",
    [
        pytest.param(lambda: (F.a == 1) and (F.b == 2), id="and"),
        pytest.param(lambda: (F.a == 1) or (F.b == 2), id="or"),
        pytest.param(lambda: not F.a.exists(), id="not"),
        pytest.param(lambda: 1 < F.a < 3, id="chain"),
        pytest.param(lambda: bool(F.a), id="bare field"),
        pytest.param(lambda: F.a == 1 & F.b == 2, id="no parentheses"),
        pytest.param(lambda: F.flag & (F.a == 1), id="field for a filter"),
        pytest.param(lambda: ~F.flag, id="negated field"),
        pytest.param(lambda: (F.a == 1) & True, id="a bool for a filter"),  # type: ignore[operator]
        pytest.param(lambda: F.a == None, id="None"),  # noqa: E711 - the point
        pytest.param(lambda: F.a < [1], id="a list"),  # type: ignore[operator]
        pytest.param(lambda: F.a.isin("red"), id="text for a list"),
        pytest.param(lambda: F.a.contains(3), id="contains a number"),  # type: ignore[arg-type]
    ],
)
def test_what_python_cannot_say_raises_type_error_with_advice(misuse: Any) -> None:
    with pytest.raises(TypeError, match=r"write|takes") as caught:
        misuse()

    assert isinstance(caught.value, InvalidType)


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63) - 1, float("nan")])
def test_numbers_that_cannot_be_sent_are_refused(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="'a'"):
        _ = F.a == value


TEXTS = [
    ("price < 50 and colour in (red, pink)", (F.price < 50) & F.colour.isin(["red", "pink"])),
    ("a = 1 or b == 2 and c != 3", (F.a == 1) | ((F.b == 2) & (F.c != 3))),
    ("(a=1 OR b>=2.5) AND NOT c exists", ((F.a == 1) | (F.b >= 2.5)) & ~F.c.exists()),
    ("a not in (1, -2) and b not exists", ~F.a.isin([1, -2]) & ~F.b.exists()),
    ("not (a <= 1e3)", ~(F.a <= 1000.0)),
    ("sold = true and name = 'true'", (F.sold == True) & (F.name == "true")),  # noqa: E712 - a filter
    ("tags contains new", F.tags.contains("new")),
    (r'name = "it\"s \\ so"', F.name == 'it"s \\ so'),
    ("taken >= 2024-05-31", F.taken >= date(2024, 5, 31)),
    ("taken < 2024-05-31T12:00:00+00:00", F.taken < NOON),
    ("code = 50a and a in ()", (F.code == "50a") & F.a.isin([])),
    ("colour = dark-red", F.colour == "dark-red"),
]


@pytest.mark.parametrize(("text", "wanted"), TEXTS)
def test_text_says_the_same_as_operators(text: str, wanted: Filter) -> None:
    assert parse_filter(text) == wanted


@pytest.mark.parametrize("wanted", [wanted for _, wanted in TEXTS])
def test_a_filter_prints_as_text_that_reads_back(wanted: Filter) -> None:
    assert parse_filter(str(wanted)) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the name of an attribute"),
        ("price", "expected an operator"),
        ("price <", "expected a value"),
        ("price < 5 and", "the name of an attribute"),
        ("price < 5 colour = red", "character 11"),
        ("(price < 5", r"'\)'"),
        ("colour in red", r"'\('"),
        ("colour in (red blue)", "character 16"),
        ("colour = and", "quote"),
        ("1 < price", "the name of an attribute"),
        ("price < 'open", "cannot read"),
        ("taken > 2024-13-45", "date or time"),
        ("a not = 1", "'in' or 'exists'"),
        ("not " * 40 + "a = 1", "16 deep"),
        ("(" * 40 + "a = 1" + ")" * 40, "16 deep"),
        ("__import__('os')", "the name of an attribute"),
    ],
)
def test_text_that_follows_no_grammar_shows_the_place(text: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as caught:
        parse_filter(text)

    assert caught.value.reason == "FILTER_SYNTAX"


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidArgument):
        assert parse_filter(str(parse_filter(text))) == parse_filter(text)
