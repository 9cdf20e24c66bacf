"""What shards found as the columns of a reply: merged, cut where relevance ends, packed. Pure functions."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from likewise import wire
from likewise.server.validate_search import Cut
from likewise.shards import columns, merge
from likewise.shards.protocols import F32, ShardHits
from likewise.shards.spec import GallerySpec
from likewise.v1 import common_pb2
from likewise.v1 import search_service_pb2 as pb

_SCORE_BYTES: Final = 4


def pack(
    answers: Mapping[int, ShardHits], cuts: Sequence[Cut], *, k: int, spec: GallerySpec, space: str
) -> list[pb.SearchResponse]:
    """A reply for each query with its hits, best first, and nothing else: messages are not copied into others later.

    Args:
        answers: Hits by shard number; all answer the same queries.
        cuts: Where each query's relevance ends.
        k: Hits a query.
        spec: Schema of the attributes.
        space: Digest of the space, told with vectors.
    """
    parts = [answers[shard] for shard in sorted(answers)]
    merged = merge.merge(parts, k)
    attributes = merge.take_attributes(parts, merged)
    vectors = merge.take_vectors(parts, merged)
    scores = wire.pack(merged.scores, "<f4")
    packed = []
    for cut, (start, end) in zip(cuts, itertools.pairwise(merged.offsets.tolist()), strict=True):
        if cut.min_score is not None or cut.relative is not None:
            end = start + kept(merged.scores[start:end], cut)
        response = pb.SearchResponse()
        hits = response.hits
        hits.score_kind = pb.SCORE_KIND_COSINE
        hits.ids.extend(merged.ids[start:end])
        hits.scores = scores[start * _SCORE_BYTES : end * _SCORE_BYTES]
        if attributes is not None:
            rows = attributes.slice(start, end - start)
            hits.attributes.extend(columns.batch_to_columns(spec, rows, rows.schema.names))
        if vectors is not None:
            hits.vectors.CopyFrom(wire.encode_vectors(vectors[start:end], space=space))
        packed.append(response)
    return packed


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
