"""Pushes a gallery's commits to one shard behind a channel, and keeps nudging it while it is behind.

A push may fail: the shard restarts, the network drops it. Nothing is queued for such a shard. It reads what it missed
from the store by itself as soon as it hears of a version newer than its own, so only that version has to reach it.
"""

import asyncio
import logging
from typing import Final

from likewise.server.remote import deadlines
from likewise.server.remote.shard_stub import ShardStub
from likewise.shards import layout
from likewise.shards.protocols import Delta
from likewise.shards.spec import GallerySpec

MAX_PUSH_BYTES: Final = 32 << 20
"""Changes larger than this are not pushed: reading them from the store costs the shard no more."""

PUSH_TIMEOUT_S: Final = 10.0
BACKOFF_S: Final = (0.05, 2.0)
"""First and longest wait between nudges."""

_log = logging.getLogger(__name__)


class RemoteSink:
    """`DeltaSink` for one replica of one shard.

    `apply` returns when the shard has the change, or after the first failed push: a shard that is down never holds up
    the writer. A task then nudges it until it follows.

    Args:
        stub: The shard.
        spec: The gallery.
        shard: The shard's number; only its own rows are sent.
        push_timeout_s: Longest a push may take.
    """

    def __init__(
        self, stub: ShardStub, *, spec: GallerySpec, shard: int, push_timeout_s: float = PUSH_TIMEOUT_S
    ) -> None:
        self._stub = stub
        self._shard = shard
        self._spec = spec
        self._push_timeout_s = push_timeout_s
        self._newest: Delta | None = None
        self._nudging: asyncio.Task[None] | None = None

    @property
    def follows(self) -> bool:
        """Whether pushes go through: False while the shard is nudged."""
        return self._nudging is None or self._nudging.done()

    async def apply(self, delta: Delta) -> None:
        """See `DeltaSink.apply`; never raises for a shard that cannot be reached."""
        nudge = _nudge(delta)
        if self._newest is None or nudge.version >= self._newest.version:
            self._newest = nudge
        if not self.follows:
            return
        part = layout.partition_delta(delta, self._shard, self._spec.shards)
        try:
            await self._push(nudge if part.upserts.nbytes > MAX_PUSH_BYTES else part)
        except Exception as error:
            _log.warning("shard %d missed version %d and will catch up: %s", self._shard, delta.version, error)
            self._nudging = asyncio.create_task(self._nudge_until_heard(), name=f"nudge-shard-{self._shard}")

    async def follow(self, version: int) -> None:
        """Tell the shard of a version it may have missed while no sink was pushing to it."""
        nothing = layout.empty_batch(self._spec)
        await self.apply(Delta(base_version=version, version=version, upserts=nothing, deleted_ids=()))

    async def close(self) -> None:
        """Stop nudging."""
        if self._nudging is not None:
            self._nudging.cancel()
            await asyncio.gather(self._nudging, return_exceptions=True)

    async def _nudge_until_heard(self) -> None:
        wait, longest = BACKOFF_S
        heard = -1
        while self._newest is not None and heard < self._newest.version:
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest)
            newest = self._newest
            try:
                await self._push(newest)
            except Exception as error:
                _log.info("shard %d does not hear of version %d yet: %s", self._shard, newest.version, error)
            else:
                heard = newest.version

    async def _push(self, delta: Delta) -> None:
        with deadlines.limited(self._push_timeout_s):
            await self._stub.apply(delta)


def _nudge(delta: Delta) -> Delta:
    """The news of a version without its rows: whoever does not serve it yet sees a gap."""
    return Delta(base_version=delta.version, version=delta.version, upserts=delta.upserts.slice(0, 0), deleted_ids=())
