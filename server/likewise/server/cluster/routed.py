"""`Galleries` of a router: stubs whose routes follow the controller's table."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.internal.v1 import shard_service_pb2_grpc, writer_service_pb2_grpc
from likewise.server.cluster.follower import Follower
from likewise.server.cluster.routed_snapshots import RoutedSnapshots
from likewise.server.errors import NotFound, Unavailable
from likewise.server.protocols import GalleryHandle
from likewise.server.remote.channels import Channels
from likewise.server.remote.shard_stub import ShardRoute, ShardStub, search_stream
from likewise.server.remote.writer_stub import WriterRoute, WriterStub
from likewise.server.replicas.replica_set import ReplicaSet
from likewise.server.validate import shown
from likewise.shards import spec as specs
from likewise.shards.spec import GallerySpec

_NAMES_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class _Routed:
    """A gallery's handle with what leads to its parts."""

    handle: GalleryHandle
    writer: WriterRoute
    shards: tuple[ReplicaSet, ...]

    @property
    def addresses(self) -> set[str]:
        return {address for shard in self.shards for address in shard.names}

    def move(self, route: pb.GalleryRoute) -> None:
        self.writer.move([route.writer] if route.writer else [])
        for shard in route.shards:
            self.shards[shard.shard].move(shard.addresses)


class RoutedGalleries:
    """`Galleries` of a cluster.

    Attributes:
        snapshots: Theirs.
    """

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self.snapshots = RoutedSnapshots(self)
        self._follower: Follower | None = None
        self._galleries: dict[str, _Routed] = {}
        self._replaced: list[tuple[weakref.ref[GalleryHandle], set[str]]] = []

    def follow(self, follower: Follower) -> None:
        """Use this follower's controller for changes."""
        self._follower = follower

    def take(self, table: pb.RoutingTable) -> None:
        """Follow a new table; handles of galleries that stay as they are stay valid, and so do their stubs."""
        galleries: dict[str, _Routed] = {}
        for route in table.galleries:
            spec = specs.from_message(route.gallery)
            known = self._galleries.get(spec.name)
            same = known is not None and known.handle.spec == spec
            routed = known if known is not None and same else self._routed(spec, read_only=route.gallery.read_only)
            if known is not None and known.shards is not routed.shards:
                self._replaced.append((weakref.ref(known.handle), known.addresses))
            routed.move(route)
            galleries[spec.name] = routed
        self._galleries = galleries

    def lingering(self) -> set[str]:
        """Addresses of shards that were replaced while calls still hold their handles."""
        self._replaced = [(handle, addresses) for handle, addresses in self._replaced if handle() is not None]
        return {address for _, addresses in self._replaced for address in addresses}

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
        follower = self.controller()
        request = pb.CreateGalleryRequest(spec=specs.to_message(spec, version=0).spec)
        response = await follower.controller.call(lambda stub: stub.CreateGallery, request, unavailable=Unavailable)
        return await self.shown(response.gallery.gallery_id, specs.from_message(response.gallery))

    async def update(self, spec: GallerySpec, *, min_recall: float | None = None) -> GalleryHandle:
        """See `Galleries.update`."""
        follower = self.controller()
        request = pb.UpdateGalleryRequest(spec=specs.to_message(spec, version=0).spec, min_recall=min_recall)
        response = await follower.controller.call(lambda stub: stub.UpdateGallery, request, unavailable=Unavailable)
        return await self.shown(response.gallery.gallery_id, specs.from_message(response.gallery))

    async def delete(self, name: str) -> None:
        """See `Galleries.delete`."""
        follower = self.controller()
        gone = self.get(name).spec.gallery_id
        request = pb.DeleteGalleryRequest(name=name)
        await follower.controller.call(lambda stub: stub.DeleteGallery, request, unavailable=Unavailable)
        await follower.wait_for(lambda table: all(g.gallery.gallery_id != gone for g in table.galleries))

    async def shown(self, gallery_id: str, spec: GallerySpec) -> GalleryHandle:
        """The handle, once this router's own table has the gallery as described."""
        await self.controller().wait_for(
            lambda table: any(
                g.gallery.gallery_id == gallery_id and specs.from_message(g.gallery) == spec for g in table.galleries
            )
        )
        return self.get(spec.name)

    def controller(self) -> Follower:
        """Who leads to the controller."""
        assert self._follower is not None, "follow() comes first. This is a bug."
        return self._follower

    def _routed(self, spec: GallerySpec, *, read_only: bool) -> _Routed:
        writer: WriterRoute = WriterRoute(
            f"the writer of gallery {spec.name!r}", self._channels, writer_service_pb2_grpc.WriterServiceStub
        )
        known = self._galleries.get(spec.name)
        if known is not None and _same_parts(known.handle.spec, spec):
            shards = known.shards  # what is known of the replicas stays known
        else:
            shards = tuple(self._replicas(spec, number) for number in range(spec.shards))
        stub = WriterStub(writer, gallery_id=spec.gallery_id)
        handle = GalleryHandle(spec, shards, stub, stub, read_only)
        return _Routed(handle, writer, shards)

    def _replicas(self, spec: GallerySpec, number: int) -> ReplicaSet:
        """One shard of a gallery, over whatever replicas the table will say it has."""
        what = f"shard {number} of gallery {spec.name!r}"

        def connect(address: str) -> ShardStub:
            # One address a route: a stub splits large calls, and the halves must not come from two replicas.
            route = ShardRoute(what, self._channels, shard_service_pb2_grpc.ShardServiceStub, addresses=[address])
            stream = search_stream(self._channels, address)
            return ShardStub(route, gallery_id=spec.gallery_id, shard=number, stream=stream)

        return ReplicaSet(what, connect)


def _same_parts(old: GallerySpec, new: GallerySpec) -> bool:
    return (old.gallery_id, specs.generation(old)) == (new.gallery_id, specs.generation(new))
