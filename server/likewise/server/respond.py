"""The replies to searches that were answered together: what they share is made once. Pure functions."""

import functools
import time
from collections.abc import Iterable, Sequence

from likewise.server import plan
from likewise.server.fan_out import FanOut
from likewise.server.prepared import Prepared
from likewise.shards.protocols import SearchOptions, ShardHits
from likewise.v1 import common_pb2
from likewise.v1 import search_service_pb2 as pb


def respond(
    searches: Sequence[Prepared], found: FanOut, hits: Sequence[pb.Hits], merge_us: int, asked: float
) -> list[pb.SearchResponse]:
    """The replies, in order.

    Args:
        searches: At least one; all have the same key.
        found: What the shards answered.
        hits: The hits of each search.
        merge_us: What merging took, microseconds.
        asked: `time.perf_counter()` when the shards were asked.
    """
    first, answers = searches[0], found.answers.values()
    told = _told(first, found)
    timing = pb.Timing(
        fan_out_us=found.elapsed_us,
        shard_max_us=max([shard.search_us for shard in answers]),
        shard_queue_max_us=max([shard.queue_us for shard in answers]),
        merge_us=merge_us,
    )
    version, excluded = min([shard.version for shard in answers]), _excluded(first.options, answers)
    responses = []
    for search, own in zip(searches, hits, strict=True):
        composed = search.composed
        response = pb.SearchResponse(
            hits=own,
            coverage=found.coverage,
            timing=timing,
            models=composed.models,
            version=version,
            warnings=(*composed.warnings, *excluded),
            request_id=search.request_id,
        )
        response.MergeFrom(told)
        response.plan.composition = composed.composition
        response.timing.decode_us, response.timing.encode_us = composed.decode_us, composed.encode_us
        response.timing.compose_us = composed.compose_us
        response.timing.gather_us = round((asked - search.ready) * 1e6)
        response.timing.total_us = round((time.perf_counter() - search.started) * 1e6)
        responses.append(response)
    return responses


def _told(search: Prepared, found: FanOut) -> pb.SearchResponse:
    looking = search.form.looking
    return _told_of(
        tuple([found.answers[number].plan.SerializeToString() for number in sorted(found.answers)]),
        bool(search.options.filter),
        looking.ef is not None,
        looking.nprobe is not None,
        looking.over_fetch is not None,
    )


@functools.lru_cache(maxsize=256)
def _told_of(plans: tuple[bytes, ...], filtered: bool, ef: bool, nprobe: bool, over_fetch: bool) -> pb.SearchResponse:
    """Plan and warnings of searches that went alike; shared by their replies, which take copies."""
    shards = [pb.ShardPlan.FromString(one) for one in plans]
    return pb.SearchResponse(
        plan=pb.Plan(summary=plan.summary(shards, filtered=filtered), shards=shards),
        warnings=plan.unused(shards, ef=ef, nprobe=nprobe, over_fetch=over_fetch),
    )


def _excluded(options: SearchOptions, answers: Iterable[ShardHits]) -> list[common_pb2.Warning]:
    """Says that copies of an image were left out: unlike the id of a stored item, the caller did not name them."""
    if options.excluded_content is None or options.excluded_ids:
        return []
    count = sum(hits.excluded for hits in answers)
    if not count:
        return []
    items = "1 item is an exact copy" if count == 1 else f"{count} items are exact copies"
    return [
        common_pb2.Warning(
            code="REFERENCE_EXCLUDED",
            message=f"{items} of the reference image and left out; set include_reference to have them",
        )
    ]
