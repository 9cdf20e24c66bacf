"""Images are decoded and encoded in bounded batches, in order, and a bad one is named."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tests.unit.server.encoders.summing_graph import DIM, MODEL, FakeGraph, grey
from tests.unit.server.model_fixtures import png

from likewise.export.preprocess import Preprocessing
from likewise.server import image_encoder
from likewise.server.batched_graph import Serving
from likewise.server.batcher import BatchLimits, BatchReport
from likewise.server.errors import InvalidRequest, Overloaded, ServiceError
from likewise.server.image_encoder import OnnxImageEncoder
from likewise.server.images import ImageLimits
from likewise.server.protocols import Encoded


def images_of(graph: FakeGraph, serving: Serving, **preprocessing: Any) -> OnnxImageEncoder:
    return OnnxImageEncoder(
        MODEL,
        graph,
        serving=serving,
        input="in",
        output="out",
        dim=DIM,
        preprocessing=Preprocessing(size=2, mean=(0, 0, 0), std=(1, 1, 1), **preprocessing),
        limits=ImageLimits(max_pixels=1_000),
    )


@pytest.fixture
async def images(graph: FakeGraph, serving: Serving) -> AsyncIterator[OnnxImageEncoder]:
    encoder = images_of(graph, serving)
    yield encoder
    graph.gate.set()
    await encoder.close()


async def test_images_come_back_in_order_however_many(images: OnnxImageEncoder, graph: FakeGraph) -> None:
    levels = [(37 * i) % 256 for i in range(50)]

    encoded = await images.encode([grey(level) for level in levels])

    assert encoded.vectors.shape == (50, DIM)
    assert encoded.vectors.dtype == np.float32
    np.testing.assert_allclose(encoded.vectors[:, 0], [12 * level / 255 for level in levels], rtol=1e-5)
    assert max(graph.sizes) <= 4
    assert graph.batches[0]["in"].shape[1:] == (3, 2, 2)
    assert encoded.decode_us > 0
    assert encoded.encode_us >= 0


async def test_a_large_call_leaves_places_for_others(images: OnnxImageEncoder, graph: FakeGraph) -> None:
    graph.gate.clear()
    large = asyncio.create_task(images.encode([grey(1)] * 200))
    assert await asyncio.to_thread(graph.started.acquire, timeout=10)

    single = asyncio.create_task(images.encode([grey(255)]))
    await asyncio.sleep(0)
    graph.gate.set()

    assert (await single).vectors[0, 0] == pytest.approx(12)
    assert not large.done()
    assert (await large).vectors.shape == (200, DIM)


class CountingPool(Executor):
    """Counts what was submitted and has not finished."""

    def __init__(self, pool: Executor) -> None:
        self.pool = pool
        self.pending = 0
        self.peak = 0
        self.submitted = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.pending += 1
        self.submitted += 1
        self.peak = max(self.peak, self.pending)
        future = self.pool.submit(function, *args, **kwargs)
        future.add_done_callback(self._finished)
        return future

    def _finished(self, future: Future[Any]) -> None:
        self.pending -= 1


async def test_a_batch_is_decoded_by_its_own_thread_and_by_those_of_the_pool(graph: FakeGraph) -> None:
    with ThreadPoolExecutor(3) as threads:
        pool = CountingPool(threads)
        encoder = images_of(graph, Serving(pool, 3, BatchLimits(max_batch=8, max_items=16)))

        encoded = await encoder.encode([grey(i) for i in range(8)])

        assert pool.peak <= 2
        assert pool.submitted == 2
        np.testing.assert_allclose(encoded.vectors[:, 0], [12 * i / 255 for i in range(8)], rtol=1e-5)
        await encoder.close()


async def test_heavy_files_make_small_batches(
    graph: FakeGraph, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_encoder, "BATCH_BYTES", len(grey(1)))
    encoder = images_of(graph, serving)

    await encoder.encode([grey(1)] * 8)

    assert max(graph.sizes) == serving.workers
    await encoder.close()


async def test_a_picture_by_itself_needs_no_other_thread(graph: FakeGraph) -> None:
    with ThreadPoolExecutor(3) as threads:
        pool = CountingPool(threads)
        encoder = images_of(graph, Serving(pool, 3, BatchLimits(max_batch=8, max_items=16)))

        await encoder.encode([grey(1)])

        assert pool.submitted == 0
        await encoder.close()


async def test_pictures_that_come_while_a_batch_runs_are_the_next(images: OnnxImageEncoder, graph: FakeGraph) -> None:
    graph.gate.clear()
    first = asyncio.create_task(images.encode([grey(1)]))
    assert await asyncio.to_thread(graph.started.acquire, timeout=10)

    later = [asyncio.create_task(images.encode([grey(i)])) for i in (2, 3, 4)]
    await asyncio.sleep(0)
    graph.gate.set()
    await asyncio.gather(first, *later)

    assert graph.sizes == [1, 3]


async def test_pictures_are_decoded_while_a_batch_is_with_a_device_that_runs_two(graph: FakeGraph) -> None:
    graph.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        encoder = images_of(graph, Serving(threads, 1, BatchLimits(max_batch=2, max_items=16, max_running=2)))
        first = asyncio.create_task(encoder.encode([grey(1)]))
        assert await asyncio.to_thread(graph.started.acquire, timeout=10)

        second = asyncio.create_task(encoder.encode([grey(2)]))
        # It has come as far as the graph, so it is decoded, and the first is there still.
        assert await asyncio.to_thread(graph.started.acquire, timeout=10)

        assert not first.done()
        graph.gate.set()
        await asyncio.gather(first, second)
        await encoder.close()


async def test_images_beyond_the_queue_are_refused_before_they_are_decoded(
    images: OnnxImageEncoder, graph: FakeGraph
) -> None:
    graph.gate.clear()
    waiting = [asyncio.create_task(images.encode([grey(i)] * 8)) for i in range(2)]
    assert await asyncio.to_thread(graph.started.acquire, timeout=10)

    with pytest.raises(Overloaded, match="16 items, the limit is 16"):
        await images.encode([b"not looked at"])

    graph.gate.set()
    await asyncio.gather(*waiting)


async def test_a_bad_image_is_named_and_frees_the_queue(images: OnnxImageEncoder) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await images.encode([grey(1), grey(2), b"text.png", grey(3)])

    assert (caught.value.field, caught.value.reason) == ("[2]", "IMAGE_UNDECODABLE")
    assert (await images.encode([grey(255)])).vectors[0, 0] == pytest.approx(12)


async def test_a_bad_image_is_its_callers_alone(images: OnnxImageEncoder, graph: FakeGraph) -> None:
    graph.gate.clear()
    first = asyncio.create_task(images.encode([grey(1)]))
    assert await asyncio.to_thread(graph.started.acquire, timeout=10)
    good, bad, other = (
        asyncio.create_task(images.encode(pictures)) for pictures in ([grey(255)], [grey(1), b"no picture"], [grey(0)])
    )
    await asyncio.sleep(0)
    graph.gate.set()

    outcomes = await asyncio.gather(first, good, bad, other, return_exceptions=True)

    assert graph.sizes == [1, 3]
    assert [type(outcome) for outcome in outcomes] == [Encoded, Encoded, InvalidRequest, Encoded]
    assert isinstance(outcomes[1], Encoded)
    assert outcomes[1].vectors[0, 0] == pytest.approx(12)
    assert isinstance(outcomes[3], Encoded)
    assert outcomes[3].vectors[0, 0] == 0
    assert isinstance(outcomes[2], InvalidRequest)
    assert outcomes[2].field == "[1]"


async def test_a_batch_of_bad_images_runs_no_graph(images: OnnxImageEncoder, graph: FakeGraph) -> None:
    with pytest.raises(InvalidRequest):
        await images.encode([b"no picture"])

    assert graph.batches == []


async def test_image_limits_apply(images: OnnxImageEncoder) -> None:
    with pytest.raises(InvalidRequest, match=r"1,200 pixels, the limit is 1,000") as caught:
        await images.encode([png((0, 0, 0), (40, 30))])

    assert caught.value.reason == "IMAGE_TOO_LARGE"


async def test_a_strip_that_padding_would_blow_up_is_refused(graph: FakeGraph, serving: Serving) -> None:
    encoder = images_of(graph, serving, targetpad=1.25)

    with pytest.raises(InvalidRequest, match=r"would be padded to 800,000, the limit is 1,000") as caught:
        await encoder.encode([png((0, 0, 0), (1_000, 1))])

    assert caught.value.reason == "IMAGE_TOO_LARGE"
    assert (await encoder.encode([png((255, 255, 255), (20, 16))])).vectors[0, 0] == pytest.approx(12)
    await encoder.close()


async def test_numbers_that_are_not_finite_never_leave_an_encoder(serving: Serving) -> None:
    encoder = images_of(FakeGraph(float("nan")), serving)

    with pytest.raises(ServiceError, match="fake/2 gave numbers that are not finite") as caught:
        await encoder.encode([grey(1)])

    assert caught.value.reason == "MODEL_OUTPUT_NOT_FINITE"
    await encoder.close()


async def test_a_cancelled_call_gives_back_its_places(images: OnnxImageEncoder, graph: FakeGraph) -> None:
    graph.gate.clear()
    call = asyncio.create_task(images.encode([grey(1)] * 100))
    assert await asyncio.to_thread(graph.started.acquire, timeout=10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    graph.gate.set()

    await asyncio.gather(*(images.encode([grey(2)] * 8) for _ in range(2)))

    assert sum(graph.sizes) <= 4 + 16


async def test_batches_are_reported_by_model(images: OnnxImageEncoder, reports: list[BatchReport]) -> None:
    await images.encode([grey(1)])

    assert [(report.name, report.size) for report in reports] == [("fake/2", 1)]


async def test_a_call_without_images_gives_no_rows(images: OnnxImageEncoder) -> None:
    assert (await images.encode([])).vectors.shape == (0, DIM)
