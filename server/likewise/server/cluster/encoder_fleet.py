"""The models of a cluster, as the controller keeps them: which versions every encoder has open, and which are in use.

The store's record says what is in use; encoders say what they have open. An encoder that comes up, whether for the
first time or again, is given every version that the others have, and is in the routing table for those it has.
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from likewise.export.manifest import Manifest, ManifestError
from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.server.cluster.model_messages import described, family_route, model_route
from likewise.server.cluster.parts import EncoderPart
from likewise.server.cluster.supervisor import Supervisor
from likewise.server.errors import FailedPrecondition, NotFound, Unavailable
from likewise.server.lineup import History, LineupError, Versions, check_current, check_place, lineup_of
from likewise.server.model_folders import ModelsError, find_version
from likewise.server.models import model_in_use
from likewise.server.promotion_record import DOCUMENT, Recorded, from_json, histories_to_json, recorded, restored
from likewise.server.validate import shown
from likewise.v1 import model_service_pb2

T = TypeVar("T")

Key = tuple[str, int]

_AVAILABLE: Final = model_service_pb2.MODEL_STATE_AVAILABLE
_LOADING: Final = model_service_pb2.MODEL_STATE_LOADING
_READY: Final = model_service_pb2.MODEL_STATE_READY
_DRAINING: Final = model_service_pb2.MODEL_STATE_DRAINING
_FAILED: Final = model_service_pb2.MODEL_STATE_FAILED

_log = logging.getLogger(__name__)


class BlockingDocuments(Protocol):
    """The store's documents; both block."""

    def read_document(self, name: str) -> Any:
        """See `promotion_record.Documents`."""
        ...

    def write_document(self, name: str, value: Any) -> None:
        """See `promotion_record.Documents`."""
        ...


class EncoderFleet:
    """The encoders of every family, and the versions they serve.

    Args:
        documents: Where it is on record what is in use.
        supervise: Places an encoder and keeps it up.
        publish: Called when `routes` or `families` say something new.
        manifests: Every version that the repositories hold at the start; none for a cluster of vectors only.
        folders: The repositories, to find further versions in.
        replicas: Encoders of each family.
    """

    def __init__(
        self,
        documents: BlockingDocuments,
        *,
        supervise: Callable[[EncoderPart], Supervisor],
        publish: Callable[[], None],
        manifests: Sequence[Manifest] = (),
        folders: Sequence[Path] = (),
        replicas: int = 1,
    ) -> None:
        self._documents = documents
        self._supervise = supervise
        self._publish = publish
        self._folders = folders
        self._replicas = replicas
        self._manifests = {(one.name, one.version): one for one in manifests}
        self._histories: dict[str, History] = {}
        self._encoders: dict[str, list[Supervisor]] = {}
        self._wanted: set[Key] = set()
        self._held: dict[str, dict[Key, pb.ModelRoute]] = {}  # by part: what its process has open, or could not open
        self._states: dict[Key, model_service_pb2.ModelState.ValueType] = {}
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def supervisors(self) -> list[Supervisor]:
        """Of every encoder."""
        return [encoder for encoders in self._encoders.values() for encoder in encoders]

    async def start(self) -> None:
        """Take up the record and the encoders; returns at once, versions are opened as encoders come up.

        Raises:
            ModelsError: If the record cannot be read, or a family does not fit together.
        """
        record = from_json(await _blocking(self._documents.read_document, DOCUMENT))
        manifests = list(self._manifests.values())
        for family in sorted({one.family for one in manifests}):
            try:
                history = restored(family, record.get(family), [one for one in manifests if one.family == family])
            except LineupError as error:
                raise ModelsError(str(error)) from error
            self._histories[family] = history
            self._wanted |= history.current.keys
        if self._histories:
            await _blocking(self._documents.write_document, DOCUMENT, histories_to_json(self._histories))
        for family in self._histories:
            self._place(family)

    async def close(self) -> None:
        """End what goes on in the background; the encoders are the controller's to end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def changed(self, encoder: Supervisor) -> None:
        """An encoder came up or went."""
        part = encoder.part.name
        if encoder.serving is None:
            self._held.pop(part, None)
            return
        # A process that outlived a controller has versions that only it knows to be open.
        self._held[part] = {(one.model.name, one.model.version): one for one in encoder.serving.models}
        self._wanted |= {
            key for key, one in self._held[part].items() if key in self._manifests and one.model.state == _READY
        }
        self._begin(self._equip(encoder), f"equip-{part}")

    def routes(self) -> list[pb.ModelRoute]:
        """Every version known, by name, then version, with the encoders that have it."""
        return [self._route(key) for key in sorted(self._manifests)]

    def families(self) -> list[pb.FamilyRoute]:
        """Every family's versions, by name."""
        return [family_route(name, recorded(history)) for name, history in sorted(self._histories.items())]

    async def load(self, name: str, version: int | None) -> model_service_pb2.Model:
        """Open a version on every encoder of its family.

        Raises:
            NotFound: If the repositories have no such version.
            FailedPrecondition: MODEL_FAILED if an encoder cannot open it.
            Unavailable: If an encoder does not answer.
        """
        model = await _blocking(find_version, self._folders, name, version)
        key = (model.manifest.name, model.manifest.version)
        return await self._exclusively(functools.partial(self._load, key, model.manifest))

    async def unload(self, name: str, version: int) -> None:
        """Free a version on every encoder, once nobody calls it any more.

        Raises:
            NotFound: If there is no such model or version.
            FailedPrecondition: MODEL_IN_USE.
        """
        await self._exclusively(functools.partial(self._unload, (name, version)))

    async def switch(self, family: str, wanted: Recorded, *, expected: Versions | None) -> None:
        """Put versions in use: on record, then for every router; free what is not kept any more.

        Raises:
            NotFound: If a version is not known.
            FailedPrecondition: MODELS_CHANGED, or MODEL_NOT_LOADED.
        """
        await self._exclusively(functools.partial(self._switch, family, wanted, expected))

    async def _load(self, key: Key, manifest: Manifest) -> model_service_pb2.Model:
        try:
            check_place(manifest, self._manifests.values())
        except ManifestError as error:
            raise _failed(key, str(error)) from error
        encoders = self._encoders.get(manifest.family) or self._place(manifest.family)
        if all(self._has(encoder, key) for encoder in encoders):
            return self._route(key).model
        if key not in self._used():
            self._manifests[key] = manifest
        self._wanted.add(key)
        self._states[key] = _LOADING
        self._publish()
        try:
            await asyncio.gather(*(self._give(encoder, key) for encoder in encoders))
        except BaseException:
            self._settle(key)
            raise
        self._settle(key)
        described = self._route(key).model
        if described.state != _READY:
            raise _failed(key, described.reason)
        return described

    async def _unload(self, key: Key) -> None:
        manifest = self._known(key)
        if key in self._used():
            raise model_in_use(key, manifest.family)
        self._wanted.discard(key)
        self._states[key] = _DRAINING
        self._publish()
        try:
            await asyncio.gather(*(self._take(encoder, key) for encoder in self._encoders.get(manifest.family, ())))
        finally:
            self._settle(key)

    async def _switch(self, family: str, wanted: Recorded, expected: Versions | None) -> None:
        before = self._histories.get(family)
        check_current(family, before, expected)
        try:
            current, previous, withdrawn = (
                None if one is None else lineup_of(family, [self._known(key) for key in one.items()])
                for one in (wanted.current, wanted.previous, wanted.withdrawn)
            )
        except LineupError as error:
            raise FailedPrecondition(str(error), reason="SPACE_MISMATCH", metadata={"family": family}) from error
        assert current is not None, "a record always has a current line-up. This is a bug."
        for key in sorted(current.keys):
            described = self._route(key).model
            if described.state != _READY:
                state = model_service_pb2.ModelState.Name(described.state).removeprefix("MODEL_STATE_")
                raise FailedPrecondition(
                    f"{key[0]}/{key[1]} is {state}, not READY: load it first",
                    reason="MODEL_NOT_LOADED",
                    metadata={"model": f"{key[0]}/{key[1]}", "state": state},
                )
        after = History(current, previous, withdrawn)
        histories = {**self._histories, family: after}
        await _blocking(self._documents.write_document, DOCUMENT, histories_to_json(histories))
        self._histories = histories
        self._publish()
        for key in sorted((before.keys if before is not None else frozenset()) - after.keys):
            self._begin(self._free(key), f"free-{key[0]}-{key[1]}")

    async def _free(self, key: Key) -> None:
        async with self._changing:
            # It may be in use or wanted for a rollback again by now.
            if all(key not in history.keys for history in self._histories.values()):
                await self._unload(key)

    async def _equip(self, encoder: Supervisor) -> None:
        """Give an encoder what the others have."""
        part = encoder.part
        assert isinstance(part, EncoderPart), "only encoders have models. This is a bug."
        serving = encoder.serving
        for key in sorted(self._wanted):
            manifest = self._manifests.get(key)
            if encoder.serving is not serving or manifest is None or manifest.family != part.family:
                continue
            if key not in self._held.get(part.name, {}):
                await self._give(encoder, key)
                self._publish()

    async def _give(self, encoder: Supervisor, key: Key) -> None:
        """Have an encoder open a version; what it says is noted, whether it can or not."""
        name = encoder.part.name
        try:
            await encoder.wait_up()
            serving, placed = encoder.serving, encoder.placed
            assert placed is not None, "a part that is up has a process. This is a bug."
            route = await placed.load(*key)
        except Exception as error:
            _log.error("%s does not load %s/%d: %s", name, *key, error)
            raise Unavailable(f"{name} does not load {key[0]}/{key[1]}, see the server's log") from error
        if encoder.serving is serving:
            self._held.setdefault(name, {})[key] = route

    async def _take(self, encoder: Supervisor, key: Key) -> None:
        """Have an encoder free a version; one that is not up has none."""
        if encoder.placed is not None and encoder.serving is not None:
            await encoder.placed.unload(*key)
        self._held.get(encoder.part.name, {}).pop(key, None)

    def _has(self, encoder: Supervisor, key: Key) -> bool:
        held = self._held.get(encoder.part.name, {}).get(key)
        return held is not None and held.model.state == _READY

    def _place(self, family: str) -> list[Supervisor]:
        made = [self._supervise(EncoderPart(family, replica)) for replica in range(self._replicas)]
        self._encoders[family] = made
        return made

    def _settle(self, key: Key) -> None:
        """From here on a version is in the state that its encoders say."""
        self._states.pop(key, None)
        if self._route(key).model.state != _READY and key not in self._used():
            self._wanted.discard(key)
        self._publish()

    def _route(self, key: Key) -> pb.ModelRoute:
        manifest = self._manifests[key]
        route = model_route(manifest, described(manifest, _LOADING if key in self._wanted else _AVAILABLE))
        for encoder in self._encoders.get(manifest.family, ()):
            held = self._held.get(encoder.part.name, {}).get(key)
            if held is None or encoder.serving is None:
                continue
            # One that could not open it is called all the same: it says why.
            route.addresses.append(encoder.serving.address)
            if route.model.state != _FAILED:
                route.model.CopyFrom(held.model)
        history = self._histories.get(manifest.family)
        if history is not None:
            route.model.in_use = key in history.current.keys
            route.model.previous = history.previous is not None and key in history.previous.keys - history.current.keys
        if (state := self._states.get(key)) is not None:
            route.model.state = state
        return route

    def _known(self, key: Key) -> Manifest:
        manifest = self._manifests.get(key)
        if manifest is not None:
            return manifest
        name, version = key
        versions = sorted(number for known, number in self._manifests if known == name)
        names = sorted({known for known, _ in self._manifests})
        raise NotFound(
            f"model {name!r} has no version {version} here, only {versions}: load it first"
            if versions
            else f"no model {shown(name)}, there are {names}",
            reason="MODEL_NOT_FOUND",
            metadata={"model": name[:256], "version": str(version)},
        )

    def _used(self) -> frozenset[Key]:
        return frozenset(key for history in self._histories.values() for key in history.current.keys)

    async def _exclusively(self, change: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Make one change at a time, to its end: a caller that goes away must not leave half of it."""

        async def locked() -> T:
            async with self._changing:
                return await change()

        return await asyncio.shield(asyncio.create_task(locked()))

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        async def logged() -> None:
            try:
                await work
            except Exception as error:
                # An encoder that was lost meanwhile is given everything again once it is back.
                _log.warning("%s: %s", name, error)

        task = asyncio.create_task(logged(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _failed(key: Key, reason: str) -> FailedPrecondition:
    name = f"{key[0]}/{key[1]}"
    return FailedPrecondition(
        f"the model {name} cannot be served: {reason}", reason="MODEL_FAILED", metadata={"model": name}
    )


async def _blocking(call: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, functools.partial(call, *arguments))
