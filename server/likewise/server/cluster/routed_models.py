"""`Models` of a router: which versions are in use, and stubs of the encoders that have them, as the table says.

A `Family` is made anew from every table and calls its versions by number, so that a query that holds one stays with the
versions it began with while the table moves on.
"""

from collections.abc import Callable, Sequence

from likewise.export.manifest import Manifest
from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.server.cluster.follower import Follower
from likewise.server.cluster.model_messages import (
    family_route,
    lineup_message,
    manifest_of,
    recorded_of,
    versions_of,
)
from likewise.server.errors import FailedPrecondition, NotFound, Unavailable
from likewise.server.lineup import History, Lineup, Versions, lineup_of
from likewise.server.promotion_record import recorded
from likewise.server.protocols import Family
from likewise.server.remote.channels import Channels
from likewise.server.remote.inference_stub import (
    InferenceRoute,
    InferenceStub,
    RemoteComposer,
    RemoteImageEncoder,
    RemoteTextEncoder,
)
from likewise.server.validate import shown
from likewise.v1 import common_pb2, model_service_pb2

Key = tuple[str, int]


class RoutedModels:
    """`promotion.VersionedModels` of a cluster."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._follower: Follower | None = None
        self._routes: dict[Key, InferenceRoute] = {}
        self._manifests: dict[Key, Manifest] = {}
        self._models: list[model_service_pb2.Model] = []
        self._histories: dict[str, History] = {}
        self._families: dict[str, Family] = {}

    def follow(self, follower: Follower) -> None:
        """Use this follower's controller for changes."""
        self._follower = follower

    def take(self, table: pb.RoutingTable) -> None:
        """Follow a new table."""
        routes: dict[Key, InferenceRoute] = {}
        for entry in table.models:
            key = (entry.model.name, entry.model.version)
            route = routes[key] = self._routes.get(key) or InferenceRoute(
                f"model {key[0]}/{key[1]}", self._channels, InferenceStub
            )
            route.move(entry.addresses)
        before, routes_before, self._routes = self._histories, self._routes, routes
        self._manifests = {(one.model.name, one.model.version): manifest_of(one) for one in table.models}
        self._models = [entry.model for entry in table.models]
        self._histories = {family.name: self._history(family) for family in table.families}
        families = self._families
        self._families = {}
        for name, history in self._histories.items():
            same = name in before and before[name].current == history.current
            same = same and all(routes_before.get(key) is routes.get(key) for key in history.current.keys)
            # The very same one: what is kept of an encoder's answers goes with the encoder.
            self._families[name] = families[name] if same else self._family(history.current)

    def family(self, name: str) -> Family:
        """See `Models.family`."""
        try:
            return self._families[name]
        except KeyError:
            known = ", ".join(sorted(self._families)) or "none"
            raise NotFound(
                f"no models of the name {name!r}; there are: {known}", reason="MODEL_NOT_FOUND", metadata={"name": name}
            ) from None

    def models(self) -> Sequence[model_service_pb2.Model]:
        """See `Models.models`."""
        return self._models

    async def load(self, name: str, version: int | None) -> model_service_pb2.Model:
        """See `ModelControl.load`: on every encoder of the family."""
        request = pb.LoadModelRequest(name=name, version=version)
        response = await self._controller().controller.call(
            lambda stub: stub.LoadModel, request, unavailable=Unavailable
        )
        loaded = response.model
        await self._shown(lambda table: _state(table, loaded.name, loaded.version) == loaded.state)
        return loaded

    async def unload(self, name: str, version: int) -> None:
        """See `ModelControl.unload`: on every encoder of the family."""
        request = pb.UnloadModelRequest(name=name, version=version)
        await self._controller().controller.call(lambda stub: stub.UnloadModel, request, unavailable=Unavailable)

    def manifest(self, name: str, version: int) -> Manifest:
        """See `VersionedModels.manifest`."""
        manifest = self._manifests.get((name, version))
        if manifest is not None:
            return manifest
        versions = sorted(number for known, number in self._manifests if known == name)
        names = sorted({known for known, _ in self._manifests})
        raise NotFound(
            f"model {name!r} has no version {version} here, only {versions}: load it first"
            if versions
            else f"no model {shown(name)}, there are {names}",
            reason="MODEL_NOT_FOUND",
            metadata={"model": name[:256], "version": str(version)},
        )

    def history(self, family: str) -> History | None:
        """See `VersionedModels.history`."""
        return self._histories.get(family)

    def candidate(self, lineup: Lineup) -> Family:
        """See `VersionedModels.candidate`."""
        states = {(model.name, model.version): model.state for model in self._models}
        for key in sorted(lineup.keys):
            state = states.get(key, model_service_pb2.MODEL_STATE_AVAILABLE)
            if state != model_service_pb2.MODEL_STATE_READY:
                word = model_service_pb2.ModelState.Name(state).removeprefix("MODEL_STATE_")
                raise FailedPrecondition(
                    f"{key[0]}/{key[1]} is {word}, not READY: load it first",
                    reason="MODEL_NOT_LOADED",
                    metadata={"model": f"{key[0]}/{key[1]}", "state": word},
                )
        return self._family(lineup)

    async def switch(self, history: History, *, expected: Versions | None) -> None:
        """See `VersionedModels.switch`; returns when this router's own table has it, others follow theirs."""
        family = history.current.family
        request = pb.SwitchModelsRequest(
            family=family_route(family, recorded(history)),
            expected=lineup_message(expected) if expected is not None else None,
        )
        await self._controller().controller.call(lambda stub: stub.SwitchModels, request, unavailable=Unavailable)
        wanted = history.current.versions
        await self._shown(
            lambda table: any(one.name == family and versions_of(one.current) == wanted for one in table.families)
        )

    async def _shown(self, holds: Callable[[pb.RoutingTable], bool]) -> None:
        await self._controller().wait_for(holds)

    def _controller(self) -> Follower:
        assert self._follower is not None, "follow() comes first. This is a bug."
        return self._follower

    def _history(self, route: pb.FamilyRoute) -> History:
        def made(versions: Versions) -> Lineup:
            return lineup_of(route.name, [self._manifests[key] for key in versions.items()])

        of = recorded_of(route)
        return History(
            made(of.current),
            made(of.previous) if of.previous is not None else None,
            made(of.withdrawn) if of.withdrawn is not None else None,
        )

    def _family(self, lineup: Lineup) -> Family:
        text, composer = lineup.text, lineup.composer
        return Family(
            name=lineup.family,
            space=lineup.space,
            dim=lineup.dim,
            image=RemoteImageEncoder(self._of(lineup.image), _ref(lineup.image)),
            text=RemoteTextEncoder(self._of(text), _ref(text)) if text is not None else None,
            composer=RemoteComposer(self._of(composer), _ref(composer), templates=composer.condition_templates)
            if composer is not None
            else None,
            compatible_with=lineup.compatible_with,
        )

    def _of(self, manifest: Manifest) -> InferenceRoute:
        return self._routes[manifest.name, manifest.version]


def _ref(manifest: Manifest) -> common_pb2.ModelRef:
    return common_pb2.ModelRef(name=manifest.name, version=manifest.version, kind=manifest.kind, space=manifest.space)


def _state(table: pb.RoutingTable, name: str, version: int) -> int | None:
    found = (one.model.state for one in table.models if (one.model.name, one.model.version) == (name, version))
    return next(found, None)
