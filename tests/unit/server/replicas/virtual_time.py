"""An event loop whose clock jumps to the next timer: seconds cost nothing, and nothing is left to chance.

`time.monotonic` of the deadlines is the same clock. Threads and sockets have no place in it.
"""

import asyncio
import functools
import selectors
import types
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

import pytest

from likewise.server.remote import deadlines

P = ParamSpec("P")


class _Jumping(selectors.SelectSelector):
    """Instead of waiting, moves the loop's clock on."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("the test waits for what never comes: no timer is set and no task can go on")
        if not ready and timeout is not None:
            self.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop with a clock of its own."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def clock() -> float:
    """The running loop's clock."""
    return asyncio.get_running_loop().time()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run to the end in a loop of its own, deadlines included."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner, pytest.MonkeyPatch.context() as patch:
        loop = runner.get_loop()
        patch.setattr(deadlines, "time", types.SimpleNamespace(monotonic=loop.time))
        runner.run(main)


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a test of a coroutine that runs in virtual time."""

    @functools.wraps(test)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        run(test(*args, **kwargs))

    return wrapped
