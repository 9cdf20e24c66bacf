"""Waiting for what a fake counts."""

import asyncio
from collections.abc import Callable


async def until(holds: Callable[[], bool]) -> None:
    """Give way to the event loop until something holds."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110  # a fake's counters have no event
            await asyncio.sleep(0)
