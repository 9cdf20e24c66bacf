"""Rows, queries and filters of the tests of indexes that filters have of their own."""

from typing import Any

import numpy as np
from tests.unit.shards.fakes import F32, hits_of, unit
from tests.unit.shards.shard_rows import TEN, below
from tests.unit.shards.surfaces import DIM, surface

from likewise.shards.partial_index import PartialIndex
from likewise.shards.rows import Snapshot
from likewise.shards.shard import Shard, ShardLimits

N, ALLOWED = 3_000, 1_000
ROWS = surface(N, latent=12)
QUERIES = surface(40, latent=12, seed=1)
IDS = [f"i{i:04d}" for i in range(N)]
FILTER = below(ALLOWED)
ROUGH = TEN._replace(filter=FILTER, exact=False, ef=10)
ALWAYS = ShardLimits(exact_rows=0, recall_share=0)
LONG_S = 1e9
"""Searches for so long pay for any index here."""


def snapshot_of(shard: Shard) -> Snapshot:
    snapshot = shard._newest()
    assert snapshot is not None
    return snapshot


async def indexed(shard: Shard, filter: bytes = FILTER) -> PartialIndex | None:
    """The index of a filter whose searches have taken long."""
    snapshot = snapshot_of(shard)
    allowed = shard._masks.allowed(snapshot, filter)
    shard._partials.earn(snapshot, allowed, "default", LONG_S)
    shard._partials.begin()
    await shard._partials.settled()
    return held(shard, filter)


def held(shard: Shard, filter: bytes = FILTER) -> PartialIndex | None:
    snapshot = snapshot_of(shard)
    return shard._partials.of(snapshot, shard._masks.allowed(snapshot, filter), "default")


def found(hits: Any, count: int = len(QUERIES)) -> list[list[str]]:
    return [hits_of(hits, i) for i in range(count)]


def recall(hits: Any, exact: Any) -> float:
    return float(np.mean([len({*a} & {*b}) / 10 for a, b in zip(found(hits), found(exact), strict=True)]))


def clusters(rows: int, *, of: range, seed: int = 0) -> F32:
    """Rows in tight clusters far from each other, cluster by cluster."""
    world, rng = np.random.default_rng(5), np.random.default_rng(seed)
    embedding = np.linalg.qr(world.standard_normal((DIM, 12)))[0].T
    centres = world.standard_normal((40, 12))[of.start : of.stop]
    points = np.repeat(centres, rows // len(of), axis=0) + 0.1 * rng.standard_normal((rows, 12))
    return unit(points @ embedding + 0.005 * rng.standard_normal((rows, DIM)))
