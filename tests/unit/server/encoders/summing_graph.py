"""A graph that sums its inputs when it is let, to see what batches came of a call."""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from tests.unit.server.model_fixtures import png

from likewise.v1 import common_pb2

DIM = 4
MODEL = common_pb2.ModelRef(name="fake", version=2, kind="any", space="s")
Array = npt.NDArray[Any]


class FakeGraph:
    """Sums each row of its inputs' numbers into DIM equal ones; waits for `gate`."""

    def __init__(self, value: float | None = None) -> None:
        self.value = value
        self.batches: list[dict[str, Array]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Semaphore(0)

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        self.batches.append(dict(feeds))
        self.started.release()
        assert self.gate.wait(10)
        rows = sum(feed.reshape(len(feed), -1).sum(axis=1) for feed in feeds.values())
        output = np.repeat(np.asarray(rows, np.float32)[:, np.newaxis], DIM, axis=1)
        return {"out": output if self.value is None else np.full_like(output, self.value)}

    @property
    def sizes(self) -> list[int]:
        return [len(next(iter(feeds.values()))) for feeds in self.batches]


def grey(level: int) -> bytes:
    return png((level, level, level))
