"""What a query's answer is to be without: ids that are named, and copies of a content."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from likewise.shards import attributes
from likewise.shards.distance import Ranked
from likewise.shards.masks import Allowed
from likewise.shards.protocols import F32, I64, NOTHING, Exclusion, SearchOptions, ShardHits
from likewise.shards.rows import Snapshot
from likewise.v1 import search_service_pb2 as pb

MAX_EXTRA: Final = 64
"""Rows to leave out of an answer that are met by asking for as many more; beyond, they are taken out of the bitmap."""

_NO_SLOTS: Final[I64] = np.zeros(0, dtype=np.int64)


class Query(NamedTuple):
    """One query of a request that leaves something out: (1, d), the ids and the slots that its answer is without."""

    vector: F32
    ids: tuple[str, ...]
    copies: I64

    @property
    def extra(self) -> int:
        """How many more hits are asked for, so that k are left."""
        return len(self.ids) + len(self.copies)


class Left(NamedTuple):
    """What is left for one query."""

    slots: I64
    scores: F32
    plan: pb.ShardPlan


def each(snapshot: Snapshot, allowed: Allowed, queries: F32, options: SearchOptions) -> list[Query]:
    """The (n, d) queries of a request, one by one."""
    exclusions = options.exclusions or (NOTHING,) * len(queries)
    return [
        Query(queries[i : i + 1], exclusion.ids, _copies(snapshot, allowed, exclusion))
        for i, exclusion in enumerate(exclusions)
    ]


def without(snapshot: Snapshot, allowed: Allowed, copies: I64) -> Allowed:
    """The allowed rows but some."""
    mask = allowed.mask.copy()
    mask[copies] = False
    return Allowed(
        mask,
        count=int(np.count_nonzero(mask)),
        sealed=int(np.count_nonzero(mask[: snapshot.sealed])),
        filtered=allowed.filtered,
    )


def left(snapshot: Snapshot, query: Query, ranked: Ranked, plan: pb.ShardPlan, nth: int, k: int) -> Left:
    """The first k hits of the n-th query that are not left out."""
    piece = slice(int(ranked.offsets[nth]), int(ranked.offsets[nth + 1]))
    slots, copies, names = ranked.slots[piece], frozenset(query.copies.tolist()), frozenset(query.ids)
    kept = [at for at, slot in enumerate(slots.tolist()) if slot not in copies and snapshot.ids[slot] not in names]
    return Left(slots[kept[:k]], ranked.scores[piece][kept[:k]], plan)


def hits(snapshot: Snapshot, options: SearchOptions, queries: Sequence[Query], found: Sequence[Left]) -> ShardHits:
    """The answer to one request, of what is left for each of its queries."""
    slots = np.concatenate([one.slots for one in found])
    return ShardHits(
        ids=[snapshot.ids[slot] for slot in slots.tolist()],
        scores=np.concatenate([one.scores for one in found]),
        offsets=np.cumsum([0, *(len(one.slots) for one in found)], dtype=np.int64),
        attributes=attributes.take(snapshot.table, slots, options.attributes) if options.attributes else None,
        vectors=snapshot.spaces[options.space].vectors(slots) if options.vectors else None,
        plan=found[-1].plan,
        version=snapshot.version,
        excluded=[len(query.copies) for query in queries],
    )


def _copies(snapshot: Snapshot, allowed: Allowed, exclusion: Exclusion) -> I64:
    """Slots of the allowed rows whose content is excluded."""
    if exclusion.content is None:
        return _NO_SLOTS
    slots = snapshot.by_content.equal(snapshot.content, exclusion.content)
    return slots[allowed.mask[slots]]
