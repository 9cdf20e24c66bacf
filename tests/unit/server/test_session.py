from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from tests.unit.server.model_fixtures import COLOUR_TO_SPACE, DIM, SIZE, composer_graph, image_graph, text_graph

from likewise.export.manifest import TensorSpec
from likewise.server.session import CPU, CUDA, BoundRun, Runtime, Session, SessionError

IMAGE = TensorSpec("image", "float32", (-1, 3, SIZE, SIZE))
EMBEDDING = TensorSpec("embedding", "float32", (-1, DIM))
NOWHERE = "TensorrtExecutionProvider"


def opened(
    folder: Path,
    graph: onnx.ModelProto,
    *,
    runtime: Runtime | None = None,
    inputs: tuple[TensorSpec, ...] = (IMAGE,),
    outputs: tuple[TensorSpec, ...] = (EMBEDDING,),
) -> Session:
    path = folder / "model.onnx"
    onnx.save(graph, path)
    return Session(path, runtime or Runtime(), inputs=inputs, outputs=outputs)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 33])
def test_a_session_runs_batches_of_any_size(tmp_path: Path, batch: int) -> None:
    session = opened(tmp_path, image_graph())
    pixels = np.random.default_rng(0).standard_normal((batch, 3, SIZE, SIZE)).astype(np.float32)

    outputs = session.run({"image": pixels})

    assert list(outputs) == ["embedding"]
    np.testing.assert_allclose(outputs["embedding"], pixels.mean(axis=(2, 3)) @ COLOUR_TO_SPACE, atol=1e-5)
    assert session.provider == CPU


def test_a_provider_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=f"{NOWHERE} was asked for, this ONNX Runtime has .*CPUExecutionProvider"):
        opened(tmp_path, image_graph(), runtime=Runtime((NOWHERE, CPU)))


def test_a_provider_that_is_not_there_may_be_replaced_when_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = opened(tmp_path, image_graph(), runtime=Runtime((NOWHERE, CPU), allow_fallback=True))

    assert session.provider == CPU
    assert f"runs on {CPU}, not on {NOWHERE}" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(CUDA not in onnxruntime.get_available_providers(), reason="this ONNX Runtime has no CUDA")
def test_a_gpu_gives_what_the_processor_gives(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).standard_normal((5, 3, SIZE, SIZE)).astype(np.float32)

    gpu = opened(tmp_path, image_graph(), runtime=Runtime((CUDA, CPU)))

    assert gpu.provider == CUDA
    expected = opened(tmp_path, image_graph()).run({"image": pixels})["embedding"]
    np.testing.assert_allclose(gpu.run({"image": pixels})["embedding"], expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("allowed", [False, True])
def test_a_provider_that_fails_to_start_is_found_out_after_the_session_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, allowed: bool
) -> None:
    # A wheel with the provider on a machine without its driver: listed, asked for, and silently left out.
    monkeypatch.setattr("likewise.server.session.onnxruntime.get_available_providers", lambda: [NOWHERE, CPU])
    runtime = Runtime((NOWHERE, CPU), allow_fallback=allowed)

    if not allowed:
        with pytest.raises(SessionError, match=f"{NOWHERE} was asked for, ONNX Runtime gave {CPU}"):
            opened(tmp_path, image_graph(), runtime=runtime)
        return

    assert opened(tmp_path, image_graph(), runtime=runtime).provider == CPU
    assert f"runs on {CPU}, not on {NOWHERE}" in caplog.text


def test_bound_inputs_and_outputs_give_what_a_plain_run_gives(tmp_path: Path) -> None:
    onnx.save(composer_graph(), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=[CPU])
    rows = np.random.default_rng(0).standard_normal((2, 5, DIM)).astype(np.float32)
    # Views that are not contiguous: what a device copies is.
    feeds = {"reference": rows[0, ::2], "condition": rows[1, ::2]}

    bound = BoundRun(session, "cpu")

    (expected,) = session.run(["embedding"], feeds)
    for _ in range(2):
        np.testing.assert_array_equal(bound(feeds, ["embedding"])["embedding"], expected)


@pytest.mark.gpu
@pytest.mark.skipif(CUDA not in onnxruntime.get_available_providers(), reason="this ONNX Runtime has no CUDA")
def test_a_gpu_keeps_to_the_memory_it_was_given(tmp_path: Path) -> None:
    runtime = Runtime((CUDA, CPU), gpu_memory_bytes=1 << 30)

    session = opened(tmp_path, image_graph(), runtime=runtime)

    assert session.provider == CUDA
    assert session._session.get_provider_options()[CUDA]["gpu_mem_limit"] == str(1 << 30)


@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA")
def test_a_gpu_that_is_not_there_is_refused_unless_the_processor_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=f"{CUDA} was asked for"):
        opened(tmp_path, image_graph(), runtime=Runtime((CUDA, CPU)))

    assert opened(tmp_path, image_graph(), runtime=Runtime((CUDA, CPU), allow_fallback=True)).provider == CPU


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec("picture", "float32", IMAGE.shape), r"the graph's inputs are \['image'\].*\['picture'\]"),
        (TensorSpec("image", "int32", IMAGE.shape), "input 'image' is float32, in the manifest int32"),
        (TensorSpec("image", "float32", (-1, 3, 224, 224)), f"axis 2 of input 'image' is {SIZE}, in the manifest 224"),
        (TensorSpec("image", "float32", (-1, 3)), "input 'image' has the shape"),
    ],
)
def test_inputs_other_than_the_manifests_are_refused(tmp_path: Path, spec: TensorSpec, message: str) -> None:
    with pytest.raises(SessionError, match=message):
        opened(tmp_path, image_graph(), inputs=(spec,))


def test_outputs_other_than_the_manifests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=f"axis 1 of output 'embedding' is {DIM}, in the manifest 512"):
        opened(tmp_path, image_graph(), outputs=(TensorSpec("embedding", "float32", (-1, 512)),))


def test_a_graph_with_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    graph = image_graph()
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    with pytest.raises(SessionError, match="axis 0 of input 'image' is 1, in the manifest -1"):
        opened(tmp_path, graph)


def test_a_graph_that_does_not_keep_its_batch_is_refused(tmp_path: Path) -> None:
    graph = image_graph()
    graph.graph.node[-1].output[0] = "once"
    graph.graph.node.append(helper.make_node("Concat", ["once", "once"], ["embedding"], axis=0))
    graph.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "twice"

    with pytest.raises(SessionError, match=rf"of a batch of 1 has the shape \(2, {DIM}\), not \(1, {DIM}\)"):
        opened(tmp_path, graph)


def test_a_graph_that_gives_nan_is_refused(tmp_path: Path) -> None:
    graph = composer_graph()
    for node in graph.graph.node:
        if node.op_type == "Div":
            node.input[1] = "norm"
    inputs = (TensorSpec("reference", "float32", (-1, DIM)), TensorSpec("condition", "float32", (-1, DIM)))

    with pytest.raises(SessionError, match="output 'embedding' of zeros is not finite"):
        opened(tmp_path, graph, inputs=inputs)


def test_a_file_that_is_no_graph_is_refused_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")

    with pytest.raises(SessionError, match=r"^model\.onnx cannot be loaded"):
        Session(path, Runtime(), inputs=(IMAGE,), outputs=(EMBEDDING,))


def test_feeds_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tokens = TensorSpec("tokens", "int32", (-1, 6))
    session = opened(tmp_path, text_graph(), inputs=(tokens,))

    with pytest.raises(SessionError, match="failed to run"):
        session.run({"tokens": np.zeros((1, 6), np.float32)})
    with pytest.raises(SessionError, match="failed to run"):
        session.run({"words": np.zeros((1, 6), np.int32)})


def test_no_threads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="threads must be at least 1, got 0"):
        opened(tmp_path, image_graph(), runtime=Runtime(threads=0))
