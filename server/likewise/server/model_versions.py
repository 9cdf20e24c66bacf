"""Model versions side by side in one process: opened, called and freed one by one, whatever families they are of."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from likewise.export.manifest import Manifest, ManifestError
from likewise.export.model_repository import Model, Repository
from likewise.server.batched_graph import Serving
from likewise.server.batcher import BatchLimits, BatchReport
from likewise.server.composer import OnnxComposer
from likewise.server.errors import FailedPrecondition, NotFound
from likewise.server.graphs import open_graph
from likewise.server.image_encoder import OnnxImageEncoder
from likewise.server.images import ImageLimits
from likewise.server.lineup import Lineup, check_place
from likewise.server.model_encoder import ServedModel, make_encoder, served
from likewise.server.model_folders import find_version, refuse_twins
from likewise.server.model_slot import ModelSlot, OpenModel
from likewise.server.protocols import Family
from likewise.server.remote.endpoint_encoder import EndpointImageEncoder, EndpointTextEncoder
from likewise.server.served import Served, find
from likewise.server.session import Runtime
from likewise.server.text_encoder import OnnxTextEncoder
from likewise.server.validate import shown
from likewise.v1 import model_service_pb2

OPENED_AT_ONCE: Final = 2
"""Versions opened side by side: each takes a core, and memory for a model and its first batches. They are closed on
the same threads: measured over 100 swaps, sessions that any thread opens and closes leave the heap fragmented, growing
by 0.2 MiB a swap, and on these two it does not grow."""

Key = tuple[str, int]
"""Name and version of a model."""

_LOG = logging.getLogger(__name__)


class ModelVersions:
    """The versions of model repositories; a `served.ServedModels`. Nothing is opened by making it.

    Args:
        repositories: From `read_repositories`.
        runtime: Where and how models run.
        batch: Bounds of each model's batcher; a model's own largest batch lowers max_batch.
        images: What images are refused.
        workers: Threads that decode a batch of pictures, at least 1.
        on_batch: Told about every batch, on the event loop.
        open_graph: Opens a model's graph.

    Raises:
        ModelsError: If two repositories hold a model or family of the same name.
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
        open_graph: OpenModel = open_graph,
    ) -> None:
        refuse_twins(repositories)
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="prepare")
        self._serving = Serving(self._pool, workers, batch, on_batch)
        self._images = images
        self._runtime = runtime
        self._open_graph = open_graph
        self._folders = [one.path for one in repositories]
        self._encoders: dict[Key, ServedModel] = {}
        self._opening = ThreadPoolExecutor(OPENED_AT_ONCE, thread_name_prefix="open-model")
        self._loads: dict[Key, asyncio.Task[None]] = {}
        self._frees: dict[Key, asyncio.Task[None]] = {}
        self._slots = {
            (model.manifest.name, model.manifest.version): self._made(model)
            for one in repositories
            for model in one.models
        }

    @property
    def manifests(self) -> list[Manifest]:
        """Of every version known."""
        return [slot.manifest for slot in self._slots.values()]

    def models(self) -> list[model_service_pb2.Model]:
        """Every version known, by name, then version."""
        return [self._slots[key].describe() for key in sorted(self._slots)]

    def slot(self, key: Key) -> ModelSlot:
        """A version.

        Raises:
            NotFound: Naming those there are.
        """
        slot = self._slots.get(key)
        if slot is not None:
            return slot
        name, version = key
        versions = sorted(number for known, number in self._slots if known == name)
        names = sorted({known for known, _ in self._slots})
        raise NotFound(
            f"model {name!r} has no version {version} here, only {versions}: load it first"
            if versions
            else f"no model {shown(name)}, there are {names}",
            reason="MODEL_NOT_FOUND",
            metadata={"model": name[:256], "version": str(version)},
        )

    def prove(self, keys: Collection[Key]) -> None:
        """Raise `ManifestError` if one of these cannot be what its kind is to be; nothing is opened."""
        for key in sorted(keys):
            self._encoder(key)

    async def open(self, keys: Collection[Key]) -> None:
        """Open versions side by side; those that failed are tried again.

        Raises:
            FailedPrecondition: The first that cannot be opened; the others are.
        """
        slots = [self.slot(key) for key in sorted(keys)]
        outcomes = await asyncio.gather(*(self._run(slot.open) for slot in slots), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def close(self) -> None:
        """Refuse new work and answer those who wait; a running batch is finished."""
        tasks = [*self._loads.values(), *self._frees.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for encoder in list(self._encoders.values()):
            await encoder.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._opening.shutdown(wait=False, cancel_futures=True)

    async def load(self, name: str, version: int | None, *, kept: Callable[[Key], bool] = lambda key: False) -> Key:
        """Read a version from its repository, open and try it; see `ModelControl.load`.

        Calls for the same version share one attempt, which goes on when a caller goes away.

        Args:
            name: Of the model.
            version: None for the highest in the repository.
            kept: Whether a version is in use: it is opened as it was read before, not read anew.
        """
        model = await asyncio.to_thread(find_version, self._folders, name, version)
        key = (model.manifest.name, model.manifest.version)
        if (freeing := self._frees.get(key)) is not None:
            await asyncio.shield(freeing)
        if (loading := self._loads.get(key)) is None:
            loading = self._loads[key] = asyncio.create_task(self._load(key, model, kept), name=f"load-{name}")
            loading.add_done_callback(lambda task: _forget(self._loads, key, task))
        await asyncio.shield(loading)
        return key

    async def loaded(self, key: Key) -> None:
        """Return when no attempt to load a version is in progress."""
        if (loading := self._loads.get(key)) is not None:
            await asyncio.wait([loading])

    def free(self, key: Key) -> asyncio.Task[None]:
        """Begin to free a version, or go on with it; the task ends when the last one who held it has let go."""
        task = self._frees.get(key)
        if task is None:
            self._slots[key].retire()
            task = self._frees[key] = asyncio.create_task(self._drain(key), name=f"free-{key[0]}-{key[1]}")
            task.add_done_callback(lambda done: _forget(self._frees, key, done))
        return task

    @contextlib.contextmanager
    def serving(self, name: str, version: int | None) -> Iterator[Served]:
        """See `ServedModels.serving`. Here no version is in use by default: one has to be named."""
        slot = self._slots.get((name, version or 0))
        if slot is None or slot.state != model_service_pb2.MODEL_STATE_READY:
            find(self.models(), name, version)
            if slot is not None and slot.reason:
                raise slot.fail(slot.reason)
            which = f"no version of {name!r} is in use" if version is None else f"{name}/{version} is not loaded"
            raise FailedPrecondition(f"{which}: load it", reason="MODEL_NOT_LOADED", metadata={"model": name})
        with slot.held():
            yield served(slot, self._encoder((name, slot.manifest.version)))

    def family(self, lineup: Lineup) -> Family:
        """The models of a line-up, with the lease that keeps them from being freed."""
        slots = [self._slots[key] for key in sorted(lineup.keys)]

        @contextlib.contextmanager
        def lease() -> Iterator[None]:
            with contextlib.ExitStack() as held:
                for slot in slots:
                    held.enter_context(slot.held())
                yield

        image = text = composer = None
        for key in lineup.keys:
            match self._encoder(key):
                case (OnnxImageEncoder() | EndpointImageEncoder()) as encoder:
                    image = encoder
                case (OnnxTextEncoder() | EndpointTextEncoder()) as encoder:
                    text = encoder
                case OnnxComposer() as encoder:
                    composer = encoder
        return Family(lineup.family, lineup.space, lineup.dim, image, text, composer, lineup.compatible_with, lease)

    def require_open(self, lineup: Lineup) -> None:
        """Refuse a line-up of which a version is not ready.

        Raises:
            NotFound: If there is no such version.
            FailedPrecondition: MODEL_NOT_LOADED, or MODELS_CHANGED if it is not the version that it was.
        """
        for key in sorted(lineup.keys):
            slot = self.slot(key)
            if slot.state != model_service_pb2.MODEL_STATE_READY:
                state = model_service_pb2.ModelState.Name(slot.state).removeprefix("MODEL_STATE_")
                why = f" ({slot.reason})" if slot.reason else ""
                raise FailedPrecondition(
                    f"{slot.name} is {state}{why}, not READY: load it first",
                    reason="MODEL_NOT_LOADED",
                    metadata={"model": slot.name, "state": state},
                )
            if slot.manifest not in lineup.members:
                raise FailedPrecondition(
                    f"{slot.name} was loaded anew meanwhile, with another manifest: look again before promoting",
                    reason="MODELS_CHANGED",
                    metadata={"model": slot.name, "family": lineup.family},
                )

    async def _load(self, key: Key, model: Model, kept: Callable[[Key], bool]) -> None:
        slot = self._slots.get(key)
        if slot is None or (slot.state != model_service_pb2.MODEL_STATE_READY and not kept(key)):
            # As it lies in the repository now: it may have been put there, or mended, since the start.
            new = self._made(model)
            try:
                check_place(model.manifest, self.manifests)
                encoder = make_encoder(new, self._serving, self._images)
            except ManifestError as error:
                # One that was not known before stays unknown: it would take the place of the right one.
                raise (slot or new).fail(str(error)) from error
            stale = self._encoders.get(key)
            self._slots[key], self._encoders[key], slot = new, encoder, new
            if stale is not None:
                await stale.close()
        await self._run(slot.open)

    async def _drain(self, key: Key) -> None:
        slot = self._slots[key]
        await slot.unused()
        if (encoder := self._encoders.pop(key, None)) is not None:
            await encoder.close()
        await self._run(slot.close)
        self._slots[key] = self._made(slot.model)
        _LOG.info("model %s is freed", slot.name)

    async def _run(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._opening, work)

    def _made(self, model: Model) -> ModelSlot:
        return ModelSlot(model, self._runtime, open_graph=self._open_graph)

    def _encoder(self, key: Key) -> ServedModel:
        encoder = self._encoders.get(key)
        if encoder is None:
            encoder = self._encoders[key] = make_encoder(self._slots[key], self._serving, self._images)
        return encoder


def _forget(tasks: dict[Key, asyncio.Task[None]], key: Key, task: asyncio.Task[None]) -> None:
    if tasks.get(key) is task:
        del tasks[key]
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.debug("%s/%d: %s", *key, error)
