import os

# Before FAISS is loaded: OpenMP teams that wait for a busy core make a build of a second take ten.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from tests.unit.shards.fakes import MemoryStore

from likewise.shards.shard import Shard

settings.register_profile("shards", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shards")

Started = Callable[..., Awaitable[Shard]]


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Started]:
    """Makes started shards of a store and closes them at the end."""
    shards: list[Shard] = []

    async def start(store: MemoryStore, number: int = 0, **options: Any) -> Shard:
        shard = Shard(store.spec, number, store.source(number), **options)
        shards.append(shard)
        await shard.start()
        await shard.settled()
        return shard

    yield start
    for shard in shards:
        await shard.close()
