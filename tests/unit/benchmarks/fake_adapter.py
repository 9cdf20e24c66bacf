"""A peer for tests: it compares every row exactly, and can be told to misbehave."""

import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import numpy as np
from benchmarks.peers.driver.protocol import AsyncCall, Call, OnLoop, Question, Rows, Setting, Threaded


class Fake:
    """Options: style ("threads" or "loop")."""

    def __init__(self, setting: Setting) -> None:
        self._style = setting.options["style"]
        if self._style == "broken":
            raise RuntimeError("there is no such engine")
        self._folder = setting.folder
        self._rows: Rows | None = None

    def versions(self) -> dict[str, str]:
        """One part."""
        return {"fake": "1.2"}

    def load(self, rows: Rows) -> None:
        """Keep the rows, and print what a library might print on stdout."""
        print("loading", flush=True)
        self._rows = rows

    def prepare(self, question: Question) -> Threaded | OnLoop:
        """With params "fail" every call fails, with "die" the process ends, with "silent" it does not answer."""
        assert self._rows is not None
        scores = question.queries @ self._rows.base.T
        if question.below is not None:
            scores[:, self._rows.share >= question.below] = -np.inf

        def search(which: int) -> list[str]:
            if question.params.get("fail"):
                raise ValueError("the engine is [out] of order")
            if question.params.get("die"):
                os._exit(3)
            if question.params.get("silent"):
                time.sleep(60)
            best = np.argsort(-scores[which], kind="stable")[: question.k]
            return [f"item-{row:03d}" for row in best if np.isfinite(scores[which, row])]

        @contextmanager
        def connect() -> Iterator[Call]:
            yield search

        @asynccontextmanager
        async def on_loop() -> AsyncIterator[AsyncCall]:
            async def call(which: int) -> list[str]:
                return search(which)

            yield call

        return OnLoop(on_loop) if self._style == "loop" else Threaded(connect)

    def close(self) -> None:
        """Leave a sign that it was asked to stop."""
        (self._folder / "closed").touch()


def adapter(setting: Setting) -> Fake:
    """Start it."""
    return Fake(setting)
