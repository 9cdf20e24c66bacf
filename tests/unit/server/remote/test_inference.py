"""Encoders and composers behind the Open Inference Protocol give what they give in process."""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from tests.unit.server.remote.loopback import Loopback

from likewise.export.manifest import TensorSpec
from likewise.internal.inference.v1 import inference_pb2 as pb
from likewise.server.errors import InvalidRequest, NotFound, Overloaded, Unavailable
from likewise.server.protocols import Encoded, Family
from likewise.server.remote import tensors
from likewise.server.remote.channels import Endpoint
from likewise.server.remote.inference_servicer import SERVICE, InferenceServicer
from likewise.server.remote.inference_stub import (
    InferenceRoute,
    InferenceStub,
    RemoteComposer,
    RemoteImageEncoder,
    RemoteTextEncoder,
    split,
)
from likewise.server.served import InUse
from likewise.shards.protocols import F32
from likewise.v1 import common_pb2, model_service_pb2, search_service_pb2

IMAGE = common_pb2.ModelRef(name="shapes-image", version=3, kind="image_encoder", space="sha256:1")
TEXT = common_pb2.ModelRef(name="shapes-text", version=3, kind="text_encoder", space="sha256:1")
KINDS = {
    "image_encoder": model_service_pb2.MODEL_KIND_IMAGE_ENCODER,
    "text_encoder": model_service_pb2.MODEL_KIND_TEXT_ENCODER,
    "composer": model_service_pb2.MODEL_KIND_COMPOSER,
}
COMPOSER = common_pb2.ModelRef(name="shapes-composer", version=3, kind="composer", space="sha256:1")


class LengthEncoder:
    """Encodes to (length, position) and refuses what is empty; a text of "full" finds the queue full."""

    def __init__(self, model: common_pb2.ModelRef) -> None:
        self.model = model
        self.calls: list[int] = []

    async def encode(self, elements: Sequence[bytes] | Sequence[str]) -> Encoded:
        self.calls.append(len(elements))
        for i, element in enumerate(elements):
            if not element:
                raise InvalidRequest(f"[{i}] is empty", reason="IMAGE_UNDECODABLE", field=f"[{i}]")
            if element == "full":
                raise Overloaded("16 items wait, the limit is 16", retry_after_s=0.5)
        vectors = np.asarray([[len(element), i] for i, element in enumerate(elements)], np.float32).reshape(-1, 2)
        return Encoded(
            vectors, decode_us=7, encode_us=11, warnings=(common_pb2.Warning(code="TEXT_TRUNCATED", message="cut: ü"),)
        )


class SumComposer:
    """Adds."""

    model = COMPOSER

    def condition_text(self, text: str, mode: int) -> str:
        return text

    async def compose(self, references: F32, conditions: F32) -> F32:
        return references + conditions


class OneFamily:
    """`Models` with one family, all of it in use."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def family(self, name: str) -> Family:
        return self._family

    def models(self) -> list[model_service_pb2.Model]:
        refs = (COMPOSER, IMAGE, TEXT)
        return [
            model_service_pb2.Model(name=ref.name, version=ref.version, kind=KINDS[ref.kind], family="shapes")
            for ref in refs
        ]


class Parts:
    """The fakes, and a route to them."""

    def __init__(self, loopback: Loopback) -> None:
        self.image = LengthEncoder(IMAGE)
        self.text = LengthEncoder(TEXT)
        self._loopback = loopback

    async def route(self) -> InferenceRoute:
        family = Family("shapes", "sha256:1", 2, self.image, self.text, SumComposer())

        def register(endpoint: Endpoint) -> None:
            InferenceServicer(InUse(OneFamily(family))).register(endpoint.server)

        address = await self._loopback.endpoint(register)
        return InferenceRoute("the encoders", self._loopback.channels, InferenceStub, addresses=[address])


@pytest.fixture
def parts(loopback: Loopback) -> Parts:
    return Parts(loopback)


async def test_images_come_back_as_vectors_with_timings_and_warnings(parts: Parts) -> None:
    encoder = RemoteImageEncoder(await parts.route(), IMAGE)

    encoded = await encoder.encode([b"\x00\xff", b"abc"])

    assert encoded.vectors.tolist() == [[2, 0], [3, 1]]
    assert encoded.vectors.dtype == np.float32
    assert (encoded.decode_us, encoded.encode_us) == (7, 11)
    assert [(w.code, w.message) for w in encoded.warnings] == [("TEXT_TRUNCATED", "cut: ü")]


async def test_texts_travel_as_utf8(parts: Parts) -> None:
    encoder = RemoteTextEncoder(await parts.route(), TEXT)

    assert (await encoder.encode(["grün", "a"])).vectors.tolist() == [[4, 0], [1, 1]]


async def test_encoding_nothing_gives_no_vectors(parts: Parts) -> None:
    encoder = RemoteTextEncoder(await parts.route(), TEXT)

    assert (await encoder.encode([])).vectors.shape == (0, 2)


async def test_a_bad_image_is_named_by_its_place_even_in_a_later_message(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = RemoteImageEncoder(await parts.route(), IMAGE)
    monkeypatch.setattr("likewise.server.remote.inference_stub.MAX_INPUT_BYTES", 10)

    with pytest.raises(InvalidRequest, match=r"^\[3\] is empty$") as caught:
        await encoder.encode([b"aaaa", b"bbbb", b"cccc", b""])

    assert (caught.value.field, caught.value.reason) == ("[3]", "IMAGE_UNDECODABLE")


async def test_many_bytes_go_in_several_messages_and_come_back_in_order(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = RemoteImageEncoder(await parts.route(), IMAGE)
    monkeypatch.setattr("likewise.server.remote.inference_stub.MAX_INPUT_BYTES", 16)

    encoded = await encoder.encode([b"a", b"bb", b"ccc", b"dddd"])

    assert encoded.vectors[:, 0].tolist() == [1, 2, 3, 4]
    assert parts.image.calls == [2, 2]
    assert encoded.decode_us == 14


async def test_a_full_queue_says_when_to_come_back(parts: Parts) -> None:
    encoder = RemoteTextEncoder(await parts.route(), TEXT)

    with pytest.raises(Overloaded, match="the limit is 16") as caught:
        await encoder.encode(["full"])

    assert caught.value.retry_after_s == 0.5


async def test_pairs_are_composed(parts: Parts) -> None:
    templates = {"unspecified": "{}", "focus": "the same {}", "change": "but {}"}
    composer = RemoteComposer(await parts.route(), COMPOSER, templates=templates)
    references = np.asarray([[1, 2], [3, 4]], np.float32)

    assert (await composer.compose(references, references)).tolist() == [[2, 4], [6, 8]]
    assert composer.condition_text("colour {x}", search_service_pb2.CONDITION_MODE_FOCUS) == "the same colour {x}"
    with pytest.raises(InvalidRequest, match="got 99"):
        composer.condition_text("colour", 99)


async def test_a_model_that_is_not_there_is_named(parts: Parts) -> None:
    other = common_pb2.ModelRef(name="other", version=1)

    with pytest.raises(NotFound, match=r"no model 'other' here, there are \['shapes-composer'"):
        await RemoteTextEncoder(await parts.route(), other).encode(["a"])
    with pytest.raises(NotFound, match="has no version 4 here"):
        await RemoteTextEncoder(await parts.route(), common_pb2.ModelRef(name="shapes-text", version=4)).encode(["a"])


async def test_encoders_that_cannot_be_reached_are_unavailable(parts: Parts) -> None:
    route = await parts.route()
    route.move([])

    with pytest.raises(Unavailable, match="the encoders is not up"):
        await RemoteTextEncoder(route, TEXT).encode(["a"])


async def test_typed_contents_of_other_clients_are_understood(parts: Parts, loopback: Loopback) -> None:
    route = await parts.route()
    channel = loopback.channels.get(route.addresses[0])
    request = pb.ModelInferRequest(model_name="shapes-text", id="q1")
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[2, 1])
    tensor.contents.bytes_contents.extend([b"ab", b"c"])

    response = await InferenceStub(channel).infer(request)

    assert (response.model_name, response.model_version, response.id) == ("shapes-text", "3", "q1")
    assert tensors.output_array(response, "embedding", "float32").tolist() == [[2, 0], [1, 1]]


async def test_metadata_names_the_tensors(parts: Parts, loopback: Loopback) -> None:
    route = await parts.route()
    ask = loopback.channels.get(route.addresses[0]).unary_unary(
        f"/{SERVICE}/ModelMetadata",
        request_serializer=pb.ModelMetadataRequest.SerializeToString,
        response_deserializer=pb.ModelMetadataResponse.FromString,
    )

    composer = await ask(pb.ModelMetadataRequest(name="shapes-composer"))
    image = await ask(pb.ModelMetadataRequest(name="shapes-image", version="3"))

    assert [(t.name, t.datatype, list(t.shape)) for t in composer.inputs] == [
        ("reference", "FP32", [-1, 2]),
        ("condition", "FP32", [-1, 2]),
    ]
    assert [(t.name, list(t.shape)) for t in composer.outputs] == [("query", [-1, 2])]
    assert [(t.name, t.datatype) for t in image.inputs] == [("image", "BYTES")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"datatype": "FP32"}, "must be BYTES, got FP32", id="type"),
        pytest.param({"name": "texts"}, r"takes the input BYTES\[-1, 1\] 'text'; got BYTES\[1\] 'texts'", id="name"),
        pytest.param({"shape": [3]}, r"shape \[3\] does not fit 1 elements", id="shape"),
        pytest.param({"raw": b"\x05\x00\x00\x00abc"}, "element 0 ends behind the contents", id="length"),
        pytest.param({"raw": b"\x05\x00"}, "element 0 ends behind the contents", id="no length"),
    ],
)
async def test_an_input_that_does_not_fit_is_refused(parts: Parts, change: dict[str, object], message: str) -> None:
    request = pb.ModelInferRequest(model_name="shapes-text")
    tensors.add_bytes(request, "text", [b"a"])
    for name in ("name", "datatype"):
        if name in change:
            setattr(request.inputs[0], name, change[name])
    if "shape" in change:
        request.inputs[0].shape[:] = [3]
    if "raw" in change:
        request.raw_input_contents[0] = bytes(change["raw"])  # type: ignore[call-overload]  # bytes in the table above

    with pytest.raises(InvalidRequest, match=message):
        await (await parts.route()).call(lambda stub: stub.infer, request)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        pytest.param(b"\0" * 12, r"shape \[1, 2\] does not fit 3 elements", id="too many"),
        pytest.param(b"\0" * 7, "7 bytes are no whole number of FP32", id="cut"),
    ],
)
async def test_numbers_that_do_not_fit_their_shape_are_refused(parts: Parts, raw: bytes, message: str) -> None:
    request = pb.ModelInferRequest(model_name="shapes-composer")
    for name in ("reference", "condition"):
        request.inputs.add(name=name, datatype="FP32", shape=[1, 2])
        request.raw_input_contents.append(raw)

    with pytest.raises(InvalidRequest, match=message):
        await (await parts.route()).call(lambda stub: stub.infer, request)


async def test_typed_numbers_that_do_not_fit_their_type_are_refused() -> None:
    request = pb.ModelInferRequest()
    tensor = request.inputs.add(name="flags", datatype="INT8", shape=[1])
    tensor.contents.int_contents.append(300)

    with pytest.raises(InvalidRequest, match=r"'flags'.*300"):
        tensors.array_input(request, TensorSpec("flags", "int8", (-1,)))


@pytest.mark.parametrize("dtype", [name for name in tensors.DATATYPES if name != "bytes"])
def test_every_number_format_travels_raw_and_comes_back(dtype: str) -> None:
    array = np.arange(6).reshape(3, 2).astype(dtype)
    request = pb.ModelInferRequest()

    tensors.add_array(request, "x", array)

    np.testing.assert_array_equal(tensors.array_input(request, TensorSpec("x", dtype, (-1, 2))), array)


async def test_a_version_is_not_freed_while_it_is_called() -> None:
    held = 0

    @contextlib.contextmanager
    def lease() -> Iterator[None]:
        nonlocal held
        held += 1
        yield
        held -= 1

    family = Family("shapes", "sha256:1", 2, LengthEncoder(IMAGE), LengthEncoder(TEXT), SumComposer(), lease=lease)

    with InUse(OneFamily(family)).serving("shapes-text", 3) as served:
        assert (held, served.model.name) == (1, "shapes-text")

    assert held == 0


def test_splitting_keeps_every_element_and_the_limit() -> None:
    elements = [b"a" * n for n in (3, 1, 40, 2, 2)]

    parts = [list(part) for part in split(elements, 20)]

    assert [element for part in parts for element in part] == elements
    assert [len(part) for part in parts] == [2, 1, 2]
    assert [len(part) for part in split(elements, 1_000, 2)] == [2, 2, 1]
