"""Reads that wait for a version depend on the writer no more than they have to."""

import asyncio

import grpc
import pytest
from grpc import aio
from tests.unit.server.fakes import FakeGalleries, fake_server, field_of
from tests.unit.server.stubs import by_vector, connected, shop, upsert, vectors

from likewise.shards import protocols
from likewise.v1 import common_pb2, gallery_service_pb2, item_service_pb2

QUERY = vectors(1)[0]


@pytest.mark.parametrize("trouble", ["away", "silent"])
async def test_who_wrote_through_a_router_reads_on_there_without_the_writer(trouble: str) -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        token = (await stubs.items.Upsert(upsert(["mine"], vectors(1)))).version
        _stop(galleries, trouble)

        found = await stubs.search.Search(by_vector(QUERY, at_least=token), timeout=20)
        count = await stubs.items.Count(item_service_pb2.ItemServiceCountRequest(gallery="shop", at_least=token))

    assert "mine" in found.hits.ids
    assert count.count == 21


@pytest.mark.parametrize("trouble", ["away", "silent"])
async def test_a_token_that_no_one_can_compare_is_believed(trouble: str) -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        token = (await stubs.items.Upsert(upsert(["mine"], vectors(1)))).version
    _stop(galleries, trouble)
    async with connected(fake_server(galleries)) as other_router:
        found = await other_router.search.Search(by_vector(QUERY, at_least=token), timeout=4)

    assert "mine" in found.hits.ids


async def test_a_token_of_the_future_is_the_callers_mistake() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        token = common_pb2.VersionToken(gallery_id=galleries.get("shop").spec.gallery_id, version=99)
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.items.Count(item_service_pb2.ItemServiceCountRequest(gallery="shop", at_least=token))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field_of(caught.value) == "at_least.version"


@pytest.mark.parametrize("trouble", ["away", "silent"])
async def test_galleries_are_described_without_their_writer(trouble: str) -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        version = (await stubs.items.Upsert(upsert(["mine"], vectors(1)))).version.version
        _stop(galleries, trouble)
        (listed,) = (await stubs.galleries.List(gallery_service_pb2.GalleryServiceListRequest(), timeout=4)).galleries
        for shard in galleries.shards("shop"):
            shard.failure = protocols.Unavailable("it restarts too")
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.galleries.Get(gallery_service_pb2.GalleryServiceGetRequest(name="shop"), timeout=4)

    assert (listed.spec.name, listed.version) == ("shop", version)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_defect_of_the_writer_is_not_taken_for_its_absence() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        token = common_pb2.VersionToken(gallery_id=galleries.get("shop").spec.gallery_id, version=99)
        galleries.writer("shop").failure = RuntimeError("a defect")
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(by_vector(QUERY, at_least=token))

    assert caught.value.code() is grpc.StatusCode.INTERNAL


def _stop(galleries: FakeGalleries, trouble: str) -> None:
    writer = galleries.writer("shop")
    if trouble == "away":
        writer.failure = protocols.Unavailable("it restarts")
    else:
        writer.gate = asyncio.Event()
