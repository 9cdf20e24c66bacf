"""Answers of several shards merged into one: (score descending, id ascending), in columns.

Scores do not depend on the shard that computed them, so any partition of the rows merges to the same answer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from likewise.shards.protocols import F32, I64, ShardHits


class Merged(NamedTuple):
    """Hits of n queries.

    Attributes:
        ids: All queries' hits, one query after the other.
        scores: (hits,) float32.
        offsets: (n + 1,) int64; query i has hits offsets[i] to offsets[i + 1].
        take: (hits,) int64; row of each hit in the parts' hits laid end to end, in the order the parts were given; None
            where they are the hits, one after the other.
    """

    ids: Sequence[str]
    scores: F32
    offsets: I64
    take: I64 | None


def merge(parts: Sequence[ShardHits], k: int) -> Merged:
    """The k best hits of each query over all parts.

    Equal scores are ordered by id, and equal ids (which partitions exclude) by part.

    Raises:
        ValueError: If there are no parts, or they disagree on the number of queries.
    """
    if not parts:
        raise ValueError("nothing to merge: at least one part is needed")
    n = len(parts[0].offsets) - 1
    if len(parts) == 1 and (len(parts[0].ids) <= k or _most(parts[0].offsets) <= k):
        # A shard gives its hits in order.
        return Merged(ids=parts[0].ids, scores=parts[0].scores, offsets=parts[0].offsets, take=None)
    for part in parts[1:]:
        if len(part.offsets) - 1 != n:
            raise ValueError(f"parts answer {n} and {len(part.offsets) - 1} queries")
    scores = np.concatenate([part.scores for part in parts])
    ids = [item_id for part in parts for item_id in part.ids]
    if n == 1:
        order = np.argsort(-scores, kind="stable")
        bounds = np.array([0, len(order)])
    else:
        owners = np.concatenate([np.repeat(np.arange(n), np.diff(part.offsets)) for part in parts])
        order = np.lexsort((-scores, owners))
        bounds = np.searchsorted(owners[order], np.arange(n + 1))
    scores = scores[order]
    order = _break_ties(order, scores, bounds, ids)
    counts = np.minimum(np.diff(bounds), k)
    offsets = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    kept = np.repeat(bounds[:-1] - offsets[:-1], counts) + np.arange(offsets[-1])
    take = order[kept]
    return Merged(ids=[ids[row] for row in take.tolist()], scores=scores[kept], offsets=offsets, take=take)


def take_attributes(parts: Sequence[ShardHits], merged: Merged) -> pa.RecordBatch | None:
    """The attribute columns of the merged hits; None when the parts carry none."""
    batches = [part.attributes for part in parts if part.attributes is not None]
    if not batches:
        return None
    if merged.take is None:
        return batches[0]
    taken = pa.Table.from_batches(batches).combine_chunks().take(pa.array(merged.take)).combine_chunks()
    return pa.RecordBatch.from_arrays(
        [column.combine_chunks() if column.num_chunks != 1 else column.chunk(0) for column in taken.columns],
        schema=taken.schema,
    )


def take_vectors(parts: Sequence[ShardHits], merged: Merged) -> F32 | None:
    """(hits, dim) vectors of the merged hits; None when the parts carry none."""
    vectors = [part.vectors for part in parts if part.vectors is not None]
    if not vectors:
        return None
    return vectors[0] if merged.take is None else np.concatenate(vectors)[merged.take]


def _most(offsets: I64) -> int:
    """Hits of the query that has the most; `np.diff` and its like take longer than they work for few of them."""
    counts: list[int] = (offsets[1:] - offsets[:-1]).tolist()
    return max(counts)


def _break_ties(order: I64, scores: F32, bounds: I64, ids: Sequence[str]) -> I64:
    """`order` with every run of equal scores of one query sorted by id; stable, so parts stay in order."""
    equal = scores[1:] == scores[:-1]
    inner = bounds[1:-1]
    equal[inner[(inner > 0) & (inner < len(scores))] - 1] = False
    if not equal.any():
        return order
    order = order.copy()
    edges = np.diff(np.concatenate(([False], equal, [False])).astype(np.int8))
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) + 1
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        order[start:stop] = sorted(order[start:stop].tolist(), key=ids.__getitem__)
    return order
