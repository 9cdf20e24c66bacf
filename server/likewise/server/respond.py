"""The replies to searches that were answered together: what they share is made once. Pure functions."""

import functools
import time
from collections.abc import Iterable, Sequence

from likewise.server import plan
from likewise.server.answer import Answer
from likewise.server.fan_out import FanOut
from likewise.server.prepared import Prepared
from likewise.shards.protocols import Exclusion, ShardHits
from likewise.v1 import common_pb2
from likewise.v1 import search_service_pb2 as pb


def respond(
    searches: Sequence[Prepared], found: FanOut, answers: Sequence[Answer], merge_us: int, asked: float
) -> None:
    """Complete the replies of answers, which have their hits.

    Args:
        searches: At least one; all have the same key.
        found: What the shards answered.
        answers: One a search, in order.
        merge_us: What merging took, microseconds.
        asked: `time.perf_counter()` when the shards were asked.
    """
    # Merging serialised messages costs a third of copying them field by field.
    shared = _shared(searches[0], found, merge_us)
    now = time.perf_counter()
    first = 0
    for search, (reply, _) in zip(searches, answers, strict=True):
        composed = search.composed
        if composed.models:
            reply.models.extend(composed.models)
        if composed.warnings:
            reply.warnings.extend(composed.warnings)
        if search.exclusion is not None:
            reply.warnings.extend(_excluded(search.exclusion, first, found.answers.values()))
        first += search.size
        reply.MergeFromString(shared)
        reply.request_id = search.request_id
        reply.plan.composition = composed.composition
        timing = reply.timing
        timing.decode_us, timing.encode_us, timing.compose_us = (
            composed.decode_us,
            composed.encode_us,
            composed.compose_us,
        )
        timing.gather_us = round((asked - search.ready) * 1e6)
        timing.total_us = round((now - search.started) * 1e6)


def _shared(first: Prepared, found: FanOut, merge_us: int) -> bytes:
    """What the replies have in common, serialised."""
    answers, looking = found.answers.values(), first.form.looking
    common = pb.SearchResponse(version=min([shard.version for shard in answers]))
    timing = common.timing
    timing.fan_out_us = found.elapsed_us
    timing.shard_max_us = max([shard.search_us for shard in answers])
    timing.shard_queue_max_us = max([shard.queue_us for shard in answers])
    timing.merge_us = merge_us
    common.coverage.CopyFrom(found.coverage)
    told = _told_of(
        tuple([found.answers[number].plan.SerializeToString() for number in sorted(found.answers)]),
        bool(first.options.filter),
        looking.ef is not None,
        looking.nprobe is not None,
        looking.over_fetch is not None,
    )
    # Two serialised messages, one after the other, are both of them merged.
    return common.SerializeToString() + told


@functools.lru_cache(maxsize=256)
def _told_of(plans: tuple[bytes, ...], filtered: bool, ef: bool, nprobe: bool, over_fetch: bool) -> bytes:
    """Plan and warnings of searches that went alike, serialised."""
    shards = [pb.ShardPlan.FromString(one) for one in plans]
    return pb.SearchResponse(
        plan=pb.Plan(summary=plan.summary(shards, filtered=filtered), shards=shards),
        warnings=plan.unused(shards, ef=ef, nprobe=nprobe, over_fetch=over_fetch),
    ).SerializeToString()


def _excluded(exclusion: Exclusion, query: int, answers: Iterable[ShardHits]) -> list[common_pb2.Warning]:
    """Says that copies of an image were left out: unlike the id of a stored item, the caller did not name them."""
    if exclusion.content is None or exclusion.ids:
        return []
    count = sum(hits.excluded[query] for hits in answers if hits.excluded)
    if not count:
        return []
    items = "1 item is an exact copy" if count == 1 else f"{count} items are exact copies"
    return [
        common_pb2.Warning(
            code="REFERENCE_EXCLUDED",
            message=f"{items} of the reference image and left out; set include_reference to have them",
        )
    ]
