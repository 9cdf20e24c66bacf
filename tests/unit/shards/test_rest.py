"""Fresh rows that are too few for a build of their own are sealed when builds have paused."""

import asyncio

import numpy as np
import pytest
from tests.unit.shards.conftest import Started
from tests.unit.shards.fakes import MemoryStore, gallery, oracle, unit

from likewise.shards import pause
from likewise.shards.pause import Pause
from likewise.shards.protocols import SearchOptions
from likewise.shards.shard import Shard
from likewise.shards.spec import IndexSpec

DIM = 8
SEALED, ROWS = 12_000, 13_100  # less than a tenth of them comes later
VECTORS = unit(np.random.default_rng(5).standard_normal((ROWS, DIM)))
IDS = [f"i{i:05d}" for i in range(ROWS)]
TEN = SearchOptions(space="", k=10)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_S", "BUILDS", "LEAST_S"):
        monkeypatch.setattr(pause, name, 0.0)


def filled(kind: str) -> MemoryStore:
    store = MemoryStore(gallery(dim=DIM, index=IndexSpec(kind=kind)))
    store.commit(IDS[:SEALED], VECTORS[:SEALED])
    return store


async def fresh_of(shard: Shard) -> int:
    return (await shard.stats()).fresh


async def test_a_rest_is_sealed_when_builds_have_paused(started: Started, no_pause: None) -> None:
    store = filled("HNSW8,Flat")
    shard = await started(store)
    assert await fresh_of(shard) == 0

    await shard.apply(store.commit(IDS[SEALED:], VECTORS[SEALED:]))
    async with asyncio.timeout(60):
        while await fresh_of(shard):  # noqa: ASYNC110  # nothing tells of a build that ends
            await asyncio.sleep(0)

    stats = await shard.stats()
    assert (stats.sealed, stats.live) == (ROWS, ROWS)
    hits = await shard.search(VECTORS[-1:], TEN)
    assert hits.ids[0] == oracle(IDS, VECTORS, VECTORS[-1], 10)[0][0]


async def test_until_then_it_is_compared_row_by_row(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pause, "LEAST_S", 3_600.0)
    store = filled("HNSW8,Flat")
    shard = await started(store)

    await shard.apply(store.commit(IDS[SEALED:], VECTORS[SEALED:]))
    await shard.settled()

    assert await fresh_of(shard) == ROWS - SEALED
    hits = await shard.search(VECTORS[-1:], TEN)
    assert hits.ids[0] == IDS[-1]


async def test_few_fresh_rows_stay_as_they_are(started: Started, no_pause: None) -> None:
    store = filled("HNSW8,Flat")
    shard = await started(store)

    await shard.apply(store.commit(IDS[SEALED : SEALED + 1_000], VECTORS[SEALED : SEALED + 1_000]))
    for _ in range(10):
        await asyncio.sleep(0)
    await shard.settled()

    assert await fresh_of(shard) == 1_000


def test_a_pause_is_as_long_as_five_builds() -> None:
    now = 100.0
    paused = Pause(clock=lambda: now)
    assert paused.left_s == pause.FIRST_S

    now = 200.0
    assert paused.left_s == 0.0
    paused.begin()
    now = 203.0
    paused.end()
    assert paused.left_s == 15.0
    now = 210.0
    assert paused.left_s == 8.0
    paused.begin()
    paused.end()
    assert paused.left_s == pause.LEAST_S


async def test_what_waits_for_a_pause_happens_once_and_not_when_another_build_begins() -> None:
    now = 0.0
    paused, done = Pause(clock=lambda: now), list[str]()
    now = 60.0

    paused.then(lambda: done.append("cancelled"))
    paused.begin()
    over = asyncio.Event()
    now = 1_000.0
    paused.then(over.set)
    paused.then(lambda: done.append("again"))
    await over.wait()

    assert done == []
