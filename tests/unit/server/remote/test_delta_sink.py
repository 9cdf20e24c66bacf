"""Commits reach a remote shard, and one that missed some hears of it until it follows."""

from collections.abc import AsyncIterator

import numpy as np
import pytest
from tests.unit.server.remote.loopback import SPEC, Loopback, NumpyShard, rows
from tests.unit.server.waiting import until

from likewise.server.remote import delta_sink
from likewise.server.remote.delta_sink import RemoteSink
from likewise.shards.protocols import Delta, Unavailable
from likewise.shards.spec import shard_hash

IDS = ["a", "b", "c", "d", "e", "f"]
MINE = [item_id for item_id in IDS if shard_hash(item_id) % 2 == 1]


def _delta(base: int, version: int) -> Delta:
    vectors = np.ones((len(IDS), 4), np.float32)
    return Delta(base_version=base, version=version, upserts=rows(IDS, vectors), deleted_ids=[])


@pytest.fixture
async def sink(
    loopback: Loopback, numpy_shard: NumpyShard, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RemoteSink]:
    monkeypatch.setattr(delta_sink, "BACKOFF_S", (0.0, 0.0))
    sink = RemoteSink(await loopback.shard_stub(numpy_shard), spec=SPEC, shard=1)
    yield sink
    await sink.close()


async def test_a_shard_gets_its_own_rows_only(sink: RemoteSink, numpy_shard: NumpyShard) -> None:
    assert 0 < len(MINE) < len(IDS)

    await sink.apply(_delta(0, 1))

    assert sorted(numpy_shard.rows) == MINE
    assert numpy_shard.version == 1


async def test_a_shard_that_was_away_hears_of_the_newest_version(sink: RemoteSink, numpy_shard: NumpyShard) -> None:
    numpy_shard.failure = Unavailable("restarting")
    await sink.apply(_delta(0, 1))
    await sink.apply(_delta(1, 2))
    assert numpy_shard.applied == []

    numpy_shard.failure = None
    await until(lambda: bool(numpy_shard.applied))

    heard = numpy_shard.applied[-1]
    assert (heard.base_version, heard.version, heard.upserts.num_rows) == (2, 2, 0)


async def test_pushes_go_on_once_the_shard_has_heard(sink: RemoteSink, numpy_shard: NumpyShard) -> None:
    numpy_shard.failure = Unavailable("restarting")
    await sink.apply(_delta(0, 1))
    numpy_shard.failure = None
    await until(lambda: bool(numpy_shard.applied))
    await until(lambda: sink.follows)

    await sink.apply(_delta(1, 2))

    assert numpy_shard.applied[-1].upserts.num_rows == len(MINE)


async def test_a_change_over_the_limit_is_left_to_the_store(
    sink: RemoteSink, numpy_shard: NumpyShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_sink, "MAX_PUSH_BYTES", 10)

    await sink.apply(_delta(0, 1))

    heard = numpy_shard.applied[-1]
    assert (heard.base_version, heard.version, heard.upserts.num_rows) == (1, 1, 0)


async def test_following_tells_the_version_without_rows(sink: RemoteSink, numpy_shard: NumpyShard) -> None:
    await sink.follow(9)

    assert [(delta.base_version, delta.version) for delta in numpy_shard.applied] == [(9, 9)]
