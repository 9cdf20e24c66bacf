"""What can be read off a snapshot without searching: rows by slot, pages in id order, counts."""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from likewise.shards import attributes
from likewise.shards.protocols import I64, Rows
from likewise.shards.raw_vectors import is_mapped
from likewise.shards.recipe import FLAT
from likewise.shards.rows import Mask, Snapshot
from likewise.shards.spec import GallerySpec
from likewise.v1 import gallery_service_pb2 as pb


class IdOrder:
    """Live slots by id, in UTF-8 byte order; kept for the newest rows asked about."""

    def __init__(self) -> None:
        self._kept: tuple[tuple[int, int], I64] | None = None

    def slots(self, snapshot: Snapshot) -> I64:
        """(live,) slots, id ascending. May be called from any thread."""
        key, kept = (snapshot.generation, snapshot.mutation), self._kept
        if kept is not None and kept[0] == key:
            return kept[1]
        # Python orders strings by code point, which is the order of their UTF-8 bytes.
        order = sorted(np.flatnonzero(snapshot.alive).tolist(), key=snapshot.ids.__getitem__)
        slots = np.array(order, dtype=np.int64)
        self._kept = (key, slots)
        return slots


def page(snapshot: Snapshot, order: I64, mask: Mask, *, after: str, limit: int) -> I64:
    """The first `limit` slots of `order` that the mask lets through and whose id is greater than `after`."""
    rest = order[bisect_right(order, after, key=lambda slot: snapshot.ids[slot]) :]
    return rest[mask[rest]][:limit]


def rows(snapshot: Snapshot, slots: I64, *, space: str, names: Sequence[str], vectors: bool) -> Rows:
    """The rows at `slots`, in that order."""
    held = snapshot.spaces[space]
    return Rows(
        ids=[snapshot.ids[slot] for slot in slots.tolist()],
        content=snapshot.content[slots],
        attributes=attributes.take(snapshot.table, slots, names) if names else None,
        vectors=held.vectors(slots) if vectors else None,
        norms=held.norms[slots] if vectors else None,
        version=snapshot.version,
    )


def stats(snapshot: Snapshot, spec: GallerySpec, *, shard: int) -> pb.ShardStats:
    """Counts; the index is that of the default space."""
    sealed = snapshot.spaces[spec.spaces[0].name].index
    return pb.ShardStats(
        shard=shard,
        live=snapshot.live,
        sealed=snapshot.sealed,
        fresh=snapshot.fresh,
        tombstones=snapshot.tombstones,
        index=sealed.description if sealed else FLAT,
        version=snapshot.version,
        memory_bytes=memory_bytes(snapshot),
    )


def memory_bytes(snapshot: Snapshot) -> int:
    """Estimate of what the arrays take; ids, what Python adds to them, and vectors mapped from disk are not counted."""
    held = snapshot.content, snapshot.by_content.slots, snapshot.stamps, snapshot.alive
    total = int(snapshot.table.nbytes) + sum(array.nbytes for array in held)
    for space in snapshot.spaces.values():
        total += space.fresh.nbytes + space.norms.nbytes
        if space.index is None or space.index.vectors is None:
            total += 0 if is_mapped(space.sealed) else space.sealed.nbytes
        if space.index is not None:
            total += space.index.memory_bytes
    return total
