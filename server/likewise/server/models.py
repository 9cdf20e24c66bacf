"""The models of a process: what the repositories hold, opened when first used or when asked to.

Every file is held against its SHA-256 before it is opened. A model that cannot be opened fails alone and says why; it
is tried again only when it is loaded again.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from likewise.export.manifest import Family as ModelFamily
from likewise.export.manifest import (
    ManifestError,
    Model,
    Repository,
    TensorSpec,
    builtin_repository,
    load_repository,
    verify_files,
)
from likewise.export.preprocess import preprocessing_of
from likewise.export.tokenizer import Tokenizer, tokenizer_of
from likewise.server.batcher import BatchLimits, BatchReport
from likewise.server.encoders import OnnxComposer, OnnxImageEncoder, OnnxTextEncoder, Serving
from likewise.server.errors import FailedPrecondition, NotFound
from likewise.server.images import ImageLimits
from likewise.server.protocols import Family
from likewise.server.session import Runtime, Session, SessionError
from likewise.v1 import common_pb2, model_service_pb2
from likewise.v1.model_service_pb2 import ModelKind, ModelState

_LOG = logging.getLogger(__name__)

_KINDS: Final[dict[str, "ModelKind.ValueType"]] = {
    "image_encoder": model_service_pb2.MODEL_KIND_IMAGE_ENCODER,
    "text_encoder": model_service_pb2.MODEL_KIND_TEXT_ENCODER,
    "composer": model_service_pb2.MODEL_KIND_COMPOSER,
}


class ModelsError(Exception):
    """Repositories that cannot be served together, or one that cannot be read."""


def read_repositories(folders: Sequence[Path], *, builtin: bool = True) -> tuple[Repository, ...]:
    """The manifests of the built-in repository and of further folders; their files are not read yet. Blocks.

    Raises:
        ModelsError: If a folder is no model repository.
    """
    paths = [*([builtin_repository()] if builtin else []), *folders]
    try:
        return tuple(load_repository(path, verify=False) for path in paths)
    except ManifestError as error:
        raise ModelsError(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Opened:
    session: Session
    tokenizer: Tokenizer | None


class ModelSlot:
    """One version of one model: opened once, by whichever thread needs it first. A `Graph`.

    Args:
        model: Its manifest and folder.
        runtime: Where and how it runs.
    """

    def __init__(self, model: Model, runtime: Runtime) -> None:
        self.manifest = model.manifest
        self._model = model
        self._runtime = runtime
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._state: ModelState.ValueType = model_service_pb2.MODEL_STATE_AVAILABLE
        self._reason = ""

    @property
    def name(self) -> str:
        """Name and version, for people."""
        return f"{self.manifest.name}/{self.manifest.version}"

    @property
    def ref(self) -> common_pb2.ModelRef:
        """Name, version and space."""
        of = self.manifest
        return common_pb2.ModelRef(name=of.name, version=of.version, kind=of.kind, space=of.space)

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
        """Run a batch; opens the model first if need be. Blocks.

        Raises:
            FailedPrecondition: If the model cannot be opened.
        """
        return self._use().session.run(feeds)

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer; opens the model first if need be. Blocks.

        Raises:
            FailedPrecondition: If the model cannot be opened or has no tokenizer.
        """
        tokenizer = self._use().tokenizer
        if tokenizer is None:
            raise self._failure("it has no tokenizer")
        return tokenizer

    def open(self) -> None:
        """Verify, load and try the model, unless that is done; a failed one is tried again. Blocks.

        Raises:
            FailedPrecondition: If it cannot be opened.
        """
        with self._lock:
            if self._opened is None:
                self._open()

    def describe(self) -> model_service_pb2.Model:
        """What ModelService says about it."""
        of, opened = self.manifest, self._opened
        return model_service_pb2.Model(
            name=of.name,
            version=of.version,
            kind=_KINDS[of.kind],
            family=of.family,
            dim=of.dim,
            space=of.space,
            state=self._state,
            reason=self._reason,
            provider=opened.session.provider if opened is not None else "",
            files=dict(of.files),
        )

    def _use(self) -> _Opened:
        with self._lock:
            if self._opened is not None:
                return self._opened
            if self._state == model_service_pb2.MODEL_STATE_FAILED:
                raise self._failure(self._reason)
            return self._open()

    def _open(self) -> _Opened:
        self._state, self._reason = model_service_pb2.MODEL_STATE_LOADING, ""
        try:
            verify_files(self._model)
            session = Session(
                self._model.file(), self._runtime, inputs=self.manifest.inputs, outputs=self.manifest.outputs
            )
            tokenizer = tokenizer_of(self._model) if self.manifest.tokenizer is not None else None
        except Exception as error:
            # Whatever a file that passed its checksum still does to a parser: the model fails, not the server.
            self._state = model_service_pb2.MODEL_STATE_FAILED
            known = isinstance(error, ManifestError | SessionError)
            # Callers see the reason, and a message to callers shows no path.
            text = str(error) if known else f"{type(error).__name__}: {error}"
            self._reason = text.replace(f"{self._model.folder}/", "")
            _LOG.error("model %s cannot be served: %s", self.name, error)
            raise self._failure(self._reason) from error
        self._opened = _Opened(session, tokenizer)
        self._state = model_service_pb2.MODEL_STATE_READY
        _LOG.info("model %s is ready on %s", self.name, session.provider)
        return self._opened

    def _failure(self, reason: str) -> FailedPrecondition:
        return FailedPrecondition(
            f"the model {self.name} cannot be served: {reason}", reason="MODEL_FAILED", metadata={"model": self.name}
        )


class OnnxModels:
    """`protocols.Models` over model repositories. Nothing is opened by making it.

    Args:
        repositories: From `read_repositories`.
        runtime: Where and how models run.
        batch: Bounds of each model's batcher; a model's own largest batch lowers max_batch.
        images: What images are refused.
        workers: Threads that decode and tokenise, at least 1.
        on_batch: Told about every batch, on the event loop.

    Raises:
        ModelsError: If two repositories hold a model or family of the same name, or a family does not fit together.
    """

    def __init__(
        self,
        repositories: Sequence[Repository],
        *,
        runtime: Runtime,
        batch: BatchLimits,
        images: ImageLimits,
        workers: int,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="prepare")
        self._serving = Serving(self._pool, workers, batch, on_batch)
        self._images = images
        self._slots: dict[tuple[str, int], ModelSlot] = {}
        self._families: dict[str, Family] = {}
        self._members: dict[str, tuple[ModelSlot, ...]] = {}
        self._encoders: list[OnnxImageEncoder | OnnxTextEncoder | OnnxComposer] = []
        _refuse_twins(repositories)
        for one in repositories:
            for model in one.models:
                self._slots[model.manifest.name, model.manifest.version] = ModelSlot(model, runtime)
            for name in one.families():
                try:
                    self._add(one.family(name))
                except ManifestError as error:
                    raise ModelsError(str(error)) from error

    def family(self, name: str) -> Family:
        """The family of that name, whether its models are open yet or not.

        Raises:
            NotFound: Naming the families there are.
        """
        try:
            return self._families[name]
        except KeyError:
            known = ", ".join(sorted(self._families)) or "none"
            raise NotFound(
                f"no models of the name {name!r}; there are: {known}", reason="MODEL_NOT_FOUND", metadata={"name": name}
            ) from None

    def models(self) -> list[model_service_pb2.Model]:
        """Every model version in the repositories, by name, then version."""
        return [self._slots[key].describe() for key in sorted(self._slots)]

    async def load(self, names: Sequence[str] | None = None) -> None:
        """Open the models of families now, all of them by default, side by side; those that failed are tried again.

        Raises:
            NotFound: If there is no family of a name; nothing is opened.
            FailedPrecondition: The first model that cannot be opened; the others are.
        """
        slots = [slot for name in self._families if names is None for slot in self._members[name]]
        for name in names or ():
            self.family(name)
            slots.extend(self._members[name])
        outcomes = await asyncio.gather(*(asyncio.to_thread(slot.open) for slot in slots), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def close(self) -> None:
        """Refuse new work and answer those who wait; a running batch is finished."""
        for encoder in self._encoders:
            await encoder.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _add(self, family: ModelFamily) -> None:
        image = self._image_encoder(family.image_encoder)
        text = self._text_encoder(family.text_encoder) if family.text_encoder is not None else None
        composer = self._composer(family.composer) if family.composer is not None else None
        self._encoders += [encoder for encoder in (image, text, composer) if encoder is not None]
        of = family.image_encoder.manifest
        self._families[family.name] = Family(family.name, of.space, of.dim, image, text, composer)
        members = (family.image_encoder, family.text_encoder, family.composer)
        self._members[family.name] = tuple(self._slot(model) for model in members if model is not None)

    def _slot(self, model: Model) -> ModelSlot:
        return self._slots[model.manifest.name, model.manifest.version]

    def _serving_of(self, model: Model) -> Serving:
        batch = self._serving.batch
        return replace(self._serving, batch=replace(batch, max_batch=min(batch.max_batch, model.manifest.max_batch)))

    def _image_encoder(self, model: Model) -> OnnxImageEncoder:
        slot = self._slot(model)
        return OnnxImageEncoder(
            slot.ref,
            slot,
            serving=self._serving_of(model),
            input=_only("input", model, model.manifest.inputs).name,
            output=_only("output", model, model.manifest.outputs).name,
            dim=model.manifest.dim,
            preprocessing=preprocessing_of(model),
            limits=self._images,
        )

    def _text_encoder(self, model: Model) -> OnnxTextEncoder:
        slot = self._slot(model)
        if model.manifest.tokenizer is None:
            raise ManifestError(f"model {slot.name} has no tokenizer")
        tokens = _only("input", model, model.manifest.inputs)
        return OnnxTextEncoder(
            slot.ref,
            slot,
            serving=self._serving_of(model),
            input=tokens.name,
            output=_only("output", model, model.manifest.outputs).name,
            dim=model.manifest.dim,
            dtype=tokens.dtype,
            max_length=model.manifest.tokenizer.max_length,
            tokenizer=slot.tokenizer,
        )

    def _composer(self, model: Model) -> OnnxComposer:
        slot = self._slot(model)
        names = {spec.name for spec in model.manifest.inputs}
        # By name only: taking one for the other gives plausible vectors that mean nothing.
        if names != {"reference", "condition"}:
            raise ManifestError(
                f"the inputs of composer {slot.name} must be reference and condition, got {sorted(names)}"
            )
        missing = {"unspecified", "focus", "change"} - set(model.manifest.condition_templates)
        if missing:
            raise ManifestError(f"composer {slot.name} has no condition template for {sorted(missing)}")
        return OnnxComposer(
            slot.ref,
            slot,
            serving=self._serving_of(model),
            reference_input="reference",
            condition_input="condition",
            output=_only("output", model, model.manifest.outputs).name,
            dim=model.manifest.dim,
            templates=model.manifest.condition_templates,
        )


def _only(what: str, model: Model, specs: Sequence[TensorSpec]) -> TensorSpec:
    if len(specs) != 1:
        names = [spec.name for spec in specs]
        raise ManifestError(f"model {model.manifest.name}/{model.manifest.version} must have one {what}, got {names}")
    return specs[0]


def _refuse_twins(repositories: Sequence[Repository]) -> None:
    for what, names in (("model", Repository.names), ("family", Repository.families)):
        seen: dict[str, Path] = {}
        for one in repositories:
            for name in names(one):
                if name in seen:
                    raise ModelsError(f"{what} {name!r} is in two repositories: {seen[name]} and {one.path}")
                seen[name] = one.path
