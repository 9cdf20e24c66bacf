"""Queries that have no meaning, or whose models fail: refused with the field that is wrong."""

import asyncio

import numpy as np
import pytest
from tests.unit.server.compose_fakes import DIM, STORED, Models, embedding

from likewise.server.compose import compose_query, describe, steer, unit
from likewise.server.errors import FailedPrecondition, InvalidRequest, Overloaded, ServiceError
from likewise.server.protocols import Family
from likewise.server.query import (
    ConditionInput,
    ImageReference,
    ReferenceInput,
    StoredReference,
    TextReference,
    VectorReference,
)
from likewise.shards.protocols import F32
from likewise.v1.search_service_pb2 import CONDITION_MODE_CHANGE, CONDITION_MODE_FOCUS


@pytest.fixture
def models() -> Models:
    return Models()


async def refusal(models: Models, reference: ReferenceInput | None, *conditions: ConditionInput) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await models.query(reference, *conditions)
    return caught.value


async def test_neither_reference_nor_condition_is_refused(models: Models) -> None:
    error = await refusal(models, None)

    assert isinstance(error, InvalidRequest)
    assert "neither" in str(error)


@pytest.mark.parametrize("mode", [CONDITION_MODE_FOCUS, CONDITION_MODE_CHANGE])
async def test_a_mode_without_a_reference_is_refused(models: Models, mode: int) -> None:
    error = await refusal(models, None, ConditionInput("a dog"), ConditionInput("red", mode=mode))

    assert isinstance(error, InvalidRequest)
    assert error.field == "conditions[1].mode"
    assert "reference" in str(error)
    assert models.text.calls == []


async def test_descriptions_that_cancel_out_are_refused(models: Models) -> None:
    error = await refusal(models, None, ConditionInput("red"), ConditionInput("red", negative=True))

    assert isinstance(error, InvalidRequest)
    assert error.reason == "CONDITIONS_CANCEL"


def test_descriptions_that_differ_by_rounding_only_are_refused() -> None:
    text = unit(np.arange(1, DIM + 1))

    with pytest.raises(InvalidRequest, match="cancel"):
        describe(np.stack([text, np.nextafter(text, 1, dtype=np.float32)]), [1.0, -1.0])


def test_a_reference_that_cancels_against_its_conditions_is_refused() -> None:
    reference = unit(np.arange(1, DIM + 1))

    with pytest.raises(InvalidRequest, match="cancel"):
        steer(reference, -reference[None], [0.5])


@pytest.mark.parametrize(
    ("vector", "reason", "words"),
    [
        (np.ones(5, np.float32), "DIMENSION_MISMATCH", "5 numbers, the gallery's have 8"),
        (np.ones((1, DIM), np.float32), "DIMENSION_MISMATCH", "1x8"),
        (np.zeros(DIM, np.float32), "ZERO_VECTOR", "zero"),
        (np.array([1, 2, np.nan, 4, 5, 6, 7, 8], np.float32), "NOT_FINITE", "number 2 of the vector is nan"),
        (np.array([1, 2, 3, 4, 5, 6, 7, -np.inf], np.float32), "NOT_FINITE", "number 7 of the vector is -inf"),
    ],
)
async def test_bad_vectors_are_refused(models: Models, vector: F32, reason: str, words: str) -> None:
    error = await refusal(models, VectorReference(vector), ConditionInput("in red"))

    assert isinstance(error, InvalidRequest)
    assert (error.reason, error.field) == (reason, "reference.vector")
    assert words in str(error)
    assert models.text.calls == []


@pytest.mark.parametrize(
    ("reference", "conditions", "reason"),
    [
        (ImageReference(b"png"), (), "NO_ENCODER"),
        (TextReference("a dog"), (), "NO_ENCODER"),
        (None, (ConditionInput("a dog"),), "NO_ENCODER"),
        (STORED, (ConditionInput("in red"),), "NO_COMPOSER"),
        (ImageReference(b"png"), (ConditionInput("in red"),), "NO_COMPOSER"),
    ],
)
async def test_a_gallery_of_vectors_only_says_what_it_lacks(
    reference: ReferenceInput | None, conditions: tuple[ConditionInput, ...], reason: str
) -> None:
    with pytest.raises(FailedPrecondition, match="vectors only") as caught:
        await compose_query(None, DIM, reference=reference, conditions=conditions)

    assert caught.value.reason == reason


@pytest.mark.parametrize("reference", [VectorReference(embedding("v")), STORED])
async def test_a_gallery_of_vectors_only_takes_vectors(reference: VectorReference | StoredReference) -> None:
    composed = await compose_query(None, DIM, reference=reference, conditions=[])

    np.testing.assert_array_equal(composed.vector, unit(reference.vector))
    assert composed.models == ()


@pytest.mark.parametrize(
    ("missing", "reference", "reason", "words"),
    [
        ("image", ImageReference(b"png"), "NO_ENCODER", "no image encoder"),
        ("text", VectorReference(embedding("v")), "NO_ENCODER", "no text encoder"),
        ("composer", STORED, "NO_COMPOSER", "no composer"),
    ],
)
async def test_a_family_says_which_model_it_lacks(
    models: Models, missing: str, reference: ReferenceInput, reason: str, words: str
) -> None:
    parts = {"image": models.image, "text": models.text, "composer": models.composer} | {missing: None}
    family = Family("partial", "s", DIM, **parts)  # type: ignore[arg-type]

    with pytest.raises(FailedPrecondition, match=words) as caught:
        await compose_query(family, DIM, reference=reference, conditions=[ConditionInput("in red")])

    assert caught.value.reason == reason
    assert "'partial'" in str(caught.value)


@pytest.mark.parametrize(
    ("index", "field"), [(0, "reference.text"), (1, "conditions[0].text"), (2, "conditions[1].text")]
)
async def test_an_encoders_refusal_names_the_field_of_the_request(models: Models, index: int, field: str) -> None:
    models.text.error = InvalidRequest("too long", reason="TEXT_TOO_LONG", field=f"[{index}]", metadata={"a": "b"})

    error = await refusal(models, TextReference("a"), ConditionInput("b"), ConditionInput("c"))

    assert (error.field, error.reason, error.metadata, str(error)) == (field, "TEXT_TOO_LONG", {"a": "b"}, "too long")


async def test_one_encoders_failure_withdraws_the_other_and_comes_out_as_itself(models: Models) -> None:
    models.image.error = Overloaded("full", retry_after_s=1.0)
    models.text.awaits = asyncio.Event()

    error = await refusal(models, ImageReference(b"png"), ConditionInput("in red"))

    assert error is models.image.error


async def test_a_composers_refusal_names_the_reference(models: Models) -> None:
    models.composer.error = InvalidRequest("too large", reason="NOT_FINITE")

    error = await refusal(models, VectorReference(embedding("v")), ConditionInput("in red"))

    assert (error.field, error.reason) == ("reference.vector", "NOT_FINITE")


async def test_models_of_another_dimension_than_the_gallerys_are_refused(models: Models) -> None:
    with pytest.raises(FailedPrecondition, match="8 numbers, the gallery's have 16") as caught:
        await compose_query(models.family, 16, reference=TextReference("a dog"), conditions=[])

    assert caught.value.reason == "DIMENSION_MISMATCH"


async def test_an_embedding_of_length_zero_is_refused_with_its_field(models: Models) -> None:
    models.text.table["nothing"] = np.zeros(DIM, np.float32)

    error = await refusal(models, None, ConditionInput("a dog"), ConditionInput("nothing"))

    assert (error.reason, error.field) == ("ZERO_VECTOR", "conditions[1].text")
