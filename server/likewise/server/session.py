"""ONNX Runtime sessions: the only door to onnxruntime in the server.

A session that is not what was asked for never serves: the provider, the inputs, the outputs and a first run are checked
when it is made. Everything here blocks: call it from the one thread that owns the session.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import onnxruntime

from likewise.export.manifest import TensorSpec
from likewise.server.graph_trial import SessionError as SessionError
from likewise.server.graph_trial import try_out

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

_ALLOW: Final = "allow another provider (LIKEWISE_ENCODER_FALLBACK=true)"
_REMEDY: Final = f"install the build that has it (pip install 'likewise[gpu]' for CUDA), or {_ALLOW}"

_LOG = logging.getLogger(__name__)

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where and how a model runs.

    Attributes:
        providers: ONNX Runtime's execution providers, the wanted one first.
        threads: Threads of one run, at least 1; the machine's cores are shared with FAISS.
        allow_fallback: Serve from a later provider, with a log line, when the first cannot be had.
        device_id: Which GPU, for CUDA.
        gpu_memory_bytes: Most memory that one model's arena takes of it; None for all there is. FAISS and the other
            models share the card, and a fraction given to a Ray actor binds nobody.
    """

    providers: tuple[str, ...] = (CPU,)
    threads: int = 1
    allow_fallback: bool = False
    device_id: int = 0
    gpu_memory_bytes: int | None = None


class Session:
    """A loaded and tried ONNX graph. `run` may be called from any thread; ONNX Runtime releases the interpreter lock.

    Args:
        path: The .onnx file; its external data lies beside it.
        runtime: Where and how it runs.
        inputs: What the graph is to take; the first axis is the batch.
        outputs: What it is to give.

    Attributes:
        provider: The execution provider in use.

    Raises:
        SessionError: If the graph, the provider or the first run is not what was asked for.
    """

    def __init__(
        self, path: Path, runtime: Runtime, *, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self._outputs = [spec.name for spec in outputs]
        self._session = _open(path, runtime)
        self.provider: str = self._session.get_providers()[0]
        _match("input", self._session.get_inputs(), {spec.name: spec for spec in inputs})
        _match("output", self._session.get_outputs(), {spec.name: spec for spec in outputs})
        self._bound = BoundRun(self._session, "cuda", runtime.device_id) if self.provider == CUDA else None
        try_out(self.run, inputs=inputs, outputs=outputs)

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
            if self._bound is not None:
                return self._bound(feeds, self._outputs)
            values = self._session.run(self._outputs, dict(feeds))
        except Exception as error:
            # ONNX Runtime has an exception type a status code, all below Exception, and ValueError for names.
            raise SessionError(f"the model failed to run: {error}") from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Nothing to end: the memory goes with the last reference."""


class BoundRun:
    """Runs a session with inputs and outputs bound to a device, so that each is copied once, there and back.

    A plain run copies a GPU's output into pageable memory that ONNX Runtime allocates anew; bound, the outputs stay on
    the device until all of them are there, and the waiting is done in one place.

    Args:
        session: An `onnxruntime.InferenceSession`.
        device: Where inputs and outputs lie: "cuda", or "cpu".
        device_id: Which of them.
    """

    def __init__(self, session: Any, device: str, device_id: int = 0) -> None:
        self._session = session
        self._device = device
        self._device_id = device_id
        self._turn = threading.Lock()

    def __call__(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run one batch; an array in this process's memory for each output."""
        with self._turn:  # two at a time would take twice the memory of the device
            return self._run(feeds, outputs)

    def _run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        binding = self._session.io_binding()
        for name, array in feeds.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, self._device_id)
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            # The size depends on the batch: ONNX Runtime allocates it on the device.
            binding.bind_output(name, self._device, self._device_id)
        self._session.run_with_iobinding(binding)
        return dict(zip(outputs, binding.copy_outputs_to_cpu(), strict=True))


def _open(path: Path, runtime: Runtime) -> Any:
    if runtime.threads < 1:
        raise SessionError(f"threads must be at least 1, got {runtime.threads}")
    wanted = runtime.providers[0]
    available = onnxruntime.get_available_providers()
    usable = [name for name in runtime.providers if name in available]
    if not usable or (usable[0] != wanted and not runtime.allow_fallback):
        raise SessionError(f"{wanted} was asked for, this ONNX Runtime has {', '.join(available)}: {_REMEDY}")
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
            providers=[(name, _provider_options(name, runtime)) for name in usable],
            enable_fallback=0,
        )
    except Exception as error:
        raise SessionError(f"{path.name} cannot be loaded: {error}") from error
    got = session.get_providers()[0]
    if got != wanted:
        # The wheel has the provider but its driver is not there.
        if not runtime.allow_fallback:
            raise SessionError(f"{wanted} was asked for, ONNX Runtime gave {got}: look at the driver, or {_ALLOW}")
        _LOG.warning("%s runs on %s, not on %s as asked", path, got, wanted)
    return session


def _provider_options(name: str, runtime: Runtime) -> dict[str, str]:
    options = dict(_PROVIDER_OPTIONS.get(name, {}))
    if name == CUDA:
        options["device_id"] = str(runtime.device_id)
        if runtime.gpu_memory_bytes is not None:
            options["gpu_mem_limit"] = str(runtime.gpu_memory_bytes)
    return options


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
