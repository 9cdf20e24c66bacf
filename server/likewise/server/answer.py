"""What shards found as the columns of a reply: merged, cut where relevance ends, packed. Pure functions."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from likewise import wire
from likewise.server.validate_search import Cut
from likewise.shards import columns, merge
from likewise.shards.protocols import F32, I64, ShardHits
from likewise.shards.spec import GallerySpec
from likewise.v1 import common_pb2
from likewise.v1 import search_service_pb2 as pb

_SCORE_BYTES: Final = 4


class Answer(NamedTuple):
    """The answer to one search, or to the same search for each of n query vectors.

    Attributes:
        response: The reply; its hits are those of all queries, one after the other.
        offsets: (n + 1,) int64; query i has the hits offsets[i] to offsets[i + 1].
    """

    response: pb.SearchResponse
    offsets: I64


class Part(NamedTuple):
    """What one search has of the queries that were answered together.

    Attributes:
        queries: How many.
        cut: Where their relevance ends.
    """

    queries: int
    cut: Cut


def pack(
    answers: Mapping[int, ShardHits], parts: Sequence[Part], *, k: int, spec: GallerySpec, space: str
) -> list[Answer]:
    """A reply for each search with its hits, best first, and nothing else: messages are not copied into others later.

    Args:
        answers: Hits by shard number; all answer the same queries.
        parts: The searches, in the order of their queries.
        k: Hits a query.
        spec: Schema of the attributes.
        space: Digest of the space, told with vectors.
    """
    found = [answers[shard] for shard in sorted(answers)]
    merged = merge.merge(found, k)
    attributes = merge.take_attributes(found, merged)
    vectors = merge.take_vectors(found, merged)
    scores = wire.pack(merged.scores, "<f4")
    packed, first = [], 0
    for part in parts:
        offsets = merged.offsets[first : first + part.queries + 1]
        first += part.queries
        start, end = int(offsets[0]), int(offsets[-1])
        rows = None
        if part.cut.min_score is not None or part.cut.relative is not None:
            rows, offsets = _cut(merged.scores, offsets, part.cut)
        response = pb.SearchResponse()
        hits = response.hits
        hits.score_kind = pb.SCORE_KIND_COSINE
        if rows is None:
            hits.ids.extend(merged.ids[start:end])
            hits.scores = scores[start * _SCORE_BYTES : end * _SCORE_BYTES]
        else:
            hits.ids.extend([merged.ids[row] for row in rows.tolist()])
            hits.scores = wire.pack(merged.scores[rows], "<f4")
        if attributes is not None:
            taken = attributes.slice(start, end - start) if rows is None else attributes.take(pa.array(rows))
            hits.attributes.extend(columns.batch_to_columns(spec, taken, taken.schema.names))
        if vectors is not None:
            kept_vectors = vectors[start:end] if rows is None else vectors[rows]
            hits.vectors.CopyFrom(wire.encode_vectors(kept_vectors, space=space))
        packed.append(Answer(response, offsets - offsets[0]))
    return packed


def _cut(scores: F32, offsets: I64, cut: Cut) -> tuple[I64, I64]:
    """The rows that stay of each query, and the offsets among them."""
    bounds = [(start, start + kept(scores[start:end], cut)) for start, end in itertools.pairwise(offsets.tolist())]
    rows = np.concatenate([np.arange(start, end) for start, end in bounds])
    return rows, np.concatenate(([0], np.cumsum([end - start for start, end in bounds])))


def kept(scores: F32, cut: Cut) -> int:
    """How many of the scores, best first, pass the cut.

    A share of the best score is a threshold only where that is positive; else no more than the best's equals are kept.
    """
    if cut.min_score is not None:
        threshold = np.float32(cut.min_score)
    elif cut.relative is not None and len(scores):
        best = scores[0]
        threshold = np.float32(best * np.float32(cut.relative)) if best > 0 else best
    else:
        return len(scores)
    return int(np.count_nonzero(scores >= threshold))


def vector_of(vector: F32, space: str) -> common_pb2.Vector:
    """One vector, float32, with the digest of its space."""
    return wire.encode_vector(vector, space=space)
