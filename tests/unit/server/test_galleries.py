"""Galleries of a real store in this process: kept, locked, changed and deleted."""

import json
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import field_mask_pb2
from grpc import aio
from tests.unit.server.fakes import FakeModels, info
from tests.unit.server.stubs import Stubs, by_vector, connected, equals, ids, upsert, vectors

from likewise import wire
from likewise.server.app import Server, ServerOptions
from likewise.server.galleries import EmbeddedGalleries, StoreOptions
from likewise.shards.lock import StoreLocked
from likewise.v1 import common_pb2, item_service_pb2, search_service_pb2
from likewise.v1 import gallery_service_pb2 as pb

MATRIX = vectors(50)
IDS = ids(50)


def _server(store: Path) -> Server:
    galleries = EmbeddedGalleries(StoreOptions(uri=str(store)))
    return Server(
        ServerOptions(port=0, drain_grace_s=5),
        models=FakeModels(),
        galleries=galleries,
        parts=(galleries,),
        announce=galleries.serving_at,
    )


async def _fill(stubs: Stubs, *, shards: int = 2) -> common_pb2.VersionToken:
    colour = pb.Attribute(name="colour", type=common_pb2.ATTRIBUTE_TYPE_STRING)
    spec = pb.GallerySpec(name="shop", shards=shards, spaces=[pb.Space(encoder="fake")], attributes=[colour])
    await stubs.galleries.Create(pb.GalleryServiceCreateRequest(spec=spec))
    return (await stubs.items.Upsert(upsert(IDS, MATRIX, colours=["red", "blue"] * 25))).version


def _update(paths: list[str], **fields: object) -> pb.GalleryServiceUpdateRequest:
    return pb.GalleryServiceUpdateRequest(
        spec=pb.GallerySpec(name="shop", **fields),  # type: ignore[arg-type]
        update_mask=field_mask_pb2.FieldMask(paths=paths),
    )


async def _answer(stubs: Stubs, token: common_pb2.VersionToken) -> list[str]:
    request = by_vector(MATRIX[0], k=50, at_least=token)
    return list((await stubs.search.Search(request)).hits.ids)


async def test_a_write_is_seen_by_who_sends_its_version_back(tmp_path: Path) -> None:
    async with connected(_server(tmp_path)) as stubs:
        token = await _fill(stubs)
        answer = await _answer(stubs, token)

    unit = MATRIX / np.linalg.norm(MATRIX, axis=1, keepdims=True)
    assert answer == [IDS[i] for i in np.argsort(-(unit @ unit[0]), kind="stable")]


async def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    async with connected(_server(tmp_path)) as stubs:
        before = await _answer(stubs, await _fill(stubs))
        gallery = (await stubs.galleries.Get(pb.GalleryServiceGetRequest(name="shop"))).gallery

    async with connected(_server(tmp_path)) as stubs:
        again = (await stubs.galleries.Get(pb.GalleryServiceGetRequest(name="shop"))).gallery
        after = list((await stubs.search.Search(by_vector(MATRIX[0], k=50))).hits.ids)

    assert again.version > gallery.version, "the new process took the gallery over"
    again.version = gallery.version
    assert again == gallery
    assert after == before


async def test_a_second_server_on_the_store_is_refused_with_the_holder(tmp_path: Path) -> None:
    async with connected(_server(tmp_path)) as stubs:
        with pytest.raises(StoreLocked, match=stubs.address):
            await _server(tmp_path).start()
        await _fill(stubs)  # the first one is none the worse

    async with connected(_server(tmp_path)) as stubs:
        assert len((await stubs.galleries.List(pb.GalleryServiceListRequest())).galleries) == 1


async def test_another_number_of_shards_changes_no_answer(tmp_path: Path) -> None:
    async with connected(_server(tmp_path)) as stubs:
        token = await _fill(stubs, shards=1)
        before = await _answer(stubs, token)
        await stubs.galleries.Update(_update(["shards"], shards=3))
        after = await _answer(stubs, token)
        more = await stubs.items.Upsert(upsert(["new"], MATRIX[:1], colours=["green"]))
        found = await _answer(stubs, more.version)
        stats = await stubs.galleries.Stats(pb.GalleryServiceStatsRequest(name="shop"))

    assert after == before
    assert set(found) > {"new"}
    assert [shard.live for shard in stats.shards] != [0, 0, 0]
    assert sum(shard.live for shard in stats.shards) == stats.items == 51


async def test_an_added_attribute_is_null_for_old_items_and_can_be_filtered(tmp_path: Path) -> None:
    colour = pb.Attribute(name="colour", type=common_pb2.ATTRIBUTE_TYPE_STRING)
    size = pb.Attribute(name="size", type=common_pb2.ATTRIBUTE_TYPE_STRING)
    async with connected(_server(tmp_path)) as stubs:
        await _fill(stubs)
        await stubs.galleries.Update(_update(["attributes"], attributes=[colour, size]))
        request = upsert(["new"], MATRIX[:1])
        request.items.attributes.append(wire.encode_column("size", size.type, ["xl"]))
        token = (await stubs.items.Upsert(request)).version
        found = await stubs.search.Search(by_vector(MATRIX[0], filter=equals("size", "xl"), at_least=token))
        old = await stubs.items.Get(
            item_service_pb2.ItemServiceGetRequest(gallery="shop", ids=IDS[:1], attributes=["size"])
        )
        deleted = await stubs.items.Delete(
            item_service_pb2.ItemServiceDeleteRequest(gallery="shop", filter=equals("size", "xl"))
        )

    assert list(found.hits.ids) == ["new"]
    assert wire.decode_column(old.items.attributes[0]) == [None]
    assert deleted.deleted == 1


async def test_a_deleted_gallery_leaves_nothing_and_its_name_is_free(tmp_path: Path) -> None:
    async with connected(_server(tmp_path)) as stubs:
        token = await _fill(stubs)
        await stubs.galleries.Delete(pb.GalleryServiceDeleteRequest(name="shop"))
        assert not (tmp_path / "shop.lance").exists()
        await _fill(stubs)
        with pytest.raises(aio.AioRpcError) as caught:
            await _answer(stubs, token)

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert info(caught.value).reason == "VERSION_TOKEN_FOREIGN"


async def test_a_taken_name_is_refused(tmp_path: Path) -> None:
    async with connected(_server(tmp_path)) as stubs:
        await _fill(stubs)
        with pytest.raises(aio.AioRpcError) as caught:
            await _fill(stubs)

    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_a_retried_write_is_not_applied_twice(tmp_path: Path) -> None:
    async with connected(_server(tmp_path)) as stubs:
        await _fill(stubs)
        request = upsert(["new"], MATRIX[:1])
        request.request_id = "once"
        first = await stubs.items.Upsert(request)
        second = await stubs.items.Upsert(request)

    assert first.version == second.version


async def test_a_bad_row_stores_nothing_of_its_call(tmp_path: Path) -> None:
    bad = MATRIX[:3].copy()
    bad[2, 0] = np.nan
    async with connected(_server(tmp_path)) as stubs:
        stored = await _fill(stubs)
        with pytest.raises(aio.AioRpcError):
            await stubs.items.Upsert(upsert(["x", "y", "z"], bad))
        request = item_service_pb2.ItemServiceCountRequest(gallery="shop", at_least=stored)
        count = await stubs.items.Count(request)

    assert count.count == 50


async def test_a_store_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "likewise.json").write_text(json.dumps({"format": 99}))

    with pytest.raises(Exception, match="format 99"):
        await _server(tmp_path).start()


async def test_a_stored_image_and_its_copies_are_left_out_of_its_own_answer(tmp_path: Path) -> None:
    async with connected(_server(tmp_path)) as stubs:
        await _fill(stubs)
        images = item_service_pb2.Images(data=[b"one", b"one", b"two"])
        items = item_service_pb2.Items(ids=["a", "b", "c"], images=images)
        token = (await stubs.items.Upsert(item_service_pb2.UpsertRequest(gallery="shop", items=items))).version
        request = search_service_pb2.SearchRequest(
            gallery="shop", k=100, reference=search_service_pb2.Reference(image=b"one"), at_least=token
        )
        response = await stubs.search.Search(request)

    assert set(response.hits.ids) == {*IDS, "c"}
    assert "2 items" in response.warnings[0].message


async def test_copies_of_a_shard_are_refused_by_one_process_and_the_cluster_is_named(tmp_path: Path) -> None:
    async with connected(_server(tmp_path)) as stubs:
        await _fill(stubs)
        spec = pb.GallerySpec(name="copied", replicas=2, spaces=[pb.Space(dim=3)])
        update = pb.GalleryServiceUpdateRequest(
            spec=pb.GallerySpec(name="shop", replicas=2), update_mask=field_mask_pb2.FieldMask(paths=["replicas"])
        )
        with pytest.raises(aio.AioRpcError) as created:
            await stubs.galleries.Create(pb.GalleryServiceCreateRequest(spec=spec))
        with pytest.raises(aio.AioRpcError) as updated:
            await stubs.galleries.Update(update)
        left = await stubs.galleries.List(pb.GalleryServiceListRequest())

    assert created.value.code() is updated.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "spec.replicas is 2" in (created.value.details() or "")
    assert "likewise serve --ray" in (created.value.details() or "")
    assert [(gallery.spec.name, gallery.spec.replicas) for gallery in left.galleries] == [("shop", 1)]
