"""What a query asks for again is not encoded again; what has changed, or has warnings, is."""

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.server.compose_fakes import FakeEncoder, embedding

from likewise.server.errors import InvalidRequest, Overloaded
from likewise.server.kept_encodings import KeptEncodings
from likewise.v1 import common_pb2


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder("text")


async def test_what_is_asked_for_again_is_not_encoded_again(encoder: FakeEncoder) -> None:
    kept = KeptEncodings(8)

    first = await kept.encode(encoder, ["red"])
    second = await kept.encode(encoder, ["red"])

    assert encoder.calls == [["red"]]
    np.testing.assert_array_equal(first.vectors, second.vectors)
    assert (first.decode_us, first.encode_us) == (1, 10)
    assert (second.decode_us, second.encode_us) == (0, 0)


async def test_only_what_is_missing_is_encoded_and_the_order_stays(encoder: FakeEncoder) -> None:
    kept = KeptEncodings(8)
    await kept.encode(encoder, ["b", "d"])

    encoded = await kept.encode(encoder, ["a", "b", "c", "d", "e"])

    assert encoder.calls == [["b", "d"], ["a", "c", "e"]]
    np.testing.assert_array_equal(encoded.vectors, np.stack([embedding(text) for text in "abcde"]))


async def test_pictures_are_known_by_their_bytes() -> None:
    encoder, kept = FakeEncoder("image"), KeptEncodings(8)
    large = b"x" * (1 << 19)

    for picture in (b"one", large, bytes(bytearray(large)), b"one", b"two"):
        encoded = await kept.encode(encoder, [picture])
        np.testing.assert_array_equal(encoded.vectors[0], embedding(picture))

    assert encoder.calls == [[b"one"], [large], [b"two"]]


async def test_the_one_not_asked_for_the_longest_goes_first(encoder: FakeEncoder) -> None:
    kept = KeptEncodings(2)
    for text in ("a", "b", "a", "c", "a", "b"):
        await kept.encode(encoder, [text])

    assert encoder.calls == [["a"], ["b"], ["c"], ["b"]]


async def test_each_encoder_has_its_own(encoder: FakeEncoder) -> None:
    kept, other = KeptEncodings(8), FakeEncoder("text", table={"red": embedding("another model")})

    await kept.encode(encoder, ["red"])
    encoded = await kept.encode(other, ["red"])

    np.testing.assert_array_equal(encoded.vectors[0], embedding("another model"))


async def test_an_encoder_that_is_gone_is_not_held(encoder: FakeEncoder) -> None:
    kept, other = KeptEncodings(8), FakeEncoder("text")
    await kept.encode(other, ["red"])
    gone = weakref.ref(other)

    del other
    gc.collect()

    assert gone() is None


async def test_warnings_are_told_each_time() -> None:
    warning = common_pb2.Warning(code="TEXT_TRUNCATED")
    encoder, kept = FakeEncoder("text", warnings=(warning,)), KeptEncodings(8)

    answers = [await kept.encode(encoder, ["a long text"]) for _ in range(2)]

    assert [encoded.warnings for encoded in answers] == [(warning,), (warning,)]


async def test_a_very_long_text_is_encoded_each_time(encoder: FakeEncoder) -> None:
    kept = KeptEncodings(8)
    for _ in range(2):
        await kept.encode(encoder, ["x" * 10_000])

    assert len(encoder.calls) == 2


async def test_none_are_kept_where_none_are_wanted(encoder: FakeEncoder) -> None:
    kept = KeptEncodings(0)
    for _ in range(2):
        await kept.encode(encoder, ["red"])

    assert len(encoder.calls) == 2


async def test_a_refused_input_is_named_by_its_place_in_the_query(encoder: FakeEncoder) -> None:
    kept = KeptEncodings(8)
    await kept.encode(encoder, ["a", "b"])
    encoder.error = InvalidRequest("too long", reason="TEXT_TOO_LONG", field="[1]")

    with pytest.raises(InvalidRequest, match="too long") as caught:
        await kept.encode(encoder, ["a", "c", "b", "d"])

    assert (caught.value.field, caught.value.reason) == ("[3]", "TEXT_TOO_LONG")


async def test_a_failure_is_not_kept(encoder: FakeEncoder) -> None:
    kept = KeptEncodings(8)
    encoder.error = Overloaded("full", retry_after_s=1)
    with pytest.raises(Overloaded):
        await kept.encode(encoder, ["red"])
    encoder.error = None

    assert (await kept.encode(encoder, ["red"])).vectors.shape == (1, len(embedding("red")))


async def test_what_was_there_and_what_was_not_is_told(encoder: FakeEncoder) -> None:
    told: list[tuple[object, int, int]] = []
    kept = KeptEncodings(8, note=lambda *counts: told.append(counts))

    await kept.encode(encoder, ["a", "b"])
    await kept.encode(encoder, ["a", "c", "b"])

    assert told == [(encoder, 0, 2), (encoder, 2, 1)]


@given(st.integers(0, 5), st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6), max_size=12))
async def test_answers_are_those_of_the_encoder_whatever_is_kept(entries: int, queries: list[list[str]]) -> None:
    encoder, kept = FakeEncoder("text"), KeptEncodings(entries)

    for texts in queries:
        encoded = await kept.encode(encoder, texts)
        expected = await FakeEncoder("text").encode(texts)
        np.testing.assert_array_equal(encoded.vectors, expected.vectors)
