"""Texts are tokenised and encoded in order, composers keep their pairs together; warnings say what was left out."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.unit.server.encoders.summing_graph import DIM, MODEL, FakeGraph
from tests.unit.server.model_fixtures import TEMPLATES, WORDS

from likewise.export.tokenizer import Tokenizer, write_word_tokenizer
from likewise.server.batched_graph import Serving
from likewise.server.composer import OnnxComposer
from likewise.server.errors import InvalidRequest
from likewise.server.protocols import Encoded
from likewise.server.text_encoder import OnnxTextEncoder
from likewise.v1.search_service_pb2 import CONDITION_MODE_CHANGE, CONDITION_MODE_FOCUS, CONDITION_MODE_UNSPECIFIED


def texts_of(graph: FakeGraph, serving: Serving, folder: Path, *, truncate: str = "end") -> OnnxTextEncoder:
    path = folder / "tokenizer.json"
    write_word_tokenizer(path, WORDS)
    return OnnxTextEncoder(
        MODEL,
        graph,
        serving=serving,
        input="in",
        output="out",
        dim=DIM,
        dtype="int64",
        max_length=3,
        tokenizer=lambda: Tokenizer(path, max_length=3, truncate=truncate),
    )


@pytest.fixture
async def texts(graph: FakeGraph, serving: Serving, tmp_path: Path) -> AsyncIterator[OnnxTextEncoder]:
    encoder = texts_of(graph, serving, tmp_path)
    yield encoder
    await encoder.close()


@pytest.fixture
async def composer(graph: FakeGraph, serving: Serving) -> AsyncIterator[OnnxComposer]:
    made = OnnxComposer(
        MODEL,
        graph,
        serving=serving,
        reference_input="r",
        condition_input="c",
        output="out",
        dim=DIM,
        templates=TEMPLATES,
    )
    yield made
    await made.close()


@pytest.mark.parametrize("count", [0, 1, 30])
async def test_texts_come_back_in_order_however_many(texts: OnnxTextEncoder, graph: FakeGraph, count: int) -> None:
    words = [sorted(WORDS)[i % len(WORDS)] for i in range(count)]

    encoded = await texts.encode(words)

    np.testing.assert_array_equal(encoded.vectors[:, 0], [sorted(WORDS).index(word) + 2 for word in words])
    assert encoded.vectors.shape == (count, DIM)
    assert all(batch["in"].dtype == np.int64 and batch["in"].shape[1:] == (3,) for batch in graph.batches)
    assert encoded.warnings == ()


async def test_a_text_that_was_cut_is_named_in_a_warning(texts: OnnxTextEncoder) -> None:
    encoded = await texts.encode(["red", "the same small dog"])

    assert [warning.code for warning in encoded.warnings] == ["TEXT_TRUNCATED"]
    assert "'the same small dog'" in encoded.warnings[0].message
    assert "3 tokens" in encoded.warnings[0].message


async def test_unknown_words_are_named_in_a_warning(texts: OnnxTextEncoder) -> None:
    encoded = await texts.encode(["purple cat", "red"])

    assert [warning.code for warning in encoded.warnings] == ["TEXT_UNKNOWN_WORDS"]
    assert "2 words of 'purple cat'" in encoded.warnings[0].message


async def test_warnings_of_many_texts_are_summed_up(texts: OnnxTextEncoder) -> None:
    encoded = await texts.encode(["purple"] * 30)

    assert len(encoded.warnings) == 9
    assert encoded.warnings[-1].message == "and 22 more texts"


async def test_a_long_text_is_shown_in_part(texts: OnnxTextEncoder) -> None:
    encoded = await texts.encode(["red " * 1_000])

    assert len(encoded.warnings[0].message) < 150


async def test_a_model_may_refuse_long_texts(graph: FakeGraph, serving: Serving, tmp_path: Path) -> None:
    encoder = texts_of(graph, serving, tmp_path, truncate="error")
    many: Sequence[str] = ["red"] * 10 + ["the same small dog"]

    with pytest.raises(InvalidRequest, match="more than the 3 tokens") as caught:
        await encoder.encode(many)

    assert (caught.value.field, caught.value.reason) == ("[10]", "TEXT_TOO_LONG")
    await encoder.close()


async def test_a_text_that_is_too_long_is_its_callers_alone(graph: FakeGraph, serving: Serving, tmp_path: Path) -> None:
    encoder = texts_of(graph, serving, tmp_path, truncate="error")

    good, bad = await asyncio.gather(
        encoder.encode(["red"]), encoder.encode(["red", "the same small dog"]), return_exceptions=True
    )

    assert isinstance(good, Encoded)
    assert good.vectors.shape == (1, DIM)
    assert isinstance(bad, InvalidRequest)
    assert bad.field == "[1]"
    await encoder.close()


async def test_texts_and_ids_of_different_callers_share_a_batch(texts: OnnxTextEncoder, graph: FakeGraph) -> None:
    ids = np.array([[7, 0, 0], [8, 1, 0]], dtype=np.int64)

    encoded, inferred = await asyncio.gather(texts.encode([sorted(WORDS)[0]]), texts.infer(ids))

    assert graph.sizes == [3]
    assert encoded.vectors[:, 0].tolist() == [2]
    assert inferred[:, 0].tolist() == [7, 9]


async def test_a_composer_frames_the_condition_by_its_mode(composer: OnnxComposer) -> None:
    framed = [
        composer.condition_text("colour", mode)
        for mode in (CONDITION_MODE_UNSPECIFIED, CONDITION_MODE_FOCUS, CONDITION_MODE_CHANGE)
    ]

    assert framed == ["colour", "the same colour", "another colour"]
    with pytest.raises(InvalidRequest, match="mode"):
        composer.condition_text("colour", 99)


@pytest.mark.parametrize("count", [0, 1, 9])
async def test_a_composer_keeps_pairs_together_and_gives_unit_vectors(
    composer: OnnxComposer, graph: FakeGraph, count: int
) -> None:
    references = np.arange(1, count * DIM + 1, dtype=np.float32).reshape(count, DIM)

    vectors = await composer.compose(references, -10 * references)

    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors.shape == (count, DIM)
    assert all((batch["c"] == -10 * batch["r"]).all() for batch in graph.batches)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
async def test_a_composition_without_direction_is_refused(serving: Serving, value: float) -> None:
    made = OnnxComposer(
        MODEL,
        FakeGraph(value),
        serving=serving,
        reference_input="r",
        condition_input="c",
        output="out",
        dim=DIM,
        templates=TEMPLATES,
    )

    with pytest.raises(InvalidRequest, match="too large or too small"):
        await made.compose(np.ones((1, DIM), np.float32), np.ones((1, DIM), np.float32))

    await made.close()


async def test_pairs_of_other_shapes_are_a_bug(composer: OnnxComposer) -> None:
    with pytest.raises(ValueError, match=r"expected two \(n, 4\) arrays"):
        await composer.compose(np.ones((2, DIM), np.float32), np.ones((1, DIM), np.float32))
