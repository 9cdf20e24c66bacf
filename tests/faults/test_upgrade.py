"""A store written by any released format is read by the code as it is now."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.faults.stores import make

from likewise.client import AsyncClient
from likewise.server.embedded import running_server
from likewise.shards.spec import FORMAT

STORES = sorted(path for path in make.HERE.iterdir() if path.is_dir() and path.name.startswith("format-"))


def _expected(store: Path) -> Any:
    return json.loads(store.with_name(f"{store.name}.json").read_text(encoding="utf-8"))


def test_the_format_of_this_release_has_a_store_here() -> None:
    assert f"format-{FORMAT}" in [store.name for store in STORES]


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.name)
async def test_a_store_of_a_released_format_is_read_as_it_was_written(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)

    assert await make.read(copy) == _expected(store)


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.name)
async def test_a_store_of_a_released_format_can_be_written_and_searched(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    before = len(_expected(store)["things"]["items"])

    async with running_server(store=str(copy)) as address, AsyncClient(address) as client:
        things = client.gallery("things")
        await things.upsert(["new"], vectors=np.ones((1, make.DIM)), attributes=[{"count": 7}])
        found = await things.search(vector=np.ones(make.DIM), k=1)
        assert (found.ids, await things.count()) == (["new"], before + 1)
        early = await things.restore_snapshot("early", "back")
        assert await early.count() == 16
