"""What a gallery's store says about shards that claim to hold its rows: counts by partition, and vectors to ask for.

Blocking, all of it.
"""

import numpy as np

from likewise.shards.failures import told_apart
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.partition import Partition
from likewise.shards.protocols import F32
from likewise.shards.rows import vector_column


def stored_rows(gallery: GalleryStore, version: int, shard: int, shards: int) -> int:
    """Live rows of one of `shards` partitions at a version.

    Raises:
        HistoryGone: If the version has been cleaned up.
        StoreFailure: If it cannot be read.
    """
    return Partition(gallery, shard, shards).count(version)


def stored_vectors(gallery: GalleryStore, space: str, count: int, *, seed: int = 0) -> F32:
    """(n, dim) unit vectors of distinct random rows of the newest version; n is `count`, or all rows if they are fewer.

    Args:
        gallery: The store's part.
        space: Name of the space.
        count: How many are wanted.
        seed: Of the choice.

    Raises:
        HistoryGone: If the version is cleaned up meanwhile.
        StoreFailure: If it cannot be read.
    """
    dim = gallery.spec.space(space).dim
    dataset = gallery.checkout(gallery.newest_version())
    with told_apart("reading vectors of the store"):
        rows = int(dataset.count_rows())
        chosen = np.sort(np.random.default_rng(seed).choice(rows, min(rows, count), replace=False))
        if not len(chosen):
            return np.zeros((0, dim), np.float32)
        return vector_column(dataset.take(chosen.tolist(), columns=[f"vector_{space}"]).to_batches()[0], space, dim)
