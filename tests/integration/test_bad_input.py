"""Bad input gets a clear error with the right code, and nothing has changed afterwards."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from tests.integration.processes import ServerProcess

from likewise import wire
from likewise.client import Client, F, Gallery, LikewiseError
from likewise.v1 import common_pb2, item_service_pb2, item_service_pb2_grpc, search_service_pb2, search_service_pb2_grpc

DIM = 4
UNIT = np.eye(DIM, dtype=np.float32)


@pytest.fixture(scope="module")
def vectors(server: ServerProcess) -> Iterator[Gallery]:
    with Client(server.address) as client:
        gallery = client.create_gallery(
            "bad-vectors", dim=DIM, attributes={"price": "double", "name": "string", "tags": "string_list"}
        )
        gallery.upsert(["a", "b"], vectors=UNIT[:2], attributes=[{"price": 1.0, "name": "x"}, {"price": 2.0}])
        yield gallery
        assert gallery.count() == 2, "bad input changed the gallery"
        client.delete_gallery("bad-vectors")


@pytest.fixture(scope="module")
def images(server: ServerProcess) -> Iterator[Gallery]:
    with Client(server.address) as client:
        gallery = client.create_gallery("bad-images", encoder="shapes")
        gallery.upsert(["a"], images=[_png()])
        yield gallery
        assert gallery.count() == 1, "bad input changed the gallery"
        client.delete_gallery("bad-images")


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "PNG")
    return buffer.getvalue()


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((256, 256), 90).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def _bomb() -> bytes:
    """A PNG that says it is 30,000 x 30,000 and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(30_001 * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def _refused(call: Callable[[], Any], code: grpc.StatusCode, *said: str) -> LikewiseError:
    with pytest.raises(LikewiseError) as caught:
        call()
    assert caught.value.code == code, caught.value
    for words in said:
        assert words in str(caught.value)
    return caught.value


def _said(error: grpc.RpcError) -> str:
    assert isinstance(error, grpc.Call)
    return error.details() or ""


SEARCHES = [
    pytest.param({"k": 0}, INVALID, ["k", "[1, 10,000]", "0"], id="k of 0"),
    pytest.param({"k": 10_001}, INVALID, ["k", "[1, 10,000]", "10,001"], id="k of 10,001"),
    pytest.param({"vector": [1.0, 2.0]}, INVALID, ["2", "4"], id="wrong dimension"),
    pytest.param({"vector": [1.0, float("nan"), 0, 0]}, INVALID, ["number 1", "nan"], id="NaN"),
    pytest.param({"vector": [float("inf"), 0, 0, 0]}, INVALID, ["nf"], id="Inf"),
    pytest.param({"vector": [0.0, 0, 0, 0]}, INVALID, ["zero"], id="zero vector"),
    pytest.param({"where": F.colour == "red"}, INVALID, ["colour"], id="unknown attribute"),
    pytest.param({"where": F.price == "red"}, INVALID, ["price", "double"], id="wrong type in a filter"),
    pytest.param({"where": F.name < 3}, INVALID, ["name", "string"], id="number against string"),
    pytest.param({"where": F.name.contains("x")}, INVALID, ["name"], id="contains on a string"),
    pytest.param({"attributes": ["colour"]}, INVALID, ["colour"], id="unknown attribute in the mask"),
    pytest.param({"vector": None, "id": "nobody"}, NOT_FOUND, ["nobody"], id="unknown reference"),
    pytest.param({"vector": None, "text": "a star"}, PRECONDITION, ["vectors only"], id="text without an encoder"),
    pytest.param({"condition": "in red"}, PRECONDITION, ["vectors only"], id="condition without an encoder"),
    pytest.param({"vector": None}, INVALID, ["reference"], id="neither reference nor condition"),
    pytest.param({"ef": 0}, INVALID, ["ef", "0"], id="ef of 0"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), SEARCHES)
def test_a_bad_search_is_refused(
    vectors: Gallery, arguments: dict[str, Any], code: grpc.StatusCode, said: list[str]
) -> None:
    merged = {"vector": UNIT[0], **arguments}

    _refused(lambda: vectors.search(**{k: v for k, v in merged.items() if v is not None}), code, *said)


def test_an_unknown_gallery_is_named(client: Client) -> None:
    error = _refused(lambda: client.gallery("nowhere").search(vector=UNIT[0]), NOT_FOUND, "nowhere")

    assert error.reason == "GALLERY_NOT_FOUND"


def test_an_unknown_model_is_named_with_those_there_are(client: Client) -> None:
    _refused(lambda: client.create_gallery("m", encoder="no-such-model"), NOT_FOUND, "no-such-model", "shapes")

    assert "m" not in {gallery.name for gallery in client.galleries()}


UPSERTS = [
    pytest.param([""], UNIT[:1], {}, ["ids[0]", "512"], id="empty id"),
    pytest.param(["x" * 513], UNIT[:1], {}, ["ids[0]", "513", "512"], id="long id"),
    pytest.param(["n", "o"], np.array([[1, 0, 0, 0], [0, np.nan, 0, 0]]), {}, ["1", "NaN"], id="NaN row"),
    pytest.param(["n", "o"], np.array([[1, 0, 0, 0], [0, np.inf, 0, 0]]), {}, ["1", "nf"], id="Inf row"),
    pytest.param(["n", "o"], np.array([[1, 0, 0, 0], [0, 0, 0, 0]]), {}, ["1", "zero"], id="zero row"),
    pytest.param(["n"], np.ones((1, 5)), {}, ["5", "4"], id="wrong dimension"),
    pytest.param(["n"], UNIT[:1], {"price": [float("nan")]}, ["price", "0"], id="NaN attribute"),
]


@pytest.mark.parametrize(("ids", "matrix", "attributes", "said"), UPSERTS)
def test_a_bad_upsert_is_refused_whole(
    vectors: Gallery, ids: list[str], matrix: np.ndarray, attributes: dict[str, Any], said: list[str]
) -> None:
    _refused(lambda: vectors.upsert(ids, vectors=matrix, attributes=attributes or None), INVALID, *said)

    assert vectors.count() == 2
    assert vectors.get([item for item in ids if item and len(item) <= 512]).ids == []


def test_an_unknown_attribute_in_an_upsert_is_named(vectors: Gallery) -> None:
    _refused(lambda: vectors.upsert(["n"], vectors=UNIT[:1], attributes={"colour": ["red"]}), INVALID, "colour")


def test_a_wrong_attribute_type_names_the_row(vectors: Gallery) -> None:
    attributes = {"price": [1.0, "dear"]}

    _refused(lambda: vectors.upsert(["n", "o"], vectors=UNIT[:2], attributes=attributes), INVALID, "price", "1")


def test_of_an_id_given_twice_the_last_row_wins(client: Client, name: str) -> None:
    gallery = client.create_gallery(name, dim=DIM, attributes={"n": "int64"})

    result = gallery.upsert(["a", "b", "a"], vectors=UNIT[:3], attributes={"n": [1, 2, 3]})

    assert result.upserted == 2
    rows = gallery.get(["a"], attributes=True, vectors=True)
    assert rows.attributes == [{"n": 3}]
    assert rows.vectors is not None
    np.testing.assert_allclose(rows.vectors, UNIT[2:3], atol=1e-6)
    client.delete_gallery(name)


IMAGES = [
    pytest.param(b"", ["empty"], id="empty image"),
    pytest.param(_jpeg()[:2_000], ["truncated"], id="truncated JPEG"),
    pytest.param(b"just some words, named .png", ["JPEG, PNG or WebP"], id="text named .png"),
    pytest.param(_bomb(), ["30,000 x 30,000", "limit"], id="pixel bomb"),
]


@pytest.mark.parametrize(("image", "said"), IMAGES)
def test_a_bad_image_is_refused_in_a_search(images: Gallery, image: bytes, said: list[str]) -> None:
    _refused(lambda: images.search(image=image), INVALID, *said)


@pytest.mark.parametrize(("image", "said"), IMAGES)
def test_one_bad_image_refuses_the_whole_upsert(images: Gallery, image: bytes, said: list[str]) -> None:
    _refused(lambda: images.upsert(["n", "o"], images=[_png(), image]), INVALID, "1", *said)

    assert images.get(["n", "o"]).ids == []


def test_vectors_of_another_space_are_refused_with_both_digests(server: ServerProcess, images: Gallery) -> None:
    dim = images.info().dim
    vector = wire.encode_vector(np.ones(dim), space="sha256:other")
    request = search_service_pb2.SearchRequest(gallery="bad-images")
    request.reference.vector.CopyFrom(vector)
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        search_service_pb2_grpc.SearchServiceStub(channel).Search(request, timeout=20)

    assert caught.value.code() == PRECONDITION
    assert "sha256:other" in _said(caught.value)
    assert images.info().space in _said(caught.value)


def test_an_unknown_operator_is_refused(server: ServerProcess, vectors: Gallery) -> None:
    request = search_service_pb2.SearchRequest(gallery="bad-vectors")
    request.reference.vector.CopyFrom(wire.encode_vector(UNIT[0]))
    request.filter.comparison.attribute = "price"
    request.filter.comparison.value.double_value = 1.0
    request.filter.comparison.operator = 99  # type: ignore[assignment]
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        search_service_pb2_grpc.SearchServiceStub(channel).Search(request, timeout=20)

    assert caught.value.code() == INVALID
    assert "operator" in _said(caught.value)


def test_an_id_that_is_no_utf8_is_refused(server: ServerProcess, vectors: Gallery) -> None:
    request = item_service_pb2.UpsertRequest(gallery="bad-vectors")
    request.items.ids.append("n?o")
    request.items.vectors.CopyFrom(wire.encode_vectors(UNIT[:1]))
    broken = request.SerializeToString().replace(b"n?o", b"n\xffo")
    with grpc.insecure_channel(server.address) as channel:
        upsert: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/likewise.v1.ItemService/Upsert")
        with pytest.raises(grpc.RpcError) as caught:
            upsert(broken, timeout=20)

    assert caught.value.code() == INVALID
    assert "UTF-8" in _said(caught.value)


def test_a_message_over_the_limit_is_refused_with_the_limit(server: ServerProcess, vectors: Gallery) -> None:
    request = item_service_pb2.UpsertRequest(gallery="bad-vectors")
    request.items.vectors.dim = DIM
    request.items.vectors.data = bytes(wire.MAX_MESSAGE_BYTES + 1)
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.address, options=options) as channel, pytest.raises(grpc.RpcError) as caught:
        item_service_pb2_grpc.ItemServiceStub(channel).Upsert(request, timeout=60)

    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(wire.MAX_MESSAGE_BYTES) in _said(caught.value)


LATER: list[Any] = [
    pytest.param("aspects", lambda c: c.aspects.weights.update({"colour": 1.0}), id="aspects"),
    pytest.param("gate", lambda c: setattr(c.gate, "name", "colour"), id="gate"),
    pytest.param("examples", lambda c: c.examples.positive.add(item_id="a"), id="examples"),
    pytest.param("preset", lambda c: setattr(c, "preset", "colour"), id="preset"),
]


@pytest.mark.parametrize(("said", "fill"), LATER)
def test_what_a_later_release_brings_says_so(
    server: ServerProcess, vectors: Gallery, said: str, fill: Callable[[search_service_pb2.Condition], None]
) -> None:
    request = search_service_pb2.SearchRequest(gallery="bad-vectors")
    request.reference.vector.CopyFrom(wire.encode_vector(UNIT[0]))
    fill(request.conditions.add())
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        search_service_pb2_grpc.SearchServiceStub(channel).Search(request, timeout=20)

    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert said in _said(caught.value)


def test_a_token_of_another_gallery_is_refused(server: ServerProcess, vectors: Gallery) -> None:
    request = search_service_pb2.SearchRequest(gallery="bad-vectors")
    request.reference.vector.CopyFrom(wire.encode_vector(UNIT[0]))
    request.at_least.CopyFrom(common_pb2.VersionToken(gallery_id="f" * 32, version=1))
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        search_service_pb2_grpc.SearchServiceStub(channel).Search(request, timeout=20)

    assert caught.value.code() == PRECONDITION
    assert "f" * 32 in _said(caught.value)


@pytest.mark.parametrize("bad", ["", "Upper", "sp ace", "x" * 64, "1st"])
def test_a_bad_gallery_name_is_refused(client: Client, bad: str) -> None:
    _refused(lambda: client.create_gallery(bad, dim=2), INVALID, "name")


def test_a_bad_index_is_refused_with_the_reason(client: Client, name: str) -> None:
    _refused(lambda: client.create_gallery(name, dim=8, index="HNSW32,Nonsense"), INVALID, "HNSW32,Nonsense")

    assert name not in {gallery.name for gallery in client.galleries()}


def test_a_name_that_is_taken_is_refused(client: Client, vectors: Gallery) -> None:
    _refused(lambda: client.create_gallery("bad-vectors", dim=2), grpc.StatusCode.ALREADY_EXISTS, "bad-vectors")
