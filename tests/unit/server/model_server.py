"""A server whose models can be changed, over a small repository and galleries in memory, behind a real channel."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tests.unit.server.fakes import OPTIONS, FakeGalleries
from tests.unit.server.model_fixtures import png
from tests.unit.server.stubs import Stubs, connected

from likewise.server.app import Server
from likewise.server.batcher import BatchLimits
from likewise.server.images import ImageLimits
from likewise.server.models import OnnxModels, read_repositories
from likewise.server.session import Runtime
from likewise.v1 import common_pb2, gallery_service_pb2, item_service_pb2, model_service_pb2_grpc
from likewise.v1 import model_service_pb2 as pb
from likewise.v1 import search_service_pb2 as search_pb

if TYPE_CHECKING:
    from likewise.v1.model_service_pb2_grpc import ModelServiceAsyncStub

COLOURS = [(int(r), int(g), int(b)) for r, g, b in np.random.default_rng(3).integers(0, 256, (40, 3))]


@dataclass
class Documents:
    """A store's documents in memory.

    Attributes:
        failure: Raised by writes while set.
    """

    content: dict[str, Any] = field(default_factory=dict)
    failure: Exception | None = None

    async def read_document(self, name: str) -> Any:
        return self.content.get(name)

    async def write_document(self, name: str, value: Any) -> None:
        if self.failure is not None:
            raise self.failure
        self.content[name] = value


@dataclass(frozen=True)
class Shop:
    """The running server."""

    folder: Path
    models: OnnxModels
    galleries: FakeGalleries
    stubs: Stubs

    @property
    def service(self) -> "ModelServiceAsyncStub":
        return model_service_pb2_grpc.ModelServiceStub(self.stubs.channel)

    async def create(self, name: str = "colours", encoder: str = "tiny") -> None:
        """A gallery of 40 one-coloured pictures."""
        spec = gallery_service_pb2.GallerySpec(name=name, shards=2, spaces=[gallery_service_pb2.Space(encoder=encoder)])
        await self.stubs.galleries.Create(gallery_service_pb2.GalleryServiceCreateRequest(spec=spec))
        await self.upsert(name, range(len(COLOURS)))

    async def upsert(self, name: str, rows: Sequence[int]) -> None:
        items = item_service_pb2.Items(ids=[f"i{row:02d}" for row in rows])
        items.images.data.extend(png(COLOURS[row % len(COLOURS)]) for row in rows)
        await self.stubs.items.Upsert(item_service_pb2.UpsertRequest(gallery=name, items=items))

    async def search(self, text: str = "", *, gallery: str = "colours", **reference: Any) -> search_pb.SearchResponse:
        request = search_pb.SearchRequest(gallery=gallery, k=10)
        for kind, value in reference.items():
            setattr(request.reference, kind, value)
        if text:
            request.conditions.add(text=text)
        return await self.stubs.search.Search(request)

    async def load(self, version: int, *kinds: str, family: str = "tiny") -> None:
        for kind in kinds or ("image", "text", "composer"):
            await self.service.Load(pb.ModelServiceLoadRequest(name=f"{family}-{kind}", version=version))

    async def promote(
        self, version: int, *kinds: str, family: str = "tiny", **options: Any
    ) -> pb.ModelServicePromoteResponse:
        first, *rest = kinds or ("image", "text", "composer")
        also = [pb.ModelVersion(name=f"{family}-{kind}", version=version) for kind in rest]
        return await self.service.Promote(
            pb.ModelServicePromoteRequest(name=f"{family}-{first}", version=version, also=also, **options)
        )

    async def rollback(self, name: str = "tiny-text") -> pb.ModelServiceRollbackResponse:
        return await self.service.Rollback(pb.ModelServiceRollbackRequest(name=name))

    async def unload(self, name: str, version: int) -> None:
        await self.service.Unload(pb.ModelServiceUnloadRequest(name=name, version=version))

    async def in_use(self) -> dict[str, int]:
        listed = (await self.service.List(pb.ModelServiceListRequest())).models
        return {model.name: model.version for model in listed if model.in_use}


@asynccontextmanager
async def model_shop(folder: Path, *, documents: Documents | None = None) -> AsyncIterator[Shop]:
    """A server over the repository; its galleries are empty."""
    models = OnnxModels(
        read_repositories([folder], builtin=False),
        runtime=Runtime(threads=1),
        batch=BatchLimits(max_batch=8, max_items=256),
        images=ImageLimits(),
        workers=2,
        documents=documents,
    )
    await models.open()
    galleries = FakeGalleries()
    server = Server(OPTIONS, models=models, versions=models, galleries=galleries)
    try:
        async with connected(server) as stubs:
            yield Shop(folder, models, galleries, stubs)
    finally:
        await models.close()


def versions(response: search_pb.SearchResponse) -> dict[str, int]:
    """Version of each model that took part."""
    return {model.name: model.version for model in response.models}


def spaces(models: Sequence[common_pb2.ModelRef]) -> set[str]:
    """The spaces that models of an answer are of."""
    return {model.space for model in models}
