"""Texts to raw embeddings, by a graph that runs here or is asked for with token ids."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from likewise.export.tokenizer import TextTooLongError, TokenBatch, Tokenizer
from likewise.server.batched_graph import Array, BatchedGraph, Graph, Ready, Serving, spent, stacked
from likewise.server.errors import InvalidRequest
from likewise.server.protocols import Encoded
from likewise.shards.protocols import F32
from likewise.v1 import common_pb2

TRUNCATED: Final = "TEXT_TRUNCATED"
UNKNOWN_WORDS: Final = "TEXT_UNKNOWN_WORDS"

_MAX_WARNINGS: Final = 8
_SHOWN_CHARACTERS: Final = 60


class _Text(NamedTuple):
    """A text, and where it stands in its call."""

    text: str
    field: str


class _Lost(NamedTuple):
    """What the tokens of a text leave out."""

    truncated: bool
    unknown: int


_NOTHING: Final = _Lost(truncated=False, unknown=0)


class OnnxTextEncoder:
    """Texts to raw embeddings.

    Args:
        model: Name, version and space.
        graph: Takes (n, max_length) token ids, gives (n, dim) float32.
        serving: How it is served.
        input: The graph's input.
        output: Its output.
        dim: Its dimension.
        dtype: The input's number format: int32 or int64.
        max_length: Tokens it reads of a text.
        tokenizer: Gives what turns texts to ids; called where batches run, may block the first time.
    """

    def __init__(
        self,
        model: common_pb2.ModelRef,
        graph: Graph,
        *,
        serving: Serving,
        input: str,
        output: str,
        dim: int,
        dtype: str,
        max_length: int,
        tokenizer: Callable[[], Tokenizer],
    ) -> None:
        self._model = model
        self._dim = dim
        self._max_length = max_length
        self._tokenizer = tokenizer

        def infer(ids: Array) -> F32:
            return np.asarray(graph.run({input: ids.astype(dtype, copy=False)})[output], np.float32)

        self._graph: BatchedGraph[_Text | Array] = BatchedGraph(model, serving, prepare=self._prepare, infer=infer)

    @property
    def model(self) -> common_pb2.ModelRef:
        """Name, version and space."""
        return self._model

    async def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode texts; see `protocols.TextEncoder`. Warnings name texts that were cut or have unknown words."""
        if not texts:
            return Encoded(np.empty((0, self._dim), np.float32))
        began = time.perf_counter()
        rows = await self._graph.rows([_Text(text, f"[{i}]") for i, text in enumerate(texts)])
        decode_us, encode_us = spent(rows, began)
        lost = [(text, row.note) for text, row in zip(texts, rows, strict=True) if row.note is not _NOTHING]
        truncated = [self._truncation(text) for text, note in lost if note.truncated]
        unknown = [self._unknown(text, note.unknown) for text, note in lost if note.unknown]
        warnings = (*_warnings(TRUNCATED, truncated), *_warnings(UNKNOWN_WORDS, unknown))
        return Encoded(stacked(rows, self._model), decode_us=decode_us, encode_us=encode_us, warnings=warnings)

    async def infer(self, ids: Array) -> F32:
        """(n, dim) raw embeddings of (n, max_length) token ids that the caller made; errors as `encode`."""
        return await self._graph.vectors(list(ids), self._dim)

    async def close(self) -> None:
        """Stop taking calls."""
        await self._graph.close()

    def _prepare(self, items: Sequence[_Text | Array]) -> list[Ready | Exception]:
        texts = [item.text for item in items if isinstance(item, _Text)]
        if not texts:
            return [Ready(ids) for ids in items if not isinstance(ids, _Text)]
        try:
            tokens = iter(_ready(self._tokenizer()(texts)))
        except TextTooLongError:
            return [self._one(item) for item in items]  # to find out which it was
        return [next(tokens) if isinstance(item, _Text) else Ready(item, _NOTHING) for item in items]

    def _one(self, item: _Text | Array) -> Ready | Exception:
        if not isinstance(item, _Text):
            return Ready(item, _NOTHING)
        tokenizer = self._tokenizer()
        try:
            return _ready(tokenizer([item.text]))[0]
        except TextTooLongError:
            message = f"{_shown(item.text)} has more than the {tokenizer.max_length} tokens that {self._name} reads"
            return InvalidRequest(message, reason="TEXT_TOO_LONG", field=item.field)

    @property
    def _name(self) -> str:
        return f"{self._model.name}/{self._model.version}"

    def _truncation(self, text: str) -> str:
        return f"{self._name} reads {self._max_length} tokens: the end of {_shown(text)} was left out"

    def _unknown(self, text: str, words: int) -> str:
        return f"{self._name} does not know {words} word{'s' if words > 1 else ''} of {_shown(text)}"


def _ready(tokens: TokenBatch) -> list[Ready]:
    """Each text's ids, and what they leave out."""
    lost = zip(tokens.truncated.tolist(), tokens.unknown.tolist(), strict=True)
    notes = [_Lost(cut, unknown) if cut or unknown else _NOTHING for cut, unknown in lost]
    return [Ready(ids, note) for ids, note in zip(tokens.ids, notes, strict=True)]


def _warnings(code: str, messages: Sequence[str]) -> Iterator[common_pb2.Warning]:
    for message in messages[:_MAX_WARNINGS]:
        yield common_pb2.Warning(code=code, message=message)
    if len(messages) > _MAX_WARNINGS:
        yield common_pb2.Warning(code=code, message=f"and {len(messages) - _MAX_WARNINGS} more texts")


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…")
