"""A shard that is slow costs its own rows, or the call, as the caller chose; never the deadline and never the truth."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from likewise.client import AsyncClient, AsyncGallery, DeadlineExceeded
from likewise.server.embedded import running_server
from likewise.shards.protocols import F32, SearchOptions, ShardHits
from likewise.shards.shard import Shard
from likewise.shards.spec import shard_hash

SHARDS: Final = 4
SLOW: Final = 1
ROWS: Final = 400
IDS: Final = [f"i{row:04d}" for row in range(ROWS)]
TIMEOUT_S: Final = 2.5


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Shard `SLOW` searches only while it is set."""
    gate = asyncio.Event()
    gate.set()
    search = Shard.search

    async def slow(shard: Shard, queries: F32, options: SearchOptions) -> ShardHits:
        if (await shard.stats()).shard == SLOW:
            await gate.wait()
        return await search(shard, queries, options)

    monkeypatch.setattr(Shard, "search", slow)
    return gate


@pytest.fixture
async def gallery(tmp_path: Path) -> AsyncIterator[AsyncGallery]:
    async with running_server(store=str(tmp_path / "store")) as address, AsyncClient(address) as client:
        gallery = await client.create_gallery("g", dim=8, shards=SHARDS)
        await gallery.upsert(IDS, vectors=np.random.default_rng(1).normal(size=(ROWS, 8)))
        await gallery.search(vector=np.ones(8))  # every shard has said how many rows it has
        yield gallery


async def test_a_partial_answer_comes_in_time_and_says_what_it_lacks(
    gallery: AsyncGallery, gate: asyncio.Event
) -> None:
    theirs = [item for item in IDS if shard_hash(item) % SHARDS == SLOW]
    gate.clear()

    hits = await gallery.search(vector=np.ones(8), k=ROWS, partial=True, timeout=TIMEOUT_S)

    assert sorted(hits.ids) == sorted(set(IDS) - set(theirs))
    coverage = hits.coverage
    assert (coverage.items_searched, coverage.items_total) == (ROWS - len(theirs), ROWS)
    assert coverage.fraction == pytest.approx(1 - len(theirs) / ROWS)
    (why,) = coverage.degradations
    assert (why.reason, why.items, why.shards) == ("SHARD_TIMEOUT", len(theirs), (SLOW,))


async def test_a_whole_answer_is_refused_in_time_with_the_shard_named(
    gallery: AsyncGallery, gate: asyncio.Event
) -> None:
    gate.clear()

    with pytest.raises(DeadlineExceeded):
        await gallery.search(vector=np.ones(8), k=5, timeout=TIMEOUT_S)

    gate.set()
    assert (await gallery.search(vector=np.ones(8), k=ROWS)).coverage.fraction == 1.0
