"""Graphs at an endpoint that is not ours."""

import dataclasses
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from tests.unit.server.model_fixtures import (
    COLOUR_TO_SPACE,
    DIM,
    MAX_TOKENS,
    SIZE,
    composer_graph,
    image_graph,
    text_graph,
    word_rows,
)
from tests.unit.server.remote.foreign_server import ForeignModel, foreign_server

from likewise.export.manifest import Endpoint, TensorSpec
from likewise.internal.inference.v1 import inference_pb2 as pb
from likewise.server.errors import (
    DeadlinePassed,
    FailedPrecondition,
    Overloaded,
    ServiceError,
    Unavailable,
)
from likewise.server.graph_trial import SessionError
from likewise.server.remote import deadlines
from likewise.server.remote.endpoint_contract import Agreement, agree
from likewise.server.remote.remote_graph import RemoteGraph

PIXELS = TensorSpec("image", "float32", (-1, 3, SIZE, SIZE))
EMBEDDING = TensorSpec("embedding", "float32", (-1, DIM))


class Foreign:
    """A foreign server with one graph, and graphs of ours on it."""

    def __init__(self, folder: Path) -> None:
        onnx.save(image_graph(), folder / "model.onnx")
        self.model = ForeignModel(folder / "model.onnx", "clip")
        self.address = ""
        self._opened: list[RemoteGraph] = []

    def open(self, **changes: Any) -> RemoteGraph:
        endpoint = dataclasses.replace(Endpoint(self.address, "clip"), **changes.pop("endpoint", {}))
        arguments = {"inputs": (PIXELS,), "outputs": (EMBEDDING,), "max_batch": 16, **changes}
        graph = RemoteGraph(endpoint, model="tiny-image/1", **arguments)
        self._opened.append(graph)
        # The first runs are no part of what a test counts.
        self.model.rows.clear()
        self.model.left_s.clear()
        while self.model.running.acquire(blocking=False):
            pass
        return graph

    def close(self) -> None:
        for graph in self._opened:
            graph.close()


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Foreign]:
    made = Foreign(tmp_path)
    with foreign_server(made.model) as address:
        made.address = address
        yield made
        made.close()


def pixels(rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(rows).standard_normal((rows, 3, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 2, 7, 16])
def test_a_batch_comes_back_as_the_graph_says(foreign: Foreign, rows: int) -> None:
    graph = foreign.open()

    outputs = graph.run({"image": pixels(rows)})

    np.testing.assert_allclose(outputs["embedding"], pixels(rows).mean(axis=(2, 3)) @ COLOUR_TO_SPACE, atol=1e-5)
    assert foreign.model.rows == [rows]
    assert graph.provider == f"endpoint {foreign.address}"


def test_token_ids_and_pairs_travel_too(foreign: Foreign, tmp_path: Path) -> None:
    tokens = TensorSpec("tokens", "int32", (-1, MAX_TOKENS))
    pair = tuple(TensorSpec(name, "float32", (-1, DIM)) for name in ("reference", "condition"))
    rows = np.eye(2, DIM, dtype=np.float32)
    for name, proto in (("text", text_graph()), ("composer", composer_graph())):
        onnx.save(proto, tmp_path / f"{name}.onnx")

    with foreign_server(ForeignModel(tmp_path / "text.onnx", "clip")) as foreign.address:
        ids = np.array([[3, 4, 0, 0, 0, 0]], np.int32)
        texts = foreign.open(inputs=(tokens,)).run({"tokens": ids})["embedding"]
    with foreign_server(ForeignModel(tmp_path / "composer.onnx", "clip")) as foreign.address:
        queries = foreign.open(inputs=pair).run({"reference": rows, "condition": rows})["embedding"]

    np.testing.assert_allclose(texts[0], word_rows()[[3, 4]].sum(axis=0), atol=1e-5)
    np.testing.assert_allclose(queries, rows, atol=1e-6)


def test_a_batch_over_the_endpoints_limit_goes_in_parts(foreign: Foreign) -> None:
    foreign.model.max_batch = 4
    graph = foreign.open(max_batch=64)

    outputs = graph.run({"image": pixels(10)})

    assert foreign.model.rows == [4, 4, 2]
    np.testing.assert_allclose(outputs["embedding"], pixels(10).mean(axis=(2, 3)) @ COLOUR_TO_SPACE, atol=1e-5)


def test_a_batch_over_the_size_of_a_message_goes_in_parts(foreign: Foreign, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = foreign.open()
    monkeypatch.setattr("likewise.server.remote.remote_graph.MAX_INPUT_BYTES", 3 * pixels(1).nbytes)

    graph.run({"image": pixels(7)})

    assert foreign.model.rows == [3, 3, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"inputs": (TensorSpec("image", "float32", (-1, 3, 224, 224)),)},
            rf"input 'image' is FP32\[-1, 3, {SIZE}, {SIZE}\] there, the manifest wants FP32\[-1, 3, 224, 224\]",
            id="shape",
        ),
        pytest.param(
            {"inputs": (TensorSpec("image", "int32", PIXELS.shape),)},
            r"input 'image' is FP32\[.*the manifest wants INT32\[",
            id="datatype",
        ),
        pytest.param(
            {"inputs": (TensorSpec("pixels", "float32", PIXELS.shape),)},
            "it has no input 'pixels', which the manifest names; there: 'image'",
            id="input name",
        ),
        pytest.param(
            {"outputs": (TensorSpec("features", "float32", (-1, DIM)),)},
            "it has no output 'features', which the manifest names; there: 'embedding'",
            id="output name",
        ),
        pytest.param(
            {"outputs": (TensorSpec("embedding", "float32", (-1, 512)),)},
            rf"output 'embedding' is FP32\[-1, {DIM}\] there, the manifest wants FP32\[-1, 512\]",
            id="dimension",
        ),
        pytest.param(
            {"endpoint": {"model": "siglip"}}, "model 'siglip': NOT_FOUND: Request for unknown model", id="model"
        ),
        pytest.param(
            {"endpoint": {"contents": "bytes"}},
            r"input 'image' is FP32\[.*the manifest wants BYTES\[-1\]",
            id="no encoded images",
        ),
    ],
)
def test_an_endpoint_with_other_tensors_is_refused_when_it_is_opened(
    foreign: Foreign, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SessionError, match=message) as caught:
        foreign.open(**changes)

    assert str(caught.value).startswith(f"endpoint {foreign.address}, model ")
    assert foreign.model.rows == []


def test_an_endpoint_with_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    fixed = image_graph()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, tmp_path / "model.onnx")

    with (
        foreign_server(ForeignModel(tmp_path / "model.onnx", "clip")) as address,
        pytest.raises(SessionError, match=rf"is FP32\[1, 3, {SIZE}, {SIZE}\] there, the manifest wants FP32\[-1, 3"),
    ):
        RemoteGraph(Endpoint(address, "clip"), model="m/1", inputs=(PIXELS,), outputs=(EMBEDDING,), max_batch=4)


def test_an_endpoint_whose_model_is_not_ready_is_refused(foreign: Foreign) -> None:
    foreign.model.is_ready = False

    with pytest.raises(SessionError, match="model 'clip': it is there but not ready"):
        foreign.open()


def test_an_endpoint_that_needs_another_input_is_refused_by_the_first_run(foreign: Foreign, tmp_path: Path) -> None:
    onnx.save(composer_graph(), tmp_path / "composer.onnx")

    with (
        foreign_server(ForeignModel(tmp_path / "composer.onnx", "clip")) as foreign.address,
        pytest.raises(SessionError, match=r"model 'clip': a first run failed: .*refused what it was sent"),
    ):
        foreign.open(inputs=(TensorSpec("reference", "float32", (-1, DIM)),))


def test_an_address_where_nobody_listens_is_refused() -> None:
    endpoint = Endpoint("127.0.0.1:1", "clip")

    with pytest.raises(SessionError, match=r"endpoint 127\.0\.0\.1:1, model 'clip': it does not answer"):
        RemoteGraph(endpoint, model="tiny-image/1", inputs=(PIXELS,), outputs=(EMBEDDING,), max_batch=4)


def test_a_server_without_the_protocol_is_refused() -> None:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        endpoint = Endpoint(f"127.0.0.1:{port}", "clip")
        with pytest.raises(SessionError, match="it does not speak the Open Inference Protocol"):
            RemoteGraph(endpoint, model="m/1", inputs=(PIXELS,), outputs=(EMBEDDING,), max_batch=4)
        server.stop(0).wait()


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable, "the endpoint of the model tiny-image/1 does not answer"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded, "refused the call: no"),
        (grpc.StatusCode.INVALID_ARGUMENT, FailedPrecondition, "refused what it was sent: no"),
        (grpc.StatusCode.NOT_FOUND, FailedPrecondition, "refused what it was sent: no"),
        (grpc.StatusCode.INTERNAL, ServiceError, "the endpoint of the model tiny-image/1 failed: INTERNAL"),
        (grpc.StatusCode.UNKNOWN, ServiceError, "failed: UNKNOWN"),
    ],
)
def test_a_failure_of_the_endpoint_becomes_one_of_ours(
    foreign: Foreign, code: grpc.StatusCode, error: type[ServiceError], message: str
) -> None:
    graph = foreign.open()
    foreign.model.failure = (code, "no")

    with pytest.raises(error, match=message) as caught:
        graph.run({"image": pixels(1)})

    assert type(caught.value) is error
    assert foreign.address not in str(caught.value)


def test_an_answer_of_another_size_is_refused(foreign: Foreign) -> None:
    graph = foreign.open()
    foreign.model.forget_rows = 1

    with pytest.raises(ServiceError, match=rf"'embedding' has the shape \[2, {DIM}\], not \[3, {DIM}\]") as caught:
        graph.run({"image": pixels(3)})

    assert caught.value.reason == "MODEL_OUTPUT_MISMATCH"


def test_the_callers_deadline_reaches_the_endpoint(foreign: Foreign) -> None:
    graph = foreign.open()

    with deadlines.limited(7.0):
        graph.run({"image": pixels(1)})
    graph.run({"image": pixels(1)})

    limited, unlimited = foreign.model.left_s
    assert limited == pytest.approx(7, abs=2)
    # Nobody's deadline: a hanging endpoint is given up all the same.
    assert unlimited == pytest.approx(60, abs=5)


def test_an_endpoint_that_hangs_is_given_up_at_the_deadline(foreign: Foreign) -> None:
    graph = foreign.open()
    foreign.model.gate.clear()

    with deadlines.limited(0.05), pytest.raises(DeadlinePassed, match=r"did not answer within 0\.0"):
        graph.run({"image": pixels(1)})


def test_closing_ends_a_call_that_hangs_and_refuses_the_next(foreign: Foreign) -> None:
    graph = foreign.open()
    foreign.model.gate.clear()
    failures: list[Exception] = []

    def run() -> None:
        try:
            graph.run({"image": pixels(1)})
        except Unavailable as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert foreign.model.running.acquire(timeout=10)
    graph.close()
    thread.join(10)

    assert len(failures) == 1
    with pytest.raises(Unavailable):
        graph.run({"image": pixels(1)})


def described(*shapes: list[int], datatype: str = "FP32") -> pb.ModelMetadataResponse:
    return pb.ModelMetadataResponse(
        inputs=[pb.TensorMetadata(name="in", datatype=datatype, shape=shape) for shape in shapes],
        outputs=[pb.TensorMetadata(name="out", datatype="FP32", shape=[-1, -1])],
    )


def agreed(metadata: pb.ModelMetadataResponse, spec: TensorSpec, *, config: pb.ModelConfig | None = None) -> Agreement:
    outputs = (TensorSpec("out", "float32", (-1, DIM)),)
    endpoint = Endpoint("triton:8001", "clip")
    return agree(endpoint, metadata, inputs=(spec,), outputs=outputs, max_batch=32, config=config)


@pytest.mark.parametrize(
    "shape", [pytest.param([-1, 3, 8, 8], id="as asked"), pytest.param([-1, 3, -1, -1], id="open sizes")]
)
def test_a_size_that_an_endpoint_leaves_open_fits_any(shape: list[int]) -> None:
    assert agreed(described(shape), TensorSpec("in", "float32", (-1, 3, 8, 8))) == Agreement(max_batch=32)


def test_an_input_may_have_alternatives_of_the_same_name() -> None:
    metadata = described([-1, 3, 8, 8])
    metadata.inputs.insert(0, pb.TensorMetadata(name="in", datatype="BYTES", shape=[-1, 1]))

    assert agreed(metadata, TensorSpec("in", "float32", (-1, 3, 8, 8))).axes == 1
    assert agreed(metadata, TensorSpec("in", "bytes", (-1,))).axes == 2


@pytest.mark.parametrize(("limit", "expected"), [(8, 8), (64, 32), (0, 32)])
def test_the_smaller_largest_batch_holds(limit: int, expected: int) -> None:
    spec = TensorSpec("in", "float32", (-1, 4))

    assert agreed(described([-1, 4]), spec, config=pb.ModelConfig(max_batch_size=limit)).max_batch == expected
