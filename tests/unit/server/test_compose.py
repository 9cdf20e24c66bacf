"""What vector a reference and its conditions are searched by."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.server.compose_fakes import DIM, STORED, Models, embedding

from likewise.server.compose import describe, steer, unit
from likewise.server.query import ConditionInput, ImageReference, ReferenceInput, TextReference, VectorReference
from likewise.shards.protocols import F32
from likewise.v1 import common_pb2
from likewise.v1.search_service_pb2 import CONDITION_MODE_FOCUS


@pytest.fixture
def models() -> Models:
    return Models()


REFERENCES = [
    pytest.param(ImageReference(b"png"), embedding(b"png"), "image", id="image"),
    pytest.param(TextReference("a red dog"), embedding("a red dog"), "text", id="text"),
    pytest.param(VectorReference(embedding("v")), embedding("v"), "vector", id="vector"),
    pytest.param(STORED, STORED.vector, "stored vector", id="stored"),
]


@pytest.mark.parametrize(("reference", "raw", "name"), REFERENCES)
async def test_a_reference_alone_is_its_unit_embedding(
    models: Models, reference: ReferenceInput, raw: F32, name: str
) -> None:
    composed = await models.query(reference)

    np.testing.assert_array_equal(composed.vector, unit(raw))
    assert composed.vector.dtype == np.float32
    assert composed.composition == name
    assert composed.conditions.shape == (0, DIM)
    assert models.composer.calls == 0


@pytest.mark.parametrize(("reference", "raw", "name"), REFERENCES)
async def test_one_positive_condition_is_what_the_composer_makes_of_the_raw_reference(
    models: Models, reference: ReferenceInput, raw: F32, name: str
) -> None:
    composed = await models.query(reference, ConditionInput("in red"))

    expected = (await models.composer.compose(raw[None], embedding("in red")[None]))[0]
    np.testing.assert_allclose(composed.vector, expected, atol=1e-6)
    assert composed.composition == f"composer fake-composer/3 over {name} + 1 text condition"
    assert composed.models[-1].name == "fake-composer"


async def test_the_condition_text_is_the_composers_own(models: Models) -> None:
    await models.query(STORED, ConditionInput("colour", mode=CONDITION_MODE_FOCUS), ConditionInput("red"))

    assert models.text.calls == [["the same colour", "red"]]


async def test_half_the_weight_lies_half_way(models: Models) -> None:
    whole = await models.query(STORED, ConditionInput("in red"))
    half = await models.query(STORED, ConditionInput("in red", weight=0.5))

    np.testing.assert_allclose(half.vector, unit(unit(STORED.vector) + whole.vector), atol=1e-6)


async def test_a_negative_condition_goes_the_other_way(models: Models) -> None:
    positive = await models.query(STORED, ConditionInput("in red"))
    negative = await models.query(STORED, ConditionInput("in red", negative=True))

    reference = unit(STORED.vector)
    np.testing.assert_allclose(negative.vector, unit(2 * reference - positive.vector), atol=1e-6)
    assert negative.vector @ positive.vector < reference @ positive.vector


async def test_equal_conditions_count_as_one(models: Models) -> None:
    once = await models.query(STORED, ConditionInput("in red"))
    thrice = await models.query(STORED, *[ConditionInput("in red")] * 3)

    np.testing.assert_allclose(thrice.vector, once.vector, atol=1e-6)
    assert thrice.composition.endswith("+ 3 text conditions")


async def test_a_text_condition_alone_is_a_description(models: Models) -> None:
    composed = await models.query(None, ConditionInput("a red dog"))

    np.testing.assert_allclose(composed.vector, unit(embedding("a red dog")), atol=1e-6)
    assert composed.composition == "text"
    assert composed.reference is None
    assert models.composer.calls == 0


async def test_descriptions_are_summed_by_weight_and_polarity(models: Models) -> None:
    composed = await models.query(None, ConditionInput("a dog", weight=2.0), ConditionInput("red", negative=True))

    expected = 2 * unit(embedding("a dog")) - unit(embedding("red"))
    np.testing.assert_allclose(composed.vector, unit(expected), atol=1e-6)
    assert composed.composition == "sum of 2 texts"


async def test_the_parts_of_a_query_are_told(models: Models) -> None:
    composed = await models.query(STORED, ConditionInput("in red"), ConditionInput("with a dog", weight=0.3))

    alone = [(await models.query(STORED, ConditionInput(text))).vector for text in ("in red", "with a dog")]
    np.testing.assert_allclose(composed.conditions, np.stack(alone), atol=1e-6)
    np.testing.assert_array_equal(composed.reference, unit(STORED.vector))


async def test_every_encoder_is_called_once_and_both_run_side_by_side(models: Models) -> None:
    models.image.awaits, models.text.awaits = models.text.ran, models.image.ran

    composed = await models.query(ImageReference(b"png"), *[ConditionInput(text) for text in ("a", "b", "c")])

    assert models.image.calls == [[b"png"]]
    assert models.text.calls == [["a", "b", "c"]]
    assert models.composer.calls == 1
    assert (composed.decode_us, composed.encode_us) == (3, 30)
    assert [model.name for model in composed.models] == ["fake-image", "fake-text", "fake-composer"]


async def test_a_text_reference_and_its_conditions_are_one_batch(models: Models) -> None:
    await models.query(TextReference("a dog"), ConditionInput("in red"))

    assert models.text.calls == [["a dog", "in red"]]


async def test_warnings_of_the_encoders_are_passed_on(models: Models) -> None:
    models.text.warnings = (common_pb2.Warning(code="TEXT_TRUNCATED", message="cut"),)

    composed = await models.query(None, ConditionInput("a very long text"))

    assert [warning.code for warning in composed.warnings] == ["TEXT_TRUNCATED"]


unit_rows = st.integers(0, 2**32 - 1).map(
    lambda seed: np.stack([unit(row) for row in np.random.default_rng(seed).standard_normal((4, DIM))])
)
weights = st.lists(st.floats(0.05, 10.0), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(unit_rows, weights, st.permutations([0, 1, 2]))
def test_the_order_of_conditions_does_not_matter(rows: F32, w: list[float], order: list[int]) -> None:
    reference, targets = rows[0], rows[1:]

    np.testing.assert_allclose(
        steer(reference, targets, w), steer(reference, targets[order], [w[i] for i in order]), atol=1e-5
    )
    np.testing.assert_allclose(describe(targets, w), describe(targets[order], [w[i] for i in order]), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(unit_rows, weights, st.floats(0.1, 10.0))
def test_descriptions_depend_on_relative_weights_only(rows: F32, w: list[float], factor: float) -> None:
    np.testing.assert_allclose(describe(rows[1:], w), describe(rows[1:], [factor * one for one in w]), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(unit_rows, st.floats(0.0, 1.0))
def test_one_condition_moves_along_the_arc_to_its_target(rows: F32, weight: float) -> None:
    reference, target = rows[0], rows[1]

    query = steer(reference, target[None], [weight])

    assert abs(np.linalg.norm(query) - 1) < 1e-6
    np.testing.assert_allclose(query, unit((1 - weight) * reference + weight * target), atol=1e-5)
    assert query @ target >= reference @ target - 1e-5


@settings(max_examples=60, deadline=None)
@given(unit_rows)
def test_a_condition_of_weight_one_leaves_nothing_of_the_reference(rows: F32) -> None:
    np.testing.assert_array_equal(steer(rows[0], rows[1:2], [1.0]), unit(rows[1]))


@settings(max_examples=60, deadline=None)
@given(unit_rows)
def test_a_condition_and_its_negation_leave_the_reference(rows: F32) -> None:
    query = steer(rows[0], rows[[1, 1]], [1.0, -1.0])

    np.testing.assert_allclose(query, rows[0], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(unit_rows, st.floats(1e-30, 1e30))
def test_a_vectors_length_does_not_matter_without_conditions(rows: F32, length: float) -> None:
    np.testing.assert_allclose(unit(rows[0] * np.float32(length)), rows[0], atol=1e-6)


async def test_a_cancelled_query_is_cancelled(models: Models) -> None:
    models.text.awaits = asyncio.Event()
    query = asyncio.create_task(models.query(STORED, ConditionInput("in red")))
    await models.text.ran.wait()

    query.cancel()

    with pytest.raises(asyncio.CancelledError):
        await query
