"""likewise.v1.GalleryService: make, describe, change and delete galleries."""

from typing import Any

from likewise.server import access_log, read, validate
from likewise.server.gallery_message import described
from likewise.server.protocols import Galleries, GalleryHandle, Models
from likewise.server.snapshot_service import SnapshotCalls
from likewise.server.validate_galleries import changed_gallery, min_recall_of, new_gallery, page_size
from likewise.v1 import gallery_service_pb2 as pb
from likewise.v1 import gallery_service_pb2_grpc


class GalleryService(SnapshotCalls, gallery_service_pb2_grpc.GalleryServiceServicer):
    """Galleries of the store.

    Args:
        galleries: Where they are.
        models: Families that galleries may name as their encoder.
    """

    def __init__(self, *, galleries: Galleries, models: Models) -> None:
        self._galleries = galleries
        self._models = models

    async def Create(self, request: pb.GalleryServiceCreateRequest, context: Any) -> pb.GalleryServiceCreateResponse:
        """See gallery_service.proto."""
        validate.required(request.spec.name, "spec.name")
        access_log.current().gallery = request.spec.name
        handle = await self._galleries.create(new_gallery(request.spec, self._models))
        return pb.GalleryServiceCreateResponse(gallery=await described(handle))

    async def Get(self, request: pb.GalleryServiceGetRequest, context: Any) -> pb.GalleryServiceGetResponse:
        """See gallery_service.proto."""
        return pb.GalleryServiceGetResponse(gallery=await described(self._handle(request.name)))

    async def List(self, request: pb.GalleryServiceListRequest, context: Any) -> pb.GalleryServiceListResponse:
        """See gallery_service.proto."""
        limit = page_size(request)
        after = validate.page_start(request.page_token, ("galleries",))
        handles = [handle for handle in self._galleries.handles() if handle.spec.name > after]
        chosen = handles[:limit]
        more = len(handles) > limit
        return pb.GalleryServiceListResponse(
            galleries=await read.from_all(chosen, described),
            next_page_token=validate.page_token(chosen[-1].spec.name, ("galleries",)) if more else "",
        )

    async def Update(self, request: pb.GalleryServiceUpdateRequest, context: Any) -> pb.GalleryServiceUpdateResponse:
        """See gallery_service.proto."""
        handle = self._handle(request.spec.name, "spec.name")
        spec = changed_gallery(handle.spec, request.spec, request.update_mask.paths)
        min_recall = min_recall_of(request)
        handle = await self._galleries.update(spec, min_recall=min_recall)
        return pb.GalleryServiceUpdateResponse(gallery=await described(handle))

    async def Delete(self, request: pb.GalleryServiceDeleteRequest, context: Any) -> pb.GalleryServiceDeleteResponse:
        """See gallery_service.proto."""
        handle = self._handle(request.name)
        await self._galleries.delete(handle.spec.name)
        return pb.GalleryServiceDeleteResponse()

    async def Stats(self, request: pb.GalleryServiceStatsRequest, context: Any) -> pb.GalleryServiceStatsResponse:
        """See gallery_service.proto."""
        return await stats_of(self._handle(request.name))

    def _handle(self, name: str, field: str = "name") -> GalleryHandle:
        handle = self._galleries.get(validate.required(name, field))
        access_log.current().gallery = handle.spec.name
        return handle


async def stats_of(handle: GalleryHandle) -> pb.GalleryServiceStatsResponse:
    """Counts and states of all shards of a gallery, asked at once."""
    gallery = await described(handle)
    shards = await read.from_all(handle.shards, lambda shard: shard.stats())
    for replica in (replica for shard in shards for replica in shard.replicas):
        replica.lag = max(0, gallery.version - replica.version)
    return pb.GalleryServiceStatsResponse(
        gallery=gallery, items=sum(shard.live for shard in shards), shards=shards, version=gallery.version
    )
