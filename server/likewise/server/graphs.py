"""Where a model's graph runs: in this process, or at the endpoint that its manifest names."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt

from likewise.export.model_repository import Model
from likewise.server.remote.remote_graph import RemoteGraph
from likewise.server.session import Runtime, Session

Array = npt.NDArray[Any]


class OpenGraph(Protocol):
    """A graph that has passed its first runs. Everything blocks; `run` may be called from any thread.

    Attributes:
        provider: What runs it, for people: an execution provider, or an endpoint.
    """

    provider: str

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """An array for each output from an array for each input."""
        ...

    def close(self) -> None:
        """Let go of it; after the last run."""
        ...


def open_graph(model: Model, runtime: Runtime) -> OpenGraph:
    """Open a model's graph and try it. Blocks.

    Raises:
        SessionError: If it cannot be served as the manifest says.
    """
    of = model.manifest
    if of.endpoint is None:
        return Session(model.file(), runtime, inputs=of.inputs, outputs=of.outputs)
    return RemoteGraph(
        of.endpoint,
        model=f"{of.name}/{of.version}",
        inputs=of.inputs,
        outputs=of.outputs,
        max_batch=of.max_batch,
        images=of.kind == "image_encoder",
    )
