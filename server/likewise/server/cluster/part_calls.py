"""What the controller asks of a gallery's parts, and what callers are told when they do not do it."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from likewise.server.cluster.placed import Placed
from likewise.server.cluster.supervisor import Supervisor
from likewise.server.errors import Unavailable
from likewise.shards.spec import GallerySpec

STOP_GRACE_S: Final = 5.0
"""Seconds that running calls of a part have before it is ended."""

_log = logging.getLogger(__name__)


async def all_up(parts: Iterable[Supervisor], gallery: str) -> None:
    """Return when all of a gallery's parts serve.

    Raises:
        Unavailable: If one of them does not start.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part.wait_up())
    except* Exception as failures:
        first = failures.exceptions[0]
        _log.error("gallery %r does not start: %s", gallery, first)
        raise Unavailable(f"a part of gallery {gallery!r} does not start, see the server's log") from first


async def stop(parts: Iterable[Supervisor], *, discard: bool) -> None:
    """End parts; with `discard`, no cache file of theirs stays."""
    await asyncio.gather(*(part.stop(grace_s=STOP_GRACE_S, discard=discard) for part in parts))


async def tell(part: Supervisor, spec: GallerySpec) -> None:
    """Give a part its gallery's changed description.

    Raises:
        Unavailable: If it is not up, or does not take it.
    """
    name = part.part.name
    if part.placed is None or part.serving is None:
        raise Unavailable(f"{name} of gallery {spec.name!r} is not up", retry_after_s=1.0)
    try:
        await part.placed.update(spec)
    except Exception as error:
        _log.error("%s does not take the new description: %s", name, error)
        raise Unavailable(f"{name} of gallery {spec.name!r} does not take the new description") from error


async def follow(placed: Placed) -> None:
    """Tell a gallery's writer where the shards are that it is to push to; one that is not up is told once it is."""
    writer = placed.writer
    if writer.placed is None or writer.serving is None:
        return
    try:
        await writer.placed.follow(*placed.followers)
    except Exception as error:
        # A lost writer is told again once it is back.
        _log.warning("the writer of gallery %r does not know its shards yet: %s", placed.spec.name, error)
