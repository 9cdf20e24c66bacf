"""The time between builds that nobody is in need of."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

BUILDS: Final = 5.0
"""It is as long as so many builds, so that those for small rests have a sixth of the time, at a low priority."""

FIRST_S: Final = 10.0
"""Before it is known how long a build takes, after a start."""

LEAST_S: Final = 1.0


class Pause:
    """Lets something happen when builds have paused for long enough; for one event loop.

    Args:
        clock: Seconds, growing.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = clock() + FIRST_S
        self._began = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Note that a build begins."""
        self.cancel()
        self._began = self._clock()

    def end(self) -> None:
        """Note that it has ended."""
        now = self._clock()
        self._until = now + max(LEAST_S, BUILDS * (now - self._began))

    @property
    def left_s(self) -> float:
        """Seconds until it is over, at least 0."""
        return max(0.0, self._until - self._clock())

    def then(self, act: Callable[[], object]) -> None:
        """Call `act` when it is over, unless that is to happen already."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.left_s, self._over, act)

    def cancel(self) -> None:
        """Let nothing happen."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _over(self, act: Callable[[], object]) -> None:
        self._timer = None
        act()
