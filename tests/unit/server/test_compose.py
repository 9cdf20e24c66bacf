import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likewise.server.compose import Composed, compose_query, describe, steer, unit
from likewise.server.errors import FailedPrecondition, InvalidRequest, Overloaded, ServiceError
from likewise.server.protocols import Encoded, Family
from likewise.server.query import (
    ConditionInput,
    ImageReference,
    ReferenceInput,
    StoredReference,
    TextReference,
    VectorReference,
)
from likewise.shards.protocols import F32
from likewise.v1 import common_pb2
from likewise.v1.search_service_pb2 import CONDITION_MODE_CHANGE, CONDITION_MODE_FOCUS

DIM = 8


def embedding(data: bytes | str) -> F32:
    """A raw embedding of no particular length that depends on all of the data."""
    raw = data.encode() if isinstance(data, str) else data
    seed = int.from_bytes(raw.ljust(8, b"\x01")[:32], "little")
    return (3.0 * np.random.default_rng(seed).standard_normal(DIM)).astype(np.float32)


@dataclass
class FakeEncoder:
    kind: str
    calls: list[list[bytes | str]] = field(default_factory=list)
    error: Exception | None = None
    table: dict[bytes | str, F32] = field(default_factory=dict)
    warnings: tuple[common_pb2.Warning, ...] = ()
    ran: asyncio.Event = field(default_factory=asyncio.Event)
    awaits: asyncio.Event | None = None

    @property
    def model(self) -> common_pb2.ModelRef:
        return common_pb2.ModelRef(name=f"fake-{self.kind}", version=1, kind=f"{self.kind}_encoder", space="s")

    async def encode(self, inputs: Sequence[bytes] | Sequence[str]) -> Encoded:
        self.calls.append(list(inputs))
        self.ran.set()
        if self.awaits is not None:
            await self.awaits.wait()
        if self.error is not None:
            raise self.error
        rows = [self.table.get(one, embedding(one)) for one in inputs]
        vectors = np.array(rows, np.float32).reshape(len(rows), -1)
        return Encoded(vectors, decode_us=len(inputs), encode_us=10 * len(inputs), warnings=self.warnings)


@dataclass
class FakeComposer:
    """Reads raw embeddings: the result depends on the length of the reference."""

    calls: int = 0
    error: Exception | None = None

    @property
    def model(self) -> common_pb2.ModelRef:
        return common_pb2.ModelRef(name="fake-composer", version=3, kind="composer", space="s")

    def condition_text(self, text: str, mode: int) -> str:
        return f"{'the same ' * (mode == CONDITION_MODE_FOCUS)}{'another ' * (mode == CONDITION_MODE_CHANGE)}{text}"

    async def compose(self, references: F32, conditions: F32) -> F32:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return np.stack([unit(np.tanh(r) + 0.5 * np.roll(c, 1)) for r, c in zip(references, conditions, strict=True)])


@dataclass
class Models:
    image: FakeEncoder = field(default_factory=lambda: FakeEncoder("image"))
    text: FakeEncoder = field(default_factory=lambda: FakeEncoder("text"))
    composer: FakeComposer = field(default_factory=FakeComposer)

    @property
    def family(self) -> Family:
        return Family("fake", "s", DIM, self.image, self.text, self.composer)

    async def query(self, reference: ReferenceInput | None, *conditions: ConditionInput) -> Composed:
        return await compose_query(self.family, DIM, reference=reference, conditions=conditions)


@pytest.fixture
def models() -> Models:
    return Models()


STORED = StoredReference("item-1", embedding("stored"))

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


async def test_a_cancelled_query_is_cancelled(models: Models) -> None:
    models.text.awaits = asyncio.Event()
    query = asyncio.create_task(models.query(STORED, ConditionInput("in red")))
    await models.text.ran.wait()

    query.cancel()

    with pytest.raises(asyncio.CancelledError):
        await query
