"""Sealed blocks on their way to the cache: the newest one is written, beside searches and builds."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likewise.shards import gpu
from likewise.shards.cache import SealedCache
from likewise.shards.index import SealedIndex
from likewise.shards.protocols import I64
from likewise.shards.spec import GallerySpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeptBlock:
    """What of a sealed block goes to the cache; it holds nothing of the block before.

    Attributes:
        spec: What it was built for.
        stamps: (rows,) of each position.
        indexes: By space; None where its rows are only compared exactly.
    """

    spec: GallerySpec
    stamps: I64
    indexes: Mapping[str, SealedIndex | None]


class BlockKeeper:
    """Writes the blocks of one shard; for one event loop.

    Args:
        folder: Of the cache; None to keep none.
        number: Which of the gallery's shards.
        executor: Where files are written.
        spawn: Starts a task that its owner waits for at the end.
    """

    def __init__(
        self,
        folder: Path | None,
        number: int,
        *,
        executor: Executor,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._folder = folder
        self._number = number
        self._executor = executor
        self._spawn = spawn
        self._next: KeptBlock | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def task(self) -> asyncio.Task[None] | None:
        """What writes now; None while nothing does."""
        return self._task

    def keep(self, block: KeptBlock) -> None:
        """Write a block, after the one that is being written; of those that wait for that only the last."""
        self._next = block
        if self._task is None:
            self._task = self._spawn(self._write_all())

    async def _write_all(self) -> None:
        try:
            while (newest := self._next) is not None:
                self._next = None
                await asyncio.get_running_loop().run_in_executor(self._executor, self._write, newest)
        finally:
            self._task = None

    def _write(self, block: KeptBlock) -> None:
        if self._folder is None:
            return
        cache = SealedCache(self._folder, block.spec, self._number)
        for space in block.spec.spaces:
            built = block.indexes[space.name]
            try:
                # What is compared is made again, and a GPU builds, faster than a disk reads.
                if built is None or built.exact or built.recipe.factory in gpu.KINDS:
                    cache.discard(space)
                else:
                    cache.store(space, built, block.stamps)
            except (OSError, RuntimeError) as error:
                log.warning("the sealed index of shard %d of %s was not kept: %s", self._number, block.spec.name, error)
