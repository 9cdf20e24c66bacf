"""Text to token ids, outside the graph: the ``tokenizers`` library behind an explicit length policy.

A ``tokenizer.json`` says nearly all. What it cannot say is the cleaning that some models' own code does in Python
before it (repairing mis-decoded text, Unicode's context-dependent lower case); that is named in the manifest and done
here.
"""

import html
import importlib.util
import json
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as _Tokenizer
from tokenizers import models, normalizers, pre_tokenizers

from likewise.export.manifest import ManifestError, TokenizerSpec
from likewise.export.model_repository import Model

PAD: Final = "[PAD]"
UNKNOWN: Final = "[UNK]"
TRUNCATE_POLICIES: Final = ("end", "error")
PAD_SIDES: Final = ("right", "left")

_UNKNOWN_TOKENS: Final = (UNKNOWN, "<unk>")
_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
_SPACES: Final = re.compile(r"\s+")


class TextTooLongError(ValueError):
    """A text has more tokens than the model reads, and the policy is to refuse it."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token ids of n texts and what was lost on the way.

    Attributes:
        ids: (n, max_length) int32, padded.
        lengths: (n,) int32, tokens kept of each text.
        truncated: (n,) bool, True where tokens were cut off.
        unknown: (n,) int32, words of each kept text that the vocabulary does not hold.
    """

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]
    unknown: npt.NDArray[np.int32]


def _repaired(text: str) -> str:
    """What open_clip does to every text first: mis-decoded characters repaired, HTML entities resolved twice."""
    import ftfy  # only models exported from open_clip need it

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def _open_clip_whitespace(text: str) -> str:
    return " ".join(_repaired(text).split())


def _open_clip_lower(text: str) -> str:
    return _open_clip_whitespace(text).lower()


def _open_clip_canonicalize(text: str) -> str:
    return " ".join(_repaired(text).replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


def _siglip(text: str) -> str:
    return _SPACES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).strip()


CLEANINGS: Final[Mapping[str, Callable[[str], str] | None]] = {
    "none": None,
    "open_clip_lower": _open_clip_lower,
    "open_clip_whitespace": _open_clip_whitespace,
    "open_clip_canonicalize": _open_clip_canonicalize,
    "siglip": _siglip,
}
"""What is done to a framed text before the tokenizer.json: open_clip's `clean` options, and what SigLIP's does."""


class Tokenizer:
    """A ``tokenizer.json`` with a fixed output length. Thread-safe: encoding changes no state.

    Args:
        path: The tokenizer.json file.
        max_length: Tokens per text, padding included.
        pad_id: Id that fills the rest of a row.
        template: Text frame, "{}" is the text ("a photo of {}").
        truncate: "end" keeps as many of the first tokens as fit beside those that the tokenizer adds (CLIP pools at the
            end-of-text token: it has to stay) and says so; "error" raises.
        cleaning: A key of ``CLEANINGS``.
        pad_side: "right" or "left".

    Raises:
        ValueError: For settings that cannot be, or a cleaning whose library is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_length: int,
        pad_id: int = 0,
        template: str = "{}",
        truncate: str = "end",
        cleaning: str = "none",
        pad_side: str = "right",
    ) -> None:
        if truncate not in TRUNCATE_POLICIES:
            raise ValueError(f"truncate must be one of {TRUNCATE_POLICIES}, got {truncate!r}")
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        if cleaning not in CLEANINGS:
            raise ValueError(f"cleaning must be one of {tuple(CLEANINGS)}, got {cleaning!r}")
        if cleaning.startswith("open_clip") and importlib.util.find_spec("ftfy") is None:
            raise ValueError(f"cleaning {cleaning!r} needs ftfy, which is not installed: pip install ftfy")
        if pad_side not in PAD_SIDES:
            raise ValueError(f"pad_side must be one of {PAD_SIDES}, got {pad_side!r}")
        self._tokenizer = _Tokenizer.from_file(str(path))
        # A tokenizer.json may carry its own length policy; this class is the only one that applies.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        added = self._tokenizer.num_special_tokens_to_add(False)
        if max_length < added:
            raise ValueError(f"max_length must be at least {added}, the tokens added to every text, got {max_length}")
        if truncate == "end":
            self._tokenizer.enable_truncation(max_length)
        known = (self._tokenizer.token_to_id(token) for token in _UNKNOWN_TOKENS)
        self._unknown_id: int | None = next((number for number in known if number is not None), None)
        self._clean = CLEANINGS[cleaning]
        self._left = pad_side == "left"
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
        if self._clean is not None:
            framed = [self._clean(text) for text in framed]
        for row, encoding in enumerate(self._tokenizer.encode_batch(framed)):
            tokens = encoding.ids
            if len(tokens) > self.max_length:
                raise TextTooLongError(f"text {row} has {len(tokens)} tokens, the limit is {self.max_length}")
            truncated[row] = bool(encoding.overflowing)
            first = self.max_length - len(tokens) if self._left else 0
            ids[row, first : first + len(tokens)] = tokens
            lengths[row] = len(tokens)
            if self._unknown_id is not None:
                unknown[row] = tokens.count(self._unknown_id)
        return TokenBatch(ids, lengths, truncated, unknown)


def tokenizer_of(model: Model) -> Tokenizer:
    """A text encoder's tokenizer.

    Raises:
        ManifestError: The model has none, or it asks for what this version does not do.
    """
    spec = model.manifest.tokenizer
    if spec is None:
        raise ManifestError(f"model {model.manifest.name!r} has no tokenizer")
    try:
        return open_tokenizer(model.folder, spec)
    except ValueError as error:
        raise ManifestError(f"model {model.manifest.name!r}: {error}") from error


def open_tokenizer(folder: Path, spec: TokenizerSpec) -> Tokenizer:
    """The tokenizer of a manifest's settings, whose file lies in ``folder``.

    Raises:
        ValueError: For settings that cannot be.
    """
    return Tokenizer(
        folder / spec.file,
        max_length=spec.max_length,
        pad_id=spec.pad_id,
        template=spec.template,
        truncate=spec.truncate,
        cleaning=spec.cleaning,
        pad_side=spec.pad_side,
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
