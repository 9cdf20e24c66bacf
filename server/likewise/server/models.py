"""The models of a process by family: which versions are in use, and the switch from one line-up to the next.

What queries see of a family is one immutable `Family`, replaced as a whole when another line-up is switched to.
Versions are opened and freed by `model_versions`; one that cannot be opened fails alone and says why.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from likewise.export.manifest import Manifest, ManifestError
from likewise.export.model_repository import Repository
from likewise.server.batcher import BatchLimits, BatchReport
from likewise.server.errors import FailedPrecondition, NotFound
from likewise.server.graphs import open_graph
from likewise.server.images import ImageLimits
from likewise.server.lineup import History, Lineup, LineupError, Versions, check_current
from likewise.server.model_folders import ModelsError, read_repositories
from likewise.server.model_slot import OpenModel
from likewise.server.model_versions import Key, ModelVersions
from likewise.server.promotion_record import DOCUMENT, Documents, from_json, histories_to_json, restored
from likewise.server.protocols import Family
from likewise.server.served import Served
from likewise.server.session import Runtime
from likewise.v1 import model_service_pb2

__all__ = ["ModelsError", "OnnxModels", "read_repositories"]


class OnnxModels:
    """`protocols.Models`, `promotion.VersionedModels` and `served.ServedModels` over model repositories.

    Nothing is opened by making it. All methods belong to one event loop.

    Args:
        repositories: From `read_repositories`.
        runtime: Where and how models run.
        batch: Bounds of each model's batcher; a model's own largest batch lowers max_batch.
        images: What images are refused.
        workers: Threads that decode a batch of pictures, at least 1.
        on_batch: Told about every batch, on the event loop.
        documents: Where it is on record what is in use; None: nowhere, and the highest versions are used. With it, the
            families are there from `open` on.
        open_graph: Opens a model's graph.

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
        documents: Documents | None = None,
        open_graph: OpenModel = open_graph,
    ) -> None:
        self._versions = ModelVersions(
            repositories,
            runtime=runtime,
            batch=batch,
            images=images,
            workers=workers,
            on_batch=on_batch,
            open_graph=open_graph,
        )
        self._documents = documents
        self._histories: dict[str, History] = {}
        self._families: dict[str, Family] = {}
        self._claimed: frozenset[Key] = frozenset()
        self._changing = asyncio.Lock()
        if documents is None:
            self._restore({})

    def family(self, name: str) -> Family:
        """The family of that name as it is in use, whether its models are open yet or not.

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
        """Every model version known, by name, then version."""
        return [self._told(model) for model in self._versions.models()]

    async def open(self, families: Sequence[str] | None = None) -> None:
        """Take up what is on record, and open the versions in use of all families or of those named, side by side.

        Those that failed are tried again.

        Raises:
            ModelsError: If a family does not fit together, or the record cannot be read.
            NotFound: If there is no family of a name; nothing is opened.
            FailedPrecondition: The first model that cannot be opened; the others are.
        """
        if self._documents is not None and not self._histories:
            self._restore(from_json(await self._documents.read_document(DOCUMENT)))
            await self._documents.write_document(DOCUMENT, histories_to_json(self._histories))
        for name in families or ():
            self.family(name)
        chosen = self._histories if families is None else families
        await self._versions.open({key for name in chosen for key in self._histories[name].current.keys})

    async def close(self) -> None:
        """Refuse new work and answer those who wait; a running batch is finished."""
        await self._versions.close()

    async def load(self, name: str, version: int | None = None) -> model_service_pb2.Model:
        """Read a version from its repository, open and try it; see `ModelControl.load`.

        Calls for the same version share one attempt, which goes on when a caller goes away.
        """
        key = await self._versions.load(name, version, kept=lambda key: key in self._used())
        return self._told(self._versions.slot(key).describe())

    async def unload(self, name: str, version: int) -> None:
        """Free a version once the last query that uses it has ended; see `ModelControl.unload`.

        It goes on when the caller goes away. One that is not loaded is left alone.
        """
        key = (name, version)
        slot = self._versions.slot(key)
        await self._versions.loaded(key)
        if key in self._used() | self._claimed:
            raise model_in_use(key, slot.manifest.family)
        if self._versions.slot(key).state != model_service_pb2.MODEL_STATE_AVAILABLE:
            await asyncio.shield(self._versions.free(key))

    def manifest(self, name: str, version: int) -> Manifest:
        """See `VersionedModels.manifest`."""
        return self._versions.slot((name, version)).manifest

    def history(self, family: str) -> History | None:
        """See `VersionedModels.history`."""
        return self._histories.get(family)

    def candidate(self, lineup: Lineup) -> Family:
        """See `VersionedModels.candidate`."""
        self._versions.require_open(lineup)
        return self._versions.family(lineup)

    @contextlib.contextmanager
    def serving(self, name: str, version: int | None) -> Iterator[Served]:
        """See `ServedModels.serving`."""
        if version is None:
            version = next((number for known, number in self._used() if known == name), None)
        with self._versions.serving(name, version) as served:
            yield served

    async def switch(self, history: History, *, expected: Versions | None) -> None:
        """See `VersionedModels.switch`. Once begun it is made to its end, whatever becomes of the caller."""

        async def switch() -> None:
            async with self._changing:
                await self._switch(history, expected)

        await asyncio.shield(asyncio.create_task(switch()))

    async def _switch(self, history: History, expected: Versions | None) -> None:
        family = history.current.family
        before = self._histories.get(family)
        check_current(family, before, expected)
        self._versions.require_open(history.current)
        histories = {**self._histories, family: history}
        # Not to be freed while the record is being written.
        self._claimed = history.current.keys
        try:
            if self._documents is not None:
                await self._documents.write_document(DOCUMENT, histories_to_json(histories))
        finally:
            self._claimed = frozenset()
        self._histories = histories
        self._families[family] = self._versions.family(history.current)
        for key in sorted((before.keys if before is not None else frozenset()) - history.keys):
            self._versions.free(key)

    def _restore(self, record: Mapping[str, Any]) -> None:
        manifests = self._versions.manifests
        for family in sorted({one.family for one in manifests}):
            own = [one for one in manifests if one.family == family]
            try:
                history = restored(family, record.get(family), own)
                self._versions.prove(history.current.keys)
            except (LineupError, ManifestError) as error:
                raise ModelsError(str(error)) from error
            self._histories[family] = history
            self._families[family] = self._versions.family(history.current)

    def _told(self, model: model_service_pb2.Model) -> model_service_pb2.Model:
        key, history = (model.name, model.version), self._histories.get(model.family)
        if history is not None:
            model.in_use = key in history.current.keys
            model.previous = history.previous is not None and key in history.previous.keys - history.current.keys
        return model

    def _used(self) -> frozenset[Key]:
        return frozenset(key for history in self._histories.values() for key in history.current.keys)


def model_in_use(key: Key, family: str) -> FailedPrecondition:
    """The error for a version that cannot be freed."""
    name = f"{key[0]}/{key[1]}"
    return FailedPrecondition(
        f"{name} is in use by {family!r}: promote another version or roll back first",
        reason="MODEL_IN_USE",
        metadata={"model": name, "family": family},
    )
