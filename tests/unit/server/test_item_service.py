"""ItemService through a real channel, over fake shards and models."""

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import aio
from tests.unit.server.fakes import FakeGalleries, embedding, field_of, info
from tests.unit.server.stubs import equals, ids, shop, upsert, vectors
from tests.unit.server.waiting import until

from likewise import wire
from likewise.server import content
from likewise.server.protocols import Encoded
from likewise.v1 import common_pb2
from likewise.v1 import item_service_pb2 as pb

MATRIX = vectors(20)


def _stored(galleries: FakeGalleries) -> dict[str, dict[str, Any]]:
    return {item_id: row for shard in galleries.shards("shop") for item_id, row in shard.rows.items()}


def _column(
    name: str, values: list[object], kind: int = common_pb2.ATTRIBUTE_TYPE_STRING
) -> common_pb2.AttributeColumn:
    return wire.encode_column(name, common_pb2.AttributeType.ValueType(kind), values)  # type: ignore[arg-type]


async def test_an_upsert_stores_unit_vectors_norms_and_digests() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        response = await stubs.items.Upsert(upsert(["a", "b"], MATRIX[:2] * 5))

        rows = _stored(galleries)
    assert response.upserted == 2
    assert response.version.version == 3
    np.testing.assert_allclose(np.linalg.norm(rows["a"]["vector"]), 1, atol=1e-6)
    assert rows["a"]["norm"] == pytest.approx(np.linalg.norm(MATRIX[0] * 5), rel=1e-6)
    assert rows["a"]["content"] == content.of_vectors(MATRIX[:1] * 5)[0]


async def test_the_last_of_two_rows_with_one_id_wins() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        response = await stubs.items.Upsert(upsert(["a", "a"], MATRIX[:2]))

        assert response.upserted == 1
        assert _stored(galleries)["a"]["norm"] == pytest.approx(np.linalg.norm(MATRIX[1]), rel=1e-6)


async def test_images_and_texts_are_encoded() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        await stubs.items.Upsert(_request(images=pb.Images(data=[b"one", b"two"])))
        await stubs.items.Upsert(_request("c", "d", texts=pb.Texts(values=["a cat", "a dog"])))

        rows = _stored(galleries)
    np.testing.assert_allclose(rows["b"]["vector"], embedding(b"two") / 3, atol=1e-6)
    np.testing.assert_allclose(rows["d"]["vector"], embedding(b"a dog") / 3, atol=1e-6)
    assert rows["a"]["norm"] == pytest.approx(3, rel=1e-5)
    assert rows["a"]["content"] == content.of_bytes(b"one")
    assert rows["c"]["content"] == content.of_bytes(b"a cat")


NAN_ROW = MATRIX[:2].copy()
NAN_ROW[1, 3] = np.nan


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        pytest.param(upsert([], MATRIX[:0]), "INVALID_ARGUMENT", "items.ids", id="no rows"),
        pytest.param(upsert(["a", ""], MATRIX[:2]), "INVALID_ARGUMENT", "items.ids[1]", id="empty id"),
        pytest.param(upsert(["a", "x" * 513], MATRIX[:2]), "INVALID_ARGUMENT", "items.ids[1]", id="long id"),
        pytest.param(upsert(["a"], MATRIX[:2]), "INVALID_ARGUMENT", "items.vectors", id="lengths"),
        pytest.param(upsert(["a", "b"], NAN_ROW), "INVALID_ARGUMENT", "items.vectors[1]", id="NaN"),
        pytest.param(
            upsert(["a", "b"], MATRIX[:2] * np.array([[1], [0]], dtype=np.float32)),
            "INVALID_ARGUMENT",
            "items.vectors[1]",
            id="zeros",
        ),
        pytest.param(upsert(["a"], MATRIX[:1, :5]), "INVALID_ARGUMENT", "items.vectors.dim", id="dimension"),
        pytest.param(upsert(["a"], MATRIX[:1], gallery="none"), "NOT_FOUND", None, id="unknown gallery"),
        pytest.param(upsert(["a"], MATRIX[:1], gallery=""), "INVALID_ARGUMENT", "gallery", id="no gallery"),
    ],
)
async def test_a_bad_upsert_is_refused_whole_and_stores_nothing(
    request_: pb.UpsertRequest, code: str, field: str | None
) -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        before = len(galleries.writer("shop").log)
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.items.Upsert(request_)

        assert len(galleries.writer("shop").log) == before
    assert caught.value.code().name == code
    if field is not None:
        assert field_of(caught.value) == field


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        pytest.param({}, "INVALID_ARGUMENT", "items", id="no content"),
        pytest.param(
            {"images": pb.Images(data=[b"one", b"bad"])}, "INVALID_ARGUMENT", "items.images.data[1]", id="bad image"
        ),
        pytest.param(
            {"texts": pb.Texts(values=["one", " "])}, "INVALID_ARGUMENT", "items.texts.values[1]", id="blank text"
        ),
        pytest.param({"multi_vectors": pb.MultiVectors()}, "UNIMPLEMENTED", "items.multi_vectors", id="multi-vectors"),
        pytest.param(
            {"texts": pb.Texts(values=["x", "y"]), "thumbnails": [b"", b""]},
            "UNIMPLEMENTED",
            "items.thumbnails",
            id="thumbnails",
        ),
        pytest.param(
            {"texts": pb.Texts(values=["x", "y"]), "attributes": [_column("size", ["s", "m"])]},
            "INVALID_ARGUMENT",
            "items.attributes[0].name",
            id="unknown attribute",
        ),
        pytest.param(
            {"texts": pb.Texts(values=["x", "y"]), "attributes": [_column("price", ["s", "m"])]},
            "INVALID_ARGUMENT",
            "items.attributes[0].type",
            id="attribute of another type",
        ),
        pytest.param(
            {"texts": pb.Texts(values=["x", "y"]), "attributes": [_column("colour", ["red"])]},
            "INVALID_ARGUMENT",
            "items.attributes[0].strings",
            id="short column",
        ),
    ],
)
async def test_bad_content_or_columns_are_refused_with_the_row(
    fields: dict[str, object], code: str, field: str
) -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        before = len(galleries.writer("shop").log)
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.items.Upsert(_request(**fields))

        assert len(galleries.writer("shop").log) == before
    assert caught.value.code().name == code
    assert field_of(caught.value) == field


async def test_a_bad_image_is_named_by_row_and_id() -> None:
    async with shop() as stubs:
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.items.Upsert(_request(images=pb.Images(data=[b"one", b"bad"])))

    assert "row 1 (id 'b')" in (caught.value.details() or "")
    assert info(caught.value).reason == "IMAGE_UNDECODABLE"


async def test_items_come_back_as_they_were_given_in_the_order_asked_for() -> None:
    async with shop(shards=3) as stubs:
        response = await stubs.items.Get(
            pb.ItemServiceGetRequest(
                gallery="shop", ids=["item-07", "nobody", "item-02"], attributes=["colour"], vectors=True
            )
        )

    assert list(response.items.ids) == ["item-07", "item-02"]
    assert list(response.missing) == ["nobody"]
    assert wire.decode_column(response.items.attributes[0]) == ["blue", "red"]
    np.testing.assert_allclose(wire.decode_vectors(response.items.vectors), MATRIX[[7, 2]], rtol=1e-5)
    assert response.version == 2


async def test_getting_nothing_that_is_there_is_no_error() -> None:
    async with shop() as stubs:
        response = await stubs.items.Get(
            pb.ItemServiceGetRequest(gallery="shop", ids=["nobody"], attributes=["*"], vectors=True)
        )

    assert len(response.items.ids) == 0
    assert list(response.missing) == ["nobody"]


@pytest.mark.parametrize("shards", [1, 3])
async def test_pages_list_every_item_once_in_id_order(shards: int) -> None:
    async with shop(shards=shards) as stubs:
        seen: list[str] = []
        request = pb.ItemServiceListRequest(gallery="shop", page_size=7, attributes=["colour"])
        while True:
            page = await stubs.items.List(request)
            assert len(wire.decode_column(page.items.attributes[0])) == len(page.items.ids) <= 7
            seen += page.items.ids
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token

    assert seen == ids(20)


async def test_a_page_token_is_refused_with_another_filter() -> None:
    async with shop() as stubs:
        page = await stubs.items.List(pb.ItemServiceListRequest(gallery="shop", page_size=7))
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.items.List(
                pb.ItemServiceListRequest(
                    gallery="shop", page_token=page.next_page_token, filter=equals("colour", "red")
                )
            )

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field_of(caught.value) == "page_token"


async def test_a_count_counts_what_the_filter_matches() -> None:
    async with shop(shards=3) as stubs:
        every = await stubs.items.Count(pb.ItemServiceCountRequest(gallery="shop"))
        red = await stubs.items.Count(pb.ItemServiceCountRequest(gallery="shop", filter=equals("colour", "red")))

    assert (every.count, red.count, red.version) == (20, 10, 2)


async def test_items_are_deleted_by_id_or_by_filter() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        some = await stubs.items.Delete(
            pb.ItemServiceDeleteRequest(gallery="shop", ids=pb.IdList(ids=["item-00", "item-01", "nobody"]))
        )
        red = await stubs.items.Delete(pb.ItemServiceDeleteRequest(gallery="shop", filter=equals("colour", "red")))

        left = _stored(galleries)
    assert (some.deleted, red.deleted) == (2, 9)
    assert red.version.version == some.version.version + 1
    assert {row["colour"] for row in left.values()} == {"blue"}


async def test_a_delete_without_a_selection_deletes_nothing() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.items.Delete(pb.ItemServiceDeleteRequest(gallery="shop"))

        assert len(_stored(galleries)) == 20
    assert field_of(caught.value) == "selection"


async def test_a_stream_acknowledges_in_order_and_reports_bad_messages_one_by_one() -> None:
    async with shop() as stubs:
        messages = [
            pb.StreamUpsertRequest(sequence=i, request=upsert([f"s{i}"], MATRIX[i : i + 1] * (0 if i == 2 else 1)))
            for i in range(6)
        ]
        answers = [answer async for answer in stubs.items.StreamUpsert(iter(messages))]

    assert [answer.sequence for answer in answers] == [0, 1, 2, 3, 4, 5]
    assert [answer.WhichOneof("outcome") for answer in answers] == ["response"] * 2 + ["error"] + ["response"] * 3
    assert "all zeros" in answers[2].error.message


async def test_a_sequence_that_does_not_grow_is_refused() -> None:
    async with shop() as stubs:
        messages = [pb.StreamUpsertRequest(sequence=5, request=upsert([name], MATRIX[:1])) for name in "ab"]
        answers = [answer async for answer in stubs.items.StreamUpsert(iter(messages))]

    assert answers[0].response.upserted == 1
    assert "sequence must grow" in answers[1].error.message


async def test_a_later_message_of_a_stream_wins_even_when_the_earlier_takes_longer_to_encode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        slow = asyncio.Event()
        monkeypatch.setattr("tests.unit.server.fakes.FakeEncoder.encode", _held_up_by(slow))
        call = stubs.items.StreamUpsert()
        await call.write(pb.StreamUpsertRequest(sequence=1, request=_request("a", images=pb.Images(data=[b"old"]))))
        await call.write(pb.StreamUpsertRequest(sequence=2, request=upsert(["a"], MATRIX[:1])))
        await call.write(pb.StreamUpsertRequest(sequence=3, request=upsert(["z"], MATRIX[:1])))
        await call.done_writing()
        await until(lambda: ["z"] in galleries.writer("shop").log)  # overtakes: it shares no id
        before = list(galleries.writer("shop").log)
        slow.set()
        answers = [answer async for answer in call]

        assert ["a"] not in before
        assert _stored(galleries)["a"]["norm"] == pytest.approx(np.linalg.norm(MATRIX[0]), rel=1e-6)
    assert [answer.sequence for answer in answers] == [1, 2, 3]


def _request(*item_ids: str, **fields: object) -> pb.UpsertRequest:
    return pb.UpsertRequest(gallery="shop", items=pb.Items(ids=item_ids or ["a", "b"], **fields))  # type: ignore[arg-type]


def _held_up_by(event: asyncio.Event) -> object:
    async def encode(self: object, inputs: list[bytes]) -> Encoded:
        await event.wait()
        return Encoded(np.stack([embedding(item) for item in inputs]))

    return encode
