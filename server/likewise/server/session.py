"""ONNX Runtime sessions: the only door to onnxruntime in the server.

A session that is not what was asked for never serves: the provider, the inputs, the outputs and a first run are checked
when it is made. Everything here blocks: call it from the one thread that owns the session.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from likewise.export.manifest import TensorSpec

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"

_PROVIDER_OPTIONS: Final[dict[str, dict[str, str]]] = {
    # TF32 would move scores by 1e-3 between a CPU and a GPU; the heuristic search starts quickly on a new batch size.
    CUDA: {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"},
}

_ONNX_TYPES: Final = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}

_LOG = logging.getLogger(__name__)

Array = npt.NDArray[Any]


class SessionError(Exception):
    """A model that cannot be served as asked: wrong provider, wrong graph, or a first run that fails."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where and how a model runs.

    Attributes:
        providers: ONNX Runtime's execution providers, the wanted one first.
        threads: Threads of one run, at least 1; the machine's cores are shared with FAISS.
        allow_fallback: Serve from a later provider, with a log line, when the first cannot be had.
    """

    providers: tuple[str, ...] = (CPU,)
    threads: int = 1
    allow_fallback: bool = False


class Session:
    """A loaded and tried ONNX graph. `run` may be called from any thread; ONNX Runtime releases the interpreter lock.

    Args:
        path: The .onnx file; its external data lies beside it.
        runtime: Where and how it runs.
        inputs: What the graph is to take; the first axis is the batch.
        outputs: What it is to give.

    Raises:
        SessionError: If the graph, the provider or the first run is not what was asked for.
    """

    def __init__(
        self, path: Path, runtime: Runtime, *, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self._inputs = {spec.name: spec for spec in inputs}
        self._outputs = {spec.name: spec for spec in outputs}
        self._session = _open(path, runtime)
        self.provider: str = self._session.get_providers()[0]
        _match("input", self._session.get_inputs(), self._inputs)
        _match("output", self._session.get_outputs(), self._outputs)
        # Two sizes: a graph exported with a fixed batch passes one of them at most.
        for batch in (1, 2):
            self._warm_up(batch)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch.

        Args:
            feeds: An array for each input, with the input's number format.

        Returns:
            An array for each output; whether its numbers are finite is for the caller to check, row by row.

        Raises:
            SessionError: If ONNX Runtime refuses the feeds or fails.
        """
        try:
            values = self._session.run(list(self._outputs), dict(feeds))
        except Exception as error:
            # ONNX Runtime has an exception type a status code, all below Exception, and ValueError for names.
            raise SessionError(f"the model failed to run: {error}") from error
        return dict(zip(self._outputs, values, strict=True))

    def _warm_up(self, batch: int) -> None:
        feeds = {
            spec.name: np.zeros((batch, *(max(size, 1) for size in spec.shape[1:])), spec.dtype)
            for spec in self._inputs.values()
        }
        for name, value in self.run(feeds).items():
            expected = (batch, *self._outputs[name].shape[1:])
            if len(value.shape) != len(expected) or any(
                want not in (-1, got) for want, got in zip(expected, value.shape, strict=True)
            ):
                raise SessionError(f"output {name!r} of a batch of {batch} has the shape {value.shape}, not {expected}")
            if not np.isfinite(value).all():
                raise SessionError(f"output {name!r} of zeros is not finite")


def _open(path: Path, runtime: Runtime) -> Any:
    if runtime.threads < 1:
        raise SessionError(f"threads must be at least 1, got {runtime.threads}")
    wanted = runtime.providers[0]
    available = onnxruntime.get_available_providers()
    usable = [name for name in runtime.providers if name in available]
    if not usable or (usable[0] != wanted and not runtime.allow_fallback):
        raise SessionError(f"{wanted} was asked for, this ONNX Runtime has {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.threads
    options.inter_op_num_threads = 1
    # Spinning threads take the cores from FAISS: 20 short runs cost seven times the processor time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        # enable_fallback=0: otherwise the wrapper silently makes a CPU session when the provider fails to start.
        session = onnxruntime.InferenceSession(
            str(path),
            options,
            providers=[(name, _PROVIDER_OPTIONS.get(name, {})) for name in usable],
            enable_fallback=0,
        )
    except Exception as error:
        raise SessionError(f"{path.name} cannot be loaded: {error}") from error
    got = session.get_providers()[0]
    if got != wanted:
        # The wheel has the provider but its driver is not there.
        if not runtime.allow_fallback:
            raise SessionError(f"{wanted} was asked for, ONNX Runtime gave {got}")
        _LOG.warning("%s runs on %s, not on %s as asked", path.name, got, wanted)
    return session


def _match(what: str, nodes: Sequence[Any], specs: Mapping[str, TensorSpec]) -> None:
    names = [node.name for node in nodes]
    if sorted(names) != sorted(specs):
        raise SessionError(f"the graph's {what}s are {names}, the manifest's {list(specs)}")
    for node in nodes:
        spec = specs[node.name]
        dtype = _ONNX_TYPES.get(node.type, node.type)
        if dtype != spec.dtype:
            raise SessionError(f"{what} {node.name!r} is {dtype}, in the manifest {spec.dtype}")
        if len(node.shape) != len(spec.shape):
            raise SessionError(f"{what} {node.name!r} has the shape {node.shape}, in the manifest {list(spec.shape)}")
        for axis, (got, want) in enumerate(zip(node.shape, spec.shape, strict=True)):
            # Axes that the graph names or leaves open are decided by the first run.
            if isinstance(got, int) and want != got:
                raise SessionError(f"axis {axis} of {what} {node.name!r} is {got}, in the manifest {want}")
