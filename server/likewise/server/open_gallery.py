"""One gallery that is served in this process: its shards, the handles given out for them, and how they are let go."""

import asyncio
import time
import weakref
from dataclasses import dataclass, field
from typing import Final

from likewise.server import reshape
from likewise.server.protocols import GalleryHandle
from likewise.server.read_only import ReadOnlyWriter
from likewise.shards import audit
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.protocols import F32
from likewise.shards.shard import Shard
from likewise.shards.spec import GallerySpec
from likewise.shards.writer import GalleryWriter

DRAIN_S: Final = 60.0
"""Longest that shards which were replaced serve the calls that hold their handle; beyond, those are UNAVAILABLE."""

_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Generation:
    """Shards of one description, and what was given out of them.

    Attributes:
        shards: By number.
        handles: Every handle with these shards that somebody may still hold.
    """

    shards: tuple[Shard, ...]
    handles: list["weakref.ref[GalleryHandle]"] = field(default_factory=list)

    async def unused(self, *, at_most_s: float = DRAIN_S) -> None:
        """Return when no call holds a handle of these shards any more, or after so many seconds."""
        until = time.monotonic() + at_most_s
        # Looked at now and then: a handle may go in any thread, with the garbage.
        while any(handle() is not None for handle in self.handles) and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)

    async def close(self, writer: GalleryWriter | ReadOnlyWriter) -> None:
        """Follow the writer no longer and end."""
        for shard in self.shards:
            await writer.remove_sink(shard)
            await shard.close()


class OpenGallery:
    """A gallery that is served.

    Args:
        store: Its part of the store.
        writer: Its one writer.
        shards: Loaded, and followers of the writer.

    Attributes:
        store: As given.
        writer: As given.
        change: The reshape under way; None for none.
    """

    def __init__(
        self, store: GalleryStore, writer: GalleryWriter | ReadOnlyWriter, shards: tuple[Shard, ...], spec: GallerySpec
    ) -> None:
        self.store = store
        self.writer = writer
        self.change: asyncio.Task[GalleryHandle] | None = None
        self._generation = Generation(shards)
        self._handle = self._hand_out(spec)

    @property
    def spec(self) -> GallerySpec:
        """Its description."""
        return self._handle.spec

    @property
    def handle(self) -> GalleryHandle:
        """For calls: whoever keeps it keeps its shards."""
        return self._handle

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Those that serve now."""
        return self._generation.shards

    def describe(self, spec: GallerySpec) -> None:
        """Go on with the same shards under a changed description."""
        self._handle = self._hand_out(spec)

    def switch(self, spec: GallerySpec, shards: tuple[Shard, ...]) -> Generation:
        """Serve from other shards from now on; returns those that served."""
        before, self._generation = self._generation, Generation(shards)
        self._handle = self._hand_out(spec)
        return before

    def check_unchanged(self, before: GallerySpec) -> None:
        """Refuse a change made of a description that another one has replaced, or is about to.

        Raises:
            FailedPrecondition: If it has been or is being changed.
        """
        if self.change is not None or self.spec != before:
            raise reshape.change_running(before.name)

    async def give_up(self) -> None:
        """End the change that is under way, and wait until it has taken back what it did."""
        if self.change is not None:
            self.change.cancel()
            await asyncio.gather(self.change, return_exceptions=True)

    async def close(self) -> None:
        """Commit what waits and end."""
        await self.writer.close()
        for shard in self.shards:
            await shard.close()

    def _hand_out(self, spec: GallerySpec) -> GalleryHandle:
        handle = GalleryHandle(
            spec, self._generation.shards, self.writer, self.writer, isinstance(self.writer, ReadOnlyWriter)
        )
        handles = self._generation.handles
        handles[:] = [kept for kept in handles if kept() is not None]
        handles.append(weakref.ref(handle))
        return handle


class StoreTruth:
    """`reshape.Truth` of a store's part in this process."""

    def __init__(self, store: GalleryStore) -> None:
        self._store = store

    async def version(self) -> int:
        """See `Truth.version`."""
        return await asyncio.to_thread(self._store.newest_version)

    async def rows(self, version: int, shard: int, shards: int) -> int:
        """See `Truth.rows`."""
        return await asyncio.to_thread(audit.stored_rows, self._store, version, shard, shards)

    async def sample(self, space: str, count: int) -> F32:
        """See `Truth.sample`."""
        return await asyncio.to_thread(audit.stored_vectors, self._store, space, count)
