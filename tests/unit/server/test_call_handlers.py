"""What every call goes through, seen from a client."""

import asyncio
import logging
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2
from tests.unit.panic import Panic
from tests.unit.server.fakes import FakeGalleries, details, fake_server, field_of, info, retry_s
from tests.unit.server.stubs import Stubs, by_vector, connected, shop, upsert, vectors
from tests.unit.server.waiting import until

from likewise.server.access_log import CallRecord
from likewise.server.errors import InvalidRequest
from likewise.shards import protocols
from likewise.shards.spec_change import SpecChange
from likewise.v1 import item_service_pb2
from likewise.v1 import search_service_pb2 as pb

QUERY = vectors(1)[0]


def _records(caplog: pytest.LogCaptureFixture) -> list[CallRecord]:
    return [vars(record)["call"] for record in caplog.records if record.name == "likewise.access"]


def _raw(stubs: Stubs, method: str) -> Any:
    return stubs.channel.unary_unary(method)


@pytest.mark.parametrize(
    ("failure", "code", "reason"),
    [
        pytest.param(
            protocols.UnknownAttribute("filter.comparison.attribute", "no such attribute"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "UNKNOWN_ATTRIBUTE",
            id="unknown attribute",
        ),
        pytest.param(
            protocols.StoreFailure("the commit failed: no space left on the store's device"),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "DISK_FULL",
            id="disk full",
        ),
        pytest.param(
            protocols.StoreFailure("the commit failed: permission denied"),
            grpc.StatusCode.INTERNAL,
            "STORE_FAILURE",
            id="store failure",
        ),
        pytest.param(
            SpecChange("spaces of gallery 'shop' cannot be changed"),
            grpc.StatusCode.FAILED_PRECONDITION,
            "SPEC_CHANGE",
            id="rows do not fit",
        ),
        pytest.param(
            protocols.Unavailable("the writer drains"),
            grpc.StatusCode.UNAVAILABLE,
            "PART_UNAVAILABLE",
            id="unavailable",
        ),
    ],
)
async def test_errors_of_the_parts_below_become_statuses_with_a_reason(
    failure: Exception, code: grpc.StatusCode, reason: str
) -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        galleries.writer("shop").failure = failure

        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.items.Upsert(_one_item())

    assert caught.value.code() is code
    assert info(caught.value).reason == reason
    assert info(caught.value).domain == "likewise"
    assert details(caught.value).message == caught.value.details()


async def test_a_full_queue_says_when_to_come_back() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        galleries.writer("shop").failure = protocols.Overloaded("200,000 rows wait, the limit", retry_after_s=1.5)

        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.items.Upsert(_one_item())

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert retry_s(caught.value) == 1.5


async def test_an_error_of_any_length_arrives_cut_to_what_headers_hold() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        galleries.writer("shop").failure = InvalidRequest("é" * 50_000, field="items")

        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.items.Upsert(_one_item())

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.details() or "").startswith("éééé")
    assert (caught.value.details() or "").endswith("...")
    assert field_of(caught.value) == "items"


@pytest.mark.parametrize("failure", [KeyError("/secret/path"), Panic("/secret/path")])
async def test_a_foreign_exception_shows_nothing_of_itself(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        galleries.writer("shop").failure = failure

        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.items.Upsert(_one_item(), timeout=10)

    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "internal error"
    assert "secret" not in str(details(caught.value))
    assert any(record.exc_info and "/secret/path" in str(record.exc_info[1]) for record in caplog.records)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x0a\x02\xff\xfe", id="a string that is not UTF-8"),
        pytest.param(b"\xff\xff\xff", id="no protobuf at all"),
    ],
)
async def test_bytes_that_are_no_message_are_the_callers_error(data: bytes) -> None:
    async with shop() as stubs:
        with pytest.raises(aio.AioRpcError) as caught:
            await _raw(stubs, "/likewise.v1.SearchService/Search")(data)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info(caught.value).reason == "MALFORMED_MESSAGE"
    assert "likewise.v1.SearchRequest" in (caught.value.details() or "")


async def test_a_malformed_message_ends_a_stream_with_the_callers_error() -> None:
    async with shop() as stubs:
        method: Any = stubs.channel.stream_stream("/likewise.v1.SearchService/StreamSearch")
        with pytest.raises(aio.AioRpcError) as caught:
            async for _ in method(iter([b"\xff\xff\xff"])):
                pass

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_over_the_limit_is_refused_with_the_limit() -> None:
    async with shop() as stubs:
        with pytest.raises(aio.AioRpcError) as caught:
            await _raw(stubs, "/likewise.v1.SearchService/Search")(bytes(65 << 20))

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(64 << 20) in (caught.value.details() or "")


async def test_an_unknown_method_is_unimplemented() -> None:
    async with shop() as stubs:
        with pytest.raises(aio.AioRpcError) as caught:
            await _raw(stubs, "/likewise.v1.SearchService/Guess")(b"")

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_request_id_comes_back_in_reply_and_trailer() -> None:
    async with shop() as stubs:
        call = stubs.search.Search(by_vector(QUERY, request_id="order-66"))
        response = await call

        trailer = dict(await call.trailing_metadata())

    assert response.request_id == "order-66"
    assert trailer["x-request-id"] == "order-66"


async def test_a_request_id_in_the_header_counts_where_the_field_is_empty() -> None:
    async with shop() as stubs:
        response = await stubs.search.Search(by_vector(QUERY), metadata=(("x-request-id", "from-header"),))

    assert response.request_id == "from-header"


async def test_a_failed_call_carries_its_request_id_too() -> None:
    async with shop() as stubs:
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(by_vector(QUERY, k=0, request_id="order-67"))

    assert dict(caught.value.trailing_metadata())["x-request-id"] == "order-67"


async def test_a_request_id_that_fits_no_header_is_refused() -> None:
    async with shop() as stubs:
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(by_vector(QUERY, request_id="line\nbreak"))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field_of(caught.value) == "request_id"


async def test_one_line_is_written_a_call(caplog: pytest.LogCaptureFixture) -> None:
    async with shop() as stubs:
        caplog.clear()
        with caplog.at_level(logging.INFO, "likewise.access"):
            await stubs.search.Search(by_vector(QUERY, k=3, request_id="r1"))
            with pytest.raises(aio.AioRpcError):
                await stubs.search.Search(by_vector(QUERY, k=0))

    good, bad = _records(caplog)
    assert (good.method, good.code, good.gallery, good.k, good.hits, good.request_id) == (
        "likewise.v1.SearchService/Search",
        "OK",
        "shop",
        3,
        3,
        "r1",
    )
    assert good.plan.startswith("exact over 20")
    assert (bad.code, bad.error, bad.gallery) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT", "shop")


async def test_a_caller_who_leaves_cancels_the_shards_and_is_logged_as_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=1) as stubs:
        shard = galleries.shards("shop")[0]
        shard.gate = asyncio.Event()
        caplog.clear()
        with caplog.at_level(logging.INFO, "likewise.access"):
            call = stubs.search.Search(by_vector(QUERY))
            await until(lambda: bool(shard.batches))
            call.cancel()
            await until(lambda: bool(_records(caplog)))

    assert shard.cancelled == 1
    assert [record.code for record in _records(caplog)] == ["CANCELLED"]


async def test_calls_over_the_limit_are_told_to_come_back_while_health_still_answers() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=1, max_calls=1) as stubs:
        shard = galleries.shards("shop")[0]
        shard.gate = asyncio.Event()
        first = stubs.search.Search(by_vector(QUERY))
        await until(lambda: bool(shard.batches))

        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(by_vector(QUERY))
        health = await stubs.health.Check(health_pb2.HealthCheckRequest())
        shard.gate.set()
        await first

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert info(caught.value).reason == "TOO_MANY_CALLS"
    assert retry_s(caught.value) > 0
    assert health.status == health_pb2.HealthCheckResponse.SERVING


async def test_calls_that_find_too_many_waiting_are_dropped_and_the_others_answered() -> None:
    async with shop(max_unread_calls=4) as stubs:
        calls = [stubs.search.Search(by_vector(QUERY)) for _ in range(400)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        later = await stubs.search.Search(by_vector(QUERY))

    dropped = [outcome for outcome in outcomes if isinstance(outcome, aio.AioRpcError)]
    assert 0 < len(dropped) < 400
    assert {error.code() for error in dropped} == {grpc.StatusCode.CANCELLED}
    assert all(list(o.hits.ids) == list(later.hits.ids) for o in outcomes if not isinstance(o, BaseException))


async def test_an_answer_over_the_message_limit_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likewise.server.call_handlers.MAX_MESSAGE_BYTES", 200)
    async with shop() as stubs:
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.items.List(item_service_pb2.ItemServiceListRequest(gallery="shop", vectors=True))

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert info(caught.value).reason == "RESPONSE_TOO_LARGE"
    assert info(caught.value).metadata["limit"] == "200"


async def test_calls_are_counted_by_method_and_code() -> None:
    galleries = FakeGalleries()
    server = fake_server(galleries)
    async with connected(server) as stubs:
        with pytest.raises(aio.AioRpcError):
            await stubs.search.Search(pb.SearchRequest(gallery="nowhere"))

    labels = {"method": "likewise.v1.SearchService/Search", "code": "NOT_FOUND"}
    assert server.metrics.registry.get_sample_value("likewise_rpc_requests_total", labels) == 1
    assert (
        server.metrics.registry.get_sample_value("likewise_rpc_duration_seconds_count", {"method": labels["method"]})
        == 1
    )


def _one_item() -> item_service_pb2.UpsertRequest:
    return upsert(["one"], vectors(1))
