"""Text to token ids, outside the graph: the ``tokenizers`` library behind an explicit length policy."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as _Tokenizer
from tokenizers import models, normalizers, pre_tokenizers

from likewise.export.manifest import ManifestError, Model

PAD: Final = "[PAD]"
UNKNOWN: Final = "[UNK]"
TRUNCATE_POLICIES: Final = ("end", "error")


class TextTooLongError(ValueError):
    """A text has more tokens than the model reads, and the policy is to refuse it."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token ids of n texts and what was lost on the way.

    Attributes:
        ids: (n, max_length) int32, padded on the right.
        lengths: (n,) int32, tokens kept of each text.
        truncated: (n,) bool, True where tokens were cut off.
        unknown: (n,) int32, words of each kept text that the vocabulary does not hold.
    """

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]
    unknown: npt.NDArray[np.int32]


class Tokenizer:
    """A ``tokenizer.json`` with a fixed output length. Thread-safe: encoding changes no state.

    Args:
        path: The tokenizer.json file.
        max_length: Tokens per text, padding included.
        pad_id: Id that fills the rest of a row.
        template: Text frame, "{}" is the text ("a photo of {}").
        truncate: "end" keeps the first ``max_length`` tokens and says so; "error" raises.
    """

    def __init__(
        self, path: Path, *, max_length: int, pad_id: int = 0, template: str = "{}", truncate: str = "end"
    ) -> None:
        if truncate not in TRUNCATE_POLICIES:
            raise ValueError(f"truncate must be one of {TRUNCATE_POLICIES}, got {truncate!r}")
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        self._tokenizer = _Tokenizer.from_file(str(path))
        # A tokenizer.json may carry its own length policy; this class is the only one that applies.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._unknown_id: int | None = self._tokenizer.token_to_id(UNKNOWN)
        self.max_length = max_length
        self.pad_id = pad_id
        self.template = template
        self.truncate = truncate

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Tokenise texts.

        Raises:
            TextTooLongError: A text is longer than ``max_length`` tokens and the policy is "error".
        """
        n = len(texts)
        ids = np.full((n, self.max_length), self.pad_id, np.int32)
        lengths = np.zeros(n, np.int32)
        truncated = np.zeros(n, np.bool_)
        unknown = np.zeros(n, np.int32)
        framed = [self.template.replace("{}", text) for text in texts]
        for row, encoding in enumerate(self._tokenizer.encode_batch(framed)):
            tokens = encoding.ids
            if len(tokens) > self.max_length:
                if self.truncate == "error":
                    raise TextTooLongError(f"text {row} has {len(tokens)} tokens, the limit is {self.max_length}")
                truncated[row] = True
                tokens = tokens[: self.max_length]
            ids[row, : len(tokens)] = tokens
            lengths[row] = len(tokens)
            if self._unknown_id is not None:
                unknown[row] = tokens.count(self._unknown_id)
        return TokenBatch(ids, lengths, truncated, unknown)


def tokenizer_of(model: Model) -> Tokenizer:
    """A text encoder's tokenizer.

    Raises:
        ManifestError: The model has none.
    """
    spec = model.manifest.tokenizer
    if spec is None:
        raise ManifestError(f"model {model.manifest.name!r} has no tokenizer")
    return Tokenizer(
        model.file(spec.file),
        max_length=spec.max_length,
        pad_id=spec.pad_id,
        template=spec.template,
        truncate=spec.truncate,
    )


def write_word_tokenizer(path: Path, texts: Iterable[str]) -> int:
    """Write a lower-casing word-level tokenizer over the words of ``texts``; returns the vocabulary's size.

    Id 0 is padding, id 1 an unknown word; words are numbered in alphabetical order, so the same texts give
    the same file.
    """
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(behavior="removed")])
    words: set[str] = set()
    for text in set(texts):
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    vocabulary = {PAD: 0, UNKNOWN: 1} | {word: i for i, word in enumerate(sorted(words), start=2)}
    tokenizer = _Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    path.write_text(json.dumps(json.loads(tokenizer.to_str()), indent=1) + "\n", encoding="utf-8")
    return len(vocabulary)
