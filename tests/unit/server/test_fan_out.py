"""What a failing shard means under each policy."""

import asyncio

import grpc
import numpy as np
import pytest
from grpc import aio
from tests.unit.server.fakes import FakeGalleries, info, retry_s
from tests.unit.server.stubs import by_vector, shop, upsert, vectors

from likewise.shards import protocols
from likewise.v1 import search_service_pb2 as pb

QUERY = vectors(1)[0]
ALLOW = pb.PartialPolicy(mode=pb.PARTIAL_POLICY_MODE_ALLOW)


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(protocols.Unavailable("restarting"), id="unavailable"),
        pytest.param(RuntimeError("a defect"), id="anything else"),
    ],
)
async def test_one_failing_shard_fails_the_search_and_is_named(failure: Exception) -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=3) as stubs:
        galleries.shards("shop")[1].failure = failure

        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(by_vector(QUERY))

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "shard 1 of gallery 'shop'" in (caught.value.details() or "")
    assert info(caught.value).metadata["shard"] == "1"
    assert retry_s(caught.value) > 0


async def test_the_rest_answers_when_that_is_allowed_and_says_what_is_missing() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=3) as stubs:
        await stubs.search.Search(by_vector(QUERY))
        lost = galleries.shards("shop")[1]
        lost.failure = protocols.Unavailable("restarting")

        response = await stubs.search.Search(by_vector(QUERY, k=20, partial=ALLOW))

    missing = len(lost.rows)
    assert set(response.hits.ids).isdisjoint(lost.rows)
    assert len(response.hits.ids) == 20 - missing
    assert response.coverage.items_searched == 20 - missing
    assert response.coverage.items_total == 20
    assert response.coverage.fraction == pytest.approx((20 - missing) / 20)
    assert (response.coverage.shards_ok, response.coverage.shards_total) == (2, 3)
    (degradation,) = response.coverage.degradations
    assert (degradation.reason, degradation.items, list(degradation.shards)) == ("SHARD_UNAVAILABLE", missing, [1])


async def test_what_was_written_to_a_lost_shard_is_counted() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=2) as stubs:
        await stubs.search.Search(by_vector(QUERY))
        here, lost = galleries.shards("shop")
        lost.failure = protocols.Unavailable("restarting")
        later = [f"later-{i}" for i in range(8)]
        await stubs.items.Upsert(upsert(later, np.ones((8, len(QUERY)), dtype=np.float32)))

        response = await stubs.search.Search(by_vector(QUERY, partial=ALLOW))

    (degradation,) = response.coverage.degradations
    assert degradation.items == len(lost.rows) > 10
    assert response.coverage.items_total == len(here.rows) + len(lost.rows) == 28


async def test_without_the_writer_a_lost_shard_has_the_rows_it_had_when_it_last_answered() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=3) as stubs:
        await stubs.search.Search(by_vector(QUERY))
        lost = galleries.shards("shop")[1]
        lost.failure = galleries.writer("shop").failure = protocols.Unavailable("restarting")

        response = await stubs.search.Search(by_vector(QUERY, partial=ALLOW))

    assert response.coverage.items_total == 20
    assert response.coverage.degradations[0].items == len(lost.rows)


async def test_a_count_that_takes_long_holds_up_no_answer() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=2) as stubs:
        await stubs.search.Search(by_vector(QUERY))
        galleries.shards("shop")[1].gate = galleries.writer("shop").gate = asyncio.Event()

        response = await stubs.search.Search(by_vector(QUERY, partial=ALLOW), timeout=1)

    assert response.coverage.items_total == 20


async def test_a_shard_that_never_answered_is_taken_to_be_as_large_as_the_others() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=2) as stubs:
        first, second = galleries.shards("shop")
        second.failure = galleries.writer("shop").failure = protocols.Unavailable("loading")

        response = await stubs.search.Search(by_vector(QUERY, partial=ALLOW))

    assert response.coverage.items_total == 2 * len(first.rows)


async def test_too_little_coverage_is_an_error_with_both_shares() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=2) as stubs:
        galleries.shards("shop")[0].failure = protocols.Unavailable("gone")
        partial = pb.PartialPolicy(mode=pb.PARTIAL_POLICY_MODE_ALLOW, min_coverage=0.9)

        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(by_vector(QUERY, partial=partial))

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert info(caught.value).reason == "COVERAGE_BELOW_MINIMUM"
    assert "90.0%" in (caught.value.details() or "")


async def test_an_answer_of_no_shard_is_an_error_even_where_parts_would_do() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=2) as stubs:
        for shard in galleries.shards("shop"):
            shard.failure = protocols.Unavailable("gone")

        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(by_vector(QUERY, partial=ALLOW))

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_full_shard_queue_tells_the_caller_when_to_come_back() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        galleries.shards("shop")[0].failure = protocols.Overloaded("4,096 queries wait", retry_after_s=0.25)

        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(by_vector(QUERY))

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert retry_s(caught.value) == 0.25


async def test_the_callers_own_fault_is_no_degradation() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        galleries.shards("shop")[0].failure = protocols.UnknownAttribute("filter", "no such attribute")

        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(by_vector(QUERY, partial=ALLOW))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_shard_that_does_not_answer_in_time_is_left_out_before_the_deadline() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=2) as stubs:
        slow = galleries.shards("shop")[1]
        slow.gate = asyncio.Event()

        response = await stubs.search.Search(by_vector(QUERY, partial=ALLOW), timeout=0.5)

    assert [(d.reason, list(d.shards)) for d in response.coverage.degradations] == [("SHARD_TIMEOUT", [1])]
    assert slow.cancelled == 1


async def test_a_shard_that_does_not_answer_in_time_fails_the_search_otherwise() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=2) as stubs:
        galleries.shards("shop")[1].gate = asyncio.Event()

        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(by_vector(QUERY), timeout=0.5)

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "shard 1" in (caught.value.details() or "")


async def test_a_failure_ends_the_search_without_waiting_for_the_others() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=2) as stubs:
        slow, broken = galleries.shards("shop")
        slow.gate = asyncio.Event()
        broken.failure = protocols.Unavailable("gone")

        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(by_vector(QUERY))

    assert "shard 1" in (caught.value.details() or "")
    assert slow.cancelled == 1


async def test_an_empty_gallery_is_wholly_covered() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        for shard in galleries.shards("shop"):
            shard.rows.clear()

        response = await stubs.search.Search(by_vector(QUERY))

    assert response.coverage.fraction == 1
    assert len(response.hits.ids) == 0
