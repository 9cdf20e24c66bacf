from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as JsonTokenizer
from tokenizers import processors

from likewise.export.manifest import ManifestError, TokenizerSpec
from likewise.export.model_repository import Model
from likewise.export.tokenizer import TextTooLongError, Tokenizer, tokenizer_of, write_word_tokenizer


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
        pytest.param({"max_length": 4, "cleaning": "soap"}, "cleaning must be one of", id="cleaning"),
        pytest.param({"max_length": 4, "pad_side": "top"}, "pad_side must be one of", id="side"),
    ],
)
def test_impossible_settings_are_refused(file: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer(file, **arguments)  # type: ignore[arg-type]


@pytest.fixture
def framed(file: Path) -> Path:
    """The same tokenizer with a token at the start and one at the end of every text, as CLIP's has."""
    tokenizer = JsonTokenizer.from_file(str(file))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    begin, end = (tokenizer.token_to_id(token) for token in ("<s>", "</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", begin), ("</s>", end)]
    )
    path = file.with_name("framed.json")
    tokenizer.save(str(path))
    return path


def test_a_text_that_is_cut_keeps_the_token_that_ends_it(framed: Path) -> None:
    whole, cut = Tokenizer(framed, max_length=5)(["a red star", "a red star on a white background"]).ids

    assert np.array_equal(whole, cut)
    assert whole[-1] == whole.max()


def test_the_error_policy_counts_the_tokens_that_frame_a_text(framed: Path) -> None:
    tokenizer = Tokenizer(framed, max_length=5, truncate="error")

    assert tokenizer(["a red star"]).lengths.tolist() == [5]
    with pytest.raises(TextTooLongError, match="text 0 has 6 tokens, the limit is 5"):
        tokenizer(["a red star on"])


def test_a_length_that_has_no_room_for_the_frame_is_refused(framed: Path) -> None:
    with pytest.raises(ValueError, match="at least 2, the tokens added to every text, got 1"):
        Tokenizer(framed, max_length=1)


def test_padding_can_come_first(file: Path) -> None:
    left, right = (
        Tokenizer(file, max_length=5, pad_id=9, pad_side=side)(["red star"]).ids[0] for side in ("left", "right")
    )

    assert left.tolist() == [9, 9, 9, *right[:2]]
    assert right[2:].tolist() == [9, 9, 9]


def test_siglips_cleaning_drops_punctuation_and_case_by_unicodes_rules(file: Path) -> None:
    tokenizer = Tokenizer(file, max_length=4, cleaning="siglip")

    assert np.array_equal(tokenizer(["  A, (red)\n\tSTAR!"]).ids, tokenizer(["a red star"]).ids)


def test_open_clips_cleaning_repairs_a_text_first(file: Path) -> None:
    pytest.importorskip("ftfy")
    tokenizer = Tokenizer(file, max_length=4, cleaning="open_clip_lower")

    assert np.array_equal(
        tokenizer(["a&amp;#32;red\u00a0 \uff53\uff54\uff41\uff52"]).ids, tokenizer(["a red star"]).ids
    )


def test_a_manifest_that_asks_for_an_unknown_cleaning_is_refused_by_the_models_name(tmp_path: Path, file: Path) -> None:
    from tests.unit.export.test_manifest import _image_manifest

    spec = TokenizerSpec(file.name, 4, cleaning="soap")
    manifest = replace(_image_manifest(tmp_path), tokenizer=spec)

    with pytest.raises(ManifestError, match="model 'toy-image': cleaning must be one of"):
        tokenizer_of(Model(manifest, file.parent))
