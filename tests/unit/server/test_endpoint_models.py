"""Models whose graph runs at an endpoint: a server that is not ours, and one of ours that takes files and texts."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from tests.unit.server.model_fixtures import (
    DIM,
    MAX_TOKENS,
    SIZE,
    colour_embedding,
    image_graph,
    png,
    text_embedding,
    write_repository,
)
from tests.unit.server.remote.foreign_server import ForeignModel, foreign_server

from likewise.export.manifest import Endpoint, TensorSpec
from likewise.server.batcher import BatchLimits, BatchReport
from likewise.server.errors import FailedPrecondition, InvalidRequest, Overloaded, ServiceError
from likewise.server.graphs import open_graph
from likewise.server.images import ImageLimits
from likewise.server.models import OnnxModels, read_repositories
from likewise.server.protocols import ImageEncoder, TextEncoder
from likewise.server.remote import deadlines
from likewise.server.remote.channels import Endpoint as Listener
from likewise.server.remote.endpoint_encoder import EndpointTextEncoder
from likewise.server.remote.inference_servicer import InferenceServicer
from likewise.server.remote.remote_graph import RemoteGraph
from likewise.server.session import Runtime
from likewise.v1 import model_service_pb2 as pb
from likewise.v1.common_pb2 import ModelRef

RED, BLUE = (255, 0, 0), (0, 0, 255)


@asynccontextmanager
async def models_of(folder: Path, reports: list[BatchReport] | None = None) -> AsyncIterator[OnnxModels]:
    made = OnnxModels(
        read_repositories([folder], builtin=False),
        runtime=Runtime(threads=1),
        batch=BatchLimits(max_batch=4, max_items=16),
        images=ImageLimits(),
        workers=2,
        on_batch=reports.append if reports is not None else None,
        open_graph=open_graph,
    )
    try:
        yield made
    finally:
        await made.close()


def at(folder: Path, endpoint: Endpoint, **image: Any) -> Path:
    """A repository whose image encoder runs at the endpoint."""
    return write_repository(folder / "at", image_encoder={"endpoint": endpoint, "files": {}, **image})


def image_encoder(models: OnnxModels) -> ImageEncoder:
    encoder = models.family("tiny").image
    assert encoder is not None
    return encoder


def text_encoder(models: OnnxModels) -> TextEncoder:
    encoder = models.family("tiny").text
    assert encoder is not None
    return encoder


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[tuple[ForeignModel, str]]:
    onnx.save(image_graph(), tmp_path / "foreign.onnx")
    model = ForeignModel(tmp_path / "foreign.onnx", "clip")
    with foreign_server(model) as address:
        yield model, address


async def test_images_are_encoded_by_a_server_that_is_not_ours(
    foreign: tuple[ForeignModel, str], tmp_path: Path
) -> None:
    model, address = foreign
    async with models_of(at(tmp_path, Endpoint(address, "clip"))) as models:
        encoded = await image_encoder(models).encode([png(RED), png(BLUE)])
        (described,) = [one for one in models.models() if one.name == "tiny-image"]

    np.testing.assert_allclose(encoded.vectors, [colour_embedding(RED), colour_embedding(BLUE)], atol=1e-5)
    assert (described.state, described.provider) == (pb.MODEL_STATE_READY, f"endpoint {address}")
    # The first runs of 1 and 2 rows, then the call.
    assert model.rows[:2] == [1, 2]


async def test_an_endpoint_with_other_shapes_fails_its_model_and_names_both(
    foreign: tuple[ForeignModel, str], tmp_path: Path
) -> None:
    _, address = foreign
    wrong = (TensorSpec("image", "float32", (-1, 3, 224, 224)),)
    async with models_of(at(tmp_path, Endpoint(address, "clip"), inputs=wrong)) as models:
        with pytest.raises(FailedPrecondition, match="tiny-image/1 cannot be served: ") as caught:
            await models.open()
        failed = [one.name for one in models.models() if one.state == pb.MODEL_STATE_FAILED]

    assert f"endpoint {address}, model 'clip': input 'image' is FP32[-1, 3, {SIZE}, {SIZE}] there" in str(caught.value)
    assert "the manifest wants FP32[-1, 3, 224, 224]" in str(caught.value)
    assert failed == ["tiny-image"]


async def test_one_batch_travels_while_another_is_computed(foreign: tuple[ForeignModel, str], tmp_path: Path) -> None:
    model, address = foreign
    async with models_of(at(tmp_path, Endpoint(address, "clip"))) as models:
        await models.open()
        while model.running.acquire(blocking=False):
            pass
        model.gate.clear()
        calls = [asyncio.create_task(image_encoder(models).encode([png(RED)] * 4)) for _ in range(3)]
        for _ in range(2):
            assert await asyncio.to_thread(model.running.acquire, timeout=10)
        model.gate.set()

        vectors = [(await call).vectors for call in calls]

    assert [len(rows) for rows in vectors] == [4, 4, 4]


async def test_the_deadline_of_a_caller_reaches_the_endpoint(foreign: tuple[ForeignModel, str], tmp_path: Path) -> None:
    model, address = foreign
    async with models_of(at(tmp_path, Endpoint(address, "clip"))) as models:
        await models.open()
        with deadlines.limited(9.0):
            await image_encoder(models).encode([png(RED)])

    assert model.left_s[-1] == pytest.approx(9, abs=3)


async def test_an_endpoint_at_its_limit_is_told_as_such(foreign: tuple[ForeignModel, str], tmp_path: Path) -> None:
    model, address = foreign
    async with models_of(at(tmp_path, Endpoint(address, "clip"))) as models:
        await models.open()
        model.failure = (grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full")
        with pytest.raises(Overloaded, match="tiny-image/1 refused the call: queue full") as caught:
            await image_encoder(models).encode([png(RED)])

    assert caught.value.retry_after_s == 0.1


@asynccontextmanager
async def listening(folder: Path) -> AsyncIterator[str]:
    """host:port of another server of ours with the family."""
    listener = Listener("127.0.0.1")
    async with models_of(write_repository(folder)) as served:
        await served.open()
        InferenceServicer(served).register(listener.server)
        try:
            yield await listener.start()
        finally:
            await listener.stop(grace_s=0)


@asynccontextmanager
async def bytes_models(tmp_path: Path) -> AsyncIterator[OnnxModels]:
    """A family whose encoders are those of another server of ours, which takes files and texts."""
    async with listening(tmp_path / "served") as address:
        image, text = (Endpoint(address, f"tiny-{kind}", "1", "bytes") for kind in ("image", "text"))
        folder = write_repository(
            tmp_path / "at",
            image_encoder={"endpoint": image},
            text_encoder={"endpoint": text, "inputs": (TensorSpec("text", "bytes", (-1,)),)},
        )
        async with models_of(folder) as models:
            yield models


async def test_files_and_texts_are_sent_as_they_are_to_an_endpoint_that_takes_them(tmp_path: Path) -> None:
    async with bytes_models(tmp_path) as models:
        images = await image_encoder(models).encode([png(RED), png(BLUE), png(RED)])
        texts = await text_encoder(models).encode(["small dog"])
        nothing = await text_encoder(models).encode([])

    np.testing.assert_allclose(images.vectors[1], colour_embedding(BLUE), atol=1e-5)
    np.testing.assert_allclose(texts.vectors, [text_embedding("small dog")], atol=1e-5)
    assert nothing.vectors.shape == (0, DIM)


async def test_what_the_endpoint_says_of_a_file_reaches_the_caller(tmp_path: Path) -> None:
    async with bytes_models(tmp_path) as models:
        with pytest.raises(InvalidRequest, match="is no JPEG, PNG or WebP file") as caught:
            await image_encoder(models).encode([png(RED), b"no picture"])
        cut = await text_encoder(models).encode(["red " * (MAX_TOKENS + 1)])

    assert caught.value.field == "[1]"
    assert [warning.code for warning in cut.warnings] == ["TEXT_TRUNCATED"]


async def test_an_endpoint_with_vectors_of_another_size_is_refused(tmp_path: Path) -> None:
    async with listening(tmp_path / "served") as address:
        endpoint = Endpoint(address, "tiny-image", "", "bytes")
        wrong = {"endpoint": endpoint, "outputs": (TensorSpec("embedding", "float32", (-1, 512)),)}
        async with models_of(write_repository(tmp_path / "at", image_encoder=wrong)) as models:
            with pytest.raises(
                FailedPrecondition, match=rf"FP32\[-1, {DIM}\].* there, the manifest wants FP32\[-1, 512"
            ):
                await models.open()


async def test_an_endpoint_whose_vectors_change_their_size_later_is_refused(tmp_path: Path) -> None:
    async with listening(tmp_path / "served") as address:
        endpoint = Endpoint(address, "tiny-text", "", "bytes")
        inputs, outputs = (TensorSpec("text", "bytes", (-1,)),), (TensorSpec("embedding", "float32", (-1, DIM)),)

        def opened() -> RemoteGraph:
            return RemoteGraph(endpoint, model="tiny-text/1", inputs=inputs, outputs=outputs, max_batch=4)

        encoder = EndpointTextEncoder(ModelRef(name="tiny-text", version=1), opened, dim=DIM + 1)
        with pytest.raises(ServiceError, match=f"vectors of {DIM} numbers, the manifest says {DIM + 1}") as caught:
            await encoder.encode(["red"])
        await encoder.close()

    assert caught.value.reason == "MODEL_OUTPUT_MISMATCH"


async def test_a_graph_may_run_at_another_server_of_ours(tmp_path: Path) -> None:
    async with (
        listening(tmp_path / "served") as address,
        models_of(at(tmp_path, Endpoint(address, "tiny-image", "1"))) as models,
    ):
        encoded = await image_encoder(models).encode([png(BLUE)])

    np.testing.assert_allclose(encoded.vectors, [colour_embedding(BLUE)], atol=1e-5)
