"""What a gallery reports of itself, and the wait until its indexes serve."""

import math
import time
from dataclasses import dataclass
from typing import Final

from likewise.client import rpc
from likewise.client.errors import DeadlineExceeded, FailedPrecondition
from likewise.client.galleries import GalleryInfo, gallery_of, name_of
from likewise.client.results import enum_word
from likewise.client.rpc import Call, make_call
from likewise.v1 import gallery_service_pb2 as gallery_pb

POLL_S: Final = 0.1
"""Seconds between two looks at a gallery that is not ready."""


@dataclass(frozen=True, slots=True)
class RecallEstimate:
    """Recall of a shard's approximate searches, as it was measured.

    Attributes:
        space: Which of the gallery's.
        max_share: Of searches whose filter leaves at most this share of the rows; 1 for those without a filter.
        queries: Queries it rests on.
        recall: Mean share of the true k best that was found.
        low: Lower end of the 95 % interval of its expectation.
        high: Upper end.
        live: From live queries; False: from stored rows, before there were any.
        local_dimension: Median local intrinsic dimension at the queries; None where it could not be told.
    """

    space: str
    max_share: float
    queries: int
    recall: float
    low: float
    high: float
    live: bool
    local_dimension: float | None


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """One copy of a shard that is up, `lag` store versions behind the gallery; see the proto's ReplicaStats."""

    address: str
    state: str
    version: int
    lag: int


@dataclass(frozen=True, slots=True)
class ShardStats:
    """One shard: `live` rows can be found, `fresh` ones lie beside the sealed index; see the proto's ShardStats.

    `replicas` lists its copies on a cluster; a server in one process has none to tell of. `partial_indexes` counts the
    filters that have an index of their own.
    """

    shard: int
    live: int
    sealed: int
    fresh: int
    tombstones: int
    index: str
    state: str
    version: int
    memory_bytes: int
    message: str
    recall: tuple[RecallEstimate, ...] = ()
    replicas: tuple[ReplicaStats, ...] = ()
    partial_indexes: int = 0


@dataclass(frozen=True, slots=True)
class GalleryStats:
    """A gallery's live items, its shards and its newest committed store version."""

    gallery: GalleryInfo
    items: int
    shards: tuple[ShardStats, ...]
    version: int


class Waiting:
    """Waits for a gallery's indexes.

    Args:
        limit_s: Seconds in all; None for no limit.
    """

    def __init__(self, limit_s: float | None) -> None:
        self._end = math.inf if limit_s is None else time.monotonic() + limit_s
        self._limit_s = limit_s

    def left_s(self) -> float:
        """Seconds left for the next look, always more than 0."""
        return max(self._end - time.monotonic(), POLL_S)

    def is_over(self, stats: GalleryStats) -> bool:
        """Whether every shard serves the newest version with its index built.

        Raises:
            FailedPrecondition: If a build failed.
            DeadlineExceeded: If it is not over and the time is up.
        """
        for shard in stats.shards:
            if shard.state == "failed":
                raise FailedPrecondition(
                    f"gallery {stats.gallery.name!r}: the index of shard {shard.shard} failed: {shard.message}",
                    reason="INDEX_FAILED",
                )
        behind = [shard for shard in stats.shards if shard.state != "ready" or shard.version < stats.version]
        if behind and time.monotonic() >= self._end:
            states = ", ".join(f"shard {shard.shard} is {shard.state} at version {shard.version}" for shard in behind)
            raise DeadlineExceeded(
                f"gallery {stats.gallery.name!r} is not ready after {self._limit_s} s: {states}, the newest version is "
                f"{stats.version}"
            )
        return not behind


def stats_call(name: str) -> Call[GalleryStats]:
    """GalleryService.Stats."""
    return make_call(rpc.GALLERY_STATS, gallery_pb.GalleryServiceStatsRequest(name=name_of(name)), _stats)


def _stats(message: gallery_pb.GalleryServiceStatsResponse) -> GalleryStats:
    shards = tuple(
        ShardStats(
            one.shard,
            one.live,
            one.sealed,
            one.fresh,
            one.tombstones,
            one.index,
            enum_word(gallery_pb.IndexState, one.state, "INDEX_STATE_"),
            one.version,
            one.memory_bytes,
            one.message,
            tuple(_recall(estimate) for estimate in one.recall),
            tuple(
                ReplicaStats(
                    replica.address,
                    enum_word(gallery_pb.ReplicaState, replica.state, "REPLICA_STATE_"),
                    replica.version,
                    replica.lag,
                )
                for replica in one.replicas
            ),
            one.partial_indexes,
        )
        for one in message.shards
    )
    return GalleryStats(gallery_of(message), message.items, shards, message.version)


def _recall(one: gallery_pb.RecallEstimate) -> RecallEstimate:
    dimension = one.local_dimension if one.HasField("local_dimension") else None
    return RecallEstimate(one.space, one.max_share, one.queries, one.recall, one.low, one.high, one.live, dimension)
