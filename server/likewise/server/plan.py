"""How an answer was found, in one line for people."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from likewise.v1 import common_pb2
from likewise.v1 import search_service_pb2 as pb

_WORDS: Final = {
    pb.PLAN_KIND_EXACT: "exact",
    pb.PLAN_KIND_EXACT_FILTERED: "exact",
    pb.PLAN_KIND_ANN: "approximate",
    pb.PLAN_KIND_ANN_FILTERED: "approximate",
    pb.PLAN_KIND_EMPTY: "nothing to search",
}
_EXACT: Final = (pb.PLAN_KIND_EXACT, pb.PLAN_KIND_EXACT_FILTERED, pb.PLAN_KIND_EMPTY)


def summary(shards: Sequence[pb.ShardPlan], *, filtered: bool) -> str:
    """The shards' plans as one, for example "exact over 512 of 50,000 (filter 1.0 %)".

    Args:
        shards: Plans of the shards that answered.
        filtered: Whether the search had a filter.
    """
    kinds = Counter(_WORDS.get(shard.kind, "unknown") for shard in shards)
    if len(kinds) > 1:
        # Empty shards beside others say nothing about how the answer was found.
        kinds.pop(_WORDS[pb.PLAN_KIND_EMPTY], None)
    live = sum(shard.live for shard in shards)
    allowed = sum(shard.allowed for shard in shards)
    how = " and ".join(f"{word} on {n}" if len(kinds) > 1 else word for word, n in sorted(kinds.items()))
    over = f"{allowed:,} of {live:,} (filter {_percent(allowed, live)})" if filtered else f"{live:,}"
    parts = [f"{how} over {over}"]
    parts += [f"{name} {value}" for name, value in _numbers(shards)]
    if partial := sum(shard.partial_index for shard in shards):
        parts.append("partial index" if partial == len(shards) else f"partial index on {partial}")
    if fallbacks := sum(shard.fallback for shard in shards):
        parts.append(
            "came short and searched exactly" if len(shards) == 1 else f"{fallbacks} came short, searched exactly"
        )
    if len(shards) > 1:
        parts.append(f"{len(shards)} shards")
    return ", ".join(parts)


def unused(shards: Sequence[pb.ShardPlan], *, ef: bool, nprobe: bool, over_fetch: bool) -> list[common_pb2.Warning]:
    """Warnings for parameters that were given and that no shard had a use for."""
    if not (ef or nprobe or over_fetch):
        return []
    exact = all(shard.kind in _EXACT for shard in shards)
    given = {
        "ef": ef and not any(shard.ef for shard in shards),
        "nprobe": nprobe and not any(shard.nprobe for shard in shards),
        "over_fetch": over_fetch and exact,
    }
    if not any(given.values()):
        return []
    why = "the search was exact" if exact else "the gallery's index has no such parameter"
    return [
        common_pb2.Warning(code="PARAMETER_UNUSED", message=f"params.{name} had no effect: {why}")
        for name, idle in given.items()
        if idle
    ]


def _numbers(shards: Sequence[pb.ShardPlan]) -> list[tuple[str, int]]:
    found = [("ef", max((shard.ef for shard in shards), default=0))]
    found.append(("nprobe", max((shard.nprobe for shard in shards), default=0)))
    return [(name, value) for name, value in found if value]


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole if whole else 0.0
    return f"{share:.1f} %" if share >= 0.1 or not part else f"{share:.2g} %"
