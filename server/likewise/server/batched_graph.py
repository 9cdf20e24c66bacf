"""A model's graph behind a batcher: what callers bring is prepared and run together.

A batch is prepared as a whole, pictures decoded and texts tokenised, in the thread that runs it. One by one before they
queue, items came too slowly to fill a batch, and what each cost the event loop was more than its share of the graph.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from likewise.server.batcher import Batcher, BatchLimits, BatchReport
from likewise.server.errors import ServiceError
from likewise.shards.protocols import F32
from likewise.v1 import common_pb2

Array = npt.NDArray[Any]
Item = TypeVar("Item")


class Graph(Protocol):
    """A model that runs batches; `session.Session` is one."""

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """An array for each output from an array for each input; blocks."""
        ...


@dataclass(frozen=True, slots=True)
class Serving:
    """How the models of a process are served.

    Attributes:
        pool: Threads that help to decode, shared by all models.
        workers: Its threads.
        batch: Bounds of each model's batcher.
        on_batch: Told about every batch.
    """

    pool: Executor
    workers: int
    batch: BatchLimits
    on_batch: Callable[[BatchReport], None] | None = None


class Ready(NamedTuple):
    """An item that can go into the graph.

    Attributes:
        tensor: Its row of the graph's input.
        note: What its caller is to know of it.
    """

    tensor: Array
    note: Any = None


class Row(NamedTuple):
    """What became of an item.

    Attributes:
        vector: (dim,) float32.
        prepared_s: What preparing its batch took, seconds.
        note: That of `Ready`.
    """

    vector: F32
    prepared_s: float
    note: Any


class BatchedGraph(Generic[Item]):
    """Runs the items of concurrent callers through one graph; for one event loop.

    Args:
        model: For names and messages.
        serving: How it is served.
        prepare: A `Ready` for each item, in order, or what is wrong with it, which its caller alone is told; blocks.
        infer: (n, dim) float32 of n stacked tensors; blocks; called by as many threads as `serving` lets batches run.
        weigh: What preparing an item costs a batch, for the bound that `serving` has on it.
    """

    def __init__(
        self,
        model: common_pb2.ModelRef,
        serving: Serving,
        *,
        prepare: Callable[[Sequence[Item]], Sequence[Ready | Exception]],
        infer: Callable[[Array], F32],
        weigh: Callable[[Item], int] = lambda _: 0,
    ) -> None:
        self._prepare = prepare
        self._infer = infer
        self._name = f"{model.name}/{model.version}"
        self._batcher: Batcher[Item, Row] = Batcher(
            self._run, name=self._name, limits=serving.batch, on_batch=serving.on_batch, weigh=weigh
        )

    async def rows(self, items: Sequence[Item]) -> list[Row]:
        """What became of each item, in order.

        Cancelling it withdraws those that no batch has taken.

        Raises:
            Exception: What `prepare` has against one of them, or what the graph failed with.
            Overloaded: If the queue is full; nothing was done then.
            Unavailable: If it is shutting down.
        """
        with self._batcher.admit(len(items)) as lane:
            return await lane.run_all(items)

    async def vectors(self, items: Sequence[Item], dim: int) -> F32:
        """(n, dim) vectors of the items as the graph gives them; errors as `rows`."""
        if not len(items):
            return np.empty((0, dim), np.float32)
        return np.stack([row.vector for row in await self.rows(items)])

    async def close(self) -> None:
        """Stop taking calls."""
        await self._batcher.close()

    def _run(self, items: Sequence[Item]) -> list[Row | Exception]:
        began = time.perf_counter()
        prepared = self._prepare(items)
        prepared_s = time.perf_counter() - began
        tensors = [one.tensor for one in prepared if isinstance(one, Ready)]
        vectors = iter(self._infer(np.stack(tensors)) if tensors else ())
        return [Row(next(vectors), prepared_s, one.note) if isinstance(one, Ready) else one for one in prepared]


def stacked(rows: Sequence[Row], model: common_pb2.ModelRef) -> F32:
    """(n, dim) float32 vectors of at least one row.

    Raises:
        ServiceError: MODEL_OUTPUT_NOT_FINITE.
    """
    vectors = rows[0].vector[np.newaxis] if len(rows) == 1 else np.stack([row.vector for row in rows])
    if not np.isfinite(vectors).all():
        raise ServiceError(
            f"the model {model.name}/{model.version} gave numbers that are not finite", reason="MODEL_OUTPUT_NOT_FINITE"
        )
    return vectors


def spent(rows: Sequence[Row], since_s: float) -> tuple[int, int]:
    """Microseconds of a call that began at `since_s` of `time.perf_counter`: preparing its batches, and the rest."""
    total = time.perf_counter() - since_s
    prepared = min(max(row.prepared_s for row in rows), total)
    return round(prepared * 1e6), round((total - prepared) * 1e6)
