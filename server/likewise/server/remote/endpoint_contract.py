"""Whether a model at an endpoint is the one that a manifest means: pure comparison of what both say."""

from collections.abc import Sequence
from dataclasses import dataclass

from likewise.export.manifest import Endpoint, TensorSpec
from likewise.internal.inference.v1 import inference_pb2 as pb
from likewise.server.graph_trial import SessionError
from likewise.server.remote.tensors import BYTES, DATATYPES, shown


@dataclass(frozen=True, slots=True)
class Agreement:
    """What there is to know for calling a model at an endpoint.

    Attributes:
        max_batch: Most rows of one message.
        axes: Of an input of byte strings: 1 for [n], 2 for [n, 1].
    """

    max_batch: int
    axes: int = 1


def agree(
    endpoint: Endpoint,
    metadata: pb.ModelMetadataResponse,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_batch: int,
    config: pb.ModelConfig | None = None,
) -> Agreement:
    """Hold an endpoint's description against a manifest.

    A size that the endpoint leaves open (-1) fits any; the batch has to be open. Outputs and inputs that the manifest
    does not name are no matter: the first run tells whether the model can do without the inputs.

    Args:
        endpoint: Where it is.
        metadata: What it says about its tensors.
        inputs: What is to be sent; "bytes" is the number format of byte strings.
        outputs: What is to come back.
        max_batch: The manifest's largest batch.
        config: Triton's configuration, where the endpoint has one; its max_batch_size lowers the largest batch.

    Raises:
        SessionError: Naming endpoint, model and tensor, what is wanted and what is there.
    """
    axes = 1
    for what, specs, found in (("input", inputs, metadata.inputs), ("output", outputs, metadata.outputs)):
        for spec in specs:
            tensor = _fitting(endpoint, what, spec, found)
            if what == "input" and spec.dtype == "bytes":
                axes = len(tensor.shape)
    limit = config.max_batch_size if config is not None else 0
    return Agreement(max_batch=min(max_batch, limit) if limit > 0 else max_batch, axes=axes)


def place(endpoint: Endpoint) -> str:
    """Endpoint and model for messages."""
    version = f" version {endpoint.version}" if endpoint.version else ""
    return f"endpoint {endpoint.address}, model {endpoint.model!r}{version}"


def _fitting(endpoint: Endpoint, what: str, spec: TensorSpec, found: Sequence[pb.TensorMetadata]) -> pb.TensorMetadata:
    named = [tensor for tensor in found if tensor.name == spec.name]
    if not named:
        there = ", ".join(repr(tensor.name) for tensor in found) or "none"
        raise SessionError(
            f"{place(endpoint)}: it has no {what} {spec.name!r}, which the manifest names; there: {there}"
        )
    for tensor in named:
        if _fits(spec, tensor):
            return tensor
    wanted = f"{DATATYPES[spec.dtype]}{list(spec.shape)}"
    raise SessionError(
        f"{place(endpoint)}: {what} {spec.name!r} is {' and '.join(shown(tensor) for tensor in named)} there, the "
        f"manifest wants {wanted}: serve the graph that the manifest was written for, or correct the manifest"
    )


def _fits(spec: TensorSpec, tensor: pb.TensorMetadata) -> bool:
    if tensor.datatype != DATATYPES[spec.dtype]:
        return False
    shape = list(tensor.shape)
    if tensor.datatype == BYTES:
        return shape in ([-1], [-1, 1], [-1, -1])
    # The batch has to be open there: a model that takes one size of it alone fails under load, not at the start.
    return (
        len(shape) == len(spec.shape)
        and shape[0] == -1
        and all(got in (-1, want) or want == -1 for got, want in zip(shape[1:], spec.shape[1:], strict=True))
    )
