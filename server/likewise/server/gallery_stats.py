"""Counts of all galleries, refreshed in the background, for metrics that are scraped from another thread."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

from likewise.server.gallery_service import stats_of
from likewise.server.protocols import Galleries
from likewise.v1 import gallery_service_pb2 as pb

log = logging.getLogger(__name__)

REFRESH_S: Final = 5.0
"""Below Prometheus's usual scrape interval of 15 s, far above what asking the shards costs."""


class GalleryStatsCache:
    """The newest known statistics of every gallery."""

    def __init__(self, galleries: Galleries) -> None:
        self._galleries = galleries
        self._latest: Sequence[pb.GalleryServiceStatsResponse] = ()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to refresh."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop refreshing."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def latest(self) -> Sequence[pb.GalleryServiceStatsResponse]:
        """What the last refresh found; safe from any thread."""
        return self._latest

    async def refresh(self) -> None:
        """Ask every gallery once; one that does not answer is left out this time."""
        found = []
        for handle in self._galleries.handles():
            try:
                found.append(await stats_of(handle))
            except Exception:
                log.warning("gallery %r gave no statistics", handle.spec.name, exc_info=True)
        self._latest = tuple(found)

    async def _run(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_S)
