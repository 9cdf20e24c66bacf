"""`Galleries` and `Models` of a router: stubs whose routes follow the controller's table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.internal.v1 import shard_service_pb2_grpc, writer_service_pb2_grpc
from likewise.server.cluster.follower import Follower
from likewise.server.errors import NotFound, Unavailable
from likewise.server.protocols import Family, GalleryHandle
from likewise.server.remote.channels import Channels
from likewise.server.remote.inference_stub import (
    InferenceRoute,
    InferenceStub,
    RemoteComposer,
    RemoteImageEncoder,
    RemoteTextEncoder,
)
from likewise.server.remote.shard_stub import ShardRoute, ShardStub
from likewise.server.remote.writer_stub import WriterRoute, WriterStub
from likewise.server.validate import shown
from likewise.shards import spec as specs
from likewise.shards.spec import GallerySpec
from likewise.v1 import common_pb2, model_service_pb2

_NAMES_SHOWN: Final = 20

_KINDS: Final = {
    model_service_pb2.MODEL_KIND_IMAGE_ENCODER: "image_encoder",
    model_service_pb2.MODEL_KIND_TEXT_ENCODER: "text_encoder",
    model_service_pb2.MODEL_KIND_COMPOSER: "composer",
}


@dataclass(frozen=True, slots=True)
class _Routed:
    """A gallery's handle with the routes of its parts."""

    handle: GalleryHandle
    writer: WriterRoute
    shards: tuple[ShardRoute, ...]

    def move(self, route: pb.GalleryRoute) -> None:
        self.writer.move([route.writer] if route.writer else [])
        for shard in route.shards:
            self.shards[shard.shard].move(shard.addresses)


class RoutedGalleries:
    """`Galleries` of a cluster."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._follower: Follower | None = None
        self._galleries: dict[str, _Routed] = {}

    def follow(self, follower: Follower) -> None:
        """Use this follower's controller for changes."""
        self._follower = follower

    def take(self, table: pb.RoutingTable) -> None:
        """Follow a new table; handles of galleries that stay as they are stay valid, and so do their stubs."""
        galleries: dict[str, _Routed] = {}
        for route in table.galleries:
            spec = specs.from_message(route.gallery)
            known = self._galleries.get(spec.name)
            routed = known if known is not None and known.handle.spec == spec else self._routed(spec)
            routed.move(route)
            galleries[spec.name] = routed
        self._galleries = galleries

    def get(self, name: str) -> GalleryHandle:
        """See `Galleries.get`."""
        try:
            return self._galleries[name].handle
        except KeyError:
            known = sorted(self._galleries)
            more = f" and {len(known) - _NAMES_SHOWN} more" if len(known) > _NAMES_SHOWN else ""
            raise NotFound(
                f"no gallery {shown(name)}, there are {known[:_NAMES_SHOWN]}{more}",
                reason="GALLERY_NOT_FOUND",
                metadata={"gallery": name[:256]},
            ) from None

    def handles(self) -> Sequence[GalleryHandle]:
        """See `Galleries.handles`."""
        return [self._galleries[name].handle for name in sorted(self._galleries)]

    async def create(self, spec: GallerySpec) -> GalleryHandle:
        """See `Galleries.create`. The controller gives the gallery its identity; that of `spec` is not used."""
        follower = self._controller()
        request = pb.CreateGalleryRequest(spec=specs.to_message(spec, version=0).spec)
        response = await follower.controller.call(lambda stub: stub.CreateGallery, request, unavailable=Unavailable)
        return await self._shown(response.gallery.gallery_id, specs.from_message(response.gallery))

    async def update(self, spec: GallerySpec) -> GalleryHandle:
        """See `Galleries.update`."""
        follower = self._controller()
        request = pb.UpdateGalleryRequest(spec=specs.to_message(spec, version=0).spec)
        response = await follower.controller.call(lambda stub: stub.UpdateGallery, request, unavailable=Unavailable)
        return await self._shown(response.gallery.gallery_id, specs.from_message(response.gallery))

    async def delete(self, name: str) -> None:
        """See `Galleries.delete`."""
        follower = self._controller()
        gone = self.get(name).spec.gallery_id
        request = pb.DeleteGalleryRequest(name=name)
        await follower.controller.call(lambda stub: stub.DeleteGallery, request, unavailable=Unavailable)
        await follower.wait_for(lambda table: all(g.gallery.gallery_id != gone for g in table.galleries))

    async def _shown(self, gallery_id: str, spec: GallerySpec) -> GalleryHandle:
        """The handle, once this router's own table has the gallery as described."""
        await self._controller().wait_for(
            lambda table: any(
                g.gallery.gallery_id == gallery_id and specs.from_message(g.gallery) == spec for g in table.galleries
            )
        )
        return self.get(spec.name)

    def _controller(self) -> Follower:
        assert self._follower is not None, "follow() comes first. This is a bug."
        return self._follower

    def _routed(self, spec: GallerySpec) -> _Routed:
        writer: WriterRoute = WriterRoute(
            f"the writer of gallery {spec.name!r}", self._channels, writer_service_pb2_grpc.WriterServiceStub
        )
        shards = tuple(
            ShardRoute(
                f"shard {number} of gallery {spec.name!r}", self._channels, shard_service_pb2_grpc.ShardServiceStub
            )
            for number in range(spec.shards)
        )
        stubs = tuple(ShardStub(route, gallery_id=spec.gallery_id, shard=number) for number, route in enumerate(shards))
        handle = GalleryHandle(spec, stubs, WriterStub(writer, gallery_id=spec.gallery_id))
        return _Routed(handle, writer, shards)


class RoutedModels:
    """`Models` of a cluster."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._routes: dict[tuple[str, int], InferenceRoute] = {}
        self._families: dict[str, Family] = {}
        self._models: list[model_service_pb2.Model] = []

    def take(self, table: pb.RoutingTable) -> None:
        """Follow a new table."""
        routes: dict[tuple[str, int], InferenceRoute] = {}
        families: dict[str, Family] = {}
        for entry in table.models:
            model = entry.model
            key = (model.name, model.version)
            route = routes[key] = self._routes.get(key) or InferenceRoute(
                f"model {model.name}/{model.version}", self._channels, InferenceStub
            )
            route.move(entry.addresses)
            # Entries come by name, then version: of each kind the newest version stays.
            families[model.family] = self._extended(families.get(model.family), entry, route)
        self._routes = routes
        self._families = families
        self._models = [entry.model for entry in table.models]

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

    def _extended(self, family: Family | None, entry: pb.ModelRoute, route: InferenceRoute) -> Family:
        model = entry.model
        ref = common_pb2.ModelRef(name=model.name, version=model.version, kind=_KINDS[model.kind], space=model.space)
        image = family.image if family is not None else None
        text = family.text if family is not None else None
        composer = family.composer if family is not None else None
        if model.kind == model_service_pb2.MODEL_KIND_IMAGE_ENCODER:
            image = RemoteImageEncoder(route, ref)
        elif model.kind == model_service_pb2.MODEL_KIND_TEXT_ENCODER:
            text = RemoteTextEncoder(route, ref)
        else:
            composer = RemoteComposer(route, ref, templates=_templates(entry.manifest))
        return Family(name=model.family, space=model.space, dim=model.dim, image=image, text=text, composer=composer)


def _templates(manifest: str) -> Mapping[str, str]:
    templates: Mapping[str, str] = json.loads(manifest)["condition_templates"]
    return templates
