"""`ShardSearch` over the replicas of one shard."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from likewise.server.replicas.latency import kind_of
from likewise.server.replicas.policy import ReplicaPolicy
from likewise.server.replicas.pool import Pool
from likewise.server.replicas.race import Race, Read
from likewise.server.replicas.report import ReplicaSetReport, ReplicaState
from likewise.shards.protocols import F32, Rows, SearchOptions, ShardHits, ShardSearch
from likewise.v1 import gallery_service_pb2

T = TypeVar("T")

STATS_S: Final = 1.0
"""Longest wait for a replica's own word in statistics."""

_STATES: Final = {
    ReplicaState.SERVING: gallery_service_pb2.REPLICA_STATE_SERVING,
    ReplicaState.EJECTED: gallery_service_pb2.REPLICA_STATE_EJECTED,
    ReplicaState.PROBING: gallery_service_pb2.REPLICA_STATE_PROBING,
}


class ReplicaSet:
    """Asks the least loaded replica, and others when that one fails or is late; one call's answer is one replica's.

    Writes do not go through it: every replica gets every commit. All methods belong to one event loop, `report`
    excepted.

    Args:
        what: The shard's name for people, as errors say it: "shard 1 of gallery 'shoes'".
        connect: Makes the `ShardSearch` of a replica from its name; called once for each that comes. It must lead to
            that replica and no other.
        names: The replicas' names, usually addresses.
        policy: Bounds.
        clock: Seconds, monotonic, of the event loop's pace.
        draw: Source of random choices.
    """

    def __init__(
        self,
        what: str,
        connect: Callable[[str], ShardSearch],
        names: Sequence[str] = (),
        *,
        policy: ReplicaPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw: random.Random | None = None,
    ) -> None:
        self.what = what
        self._connect = connect
        self._pool = Pool(what, policy or ReplicaPolicy(), clock=clock, draw=draw or random.Random())
        self._losers: set[asyncio.Task[Any]] = set()
        self.move(names)

    @property
    def names(self) -> tuple[str, ...]:
        """The replicas there are."""
        return tuple(replica.name for replica in self._pool.replicas)

    def move(self, names: Sequence[str]) -> None:
        """Have exactly these replicas from now on.

        Calls that run end where they are, and go on to the new ones if that fails. A replica that stays keeps its
        history.
        """
        self._pool.move(names, self._connect)

    def report(self) -> ReplicaSetReport:
        """Counters and states; safe from any thread."""
        return self._pool.report()

    async def search(self, queries: F32, options: SearchOptions) -> ShardHits:
        """See `ShardSearch.search`."""
        return await self._run(
            Read(
                kind_of("search", len(queries) * options.k),
                lambda shard: shard.search(queries, options),
                _version,
                options.min_version,
            )
        )

    async def fetch(
        self,
        ids: Sequence[str],
        *,
        space: str,
        attributes: Sequence[str] = (),
        vectors: bool = False,
        min_version: int = 0,
    ) -> Rows:
        """See `ShardSearch.fetch`."""
        return await self._run(
            Read(
                kind_of("fetch", len(ids)),
                lambda shard: shard.fetch(
                    ids, space=space, attributes=attributes, vectors=vectors, min_version=min_version
                ),
                _version,
                min_version,
            )
        )

    async def page(
        self,
        *,
        after: str,
        limit: int,
        filter: bytes,
        space: str,
        attributes: Sequence[str] = (),
        vectors: bool = False,
        min_version: int = 0,
    ) -> Rows:
        """See `ShardSearch.page`."""
        return await self._run(
            Read(
                kind_of("page", limit),
                lambda shard: shard.page(
                    after=after,
                    limit=limit,
                    filter=filter,
                    space=space,
                    attributes=attributes,
                    vectors=vectors,
                    min_version=min_version,
                ),
                _version,
                min_version,
            )
        )

    async def count(self, filter: bytes, *, min_version: int = 0) -> tuple[int, int]:
        """See `ShardSearch.count`."""
        return await self._run(
            Read(
                kind_of("count", 1),
                lambda shard: shard.count(filter, min_version=min_version),
                lambda counted: counted[1],
                min_version,
            )
        )

    async def stats(self) -> gallery_service_pb2.ShardStats:
        """See `ShardSearch.stats`: the numbers of one replica, and the version and state of each."""
        asked = asyncio.ensure_future(self._versions())
        try:
            stats = await self._run(Read(kind_of("stats", 1), lambda shard: shard.stats(), lambda found: found.version))
            versions = await asked
        finally:
            asked.cancel()
        for replica in self.report().replicas:
            said = versions.get(replica.name)
            stats.replicas.add(
                address=replica.name,
                state=gallery_service_pb2.REPLICA_STATE_SILENT if said is None else _STATES[replica.state],
                version=replica.version if said is None else said,
            )
        return stats

    async def _versions(self) -> dict[str, int]:
        """The store version of each replica that says it soon; beside the choice, which asks one and not all."""
        tasks = {replica.name: asyncio.ensure_future(replica.shard.stats()) for replica in self._pool.replicas}
        if not tasks:
            return {}
        try:
            await asyncio.wait(tasks.values(), timeout=STATS_S)
            return {
                name: task.result().version
                for name, task in tasks.items()
                if task.done() and not task.cancelled() and task.exception() is None
            }
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _run(self, read: Read[T]) -> T:
        return await Race(self._pool, read, self._losers).run()


def _version(answer: ShardHits | Rows) -> int:
    return answer.version
