"""The released tritonclient against our server: every call it has for models, through a real channel."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import aio
from tests.unit.server.fakes import FakeGalleries
from tests.unit.server.model_fixtures import (
    COLOUR_TO_SPACE,
    DIM,
    MAX_TOKENS,
    SIZE,
    WORDS,
    colour_embedding,
    composed,
    png,
    text_embedding,
    word_rows,
    write_repository,
)
from tests.unit.server.waiting import until
from tritonclient import utils
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from likewise.internal.inference.v1 import inference_pb2 as pb
from likewise.server.app import Server, ServerOptions
from likewise.server.batcher import BatchLimits
from likewise.server.images import ImageLimits
from likewise.server.inference_statistics import InferenceStatistics
from likewise.server.models import OnnxModels, read_repositories
from likewise.server.remote.inference_servicer import SERVICE
from likewise.server.session import Runtime

RED, BLUE = (255, 0, 0), (0, 0, 255)


class Served:
    """A server over a repository, and the released client."""

    def __init__(self, server: Server, client: Any, models: OnnxModels, folder: Path) -> None:
        self.server = server
        self.client = client
        self.models = models
        self.folder = folder

    async def infer(self, name: str, *inputs: InferInput, **options: Any) -> Any:
        return await self.client.infer(name, list(inputs), **options)


class _Models:
    """Opens the models when it may."""

    def __init__(self, models: OnnxModels, may_open: asyncio.Event) -> None:
        self._models = models
        self._may_open = may_open

    async def open(self) -> None:
        await self._may_open.wait()
        await self._models.open()

    async def close(self) -> None:
        await self._models.close()


@asynccontextmanager
async def serving(folder: Path, *, may_open: asyncio.Event | None = None) -> AsyncIterator[Served]:
    if may_open is None:
        may_open = asyncio.Event()
        may_open.set()
    statistics = InferenceStatistics()
    models = OnnxModels(
        read_repositories([folder], builtin=False),
        runtime=Runtime(threads=1),
        batch=BatchLimits(max_batch=4, max_items=8),
        images=ImageLimits(),
        workers=2,
        on_batch=statistics.batch,
    )
    server = Server(
        ServerOptions(port=0),
        models=models,
        galleries=FakeGalleries(),
        parts=(_Models(models, may_open),),
        versions=models,
        served=models,
        statistics=statistics,
    )
    starting = asyncio.create_task(server.start())
    await until(lambda: server.listening)
    if may_open.is_set():
        await starting
    client = InferenceServerClient(server.address)
    try:
        yield Served(server, client, models, folder)
        await starting
    finally:
        await client.close()
        await server.stop(grace_s=0)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(write_repository(tmp_path / "repository")) as made:
        yield made


def array(name: str, values: Any, datatype: str) -> InferInput:
    made = InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def strings(name: str, elements: list[bytes], shape: list[int] | None = None) -> InferInput:
    values = np.empty(len(elements), object)
    values[:] = elements
    return array(name, values.reshape(shape or [len(elements)]), "BYTES")


def pixels(rows: int) -> Any:
    return np.random.default_rng(rows).standard_normal((rows, 3, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize("shape", [[2], [2, 1]])
async def test_encoded_images_are_inferred(served: Served, shape: list[int]) -> None:
    result = await served.infer("tiny-image", strings("image", [png(RED), png(BLUE)], shape), request_id="q7")

    np.testing.assert_allclose(result.as_numpy("embedding"), [colour_embedding(RED), colour_embedding(BLUE)], atol=1e-5)
    assert (result.get_response().model_version, result.get_response().id) == ("1", "q7")


async def test_texts_are_inferred_and_what_was_cut_is_told(served: Served) -> None:
    result = await served.infer("tiny-text", strings("text", [b"small dog", b"red " * 9]))

    np.testing.assert_allclose(result.as_numpy("embedding")[0], text_embedding("small dog"), atol=1e-5)
    assert "TEXT_TRUNCATED" in result.get_response().parameters["warnings"].string_param


async def test_the_graphs_own_tensors_are_inferred_as_triton_would(served: Served) -> None:
    ids = np.zeros((2, MAX_TOKENS), np.int32)
    ids[:, 0] = [sorted(WORDS).index("dog") + 2, sorted(WORDS).index("red") + 2]

    image = await served.infer("tiny-image", array("image", pixels(9), "FP32"))
    text = await served.infer("tiny-text", array("tokens", ids, "INT32"))

    # Nine rows are more than a batch and more than the queue: they go through it in turns.
    expected = pixels(9).mean(axis=(2, 3)) @ COLOUR_TO_SPACE
    np.testing.assert_allclose(image.as_numpy("embedding"), expected, atol=1e-5)
    np.testing.assert_allclose(text.as_numpy("embedding"), word_rows()[ids[:, 0]], atol=1e-5)


async def test_pairs_are_composed(served: Served) -> None:
    reference, condition = np.random.default_rng(3).standard_normal((2, 3, DIM)).astype(np.float32)

    result = await served.infer(
        "tiny-composer", array("reference", reference, "FP32"), array("condition", condition, "FP32")
    )

    expected = [composed(*pair) for pair in zip(reference, condition, strict=True)]
    np.testing.assert_allclose(result.as_numpy("query"), expected, atol=1e-5)


async def test_an_output_may_be_asked_for_by_either_name(served: Served) -> None:
    pair = [array(name, np.ones((1, DIM), np.float32), "FP32") for name in ("reference", "condition")]
    for name in ("query", "embedding"):
        result = await served.infer("tiny-composer", *pair, outputs=[InferRequestedOutput(name)])
        assert [output.name for output in result.get_response().outputs] == [name]


async def test_a_client_asks_what_there_is(served: Served) -> None:
    client = served.client

    metadata = await client.get_server_metadata()
    image = await client.get_model_metadata("tiny-image")
    config = (await client.get_model_config("tiny-image")).config

    assert (metadata.name, "model_repository" in metadata.extensions) == ("likewise", True)
    assert [(t.name, t.datatype, list(t.shape)) for t in image.inputs] == [
        ("image", "BYTES", [-1, 1]),
        ("image", "FP32", [-1, 3, SIZE, SIZE]),
    ]
    assert [(t.name, list(t.shape)) for t in image.outputs] == [("embedding", [-1, DIM])]
    assert list(image.versions) == ["1"]
    assert (config.name, config.max_batch_size, config.backend) == ("tiny-image", 16, "onnxruntime")
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("image", 11, [3, SIZE, SIZE])]
    assert [(t.name, list(t.dims)) for t in config.output] == [("embedding", [DIM])]


async def test_a_loading_server_is_live_and_not_ready(tmp_path: Path) -> None:
    may_open = asyncio.Event()
    async with serving(write_repository(tmp_path / "repository"), may_open=may_open) as served:
        client = served.client
        before = [
            await client.is_server_live(),
            await client.is_server_ready(),
            await client.is_model_ready("tiny-text"),
        ]
        with pytest.raises(utils.InferenceServerException, match="the server is loading") as caught:
            await served.infer("tiny-text", strings("text", [b"red"]))
        may_open.set()
        while not await client.is_server_ready():  # noqa: ASYNC110  # the protocol has no event for it
            await asyncio.sleep(0)
        after = [await client.is_server_live(), await client.is_model_ready("tiny-text", "1")]

    assert before == [True, False, False]
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert after == [True, True]


async def test_only_what_can_be_called_is_ready(served: Served) -> None:
    assert await served.client.is_server_ready()
    assert not await served.client.is_model_ready("tiny-text", "2")
    assert not await served.client.is_model_ready("nobody")


async def test_a_version_is_loaded_called_by_its_number_and_freed_while_the_other_serves(served: Served) -> None:
    client = served.client
    write_repository(served.folder, version=2)

    with pytest.raises(utils.InferenceServerException, match="no version 2"):
        await served.infer("tiny-text", strings("text", [b"red"]), model_version="2")
    await client.load_model("tiny-text")
    second = await served.infer("tiny-text", strings("text", [b"red"]), model_version="2")
    unnamed = await served.infer("tiny-text", strings("text", [b"red"]))
    index = await client.get_model_repository_index()
    ready = await client.is_model_ready("tiny-text", "2")
    versions = (await client.get_model_metadata("tiny-text")).versions
    await client.unload_model("tiny-text")

    assert second.get_response().model_version == "2"
    assert unnamed.get_response().model_version == "1"
    states = {(model.name, model.version): (model.state, model.reason) for model in index.models}
    assert states["tiny-text", "2"] == ("READY", "")
    assert ready
    assert list(versions) == ["1", "2"]
    assert not await client.is_model_ready("tiny-text", "2")
    assert await client.is_model_ready("tiny-text", "1")
    with pytest.raises(utils.InferenceServerException, match="in use"):
        await client.unload_model("tiny-text")


async def test_a_version_is_named_in_tritons_way(served: Served) -> None:
    for version in (2, 3):
        write_repository(served.folder, version=version)

    await served.client.load_model("tiny-text", config='{"version_policy": {"specific": {"versions": [2]}}}')

    index = await served.client.get_model_repository_index()
    states = {model.version: model.state for model in index.models if model.name == "tiny-text"}
    assert states["2"] == "READY"
    assert states.get("3") != "READY"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"config": "{"}, "must be JSON", id="no JSON"),
        pytest.param({"config": '{"max_batch_size": 4}'}, "with one version and nothing else", id="other setting"),
        pytest.param(
            {"config": '{"version_policy": {"specific": {"versions": [1, 2]}}}'}, "with one version", id="two versions"
        ),
        pytest.param({"config": "{}", "files": {"file:1/model.onnx": b"x"}}, "put files into the model", id="files"),
    ],
)
async def test_a_load_that_would_change_a_model_is_refused(
    served: Served, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(utils.InferenceServerException, match=message) as caught:
        await served.client.load_model("tiny-text", **options)

    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


async def test_statistics_count_calls_rows_and_batches(served: Served) -> None:
    for rows in (1, 3):
        await served.infer("tiny-text", strings("text", [b"red"] * rows))
    with pytest.raises(utils.InferenceServerException):
        await served.infer("tiny-text", strings("texts", [b"red"]))

    answer = await served.client.get_inference_statistics("tiny-text", "1")
    everything = await served.client.get_inference_statistics()

    (of,) = answer.model_stats
    assert (of.inference_count, of.execution_count) == (4, 2)
    assert (of.inference_stats.success.count, of.inference_stats.fail.count) == (2, 1)
    assert [(batch.batch_size, batch.compute_infer.count) for batch in of.batch_stats] == [(1, 1), (3, 1)]
    assert of.inference_stats.queue.count == 4
    assert of.inference_stats.compute_infer.ns > 0
    assert of.last_inference > 0
    assert [stats.name for stats in everything.model_stats] == ["tiny-composer", "tiny-image", "tiny-text"]


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        pytest.param(
            "tiny-image",
            [array("pixels", pixels(1), "FP32")],
            rf"takes the input BYTES\[-1, 1\] 'image' or FP32\[-1, 3, {SIZE}, {SIZE}\] 'image'; got FP32.* 'pixels'",
            id="name",
        ),
        pytest.param(
            "tiny-image",
            [array("image", pixels(1)[:, :, :4], "FP32")],
            rf"input 'image' must be FP32\[-1, 3, {SIZE}, {SIZE}\], got FP32\[1, 3, 4, {SIZE}\]",
            id="shape",
        ),
        pytest.param(
            "tiny-text",
            [array("tokens", np.zeros((1, MAX_TOKENS), np.int64), "INT64")],
            "input 'tokens' must be INT32, got INT64",
            id="datatype",
        ),
        pytest.param("tiny-text", [strings("text", [b"\xff"])], "must be UTF-8", id="no text"),
        pytest.param("tiny-image", [strings("image", [b"\xff"])], "is no JPEG, PNG or WebP", id="no image"),
        pytest.param("tiny-text", [], r"takes the input .*; got none", id="nothing"),
        pytest.param(
            "tiny-composer",
            [array(n, np.ones((rows, DIM), np.float32), "FP32") for n, rows in (("reference", 1), ("condition", 2))],
            "1 references, 2 conditions",
            id="no pairs",
        ),
        pytest.param("nobody", [strings("text", [b"red"])], "no model 'nobody' here, there are", id="model"),
    ],
)
async def test_what_does_not_fit_is_refused_with_what_is_wanted(
    served: Served, name: str, inputs: list[InferInput], message: str
) -> None:
    with pytest.raises(utils.InferenceServerException, match=message) as caught:
        await served.infer(name, *inputs)

    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"model_version": "new"}, "must be a whole number from 1, got 'new'", id="version"),
        pytest.param({"outputs": [InferRequestedOutput("logits")]}, "has no output 'logits'", id="output"),
        pytest.param(
            {"outputs": [InferRequestedOutput("embedding", class_count=3)]}, "classification is not", id="top"
        ),
    ],
)
async def test_options_that_are_not_served_are_refused(served: Served, options: dict[str, Any], message: str) -> None:
    with pytest.raises(utils.InferenceServerException, match=message):
        await served.infer("tiny-text", strings("text", [b"red"]), **options)


async def test_shared_memory_is_refused(served: Served) -> None:
    region = InferInput("image", [1, 3, SIZE, SIZE], "FP32")
    region.set_shared_memory("region", pixels(1).nbytes)

    with pytest.raises(utils.InferenceServerException, match="lies in shared memory, which is not served"):
        await served.infer("tiny-image", region)


@pytest.mark.parametrize("field", ["int_contents", "raw"])
async def test_typed_and_raw_contents_mean_the_same(served: Served, field: str) -> None:
    request = pb.ModelInferRequest(model_name="tiny-text")
    tensor = request.inputs.add(name="tokens", datatype="INT32", shape=[1, MAX_TOKENS])
    if field == "raw":
        request.raw_input_contents.append(np.array([3, 0, 0, 0, 0, 0], "<i4").tobytes())
    else:
        tensor.contents.int_contents.extend([3, 0, 0, 0, 0, 0])

    async with aio.insecure_channel(served.server.address) as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        response = await infer(request)

    np.testing.assert_allclose(np.frombuffer(response.raw_output_contents[0], "<f4"), word_rows()[3], atol=1e-5)
