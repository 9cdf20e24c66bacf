"""Replicas that answer as a test says, and calls of them."""

import asyncio
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tests.unit.server.replicas.virtual_time import clock

from likewise.server.remote import deadlines
from likewise.server.replicas.policy import ReplicaPolicy
from likewise.server.replicas.replica_set import ReplicaSet
from likewise.server.replicas.report import ReplicaReport, ReplicaState
from likewise.shards.protocols import F32, Rows, SearchOptions, ShardHits
from likewise.v1 import gallery_service_pb2, search_service_pb2

QUERY = np.eye(4, dtype=np.float32)[:1]
OPTIONS = SearchOptions(space="default", k=1)
SHARD = "shard 1 of gallery 'shoes'"


@dataclass(eq=False)
class ScriptedReplica:
    """Answers after a while, fails, or never answers.

    Attributes:
        name: Also the only hit of each search.
        delay_s: Time an answer takes.
        failure: Raised instead, after the same time.
        frozen: Calls that begin while it is set never end by themselves.
        version: Store version of its answers; calls that want a newer one wait for `caught_up`.
        calls: Calls begun.
        running: Calls that run.
        most_running: At a time, so far.
        cancelled: Calls that were cancelled.
        remaining_s: What each call saw of its deadline.
    """

    name: str
    delay_s: float = 0.002
    failure: Exception | None = None
    frozen: bool = False
    version: int = 1
    caught_up: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0
    running: int = 0
    most_running: int = 0
    cancelled: int = 0
    remaining_s: list[float | None] = field(default_factory=list)

    async def search(self, queries: F32, options: SearchOptions) -> ShardHits:
        await self._work(options.min_version)
        return ShardHits(
            ids=[self.name] * len(queries),
            scores=np.ones(len(queries), dtype=np.float32),
            offsets=np.arange(len(queries) + 1),
            attributes=None,
            vectors=None,
            plan=search_service_pb2.ShardPlan(shard=1, live=1),
            version=self.version,
            queue_us=0,
            search_us=0,
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
        await self._work(min_version)
        return self._rows(ids)

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
        await self._work(min_version)
        return self._rows([after])

    async def count(self, filter: bytes, *, min_version: int = 0) -> tuple[int, int]:
        await self._work(min_version)
        return 1, self.version

    async def stats(self) -> gallery_service_pb2.ShardStats:
        await self._work(0)
        return gallery_service_pb2.ShardStats(shard=1, live=1, version=self.version, message=self.name)

    async def _work(self, min_version: int) -> None:
        self.calls += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.remaining_s.append(deadlines.remaining_s())
        try:
            if self.frozen:
                await asyncio.Event().wait()
            await asyncio.sleep(self.delay_s)
            if self.failure is not None:
                raise self.failure
            if min_version > self.version:
                await self.caught_up.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    def _rows(self, ids: Sequence[str]) -> Rows:
        named = [*ids, self.name]
        content = np.zeros(len(named), np.int64)
        return Rows(ids=named, content=content, attributes=None, vectors=None, norms=None, version=self.version)


def replicas(count: int) -> list[ScriptedReplica]:
    """Replicas "a", "b", ..."""
    return [ScriptedReplica("abcdefgh"[number]) for number in range(count)]


def shard_of(scripted: Iterable[ScriptedReplica], policy: ReplicaPolicy | None = None, *, seed: int = 7) -> ReplicaSet:
    """The set of these replicas, in virtual time."""
    by_name = {replica.name: replica for replica in scripted}
    return ReplicaSet(SHARD, by_name.__getitem__, list(by_name), policy=policy, clock=clock, draw=random.Random(seed))


async def search(shard: ReplicaSet, *, timeout_s: float | None = 1.0, min_version: int = 0) -> str:
    """Name of the replica that answers one search."""

    async def call() -> str:
        deadlines.set_deadline(timeout_s)
        options = SearchOptions(space="default", k=1, min_version=min_version)
        return (await shard.search(QUERY, options)).ids[0]

    return await asyncio.create_task(call())


async def warmed(shard: ReplicaSet, calls: int = 64) -> None:
    """Calls enough for the shard's quantiles to be known."""
    for _ in range(calls):
        await search(shard)


async def settle() -> None:
    """Let cancelled calls end."""
    for _ in range(5):
        await asyncio.sleep(0)


def seen(shard: ReplicaSet, name: str) -> ReplicaReport:
    """What the set says of one replica."""
    return next(replica for replica in shard.report().replicas if replica.name == name)


def state(shard: ReplicaSet, name: str) -> ReplicaState:
    """Whether a replica gets calls."""
    return seen(shard, name).state
