"""GalleryService through a real channel, over fake galleries."""

import grpc
import pytest
from google.protobuf import field_mask_pb2
from grpc import aio
from tests.unit.server.fakes import DIM, SPACE, FakeGalleries, fake_server, field_of, info
from tests.unit.server.stubs import connected, shop

from likewise.v1 import common_pb2
from likewise.v1 import gallery_service_pb2 as pb

VECTORS = [pb.Space(dim=16)]
COLOUR = pb.Attribute(name="colour", type=common_pb2.ATTRIBUTE_TYPE_STRING)
PRICE = pb.Attribute(name="price", type=common_pb2.ATTRIBUTE_TYPE_DOUBLE)
SIZE = pb.Attribute(name="size", type=common_pb2.ATTRIBUTE_TYPE_STRING)


def _create(**fields: object) -> pb.GalleryServiceCreateRequest:
    return pb.GalleryServiceCreateRequest(spec=pb.GallerySpec(**{"name": "new", "spaces": VECTORS, **fields}))  # type: ignore[arg-type]


def _update(paths: list[str], **fields: object) -> pb.GalleryServiceUpdateRequest:
    return pb.GalleryServiceUpdateRequest(
        spec=pb.GallerySpec(**{"name": "shop", **fields}),  # type: ignore[arg-type]
        update_mask=field_mask_pb2.FieldMask(paths=paths),
    )


async def test_a_gallery_of_vectors_gets_its_space_from_the_dimension() -> None:
    async with connected(fake_server(FakeGalleries())) as stubs:
        gallery = (await stubs.galleries.Create(_create())).gallery

    (space,) = gallery.spec.spaces
    assert (space.name, space.dim, space.digest, space.encoder) == ("default", 16, "vectors:16", "")
    assert (gallery.spec.shards, gallery.spec.replicas, gallery.spec.index.kind) == (1, 1, "auto")
    assert len(gallery.gallery_id) == 32
    assert gallery.create_time.seconds > 0


async def test_a_gallery_of_images_gets_its_space_from_the_models() -> None:
    async with connected(fake_server(FakeGalleries())) as stubs:
        gallery = (await stubs.galleries.Create(_create(spaces=[pb.Space(encoder="fake")]))).gallery

    (space,) = gallery.spec.spaces
    assert (space.dim, space.digest, space.encoder) == (DIM, SPACE, "fake")


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        pytest.param({"name": ""}, "INVALID_ARGUMENT", "spec.name", id="no name"),
        pytest.param({"name": "Shop"}, "INVALID_ARGUMENT", "spec.name", id="bad name"),
        pytest.param({"name": "shop"}, "ALREADY_EXISTS", None, id="taken name"),
        pytest.param({"spaces": []}, "INVALID_ARGUMENT", "spec.spaces", id="no space"),
        pytest.param({"spaces": [pb.Space()]}, "INVALID_ARGUMENT", "spec.spaces[0].dim", id="no dimension"),
        pytest.param({"spaces": [pb.Space(encoder="other")]}, "NOT_FOUND", None, id="unknown models"),
        pytest.param(
            {"spaces": [pb.Space(encoder="fake", dim=3)]}, "INVALID_ARGUMENT", "spec.spaces[0].dim", id="dimension"
        ),
        pytest.param(
            {"spaces": [pb.Space(dim=3, digest="x")]}, "FAILED_PRECONDITION", "spec.spaces[0].digest", id="digest"
        ),
        pytest.param({"spaces": VECTORS * 2}, "UNIMPLEMENTED", "spec.spaces[1]", id="two spaces"),
        pytest.param({"replicas": 0}, "INVALID_ARGUMENT", "spec.replicas", id="no replicas"),
        pytest.param({"replicas": 17}, "INVALID_ARGUMENT", "spec.replicas", id="too many replicas"),
        pytest.param({"shards": 0}, "INVALID_ARGUMENT", "spec.shards", id="no shards"),
        pytest.param({"shards": 1025}, "INVALID_ARGUMENT", "spec.shards", id="too many shards"),
        pytest.param({"attributes": [COLOUR, COLOUR]}, "INVALID_ARGUMENT", "spec.attributes", id="attribute twice"),
        pytest.param(
            {"attributes": [pb.Attribute(name="stamp", type=common_pb2.ATTRIBUTE_TYPE_INT64)]},
            "INVALID_ARGUMENT",
            "spec.attributes[0].name",
            id="reserved attribute",
        ),
        pytest.param({"index": pb.IndexSpec(kind="magic")}, "INVALID_ARGUMENT", "spec.index.kind", id="unknown index"),
        pytest.param(
            {"index": pb.IndexSpec(kind="flat", m=16)}, "INVALID_ARGUMENT", "spec.index.m", id="m of a flat index"
        ),
        pytest.param(
            {"index": pb.IndexSpec(kind="hnsw", nlist=16)}, "INVALID_ARGUMENT", "spec.index.nlist", id="nlist of HNSW"
        ),
        pytest.param({"index": pb.IndexSpec(kind="hnsw", m=3)}, "INVALID_ARGUMENT", "spec.index.m", id="m too small"),
        pytest.param(
            {"index": pb.IndexSpec(target_recall=1.5)},
            "INVALID_ARGUMENT",
            "spec.index.target_recall",
            id="recall over 1",
        ),
        pytest.param(
            {"index": pb.IndexSpec(target_recall=0.9, ef=64)},
            "INVALID_ARGUMENT",
            "spec.index.target_recall",
            id="recall and ef",
        ),
    ],
)
async def test_a_wrong_description_is_refused_with_its_field(
    fields: dict[str, object], code: str, field: str | None
) -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.galleries.Create(_create(**fields))

    assert caught.value.code().name == code
    assert list(galleries.all) == ["shop"]
    if field is not None:
        assert field_of(caught.value) == field


async def test_galleries_are_listed_by_name_page_by_page() -> None:
    async with connected(fake_server(FakeGalleries())) as stubs:
        for name in ("c", "a", "b"):
            await stubs.galleries.Create(_create(name=name))
        first = await stubs.galleries.List(pb.GalleryServiceListRequest(page_size=2))
        second = await stubs.galleries.List(pb.GalleryServiceListRequest(page_size=2, page_token=first.next_page_token))

    assert [gallery.spec.name for gallery in first.galleries] == ["a", "b"]
    assert [gallery.spec.name for gallery in second.galleries] == ["c"]
    assert second.next_page_token == ""


async def test_statistics_add_up_the_shards() -> None:
    async with shop(shards=3) as stubs:
        stats = await stubs.galleries.Stats(pb.GalleryServiceStatsRequest(name="shop"))

    assert stats.items == 20
    assert [shard.shard for shard in stats.shards] == [0, 1, 2]
    assert stats.version == 2


async def test_an_update_changes_only_what_its_mask_names() -> None:
    async with shop(shards=2) as stubs:
        response = await stubs.galleries.Update(_update(["shards"], shards=3, index=pb.IndexSpec(kind="flat")))
        stats = await stubs.galleries.Stats(pb.GalleryServiceStatsRequest(name="shop"))

    assert (response.gallery.spec.shards, response.gallery.spec.index.kind) == (3, "auto")
    assert (stats.items, len(stats.shards)) == (20, 3)


async def test_an_update_adds_attributes_behind_the_old_ones() -> None:
    async with shop() as stubs:
        response = await stubs.galleries.Update(_update(["attributes"], attributes=[SIZE, PRICE, COLOUR]))

    assert [attribute.name for attribute in response.gallery.spec.attributes] == ["colour", "price", "size"]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        pytest.param(_update([]), "INVALID_ARGUMENT", id="empty mask"),
        pytest.param(_update(["colour"]), "INVALID_ARGUMENT", id="unknown path"),
        pytest.param(_update(["spaces"]), "FAILED_PRECONDITION", id="spaces"),
        pytest.param(_update(["shards"]), "INVALID_ARGUMENT", id="shards not given"),
        pytest.param(_update(["replicas"]), "INVALID_ARGUMENT", id="replicas not given"),
        pytest.param(_update(["replicas"], replicas=17), "INVALID_ARGUMENT", id="too many replicas"),
        pytest.param(_update(["attributes"], attributes=[COLOUR]), "FAILED_PRECONDITION", id="attribute removed"),
        pytest.param(
            _update(
                ["attributes"],
                attributes=[pb.Attribute(name="colour", type=common_pb2.ATTRIBUTE_TYPE_INT64), PRICE],
            ),
            "FAILED_PRECONDITION",
            id="attribute of another type",
        ),
        pytest.param(_update(["shards"], name="none", shards=2), "NOT_FOUND", id="unknown gallery"),
    ],
)
async def test_a_change_that_cannot_be_is_refused(request_: pb.GalleryServiceUpdateRequest, code: str) -> None:
    async with shop() as stubs:
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.galleries.Update(request_)

    assert caught.value.code().name == code


async def test_a_deleted_gallery_is_gone() -> None:
    async with shop() as stubs:
        await stubs.galleries.Delete(pb.GalleryServiceDeleteRequest(name="shop"))
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.galleries.Get(pb.GalleryServiceGetRequest(name="shop"))

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert info(caught.value).reason == "GALLERY_NOT_FOUND"
