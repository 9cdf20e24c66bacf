"""How many rows each partition has in the newest version, whoever serves it or does not.

What a shard that is away would have searched is told by the store. It is asked once a version, however many searches
miss the shard.
"""

import asyncio

from likewise.shards.gallery_store import GalleryStore
from likewise.shards.partition import Partition


class PartitionCounts:
    """Counts of one gallery; use it from one event loop.

    Args:
        gallery: Its part of the store; read in threads of the event loop's own executor.
    """

    def __init__(self, gallery: GalleryStore) -> None:
        self._gallery = gallery
        self._version = -1
        self._counting: dict[tuple[int, int], asyncio.Task[int]] = {}

    async def rows(self, version: int, shard: int, shards: int) -> int:
        """Live rows of one of `shards` partitions at a version, which should be the newest.

        Raises:
            HistoryGone: If the version has been cleaned up.
            StoreFailure: If it cannot be read.
            ValueError: If there is no such partition.
        """
        if version != self._version:
            self._version, self._counting = version, {}
        task = self._counting.get((shard, shards))
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            partition = Partition(self._gallery, shard, shards)
            task = self._counting[shard, shards] = asyncio.create_task(asyncio.to_thread(partition.count, version))
        # One caller who goes away does not take the count from the others.
        return await asyncio.shield(task)
