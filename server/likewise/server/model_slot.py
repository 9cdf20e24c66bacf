"""One version of one model: opened once, described to whoever asks, closed when nobody uses it any more."""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy.typing as npt

from likewise.export.manifest import Manifest, ManifestError
from likewise.export.model_repository import Model, verify_files
from likewise.export.tokenizer import Tokenizer, tokenizer_of
from likewise.server.errors import FailedPrecondition, Unavailable
from likewise.server.graphs import OpenGraph, open_graph
from likewise.server.session import CUDA, Runtime, SessionError
from likewise.v1 import common_pb2, model_service_pb2
from likewise.v1.model_service_pb2 import ModelKind, ModelState

_LOG = logging.getLogger(__name__)

_KINDS: Final[dict[str, "ModelKind.ValueType"]] = {
    "image_encoder": model_service_pb2.MODEL_KIND_IMAGE_ENCODER,
    "text_encoder": model_service_pb2.MODEL_KIND_TEXT_ENCODER,
    "composer": model_service_pb2.MODEL_KIND_COMPOSER,
}


OpenModel = Callable[[Model, Runtime], OpenGraph]
"""Opens and tries a model's graph; blocks; raises `SessionError` or `ManifestError` with the reason."""


@dataclass(frozen=True, slots=True)
class _Opened:
    graph: OpenGraph
    tokenizer: Tokenizer | None


class ModelSlot:
    """One version of one model: opened once, by whichever thread needs it first. A `Graph`.

    Args:
        model: Its manifest and folder.
        runtime: Where and how it runs.
        open_graph: Opens its graph.

    Attributes:
        manifest: What it says of itself.
        model: With its folder.
        on_gpu: Whether it is to run on one.
    """

    def __init__(self, model: Model, runtime: Runtime, *, open_graph: OpenModel = open_graph) -> None:
        self.manifest: Manifest = model.manifest
        self.model = model
        self._runtime = runtime
        self._open_graph = open_graph
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._closed = False
        self._state: ModelState.ValueType = model_service_pb2.MODEL_STATE_AVAILABLE
        self.on_gpu = runtime.providers[0] == CUDA
        self._reason = ""
        self._users = 0
        self._unused = asyncio.Event()
        self._let_go_s = -math.inf

    @property
    def name(self) -> str:
        """Name and version, for people."""
        return f"{self.manifest.name}/{self.manifest.version}"

    @property
    def ref(self) -> common_pb2.ModelRef:
        """Name, version and space."""
        of = self.manifest
        return common_pb2.ModelRef(name=of.name, version=of.version, kind=of.kind, space=of.space)

    @property
    def kind(self) -> "ModelKind.ValueType":
        """What it does."""
        return _KINDS[self.manifest.kind]

    @property
    def state(self) -> "ModelState.ValueType":
        """Where it stands."""
        return self._state

    @property
    def reason(self) -> str:
        """Why it failed; "" if it did not."""
        return self._reason

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
        """Run a batch; opens the model first if need be. Blocks.

        Raises:
            FailedPrecondition: If the model cannot be opened.
            Unavailable: If it was closed.
        """
        return self.graph().run(feeds)

    def graph(self) -> OpenGraph:
        """Its graph; opens the model first if need be. Blocks.

        Raises:
            FailedPrecondition: If the model cannot be opened.
            Unavailable: If it was closed.
        """
        return self._use().graph

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer; opens the model first if need be. Blocks.

        Raises:
            FailedPrecondition: If the model cannot be opened or has no tokenizer.
            Unavailable: If it was closed.
        """
        tokenizer = self._use().tokenizer
        if tokenizer is None:
            raise self._failure("it has no tokenizer")
        return tokenizer

    def open(self) -> None:
        """Verify, load and try the model, unless that is done; a failed one is tried again. Blocks.

        Raises:
            FailedPrecondition: If it cannot be opened.
            Unavailable: If it was closed.
        """
        with self._lock:
            if self._opened is None:
                self._open()

    def fail(self, reason: str) -> FailedPrecondition:
        """Mark it as one that cannot be served; returns the error to raise."""
        self._state, self._reason = model_service_pb2.MODEL_STATE_FAILED, reason
        return self._failure(reason)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep it from being closed inside the block. On the event loop."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._let_go_s = time.monotonic()
            if not self._users:
                self._unused.set()

    @property
    def idle_s(self) -> float:
        """Seconds since somebody held it last; 0 while somebody does, infinite if nobody ever did."""
        return 0.0 if self._users else time.monotonic() - self._let_go_s

    def retire(self) -> None:
        """Say that it is being freed: nobody is to take it up any more."""
        self._state = model_service_pb2.MODEL_STATE_DRAINING

    async def unused(self) -> None:
        """Return when nobody holds it."""
        while self._users:
            self._unused.clear()
            await self._unused.wait()

    def close(self) -> None:
        """Let go of the graph with its memory, for good; a running batch keeps it to its end. Blocks."""
        with self._lock:
            opened, self._opened, self._closed = self._opened, None, True
        if opened is not None:
            opened.graph.close()

    def describe(self) -> model_service_pb2.Model:
        """What ModelService says about it, but for what it is used for."""
        of, opened = self.manifest, self._opened
        return model_service_pb2.Model(
            name=of.name,
            version=of.version,
            kind=self.kind,
            family=of.family,
            dim=of.dim,
            space=of.space,
            state=self._state,
            reason=self._reason,
            provider=opened.graph.provider if opened is not None else "",
            files=dict(of.files),
            compatible_with=dict(of.compatible_with),
        )

    def _use(self) -> _Opened:
        with self._lock:
            if self._opened is not None:
                return self._opened
            if self._state == model_service_pb2.MODEL_STATE_FAILED:
                raise self._failure(self._reason)
            return self._open()

    def _open(self) -> _Opened:
        if self._closed:
            raise Unavailable(f"{self.name} was unloaded", reason="MODEL_UNLOADED")
        self._state, self._reason = model_service_pb2.MODEL_STATE_LOADING, ""
        try:
            verify_files(self.model)
            graph = self._open_graph(self.model, self._runtime)
            tokenizer = tokenizer_of(self.model) if self.manifest.tokenizer is not None else None
        except Exception as error:
            # Whatever a file that passed its checksum still does to a parser: the model fails, not the server.
            known = isinstance(error, ManifestError | SessionError)
            # Callers see the reason, and a message to callers shows no path.
            text = str(error) if known else f"{type(error).__name__}: {error}"
            _LOG.error("model %s cannot be served: %s", self.name, error)
            raise self.fail(text.replace(f"{self.model.folder}/", "")) from error
        self._opened = _Opened(graph, tokenizer)
        self._state = model_service_pb2.MODEL_STATE_READY
        _LOG.info("model %s is ready on %s", self.name, graph.provider)
        return self._opened

    def _failure(self, reason: str) -> FailedPrecondition:
        return FailedPrecondition(
            f"the model {self.name} cannot be served: {reason}", reason="MODEL_FAILED", metadata={"model": self.name}
        )
