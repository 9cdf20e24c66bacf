"""A graph that runs at an Open Inference Protocol endpoint (Triton, KServe, Likewise) instead of in this process."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from likewise.export.manifest import Endpoint, TensorSpec
from likewise.internal.inference.v1 import inference_pb2 as pb
from likewise.server.errors import ServiceError
from likewise.server.graph_trial import SessionError, try_out
from likewise.server.remote import tensors
from likewise.server.remote.endpoint_client import EndpointClient
from likewise.server.remote.endpoint_contract import Agreement, agree, place
from likewise.server.remote.inference_stub import MAX_INPUT_BYTES

RUNNING: Final = 2
"""Batches on their way at a time: one computes while the next travels."""

_TRIAL_TEXT: Final = b"a photo"
_TRIAL_SIZE: Final = (32, 32)

Array = npt.NDArray[Any]


class RemoteGraph:
    """What `session.Session` is to a graph of this process. Everything blocks; `run` may be called from any thread.

    With contents "tensors" it runs batches, cut to what the endpoint takes at once, within the current deadline. With
    contents "bytes" it only proves that the model there is usable: `endpoint_encoder` sends the calls.

    Args:
        endpoint: Where it is.
        model: Name and version of our own.
        inputs: What the graph takes; the first axis is the batch.
        outputs: What it gives.
        max_batch: Most rows of one run; the endpoint's own limit lowers it.
        images: With contents "bytes": whether they are images, not texts.

    Attributes:
        provider: Where it runs, for people.
        agreement: How the endpoint is called.

    Raises:
        SessionError: If the endpoint cannot be reached, has other tensors, or fails a first run.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        model: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        max_batch: int,
        images: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.provider = f"endpoint {endpoint.address}"
        self._model = model
        self._client = EndpointClient(endpoint, model=model)
        try:
            self.agreement = self._agree(max_batch)
            self._try_out(images)
        except ServiceError as error:
            self.close()
            raise SessionError(f"{place(endpoint)}: a first run failed: {error}") from error
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch, in as many messages as it takes.

        Raises:
            ServiceError: See `EndpointClient.infer`; INTERNAL if the answer is not what the manifest says.
        """
        rows = len(next(iter(feeds.values())))
        row_bytes = sum(feed[:1].nbytes for feed in feeds.values())
        step = max(1, min(self.agreement.max_batch, MAX_INPUT_BYTES // max(1, row_bytes)))
        if rows <= step:
            return self._run(feeds, rows)
        parts = [
            self._run({name: feed[start : start + step] for name, feed in feeds.items()}, min(step, rows - start))
            for start in range(0, rows, step)
        ]
        return {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in self.outputs}

    def close(self) -> None:
        """End the calls in progress and the connection."""
        self._client.close()

    def _agree(self, max_batch: int) -> Agreement:
        metadata, config = self._client.describe()
        if self.endpoint.contents == "bytes":
            inputs = tuple(TensorSpec(spec.name, "bytes", (-1,)) for spec in self.inputs)
        else:
            inputs = self.inputs
        return agree(self.endpoint, metadata, inputs=inputs, outputs=self.outputs, max_batch=max_batch, config=config)

    def _try_out(self, images: bool) -> None:
        if self.endpoint.contents == "tensors":
            try_out(self.run, inputs=self.inputs, outputs=self.outputs)
            return
        request = self._client.request()
        for spec in self.inputs:
            tensors.add_bytes(request, spec.name, [_picture() if images else _TRIAL_TEXT], axes=self.agreement.axes)
        self._outputs_of(request, rows=1)

    def _run(self, feeds: Mapping[str, Array], rows: int) -> dict[str, Array]:
        request = self._client.request()
        for spec in self.inputs:
            tensors.add_array(request, spec.name, feeds[spec.name])
        return self._outputs_of(request, rows=rows)

    def _outputs_of(self, request: pb.ModelInferRequest, *, rows: int) -> dict[str, Array]:
        for spec in self.outputs:
            request.outputs.add(name=spec.name)
        response = self._client.infer(request)
        values: dict[str, Array] = {}
        for spec in self.outputs:
            try:
                value = tensors.output_array(response, spec.name, spec.dtype)
            except ValueError as error:
                raise self._unlike(str(error)) from error
            expected = (rows, *spec.shape[1:])
            if value.ndim != len(expected) or any(
                want not in (-1, got) for want, got in zip(expected, value.shape, strict=True)
            ):
                raise self._unlike(f"output {spec.name!r} has the shape {list(value.shape)}, not {list(expected)}")
            values[spec.name] = value
        return values

    def _unlike(self, why: str) -> ServiceError:
        return ServiceError(
            f"the endpoint of the model {self._model} gave what the manifest does not say: {why}",
            reason="MODEL_OUTPUT_MISMATCH",
        )


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", _TRIAL_SIZE, (128, 128, 128)).save(buffer, "PNG")
    return buffer.getvalue()
