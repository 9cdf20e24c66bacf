"""A server of the Open Inference Protocol that shares no line with ours.

Messages and stubs are those that the released tritonclient package generated, the graph runs in onnxruntime directly.
`python foreign_server.py MODEL.onnx NAME` serves one in a process of its own and prints its address.
"""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import onnxruntime
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import triton_to_np_dtype

Array = npt.NDArray[Any]

_TYPES = {"tensor(float)": "FP32", "tensor(int32)": "INT32", "tensor(int64)": "INT64"}


class ForeignModel(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """One ONNX graph under one name.

    Attributes:
        rows: Rows of each call so far.
        left_s: Seconds that the caller of each gave it.
        failure: Status and text to answer with while set.
        gate: Calls wait for it; open at first.
        running: Calls that wait or run.
        is_ready: What ModelReady says.
        max_batch: Triton's max_batch_size; None: the server has no configurations, as KServe's have none.
        forget_rows: Rows left out of each answer.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._name = name
        self.rows: list[int] = []
        self.left_s: list[float | None] = []
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Semaphore(0)
        self.is_ready = True
        self.max_batch: int | None = None
        self.forget_rows = 0

    def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=self.is_ready and request.name == self._name)

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        self._check(request.name, context)
        return service_pb2.ModelMetadataResponse(
            name=self._name,
            versions=["1"],
            platform="onnxruntime_onnx",
            inputs=[_metadata(node) for node in self._session.get_inputs()],
            outputs=[_metadata(node) for node in self._session.get_outputs()],
        )

    def ModelConfig(self, request: Any, context: Any) -> Any:
        if self.max_batch is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no configurations here")
        config = model_config_pb2.ModelConfig(name=self._name, max_batch_size=self.max_batch)
        return service_pb2.ModelConfigResponse(config=config)

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self._check(request.model_name, context)
        feeds = {
            tensor.name: np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).reshape(tuple(tensor.shape))
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        rows = len(next(iter(feeds.values())))
        self.rows.append(rows)
        self.left_s.append(context.time_remaining())
        self.running.release()
        self.gate.wait(60)
        if self.failure is not None:
            context.abort(*self.failure)
        if self.max_batch is not None and rows > self.max_batch:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"batch-size must be <= {self.max_batch}")
        response = service_pb2.ModelInferResponse(model_name=self._name, model_version="1")
        wanted = [output.name for output in request.outputs]
        try:
            values = self._session.run(wanted, feeds)
        except Exception as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        for name, value in zip(wanted, values, strict=True):
            value = value[: len(value) - self.forget_rows]
            response.outputs.add(name=name, datatype="FP32", shape=value.shape)
            response.raw_output_contents.append(np.ascontiguousarray(value).tobytes())
        return response

    def _check(self, name: str, context: Any) -> None:
        if name != self._name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")


@contextmanager
def foreign_server(model: ForeignModel) -> Iterator[str]:
    """host:port of a server with that model."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(model, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            model.gate.set()
            server.stop(0).wait()


def _metadata(node: Any) -> Any:
    return service_pb2.ModelMetadataResponse.TensorMetadata(
        name=node.name,
        datatype=_TYPES[node.type],
        shape=[size if isinstance(size, int) else -1 for size in node.shape],
    )


if __name__ == "__main__":
    with foreign_server(ForeignModel(Path(sys.argv[1]), sys.argv[2])) as address:
        print(f"serving on {address}", flush=True)
        sys.stdin.read()
