from pathlib import Path

import numpy as np
import pytest

from likewise.export.tokenizer import TextTooLongError, Tokenizer, write_word_tokenizer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    write_word_tokenizer(path, ["a red star", "on a white background", "same colour"])
    return path


def test_texts_become_padded_int32_ids(file: Path) -> None:
    batch = Tokenizer(file, max_length=5)(["a red star", "star"])

    assert batch.ids.dtype == np.int32
    assert batch.ids.shape == (2, 5)
    assert batch.lengths.tolist() == [3, 1]
    assert (batch.ids[0, 3:] == 0).all()
    assert batch.ids[1, 0] == batch.ids[0, 2]
    assert not batch.truncated.any()
    assert not batch.unknown.any()


def test_case_and_punctuation_do_not_matter(file: Path) -> None:
    tokenizer = Tokenizer(file, max_length=5)

    assert np.array_equal(tokenizer(["A red, STAR!"]).ids, tokenizer(["a red star"]).ids)


def test_a_text_at_the_limit_is_whole_and_one_past_it_is_reported_as_cut(file: Path) -> None:
    tokenizer = Tokenizer(file, max_length=3)

    batch = tokenizer(["a red star", "a red star on"])

    assert batch.truncated.tolist() == [False, True]
    assert np.array_equal(batch.ids[0], batch.ids[1])


def test_the_error_policy_refuses_what_it_would_cut(file: Path) -> None:
    with pytest.raises(TextTooLongError, match="text 1 has 4 tokens, the limit is 3"):
        Tokenizer(file, max_length=3, truncate="error")(["star", "a red star on"])


def test_unknown_words_are_counted_among_the_kept_ones(file: Path) -> None:
    batch = Tokenizer(file, max_length=3)(["a zebra star", "a red star zebra", "zebra zebra"])

    assert batch.unknown.tolist() == [1, 0, 2]


def test_the_template_frames_every_text(file: Path) -> None:
    framed = Tokenizer(file, max_length=5, template="same {}")(["colour"])

    assert np.array_equal(framed.ids, Tokenizer(file, max_length=5)(["same colour"]).ids)


def test_an_empty_text_is_all_padding(file: Path) -> None:
    batch = Tokenizer(file, max_length=4)(["", "  "])

    assert (batch.ids == 0).all()
    assert batch.lengths.tolist() == [0, 0]


def test_a_word_level_tokenizer_is_the_same_whatever_the_order_of_texts(tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path / "a.json", ["red star", "blue ring"])
    write_word_tokenizer(tmp_path / "b.json", ["blue ring", "star red"])

    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"max_length": 0}, "max_length must be at least 1, got 0", id="no room"),
        pytest.param({"max_length": 4, "truncate": "middle"}, "truncate must be one of", id="policy"),
    ],
)
def test_impossible_settings_are_refused(file: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer(file, **arguments)  # type: ignore[arg-type]
