"""The contract of `ShardSearch` and `DeltaSink`, held by a shard in process and by the same shard behind a channel."""

import asyncio
from typing import Protocol

import numpy as np
import pytest
from tests.unit.server.remote.loopback import Loopback, NumpyShard, rows
from tests.unit.server.waiting import until

from likewise.server.errors import DeadlinePassed
from likewise.server.remote import deadlines
from likewise.shards.protocols import (
    Delta,
    DeltaSink,
    Exclusion,
    Overloaded,
    SearchOptions,
    ShardSearch,
    Unavailable,
    UnknownAttribute,
)
from likewise.v1 import common_pb2

OPTIONS = SearchOptions(space="default", k=3)
UNIT = np.eye(4, dtype=np.float32)


class Part(ShardSearch, DeltaSink, Protocol):
    """What both implementations are."""


@pytest.fixture(params=["in process", "by calls", "by messages"])
async def shard(request: pytest.FixtureRequest, loopback: Loopback, numpy_shard: NumpyShard) -> Part:
    if request.param == "in process":
        return numpy_shard
    return await loopback.shard_stub(numpy_shard, streamed=request.param == "by messages")


@pytest.fixture(params=["by calls", "by messages"])
def streamed(request: pytest.FixtureRequest) -> bool:
    """How searches go to a remote shard."""
    return bool(request.param == "by messages")


@pytest.fixture
def filled() -> Delta:
    return Delta(base_version=0, version=7, upserts=rows(["a", "b", "c", "ü"], UNIT), deleted_ids=[])


async def test_hits_come_back_with_every_column(shard: Part, filled: Delta) -> None:
    await shard.apply(filled)

    options = SearchOptions(space="default", k=2, attributes=("colour",), vectors=True, min_version=7)
    hits = await shard.search(UNIT[:2], options)

    assert list(hits.ids) == ["a", "b", "b", "a"]
    assert hits.scores.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert hits.scores.dtype == np.float32
    assert hits.offsets.tolist() == [0, 2, 4]
    assert hits.attributes is not None
    assert hits.attributes.to_pydict() == {"colour": ["a", "b", "b", "a"]}
    assert hits.vectors is not None
    np.testing.assert_array_equal(UNIT[[0, 1, 1, 0]], hits.vectors)
    assert (hits.plan.live, hits.plan.allowed, hits.version, hits.queue_us, hits.search_us) == (4, 4, 7, 3, 5)


async def test_hits_lack_the_columns_that_were_not_asked_for(shard: Part, filled: Delta) -> None:
    await shard.apply(filled)

    hits = await shard.search(UNIT[:1], OPTIONS)

    assert hits.attributes is None
    assert hits.vectors is None


async def test_no_hits_still_have_their_columns(shard: Part) -> None:
    hits = await shard.search(UNIT[:2], SearchOptions(space="default", k=3, vectors=True))

    assert list(hits.ids) == []
    assert hits.offsets.tolist() == [0, 0, 0]
    assert hits.vectors is not None
    assert hits.vectors.shape == (0, 4)


async def test_excluded_rows_are_left_out_and_counted(shard: Part, filled: Delta) -> None:
    await shard.apply(filled)

    options = SearchOptions(space="default", k=4, exclusions=(Exclusion(("a",), 1),))
    hits = await shard.search(UNIT[:1], options)

    assert list(hits.ids) == ["c", "ü"]
    assert list(hits.excluded) == [1]


async def test_rows_are_fetched_in_the_order_given(shard: Part, filled: Delta) -> None:
    await shard.apply(filled)

    found = await shard.fetch(["ü", "missing", "a"], space="default", attributes=("colour",), vectors=True)

    assert found.batch.to_pydict() == {"id": ["ü", "a"], "content": [3, 0], "colour": ["ü", "a"]}
    assert found.vectors is not None
    np.testing.assert_array_equal(UNIT[[3, 0]], found.vectors)
    assert found.norms is not None
    assert found.norms.tolist() == [2.0, 2.0]
    assert found.version == 7


async def test_fetching_nothing_gives_no_rows(shard: Part) -> None:
    found = await shard.fetch(["missing"], space="default", vectors=True)

    assert found.batch.num_rows == 0
    assert found.vectors is not None
    assert found.vectors.shape == (0, 4)
    assert found.norms is not None
    assert found.norms.shape == (0,)


async def test_pages_continue_after_an_id_in_byte_order(shard: Part, filled: Delta) -> None:
    await shard.apply(filled)

    found = await shard.page(after="a", limit=2, filter=b"", space="default")

    assert found.batch.column("id").to_pylist() == ["b", "c"]
    assert found.vectors is None


async def test_count_sees_the_filter(shard: Part, filled: Delta) -> None:
    await shard.apply(filled)
    colour = common_pb2.Filter(existence=common_pb2.Existence(attribute="colour")).SerializeToString()

    assert await shard.count(b"") == (4, 7)
    assert await shard.count(colour) == (0, 7)


async def test_deletes_reach_the_shard(shard: Part, filled: Delta) -> None:
    await shard.apply(filled)
    await shard.apply(Delta(base_version=7, version=8, upserts=rows([], UNIT[:0]), deleted_ids=["a", "c"]))

    stats = await shard.stats()
    assert (stats.live, stats.version) == (2, 8)


async def test_an_unknown_attribute_is_named_with_its_field(shard: Part) -> None:
    with pytest.raises(
        UnknownAttribute, match=r"^mask.attributes\[0\]: no attribute 'size', the gallery has"
    ) as caught:
        await shard.search(UNIT[:1], SearchOptions(space="default", k=1, attributes=("size",)))

    assert caught.value.field == "mask.attributes[0]"


async def test_failures_keep_their_type_and_words(
    shard: Part, numpy_shard: NumpyShard, shard_failure: Exception
) -> None:
    numpy_shard.failure = shard_failure

    with pytest.raises(type(shard_failure)) as caught:
        await shard.search(UNIT[:1], OPTIONS)

    assert str(caught.value) == str(shard_failure)
    if isinstance(shard_failure, Overloaded):
        assert isinstance(caught.value, Overloaded)
        assert caught.value.retry_after_s == shard_failure.retry_after_s


async def test_cancelling_the_caller_cancels_the_search(shard: Part, numpy_shard: NumpyShard) -> None:
    numpy_shard.gate = asyncio.Event()
    call = asyncio.create_task(shard.search(UNIT[:1], OPTIONS))
    await until(lambda: numpy_shard.running == 1)

    call.cancel()
    await asyncio.gather(call, return_exceptions=True)

    await until(lambda: numpy_shard.cancelled == 1)


async def test_concurrent_searches_do_not_wait_for_each_other(shard: Part, numpy_shard: NumpyShard) -> None:
    numpy_shard.gate = asyncio.Event()
    calls = [asyncio.create_task(shard.search(UNIT[:1], OPTIONS)) for _ in range(8)]

    await until(lambda: numpy_shard.running == 8)

    numpy_shard.gate.set()
    await asyncio.gather(*calls)


async def test_the_callers_deadline_ends_a_remote_search(
    loopback: Loopback, numpy_shard: NumpyShard, streamed: bool
) -> None:
    stub = await loopback.shard_stub(numpy_shard, streamed=streamed)
    numpy_shard.gate = asyncio.Event()

    with deadlines.limited(0.05), pytest.raises(DeadlinePassed, match="shard 1 of gallery 'shoes'"):
        await stub.search(UNIT[:1], OPTIONS)

    await until(lambda: numpy_shard.cancelled == 1)


async def test_a_call_in_the_name_of_another_shard_is_unavailable(
    loopback: Loopback, numpy_shard: NumpyShard, streamed: bool
) -> None:
    stub = await loopback.shard_stub(numpy_shard, number=0, streamed=streamed)

    with pytest.raises(Unavailable, match="this is shard 1"):
        await stub.search(UNIT[:1], OPTIONS)


async def test_a_foreign_failure_tells_nothing(
    loopback: Loopback, numpy_shard: NumpyShard, streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stub = await loopback.shard_stub(numpy_shard, streamed=streamed)
    numpy_shard.failure = RuntimeError("/secret/path")

    with pytest.raises(Exception, match=r"^internal error$"):
        await stub.search(UNIT[:1], OPTIONS)

    assert "/secret/path" in caplog.text


async def test_answers_over_the_limit_come_in_parts(
    loopback: Loopback, numpy_shard: NumpyShard, streamed: bool, filled: Delta, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = await loopback.shard_stub(numpy_shard, streamed=streamed)
    await stub.apply(filled)
    whole = await numpy_shard.search(UNIT, SearchOptions(space="default", k=3, attributes=("colour",), vectors=True))
    monkeypatch.setattr("likewise.server.remote.shard_servicer.MAX_MESSAGE_BYTES", 600)

    hits = await stub.search(UNIT, SearchOptions(space="default", k=3, attributes=("colour",), vectors=True))
    found = await stub.fetch(["a", "b", "c"], space="default", vectors=True)
    page = await stub.page(after="", limit=4, filter=b"", space="default", vectors=True)

    assert hits.ids == whole.ids
    np.testing.assert_array_equal(whole.offsets, hits.offsets)
    np.testing.assert_array_equal(whole.scores, hits.scores)
    np.testing.assert_array_equal(whole.vectors, hits.vectors)
    assert hits.attributes == whole.attributes
    assert found.batch.column("id").to_pylist() == ["a", "b", "c"]
    assert page.batch.column("id").to_pylist() == ["a", "b", "c", "ü"]
    assert page.norms is not None
    assert page.norms.tolist() == [2.0] * 4
