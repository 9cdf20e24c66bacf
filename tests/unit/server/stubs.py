"""A channel to a server and the stubs of its services."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from grpc import aio
from grpc_health.v1 import health_pb2_grpc
from tests.unit.server.fakes import DIM, FakeGalleries, fake_server

from likewise import wire
from likewise.server.app import Server, serving
from likewise.v1 import (
    common_pb2,
    gallery_service_pb2,
    gallery_service_pb2_grpc,
    item_service_pb2,
    item_service_pb2_grpc,
    search_service_pb2_grpc,
)
from likewise.v1 import search_service_pb2 as pb

if TYPE_CHECKING:
    # Names that only the type stubs have.
    from likewise.v1.gallery_service_pb2_grpc import GalleryServiceAsyncStub
    from likewise.v1.item_service_pb2_grpc import ItemServiceAsyncStub
    from likewise.v1.search_service_pb2_grpc import SearchServiceAsyncStub


@dataclass(frozen=True)
class Stubs:
    """Every service of one server, and the channel below them."""

    channel: aio.Channel
    address: str

    @property
    def search(self) -> "SearchServiceAsyncStub":
        return search_service_pb2_grpc.SearchServiceStub(self.channel)

    @property
    def items(self) -> "ItemServiceAsyncStub":
        return item_service_pb2_grpc.ItemServiceStub(self.channel)

    @property
    def galleries(self) -> "GalleryServiceAsyncStub":
        return gallery_service_pb2_grpc.GalleryServiceStub(self.channel)

    @property
    def health(self) -> Any:
        return health_pb2_grpc.HealthStub(self.channel)


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Stubs]:
    """A started server, reached through a real channel with all interceptors."""
    async with serving(server) as address, aio.insecure_channel(address) as channel:
        yield Stubs(channel, address)


@asynccontextmanager
async def shop(galleries: FakeGalleries | None = None, *, shards: int = 2, **options: object) -> AsyncIterator[Stubs]:
    """A server with one gallery, "shop": 20 items with colour, price and tags, vectors of `vectors(20)`."""
    galleries = galleries if galleries is not None else FakeGalleries()
    async with connected(fake_server(galleries, **options)) as stubs:
        await stubs.galleries.Create(
            gallery_service_pb2.GalleryServiceCreateRequest(
                spec=gallery_service_pb2.GallerySpec(
                    name="shop",
                    shards=shards,
                    spaces=[gallery_service_pb2.Space(encoder="fake")],
                    attributes=[
                        gallery_service_pb2.Attribute(name="colour", type=common_pb2.ATTRIBUTE_TYPE_STRING),
                        gallery_service_pb2.Attribute(name="price", type=common_pb2.ATTRIBUTE_TYPE_DOUBLE),
                    ],
                )
            )
        )
        await stubs.items.Upsert(upsert(ids(20), vectors(20), colours=["red", "blue"] * 10))
        yield stubs


def ids(n: int) -> list[str]:
    """item-00, item-01, ..."""
    return [f"item-{i:02}" for i in range(n)]


def vectors(n: int, *, seed: int = 0) -> wire.F32:
    """(n, DIM) random rows of various lengths."""
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)


def upsert(
    item_ids: list[str], matrix: wire.F32, *, colours: list[str] | None = None, gallery: str = "shop"
) -> item_service_pb2.UpsertRequest:
    """An upsert of vectors."""
    items = item_service_pb2.Items(ids=item_ids, vectors=wire.encode_vectors(matrix))
    if colours is not None:
        items.attributes.append(wire.encode_column("colour", common_pb2.ATTRIBUTE_TYPE_STRING, colours))
    return item_service_pb2.UpsertRequest(gallery=gallery, items=items)


def by_vector(row: wire.F32, **fields: object) -> pb.SearchRequest:
    """A search of "shop" by a vector."""
    return pb.SearchRequest(gallery="shop", reference=pb.Reference(vector=wire.encode_vector(row)), **fields)  # type: ignore[arg-type]


def scores(response: pb.SearchResponse) -> list[float]:
    """The scores of an answer."""
    return [float(score) for score in wire.unpack(response.hits.scores, "<f4")]


def equals(attribute: str, value: str) -> common_pb2.Filter:
    """attribute = value."""
    return common_pb2.Filter(
        comparison=common_pb2.Comparison(
            attribute=attribute,
            operator=common_pb2.COMPARISON_OPERATOR_EQUAL,
            value=common_pb2.Value(string_value=value),
        )
    )
