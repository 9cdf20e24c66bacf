"""Keeps one placed part up and says where it is."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from likewise.server.cluster.parts import Part, PlacedPart, Placement, Serving

BACKOFF_S: Final = (0.1, 10.0)
"""First and longest wait before a part that does not start is tried again."""

_log = logging.getLogger(__name__)


class Supervisor:
    """Starts a part, notices when it is lost and starts it again, until stopped.

    Args:
        part: What to keep up.
        placement: Where.
        on_change: Called on the loop after `serving` has changed.

    Attributes:
        part: As given.
        serving: Where it is, None while it is not up.
        placed: The part's process, None until it has one.
    """

    def __init__(self, part: Part, placement: Placement, on_change: Callable[["Supervisor"], None]) -> None:
        self.part = part
        self.serving: Serving | None = None
        self.placed: PlacedPart | None = None
        self._placement = placement
        self._on_change = on_change
        self._failures: list[Exception] = []
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"supervise-{part.name}")

    @property
    def failure(self) -> str:
        """Why it did not start the last time; empty once it serves."""
        return str(self._failures[-1]) if self._failures else ""

    async def wait_up(self, *, attempts: int = 3) -> None:
        """Return when the part serves.

        Raises:
            Exception: What the part failed with last, after `attempts` failures in a row.
        """
        while self.serving is None:
            if len(self._failures) >= attempts:
                raise self._failures[-1]
            await self._news.wait()

    async def wait_tried(self) -> None:
        """Return when the part serves or has failed to start once."""
        while self.serving is None and not self._failures:
            await self._news.wait()

    async def stop(self, *, grace_s: float, discard: bool) -> None:
        """End the part for good; see `PlacedPart.stop`."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self.placed is not None:
            await self.placed.stop(grace_s=grace_s, discard=discard)

    async def leave(self) -> None:
        """Stop looking after the part without ending it."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        wait, longest = BACKOFF_S
        placed: PlacedPart | None = None
        while True:
            try:
                placed = self.placed = placed or await self._placement.place(self.part)
                serving = await placed.start()
            except Exception as error:
                _log.warning("%s does not start: %s", self.part.name, error)
                placed = None  # its process may be gone for good: look for it, or make it, again
                self._failures.append(error)
                self._tell()
                await asyncio.sleep(wait)
                wait = min(2 * wait, longest)
                continue
            wait = BACKOFF_S[0]
            self._failures.clear()
            self._show(serving)
            await placed.wait_lost()
            _log.warning("%s at %s is lost, it restarts", self.part.name, serving.address)
            self._show(None)

    def _show(self, serving: Serving | None) -> None:
        self.serving = serving
        self._on_change(self)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
