"""Encoders and composers that run here: bytes and texts to tensors on a thread pool, tensors through a batcher.

Decoding one image overlaps with running others; a large call decodes no more images at a time than the pool has
threads, and holds no more tensors than its window, so that single queries pass between them.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from likewise.export.preprocess import Preprocessing, to_tensor
from likewise.export.tokenizer import TextTooLongError, TokenBatch, Tokenizer
from likewise.server.batcher import Batcher, BatchLimits, BatchReport
from likewise.server.errors import InvalidRequest, ServiceError
from likewise.server.images import TOO_LARGE, ImageLimits, decode
from likewise.server.protocols import Encoded
from likewise.shards.protocols import F32
from likewise.v1 import common_pb2, search_service_pb2

TRUNCATED: Final = "TEXT_TRUNCATED"
UNKNOWN_WORDS: Final = "TEXT_UNKNOWN_WORDS"

_MAX_WARNINGS: Final = 8
_SHOWN_CHARACTERS: Final = 60

_CONDITION_MODES: Final = {
    search_service_pb2.CONDITION_MODE_UNSPECIFIED: "unspecified",
    search_service_pb2.CONDITION_MODE_FOCUS: "focus",
    search_service_pb2.CONDITION_MODE_CHANGE: "change",
}
"""Names of the modes in a manifest's condition templates."""

Array = npt.NDArray[Any]


class Graph(Protocol):
    """A model that runs batches; `session.Session` is one."""

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """An array for each output from an array for each input; blocks."""
        ...


@dataclass(frozen=True, slots=True)
class Serving:
    """How the models of a process are served.

    Attributes:
        pool: Threads that decode and tokenise, shared by all models.
        workers: Its threads.
        batch: Bounds of each model's batcher.
        on_batch: Told about every batch.
    """

    pool: Executor
    workers: int
    batch: BatchLimits
    on_batch: Callable[[BatchReport], None] | None = None


class OnnxImageEncoder:
    """Images to raw embeddings.

    Args:
        model: Name, version and space.
        graph: Takes (n, 3, size, size) float32, gives (n, dim) float32.
        serving: How it is served.
        input: The graph's input.
        output: Its output.
        dim: Its dimension.
        preprocessing: From picture to tensor.
        limits: What images are refused.
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
        preprocessing: Preprocessing,
        limits: ImageLimits,
    ) -> None:
        self._model = model
        self._dim = dim
        self._preprocessing = preprocessing
        self._limits = limits
        self._serving = serving

        def run(items: Sequence[F32]) -> F32:
            return np.asarray(graph.run({input: np.stack(items)})[output], np.float32)

        self._batcher = _batcher(run, model, serving)

    @property
    def model(self) -> common_pb2.ModelRef:
        """Name, version and space."""
        return self._model

    async def encode(self, images: Sequence[bytes]) -> Encoded:
        """Encode JPEG, PNG or WebP files; see `protocols.ImageEncoder`.

        `decode_us` ends with the last picture decoded, `encode_us` is the rest: in a large call most inference is done
        by then.
        """
        if not images:
            return Encoded(np.empty((0, self._dim), np.float32))
        loop = asyncio.get_running_loop()
        start = decoded = time.perf_counter()
        with self._batcher.admit(len(images)) as lane:
            places = asyncio.Semaphore(lane.window)
            decoders = asyncio.Semaphore(self._serving.workers)

            async def one(i: int) -> F32:
                nonlocal decoded
                async with places:
                    async with decoders:
                        tensor = await loop.run_in_executor(self._serving.pool, self._prepare, images[i], f"[{i}]")
                    decoded = time.perf_counter()
                    return (await lane.run([tensor]))[0]

            vectors = np.stack(await _all([one(i) for i in range(len(images))]))
        _check_finite(vectors, self._model)
        return Encoded(vectors, decode_us=_micros(decoded - start), encode_us=_micros(time.perf_counter() - decoded))

    async def infer(self, tensors: Array) -> F32:
        """(n, dim) raw embeddings of prepared (n, 3, size, size) float32 tensors; errors as `encode`."""
        return await _run_rows(self._batcher, tensors, self._dim)

    async def close(self) -> None:
        """Stop taking calls."""
        await self._batcher.close()

    def _prepare(self, data: bytes, field: str) -> F32:
        image = decode(data, self._limits, field=field)
        ratio = self._preprocessing.targetpad
        if ratio is not None:
            # Padding makes a long strip nearly square: as many pixels as its longer side has, squared.
            padded = max(image.size) * max(image.size) / ratio
            if padded > max(self._limits.max_pixels, image.width * image.height):
                raise InvalidRequest(
                    f"the image of {image.width:,} x {image.height:,} pixels would be padded to {padded:,.0f}, the "
                    f"limit is {self._limits.max_pixels:,}",
                    reason=TOO_LARGE,
                    field=field,
                )
        return to_tensor(image, self._preprocessing)


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
        tokenizer: Gives what turns texts to ids; called on the pool, may block the first time.
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
        self._serving = serving

        def run(items: Sequence[Array]) -> F32:
            ids = np.stack(items).astype(dtype, copy=False)
            return np.asarray(graph.run({input: ids})[output], np.float32)

        self._batcher = _batcher(run, model, serving)

    @property
    def model(self) -> common_pb2.ModelRef:
        """Name, version and space."""
        return self._model

    async def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode texts; see `protocols.TextEncoder`. Warnings name texts that were cut or have unknown words."""
        if not texts:
            return Encoded(np.empty((0, self._dim), np.float32))
        loop = asyncio.get_running_loop()
        decode_s = encode_s = 0.0
        rows: list[F32] = []
        truncated: list[str] = []
        unknown: list[str] = []
        with self._batcher.admit(len(texts)) as lane:
            for first in range(0, len(texts), lane.window):
                part = texts[first : first + lane.window]
                start = time.perf_counter()
                tokens = await loop.run_in_executor(self._serving.pool, self._tokenize, part, first)
                decoded = time.perf_counter()
                rows += await lane.run(list(tokens.ids))
                decode_s += decoded - start
                encode_s += time.perf_counter() - decoded
                truncated += [self._truncation(part[i]) for i in np.flatnonzero(tokens.truncated).tolist()]
                unknown += [
                    self._unknown(part[i], int(tokens.unknown[i])) for i in np.flatnonzero(tokens.unknown).tolist()
                ]
        vectors = np.stack(rows)
        _check_finite(vectors, self._model)
        warnings = (*_warnings(TRUNCATED, truncated), *_warnings(UNKNOWN_WORDS, unknown))
        return Encoded(vectors, decode_us=_micros(decode_s), encode_us=_micros(encode_s), warnings=warnings)

    async def infer(self, ids: Array) -> F32:
        """(n, dim) raw embeddings of (n, max_length) token ids that the caller made; errors as `encode`."""
        return await _run_rows(self._batcher, ids, self._dim)

    async def close(self) -> None:
        """Stop taking calls."""
        await self._batcher.close()

    def _tokenize(self, texts: Sequence[str], first: int) -> TokenBatch:
        tokenizer = self._tokenizer()
        try:
            return tokenizer(texts)
        except TextTooLongError as error:
            # Once more one by one, to say which it was.
            for i, text in enumerate(texts):
                try:
                    tokenizer([text])
                except TextTooLongError:
                    message = f"{_shown(text)} has more than the {tokenizer.max_length} tokens that {self._name} reads"
                    raise InvalidRequest(message, reason="TEXT_TOO_LONG", field=f"[{first + i}]") from error
            raise

    @property
    def _name(self) -> str:
        return f"{self._model.name}/{self._model.version}"

    def _truncation(self, text: str) -> str:
        return f"{self._name} reads {self._max_length} tokens: the end of {_shown(text)} was left out"

    def _unknown(self, text: str, words: int) -> str:
        return f"{self._name} does not know {words} word{'s' if words > 1 else ''} of {_shown(text)}"


class OnnxComposer:
    """Raw reference and condition embeddings to unit query vectors.

    Args:
        model: Name, version and space.
        graph: Takes two (n, dim) float32 arrays, gives one.
        serving: How it is served.
        reference_input: The graph's input for references.
        condition_input: Its input for conditions.
        output: Its output.
        dim: Its dimension.
        templates: Text frame of each condition mode ("unspecified", "focus", "change"); "{}" stands for the text.
    """

    def __init__(
        self,
        model: common_pb2.ModelRef,
        graph: Graph,
        *,
        serving: Serving,
        reference_input: str,
        condition_input: str,
        output: str,
        dim: int,
        templates: Mapping[str, str],
    ) -> None:
        self._model = model
        self._dim = dim
        self._templates: dict[int, str] = {mode: templates[name] for mode, name in _CONDITION_MODES.items()}

        def run(items: Sequence[F32]) -> F32:
            pairs = np.stack(items)
            feeds = {
                reference_input: np.ascontiguousarray(pairs[:, 0]),
                condition_input: np.ascontiguousarray(pairs[:, 1]),
            }
            return np.asarray(graph.run(feeds)[output], np.float32)

        self._batcher = _batcher(run, model, serving)

    @property
    def model(self) -> common_pb2.ModelRef:
        """Name, version and space."""
        return self._model

    def condition_text(self, text: str, mode: int) -> str:
        """The text in the frame of its mode.

        Raises:
            InvalidRequest: If the mode is none of ours.
        """
        if mode not in self._templates:
            raise InvalidRequest(
                f"a condition's mode must be one of {sorted(self._templates)}, got {mode}", field="mode"
            )
        return self._templates[mode].replace("{}", text)

    async def compose(self, references: F32, conditions: F32) -> F32:
        """(n, dim) unit vectors of n pairs of raw embeddings.

        Raises:
            InvalidRequest: If a pair's numbers are too large for the model.
            Overloaded: If the queue is full.
        """
        if references.shape != conditions.shape or references.shape[1:] != (self._dim,):
            raise ValueError(f"expected two (n, {self._dim}) arrays, got {references.shape} and {conditions.shape}")
        if not len(references):
            return np.empty((0, self._dim), np.float32)
        vectors = await self.infer(references, conditions)
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        if not (np.isfinite(norms).all() and norms.all()):
            raise InvalidRequest(
                f"the composer {self._model.name}/{self._model.version} cannot combine these vectors: their numbers "
                "are too large or too small for it",
                reason="NOT_FINITE",
            )
        return np.asarray(vectors / norms, np.float32)

    async def infer(self, references: F32, conditions: F32) -> F32:
        """(n, dim) outputs of the graph as they are, of n pairs of raw embeddings; errors as `compose`."""
        return await _run_rows(self._batcher, np.stack([references, conditions], axis=1), self._dim)

    async def close(self) -> None:
        """Stop taking calls."""
        await self._batcher.close()


async def _run_rows(batcher: Batcher[Array, F32], rows: Array, dim: int) -> F32:
    """(n, dim) outputs of n rows, no more of them in the queue at a time than the call's window."""
    if not len(rows):
        return np.empty((0, dim), np.float32)
    outputs: list[F32] = []
    with batcher.admit(len(rows)) as lane:
        for first in range(0, len(rows), lane.window):
            outputs += await lane.run(list(rows[first : first + lane.window]))
    return np.stack(outputs)


def _batcher(
    run: Callable[[Sequence[Array]], F32], model: common_pb2.ModelRef, serving: Serving
) -> Batcher[Array, F32]:
    def rows(items: Sequence[Array]) -> list[F32]:
        return list(run(items))

    return Batcher(rows, name=f"{model.name}/{model.version}", limits=serving.batch, on_batch=serving.on_batch)


async def _all(work: Sequence[Coroutine[Any, Any, F32]]) -> list[F32]:
    """Results in order; the first failure cancels the rest and is raised itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _check_finite(vectors: F32, model: common_pb2.ModelRef) -> None:
    if not np.isfinite(vectors).all():
        raise ServiceError(
            f"the model {model.name}/{model.version} gave numbers that are not finite", reason="MODEL_OUTPUT_NOT_FINITE"
        )


def _warnings(code: str, messages: Sequence[str]) -> Iterator[common_pb2.Warning]:
    for message in messages[:_MAX_WARNINGS]:
        yield common_pb2.Warning(code=code, message=message)
    if len(messages) > _MAX_WARNINGS:
        yield common_pb2.Warning(code=code, message=f"and {len(messages) - _MAX_WARNINGS} more texts")


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…")


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)
