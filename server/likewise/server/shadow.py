"""The shadow comparison: recent live queries answered by the models in use and by those to come, off the hot path.

One query at a time, so that it waits behind live ones in the encoders and shards and never the other way round.
"""

import asyncio
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from likewise.server import spaces
from likewise.server.compose import compose_query
from likewise.server.errors import ServiceError
from likewise.server.fan_out import LiveCounts, fan_out
from likewise.server.protocols import Family, Galleries
from likewise.server.recent_queries import LiveQuery
from likewise.server.validate_search import Partial
from likewise.shards.merge import merge
from likewise.shards.protocols import F32, SearchOptions, ShardError
from likewise.v1 import model_service_pb2

K: Final = 10
"""Hits compared."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a shadow comparison found.

    Attributes:
        overlap: Mean share of the top 10 that both answers have; 0.0 when nothing was compared.
        compared: Queries that both answered.
    """

    overlap: float = 0.0
    compared: int = 0


NOT_COMPARED: Final = Comparison()


@dataclass(frozen=True, slots=True)
class _OneFamily:
    """`Models` of a single family, whichever is in use."""

    only: Family

    def family(self, name: str) -> Family:
        return self.only

    def models(self) -> Sequence[model_service_pb2.Model]:
        return ()


async def compare(queries: Sequence[LiveQuery], old: Family, new: Family, galleries: Galleries) -> Comparison:
    """Answer each query twice and see how much of the ten best stays.

    Queries that either side cannot answer now (their gallery is gone, a queue is full) are left out.

    Args:
        queries: A sample of live ones.
        old: Models in use; hold their lease.
        new: Models to come; hold their lease.
        galleries: Where to search.
    """
    overlaps = []
    for query in queries:
        # Lets everything that is ready run first.
        await asyncio.sleep(0)
        try:
            overlap = await _overlap(query, old, new, galleries)
        except (ServiceError, ShardError) as error:
            _LOG.info("a live query was left out of the comparison: %s", error)
            continue
        if overlap is not None:
            overlaps.append(overlap)
    return Comparison(float(np.mean(overlaps)), len(overlaps)) if overlaps else NOT_COMPARED


async def _overlap(query: LiveQuery, old: Family, new: Family, galleries: Galleries) -> float | None:
    handle = galleries.get(query.gallery)
    try:
        space = handle.spec.space(query.space)
    except KeyError:
        return None
    vectors: list[F32] = []
    for family in (old, new):
        fitting = spaces.fit(_OneFamily(family), space, handle.spec)
        if fitting is None:
            return None
        composed = await compose_query(
            family, space.dim, reference=query.reference, conditions=query.conditions, leading=fitting.leading
        )
        vectors.append(composed.vector)
    options = SearchOptions(space=space.name, k=K)
    found = await fan_out(handle, np.stack(vectors), options, partial=Partial(), live=LiveCounts())
    merged = merge([found.answers[shard] for shard in sorted(found.answers)], K)
    bounds = merged.offsets.tolist()
    before, after = (set(merged.ids[start:end]) for start, end in itertools.pairwise(bounds))
    most = max(len(before), len(after))
    return len(before & after) / most if most else None
