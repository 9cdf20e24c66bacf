"""A gallery whose commits wait for the test, and a writer on it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pyarrow as pa
from tests.unit.shards.store_fixtures import match_price, prices

from likewise.shards.gallery_store import Commit, GalleryStore
from likewise.shards.partition import Partition
from likewise.shards.protocols import StoreFailure, WriteResult
from likewise.shards.writer import GalleryWriter


class GatedGallery(GalleryStore):
    """A gallery whose commits wait until the test opens the gate, and may be told to fail."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.gate = threading.Event()
        self.gate.set()
        self.at_gate = threading.Semaphore(0)
        self.commits = 0
        self.refused: set[str] = set()

    def commit(self, upserts: pa.Table | None, deleted_ids: Sequence[str] = (), **options: Any) -> Commit:
        self.at_gate.release()
        assert self.gate.wait(30)
        self.commits += 1
        if upserts is not None and self.refused & set(upserts["id"].to_pylist()):
            raise StoreFailure("no space left on the store's device")
        return super().commit(upserts, deleted_ids, **options)

    async def reached(self) -> None:
        """Return once a commit waits at the gate."""
        assert await asyncio.to_thread(self.at_gate.acquire, timeout=30)


@asynccontextmanager
async def writing(gallery: GalleryStore, **options: Any) -> AsyncIterator[GalleryWriter]:
    writer = GalleryWriter(gallery, match_price, **options)
    await writer.start()
    try:
        yield writer
    finally:
        if isinstance(gallery, GatedGallery):
            gallery.gate.set()
        await writer.close()


def stored(gallery: GalleryStore) -> dict[str, int]:
    return prices(Partition(gallery, 0, 1).load(gallery.newest_version()))


async def queued(*writes: Any) -> list[asyncio.Task[WriteResult]]:
    """Tasks of writes that all wait in the queue, in order."""
    tasks = [asyncio.ensure_future(write) for write in writes]
    await asyncio.sleep(0)
    return tasks
