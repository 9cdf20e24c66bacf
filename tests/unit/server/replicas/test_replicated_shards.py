"""Shards and replicas change nothing about the answer: it is that of one shard with all rows."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.server.remote.loopback import NumpyShard
from tests.unit.server.replicas.virtual_time import clock, in_virtual_time

from likewise.server.remote import deadlines
from likewise.server.replicas.replica_set import ReplicaSet
from likewise.shards.merge import merge
from likewise.shards.protocols import F32, SearchOptions, ShardHits, Unavailable

DIRECTIONS = np.eye(4, dtype=np.float32)


class FlakyShard(NumpyShard):
    """Is slow, gone or frozen by a plan, call after call."""

    def __init__(self, plan: Sequence[str]) -> None:
        super().__init__()
        self._plan = list(plan)

    async def search(self, queries: F32, options: SearchOptions) -> ShardHits:
        match self._plan.pop() if self._plan else "well":
            case "slow":
                await asyncio.sleep(0.2)
            case "gone":
                raise Unavailable("restarting")
            case "frozen":
                await asyncio.Event().wait()
        return await super().search(queries, options)


def replicated(rows: dict[str, tuple[F32, int, str]], plans: Sequence[Sequence[str]], seed: int) -> ReplicaSet:
    """A shard of these rows; its last replica is always well."""
    by_name: dict[str, Any] = {str(number): FlakyShard(plan) for number, plan in enumerate([*plans, ()])}
    for shard in by_name.values():
        shard.rows = rows
    return ReplicaSet("a shard", by_name.__getitem__, list(by_name), clock=clock, draw=random.Random(seed))


PLANS = st.lists(st.lists(st.sampled_from(["well", "slow", "gone", "frozen"]), max_size=5), max_size=2)


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.integers(0, 3), min_size=1, max_size=20),
    plans=st.lists(PLANS, min_size=1, max_size=4),
    k=st.integers(1, 8),
    seed=st.integers(0, 9),
)
@in_virtual_time
async def test_sharded_and_replicated_is_as_one_shard(
    kinds: list[int], plans: list[list[list[str]]], k: int, seed: int
) -> None:
    items = {f"i{number}": (DIRECTIONS[kind] * (1 + number % 3), number, "red") for number, kind in enumerate(kinds)}
    whole = NumpyShard()
    whole.rows = items
    shards = [
        replicated({i: row for n, (i, row) in enumerate(items.items()) if n % len(plans) == number}, plan, seed)
        for number, plan in enumerate(plans)
    ]
    options = SearchOptions(space="default", k=k)
    deadlines.set_deadline(10.0)

    for _ in range(4):
        parts = await asyncio.gather(*(shard.search(DIRECTIONS, options) for shard in shards))
        merged = merge(parts, k)
        expected = await whole.search(DIRECTIONS, options)

        assert merged.ids == list(expected.ids)
        assert merged.scores.tolist() == expected.scores.tolist()
        assert merged.offsets.tolist() == expected.offsets.tolist()
