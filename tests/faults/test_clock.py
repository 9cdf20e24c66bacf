"""The wall clock may jump: deadlines, queues and searches go by the monotonic one, and nothing waits for a date.

What is moved here is the clock of every module of ours that looks at it. The dataset library takes the times of its
versions from the system, and gRPC's calls that are under way while the system's clock jumps end early or late. Routers
whose controller's clock is behind are in tests/unit/server/cluster/test_routing.py, replicas on a virtual clock in
tests/unit/server/replicas.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from likewise.client import AsyncClient
from likewise.server import inference_statistics, validate_galleries
from likewise.server.embedded import running_server
from likewise.shards import fence, lock, snapshots

YEAR_S = 365 * 86_400.0
MODULES = (fence, inference_statistics, lock, snapshots, validate_galleries)


class Jumped:
    """The module `time` with its wall clock moved."""

    def __init__(self, jump_s: float) -> None:
        self._jump_s = jump_s

    def time(self) -> float:
        return time.time() + self._jump_s

    def time_ns(self) -> int:
        return time.time_ns() + int(self._jump_s) * 1_000_000_000

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.mark.parametrize(
    "jump_s",
    [pytest.param(YEAR_S, id="a year ahead", marks=pytest.mark.long), pytest.param(-YEAR_S, id="a year back")],
)
async def test_writes_reads_and_a_restart_survive_a_jump_of_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    store = str(tmp_path / "store")
    vectors = np.eye(4, dtype=np.float32)
    async with running_server(store=store) as address, AsyncClient(address, timeout=30) as client:
        gallery = await client.create_gallery("g", dim=4, shards=2)
        await gallery.upsert(["before"], vectors=vectors[:1])

        for module in MODULES:
            monkeypatch.setattr(module, "time", Jumped(jump_s))

        await gallery.upsert(["after"], vectors=vectors[1:2])
        await gallery.create_snapshot("then")
        assert (await gallery.search(vector=vectors[1], k=1)).ids == ["after"]
        await client.create_gallery("later", dim=4)
    async with running_server(store=store) as address, AsyncClient(address, timeout=30) as client:
        assert (await client.gallery("g").get(["before", "after"])).missing == []
        assert sorted(info.name for info in await client.galleries()) == ["g", "later"]
