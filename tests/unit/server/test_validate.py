"""What is refused, with which field, and what the rest may rely on."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from likewise import wire
from likewise.server import validate
from likewise.server.errors import FailedPrecondition, InvalidRequest, ServiceError, Unimplemented
from likewise.server.validate_search import Question, SearchForm, question, search_form
from likewise.shards.protocols import F32, UnknownAttribute
from likewise.shards.spec import AttributeSpec, GallerySpec, SpaceSpec
from likewise.v1 import common_pb2
from likewise.v1 import search_service_pb2 as pb

SPEC = GallerySpec(
    name="shop",
    gallery_id="0" * 32,
    spaces=(SpaceSpec("default", 4, "vectors:4"),),
    attributes=(
        AttributeSpec("colour", common_pb2.ATTRIBUTE_TYPE_STRING),
        AttributeSpec("price", common_pb2.ATTRIBUTE_TYPE_DOUBLE),
    ),
)
TEXT = pb.Reference(text="a red circle")
IN_RED = pb.Condition(text="in red")


def _vector(*numbers: float, **fields: object) -> pb.Reference:
    message = wire.encode_vector(np.array(numbers, dtype=np.float32))
    message.MergeFrom(common_pb2.Vector(**fields))  # type: ignore[arg-type]
    return pb.Reference(vector=message)


def _check(request: pb.SearchRequest) -> tuple[Question, SearchForm]:
    form = search_form(request, SPEC)
    return question(request.reference, request.conditions, request.space, SPEC), form


def _request(**fields: object) -> pb.SearchRequest:
    return pb.SearchRequest(**{"gallery": "shop", "reference": TEXT, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "error", "field"),
    [
        pytest.param({"k": 0}, InvalidRequest, "k", id="k of 0"),
        pytest.param({"k": 10_001}, InvalidRequest, "k", id="k of 10,001"),
        pytest.param({"reference": pb.Reference()}, InvalidRequest, "reference", id="nothing asked"),
        pytest.param({"reference": pb.Reference(image=b"")}, InvalidRequest, "reference.image", id="empty image"),
        pytest.param({"reference": pb.Reference(text=" \n")}, InvalidRequest, "reference.text", id="blank text"),
        pytest.param({"reference": pb.Reference(text="x" * 8193)}, InvalidRequest, "reference.text", id="long text"),
        pytest.param({"reference": pb.Reference(item_id="")}, InvalidRequest, "reference.item_id", id="empty id"),
        pytest.param(
            {"reference": pb.Reference(item_id="é" * 257)}, InvalidRequest, "reference.item_id", id="id of 514 bytes"
        ),
        pytest.param({"reference": _vector(1, 2, 3)}, InvalidRequest, "reference.vector.dim", id="dimension"),
        pytest.param(
            {"reference": _vector(1, 2, 3, math.nan)}, InvalidRequest, "reference.vector", id="NaN in a vector"
        ),
        pytest.param({"reference": _vector(1, 2, 3, -math.inf)}, InvalidRequest, "reference.vector", id="Inf"),
        pytest.param({"reference": _vector(0, 0, 0, 0)}, InvalidRequest, "reference.vector", id="zero vector"),
        pytest.param({"reference": _vector(1, 2, 3, 4, dtype=9)}, InvalidRequest, "reference.vector.data", id="dtype"),
        pytest.param(
            {"reference": _vector(1, 2, 3, 4, data=b"123")}, InvalidRequest, "reference.vector.data", id="bytes"
        ),
        pytest.param(
            {"reference": _vector(1, 2, 3, 4, space="sha256:x")},
            FailedPrecondition,
            "reference.vector.space",
            id="space",
        ),
        pytest.param(
            {"reference": pb.Reference(multi_vector=common_pb2.MultiVector())},
            Unimplemented,
            "reference.multi_vector",
            id="multi-vector",
        ),
        pytest.param({"conditions": [IN_RED] * 17}, InvalidRequest, "conditions", id="17 conditions"),
        pytest.param({"conditions": [pb.Condition()]}, InvalidRequest, "conditions[0]", id="empty condition"),
        pytest.param(
            {"conditions": [IN_RED, pb.Condition(text=" ")]}, InvalidRequest, "conditions[1].text", id="blank condition"
        ),
        pytest.param(
            {"conditions": [pb.Condition(text="x", weight=0)]}, InvalidRequest, "conditions[0].weight", id="weight 0"
        ),
        pytest.param(
            {"conditions": [pb.Condition(text="x", weight=math.nan)]},
            InvalidRequest,
            "conditions[0].weight",
            id="weight NaN",
        ),
        pytest.param(
            {"conditions": [pb.Condition(text="x", weight=100.5)]},
            InvalidRequest,
            "conditions[0].weight",
            id="weight over 100",
        ),
        pytest.param(
            {"conditions": [pb.Condition(aspects=pb.Aspects())]}, Unimplemented, "conditions[0].aspects", id="aspects"
        ),
        pytest.param({"conditions": [pb.Condition(gate=pb.Gate())]}, Unimplemented, "conditions[0].gate", id="gate"),
        pytest.param(
            {"conditions": [pb.Condition(examples=pb.Examples())]},
            Unimplemented,
            "conditions[0].examples",
            id="examples",
        ),
        pytest.param({"conditions": [pb.Condition(preset="x")]}, Unimplemented, "conditions[0].preset", id="preset"),
        pytest.param({"space": "other"}, InvalidRequest, "space", id="unknown space"),
        pytest.param({"cutoff": pb.Cutoff(min_score=math.nan)}, InvalidRequest, "cutoff.min_score", id="min_score NaN"),
        pytest.param({"cutoff": pb.Cutoff(relative=0)}, InvalidRequest, "cutoff.relative", id="relative 0"),
        pytest.param({"cutoff": pb.Cutoff(relative=1.5)}, InvalidRequest, "cutoff.relative", id="relative over 1"),
        pytest.param(
            {"cutoff": pb.Cutoff(min_relevance=0.5)}, Unimplemented, "cutoff.min_relevance", id="min_relevance"
        ),
        pytest.param({"params": pb.SearchParams(ef=0)}, InvalidRequest, "params.ef", id="ef 0"),
        pytest.param({"params": pb.SearchParams(nprobe=65_537)}, InvalidRequest, "params.nprobe", id="nprobe"),
        pytest.param({"params": pb.SearchParams(over_fetch=0.5)}, InvalidRequest, "params.over_fetch", id="over-fetch"),
        pytest.param(
            {"params": pb.SearchParams(exact=True, ef=64)}, InvalidRequest, "params.ef", id="ef of an exact search"
        ),
        pytest.param(
            {"params": pb.SearchParams(target_recall=1.5)}, InvalidRequest, "params.target_recall", id="target recall"
        ),
        pytest.param(
            {"params": pb.SearchParams(target_recall=0.0)}, InvalidRequest, "params.target_recall", id="no recall"
        ),
        pytest.param(
            {"params": pb.SearchParams(target_recall=0.9, ef=64)}, InvalidRequest, "params.ef", id="recall and ef"
        ),
        pytest.param(
            {"params": pb.SearchParams(target_recall=0.9, exact=False)}, InvalidRequest, "params.exact", id="and exact"
        ),
        pytest.param({"mask": pb.ResultMask(explanation=True)}, Unimplemented, "mask.explanation", id="explanation"),
        pytest.param(
            {"mask": pb.ResultMask(attributes=["price", "size"])},
            InvalidRequest,
            "mask.attributes[1]",
            id="unknown attribute",
        ),
        pytest.param(
            {"partial": pb.PartialPolicy(min_coverage=0.5)}, InvalidRequest, "partial.min_coverage", id="no ALLOW"
        ),
        pytest.param(
            {"partial": pb.PartialPolicy(mode=pb.PARTIAL_POLICY_MODE_ALLOW, min_coverage=1.5)},
            InvalidRequest,
            "partial.min_coverage",
            id="coverage over 1",
        ),
    ],
)
def test_a_search_is_refused_with_its_field(fields: dict[str, object], error: type[ServiceError], field: str) -> None:
    with pytest.raises(ServiceError) as caught:
        _check(_request(**fields))

    assert type(caught.value) is error
    assert caught.value.field == field
    assert str(caught.value)


@pytest.mark.parametrize(
    ("filter", "field"),
    [
        pytest.param(common_pb2.Filter(), "filter", id="empty"),
        pytest.param(
            common_pb2.Filter(existence=common_pb2.Existence(attribute="size")),
            "filter.existence.attribute",
            id="unknown attribute",
        ),
        pytest.param(
            common_pb2.Filter(
                comparison=common_pb2.Comparison(
                    attribute="price",
                    operator=common_pb2.COMPARISON_OPERATOR_LESS,
                    value=common_pb2.Value(string_value="50"),
                )
            ),
            "filter.comparison.value",
            id="wrong type",
        ),
        pytest.param(
            common_pb2.Filter(comparison=common_pb2.Comparison(attribute="price")),
            "filter.comparison.operator",
            id="no operator",
        ),
    ],
)
def test_a_filter_is_refused_before_any_shard_is_asked(filter: common_pb2.Filter, field: str) -> None:
    with pytest.raises(UnknownAttribute) as caught:
        _check(_request(filter=filter))

    assert caught.value.field == field


def test_both_dimensions_stand_in_the_error() -> None:
    with pytest.raises(InvalidRequest) as caught:
        _check(_request(reference=_vector(1, 2, 3)))

    assert caught.value.reason == "DIMENSION_MISMATCH"
    assert caught.value.metadata == {"got": "3", "expected": "4"}


def test_everything_given_arrives() -> None:
    asked, form = _check(
        _request(
            k=7,
            conditions=[
                pb.Condition(text="in red", weight=2, polarity=pb.POLARITY_NEGATIVE, mode=pb.CONDITION_MODE_CHANGE)
            ],
            params=pb.SearchParams(ef=100, nprobe=3, over_fetch=2.0),
            mask=pb.ResultMask(attributes=["*"], vectors=True),
            cutoff=pb.Cutoff(min_score=0.25),
            partial=pb.PartialPolicy(mode=pb.PARTIAL_POLICY_MODE_ALLOW, min_coverage=0.5),
            include_reference=True,
        )
    )

    (condition,) = asked.conditions
    assert (condition.text, condition.signed_weight, condition.mode) == ("in red", -2.0, pb.CONDITION_MODE_CHANGE)
    assert (form.looking.ef, form.looking.nprobe, form.looking.over_fetch) == (100, 3, 2.0)
    assert (form.k, form.attributes, form.vectors) == (7, ("colour", "price"), True)
    assert (form.cut.min_score, form.partial.min_coverage) == (0.25, 0.5)
    assert form.include_reference


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 6)),
        # Down to denormals and up to the largest float32, but never the zero vector.
        elements=st.floats(width=32, min_value=2.0**-126, allow_nan=False, allow_infinity=False),
    )
)
def test_rows_of_any_length_become_unit_rows_and_norms(matrix: wire.F32) -> None:
    wide = np.linalg.norm(matrix.astype(np.float64), axis=1)
    if (wide > np.finfo(np.float32).max).any():
        with pytest.raises(InvalidRequest):
            validate.normalised(matrix, lambda row: f"[{row}]")
        return

    unit, norms = validate.normalised(matrix, lambda row: f"[{row}]")

    np.testing.assert_allclose(np.linalg.norm(unit.astype(np.float64), axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(norms, wide, rtol=1e-6)


def test_the_first_bad_row_is_named_even_far_down() -> None:
    matrix = np.ones((10_000, 3), dtype=np.float32)
    matrix[9_000, 1] = np.nan

    with pytest.raises(InvalidRequest, match="number 1 of the vector is nan") as caught:
        validate.normalised(matrix, lambda row: f"items.vectors[{row}]")

    assert caught.value.field == "items.vectors[9000]"


@given(st.text(min_size=1, max_size=600))
def test_ids_are_taken_up_to_512_bytes(value: str) -> None:
    if len(value.encode()) <= 512:
        assert validate.item_ids([value], "ids", most=1) == (value,)
    else:
        with pytest.raises(InvalidRequest, match=r"the limit is 512"):
            validate.item_ids([value], "ids", most=1)


@given(st.text(max_size=50), st.lists(st.text(max_size=5), max_size=3))
def test_a_page_token_says_where_to_go_on(after: str, arguments: list[str]) -> None:
    assert validate.page_start(validate.page_token(after, arguments), arguments) == after


@pytest.mark.parametrize("token", ["!", "bm9uZQ==", "e30=", validate.page_token("a", ["x", "y"])])
def test_a_page_token_of_elsewhere_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate.page_start(token, ["xy"])

    assert caught.value.field == "page_token"


@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 70),
        elements=st.floats(-(2.0**99), 2.0**99, width=32),
    ).filter(lambda row: bool(row.any()))
)
def test_one_vector_gets_the_length_that_it_gets_in_a_matrix(row: F32) -> None:
    unit, _ = validate.normalised(row[np.newaxis], lambda _: "v")

    assert validate.unit(row, "v").tobytes() == unit[0].tobytes()


@pytest.mark.parametrize("numbers", [(0, 0), (math.nan, 1), (math.inf, 1), (3e38, 3e38)])
def test_a_vector_without_a_length_is_refused(numbers: tuple[float, float]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate.unit(np.array(numbers, dtype=np.float32), "reference.vector")

    assert (caught.value.reason, caught.value.field) == ("INVALID_VECTOR", "reference.vector")


UNITS = SpaceSpec("default", 33, "vectors:33")


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(0, 40), st.just(33)), elements=st.floats(width=32, allow_nan=True)),
)
def test_vectors_checked_together_get_the_bits_that_each_gets_alone(matrix: F32) -> None:
    messages = [wire.encode_vector(row) for row in matrix]

    together = validate.units(messages, UNITS)

    assert len(together) == len(messages)
    for message, row in zip(messages, together, strict=True):
        try:
            alone = validate.unit(validate.vectors(message, UNITS, "v")[0], "v")
        except InvalidRequest:
            assert row is None
        else:
            assert row is not None
            assert row.tobytes() == alone.tobytes()


@pytest.mark.parametrize("dim", [1, 7, 128, 513, 16_384])
def test_long_vectors_get_the_same_bits_together_too(dim: int) -> None:
    space = SpaceSpec("default", dim, f"vectors:{dim}")
    matrix = np.random.default_rng(dim).normal(size=(9, dim)).astype(np.float32)

    together = validate.units([wire.encode_vector(row) for row in matrix], space)

    for row, unit in zip(matrix, together, strict=True):
        assert unit is not None
        assert unit.tobytes() == validate.unit(row, "v").tobytes()


@pytest.mark.parametrize(
    "fields",
    [{"dim": 32}, {"data": b"\0" * 131}, {"dtype": 99}, {"dtype": common_pb2.DTYPE_FLOAT16}, {"space": "another"}],
)
def test_vectors_that_are_not_as_the_space_has_them_are_left_to_be_checked_alone(fields: dict[str, object]) -> None:
    good = wire.encode_vector(np.ones(33, dtype=np.float32))
    other = wire.encode_vector(np.ones(33, dtype=np.float32))
    for name, value in fields.items():
        setattr(other, name, value)

    first, second, third = validate.units([good, other, good], UNITS)

    assert first is not None
    assert second is None
    assert third is not None
