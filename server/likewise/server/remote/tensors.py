"""Tensors of the Open Inference Protocol: numpy arrays and byte strings to `raw_*_contents` and back."""

import struct
from collections.abc import Sequence
from math import prod

import numpy as np

from likewise.internal.inference.v1 import inference_pb2 as pb
from likewise.server.errors import InvalidRequest
from likewise.shards.protocols import F32

_LENGTH = struct.Struct("<I")


def add_bytes(request: pb.ModelInferRequest, name: str, elements: Sequence[bytes]) -> None:
    """Append an input of n byte strings, shape [n]."""
    request.inputs.add(name=name, datatype="BYTES", shape=[len(elements)])
    request.raw_input_contents.append(b"".join(_LENGTH.pack(len(e)) + e for e in elements))


def add_floats(request: pb.ModelInferRequest, name: str, array: F32) -> None:
    """Append a float32 input of the array's shape."""
    request.inputs.add(name=name, datatype="FP32", shape=array.shape)
    request.raw_input_contents.append(np.ascontiguousarray(array, dtype="<f4").tobytes())


def set_output(response: pb.ModelInferResponse, name: str, array: F32) -> None:
    """Append a float32 output of the array's shape."""
    response.outputs.add(name=name, datatype="FP32", shape=array.shape)
    response.raw_output_contents.append(np.ascontiguousarray(array, dtype="<f4").tobytes())


def bytes_input(request: pb.ModelInferRequest, name: str) -> list[bytes]:
    """The byte strings of an input of shape [n] or [n, 1].

    Raises:
        InvalidRequest: If the input is missing, of another type or its bytes do not agree with its shape.
    """
    position, tensor = _input(request, name, "BYTES")
    if request.raw_input_contents:
        elements = _split(request.raw_input_contents[position], name)
    else:
        elements = list(tensor.contents.bytes_contents)
    _check_shape(tensor, len(elements), dims=(1, 2))
    return elements


def floats_input(request: pb.ModelInferRequest, name: str) -> F32:
    """An (n, dim) float32 input.

    Raises:
        InvalidRequest: If the input is missing, of another type or its bytes do not agree with its shape.
    """
    position, tensor = _input(request, name, "FP32")
    if request.raw_input_contents:
        raw = request.raw_input_contents[position]
        if len(raw) % 4:
            raise InvalidRequest(f"input {name!r}: {len(raw)} bytes are no whole number of FP32", field=name)
        flat = np.frombuffer(raw, dtype="<f4")
    else:
        flat = np.asarray(tensor.contents.fp32_contents, dtype=np.float32)
    _check_shape(tensor, flat.size, dims=(2,))
    return flat.reshape(tuple(tensor.shape))


def floats_output(response: pb.ModelInferResponse, name: str) -> F32:
    """An (n, dim) float32 output, a read-only view of the message when it travels raw.

    Raises:
        ValueError: If the answer has no such output, or one of another type or shape.
    """
    for position, tensor in enumerate(response.outputs):
        if tensor.name != name:
            continue
        if tensor.datatype != "FP32" or len(tensor.shape) != 2:
            raise ValueError(f"output {name!r} is {tensor.datatype}{list(tensor.shape)}, expected FP32[n, dim]")
        if response.raw_output_contents:
            flat = np.frombuffer(response.raw_output_contents[position], dtype="<f4")
        else:
            flat = np.asarray(tensor.contents.fp32_contents, dtype=np.float32)
        return flat.reshape(tuple(tensor.shape))
    raise ValueError(f"no output {name!r} among {[tensor.name for tensor in response.outputs]}")


def _input(request: pb.ModelInferRequest, name: str, datatype: str) -> tuple[int, pb.InferInputTensor]:
    if request.raw_input_contents and len(request.raw_input_contents) != len(request.inputs):
        raise InvalidRequest(f"{len(request.inputs)} inputs, {len(request.raw_input_contents)} raw contents")
    for position, tensor in enumerate(request.inputs):
        if tensor.name == name:
            if tensor.datatype != datatype:
                raise InvalidRequest(f"input {name!r} must be {datatype}, got {tensor.datatype}", field=name)
            return position, tensor
    raise InvalidRequest(f"the model needs the input {name!r}, got {[t.name for t in request.inputs]}", field=name)


def _check_shape(tensor: pb.InferInputTensor, elements: int, *, dims: tuple[int, ...]) -> None:
    shape = list(tensor.shape)
    if len(shape) not in dims or min(shape, default=0) < 0 or prod(shape) != elements:
        raise InvalidRequest(
            f"input {tensor.name!r}: shape {shape} does not fit {elements} elements", field=tensor.name
        )


def _split(raw: bytes, name: str) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at < len(raw):
        start = at + _LENGTH.size
        end = start + _LENGTH.unpack_from(raw, at)[0] if start <= len(raw) else start
        if end > len(raw):
            raise InvalidRequest(f"input {name!r}: element {len(elements)} ends behind the contents", field=name)
        elements.append(raw[start:end])
        at = end
    return elements
