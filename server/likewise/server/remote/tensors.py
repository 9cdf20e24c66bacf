"""Tensors of the Open Inference Protocol: numpy arrays and byte strings to `raw_*_contents` and back.

Numbers travel little-endian and row by row; an element of BYTES is preceded by its length, 4 bytes little-endian.
Typed contents are read wherever the protocol has them; FP16 has none. What we write is raw.
"""

import struct
from collections.abc import Sequence
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from likewise.export.manifest import TensorSpec
from likewise.internal.inference.v1 import inference_pb2 as pb
from likewise.server.errors import InvalidRequest
from likewise.shards.protocols import F32

BYTES: Final = "BYTES"

DATATYPES: Final = {
    "float32": "FP32",
    "float16": "FP16",
    "float64": "FP64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "bool": "BOOL",
    "bytes": BYTES,
}
"""The protocol's name of each number format of a manifest; "bytes" stands for byte strings of any length."""

_CONTENTS: Final = {
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "BOOL": "bool_contents",
    BYTES: "bytes_contents",
}

_LENGTH: Final = struct.Struct("<I")

Array = npt.NDArray[Any]


def add_bytes(request: pb.ModelInferRequest, name: str, elements: Sequence[bytes], *, axes: int = 1) -> None:
    """Append an input of n byte strings, of shape [n], or [n, 1] with two axes."""
    request.inputs.add(name=name, datatype=BYTES, shape=[len(elements), *[1] * (axes - 1)])
    request.raw_input_contents.append(b"".join(_LENGTH.pack(len(e)) + e for e in elements))


def add_array(request: pb.ModelInferRequest, name: str, array: Array) -> None:
    """Append an input of the array's shape and number format."""
    request.inputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
    request.raw_input_contents.append(_raw(array))


def set_output(response: pb.ModelInferResponse, name: str, array: Array) -> None:
    """Append an output of the array's shape and number format."""
    response.outputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
    response.raw_output_contents.append(_raw(array))


def check_inputs(request: pb.ModelInferRequest) -> None:
    """Refuse inputs that cannot be read, whatever the model.

    Raises:
        InvalidRequest: If a name comes twice, raw contents are not one an input, or an input lies in shared memory.
    """
    names = [tensor.name for tensor in request.inputs]
    for tensor in request.inputs:
        if names.count(tensor.name) > 1:
            raise InvalidRequest(f"the input {tensor.name!r} comes twice", field=tensor.name)
        if "shared_memory_region" in tensor.parameters:
            raise InvalidRequest(
                f"the input {tensor.name!r} lies in shared memory, which is not served: send it with the request",
                field=tensor.name,
            )
    if request.raw_input_contents and len(request.raw_input_contents) != len(names):
        raise InvalidRequest(f"{len(names)} inputs, {len(request.raw_input_contents)} raw contents")


def bytes_input(request: pb.ModelInferRequest, name: str) -> list[bytes]:
    """The byte strings of an input of shape [n] or [n, 1].

    Raises:
        InvalidRequest: If the input is missing, of another type or its bytes do not agree with its shape.
    """
    position, tensor = _input(request, name, BYTES)
    if request.raw_input_contents:
        elements = _split(request.raw_input_contents[position], name)
    else:
        elements = list(tensor.contents.bytes_contents)
    _check_elements(tensor, len(elements))
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ([], [1]):
        raise InvalidRequest(f"input {name!r} must be BYTES[n] or BYTES[n, 1], got {shown(tensor)}", field=name)
    return elements


def array_input(request: pb.ModelInferRequest, spec: TensorSpec) -> Array:
    """An input as a model declares it: (n, ...) of the number format in `spec`; -1 there is any size.

    A read-only view of the message where the contents are raw.

    Raises:
        InvalidRequest: If the input is missing, of another type or shape, or its bytes do not agree with its shape.
    """
    datatype = DATATYPES[spec.dtype]
    position, tensor = _input(request, spec.name, datatype)
    if len(tensor.shape) != len(spec.shape) or any(
        want not in (-1, got) for want, got in zip(spec.shape, tensor.shape, strict=True)
    ):
        raise InvalidRequest(
            f"input {spec.name!r} must be {datatype}{list(spec.shape)}, got {shown(tensor)}", field=spec.name
        )
    if request.raw_input_contents:
        raw = request.raw_input_contents[position]
        try:
            flat = _numbers(raw, spec.dtype)
        except ValueError as error:
            raise InvalidRequest(f"input {spec.name!r}: {error}", field=spec.name) from error
    else:
        flat = _typed(tensor, datatype, spec.dtype)
    _check_elements(tensor, flat.size)
    return flat.reshape(tuple(tensor.shape))


def output_array(response: pb.ModelInferResponse, name: str, dtype: str) -> Array:
    """An output by its name, a read-only view of the message where it travels raw.

    Raises:
        ValueError: If the answer has no such output, or one of another type, or its bytes do not agree with its shape.
    """
    for position, tensor in enumerate(response.outputs):
        if tensor.name == name:
            return _output(response, position, dtype)
    raise ValueError(f"no output {name!r} among {[tensor.name for tensor in response.outputs]}")


def only_output(response: pb.ModelInferResponse) -> F32:
    """The one (n, dim) float32 output of an answer, whatever its name.

    Raises:
        ValueError: If there is not one output, or it is of another type or shape.
    """
    if len(response.outputs) != 1:
        raise ValueError(f"expected one output, got {[tensor.name for tensor in response.outputs]}")
    array = _output(response, 0, "float32")
    if array.ndim != 2:
        raise ValueError(f"output {response.outputs[0].name!r} is FP32{list(array.shape)}, expected FP32[n, dim]")
    return array


def shown(tensor: pb.InferInputTensor | pb.TensorMetadata) -> str:
    """Type and shape for people: "FP32[-1, 3, 224, 224]"."""
    return f"{tensor.datatype}{list(tensor.shape)}"


def _output(response: pb.ModelInferResponse, position: int, dtype: str) -> Array:
    tensor = response.outputs[position]
    if tensor.datatype != DATATYPES[dtype]:
        raise ValueError(f"output {tensor.name!r} is {tensor.datatype}, expected {DATATYPES[dtype]}")
    if response.raw_output_contents:
        flat = _numbers(response.raw_output_contents[position], dtype)
    else:
        flat = np.asarray(getattr(tensor.contents, _CONTENTS[tensor.datatype]), dtype)
    if min(tensor.shape, default=0) < 0 or prod(tensor.shape) != flat.size:
        raise ValueError(f"output {tensor.name!r}: shape {list(tensor.shape)} does not fit {flat.size} elements")
    return flat.reshape(tuple(tensor.shape))


def _raw(array: Array) -> bytes:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()


def _numbers(raw: bytes, dtype: str) -> Array:
    size = np.dtype(dtype).itemsize
    if len(raw) % size:
        raise ValueError(f"{len(raw)} bytes are no whole number of {DATATYPES[dtype]}")
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<"))


def _typed(tensor: pb.InferInputTensor, datatype: str, dtype: str) -> Array:
    field = _CONTENTS.get(datatype)
    if field is None:
        raise InvalidRequest(f"input {tensor.name!r}: {datatype} travels as raw contents only", field=tensor.name)
    try:
        return np.asarray(getattr(tensor.contents, field), dtype)
    except OverflowError as error:
        raise InvalidRequest(f"input {tensor.name!r}: {error}", field=tensor.name) from error


def _input(request: pb.ModelInferRequest, name: str, datatype: str) -> tuple[int, pb.InferInputTensor]:
    for position, tensor in enumerate(request.inputs):
        if tensor.name == name:
            if tensor.datatype != datatype:
                raise InvalidRequest(f"input {name!r} must be {datatype}, got {tensor.datatype}", field=name)
            return position, tensor
    raise InvalidRequest(f"the model needs the input {name!r}, got {[t.name for t in request.inputs]}", field=name)


def _check_elements(tensor: pb.InferInputTensor, elements: int) -> None:
    shape = list(tensor.shape)
    if not shape or min(shape) < 0 or prod(shape) != elements:
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
