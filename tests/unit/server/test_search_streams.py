"""Searches as messages of a stream, through a real channel."""

import asyncio
import logging
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from tests.unit.server.fakes import FakeGalleries, fake_server, info
from tests.unit.server.stubs import Stubs, by_vector, connected, shop, vectors
from tests.unit.server.waiting import until

from likewise import wire
from likewise.v1 import search_service_pb2 as pb

MATRIX = vectors(20)
DEADLINE_EXCEEDED, EXHAUSTED, INVALID = (
    code.value[0]
    for code in (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INVALID_ARGUMENT,
    )
)


def _one(number: int, *, k: int = 1, **message: Any) -> pb.StreamSearchRequest:
    return pb.StreamSearchRequest(correlation_id=number, request=by_vector(MATRIX[number], k=k), **message)


def _matrix(number: int, rows: wire.F32, *, k: int = 2) -> pb.StreamSearchRequest:
    search = pb.SearchRequest(gallery="shop", k=k)
    return pb.StreamSearchRequest(
        correlation_id=number, vectors=pb.SearchVectorsRequest(search=search, vectors=wire.encode_vectors(rows))
    )


async def _asked(stubs: Stubs, *messages: pb.StreamSearchRequest) -> dict[int, pb.StreamSearchResponse]:
    """The answers to all messages of one stream that is ended after them."""
    call = stubs.search.StreamSearch()
    for message in messages:
        await call.write(message)
    await call.done_writing()
    return {answer.correlation_id: answer async for answer in call}


def _reason(answer: pb.StreamSearchResponse) -> str:
    for packed in answer.error.details:
        found = error_details_pb2.ErrorInfo()
        if packed.Unpack(found):
            return str(found.reason)
    return ""


async def test_a_stream_answers_by_correlation_and_reports_errors_one_by_one() -> None:
    async with shop() as stubs:
        answers = await _asked(stubs, *(_one(i, k=1 if i != 2 else 0) for i in range(5)))

    assert sorted(answers) == [0, 1, 2, 3, 4]
    assert answers[4].response.hits.ids[0] == "item-04"
    assert answers[2].error.code == INVALID


async def test_a_matrix_has_the_answer_that_a_call_of_its_own_has() -> None:
    async with shop() as stubs:
        message = _matrix(7, MATRIX[:3])
        alone = await stubs.search.SearchVectors(message.vectors)
        answers = await _asked(stubs, message)

    assert answers[7].WhichOneof("outcome") == "vectors"
    assert answers[7].vectors.answer.hits == alone.answer.hits
    assert answers[7].vectors.offsets == alone.offsets


async def test_a_message_that_asks_for_nothing_is_told_so_and_the_stream_goes_on() -> None:
    async with shop() as stubs:
        answers = await _asked(stubs, pb.StreamSearchRequest(correlation_id=1), _one(2))

    assert (answers[1].error.code, answers[1].error.message) == (
        INVALID,
        "the message has neither a request nor vectors: set one of them",
    )
    assert list(answers[2].response.hits.ids) == ["item-02"]


async def test_a_stream_keeps_no_more_searches_in_work_than_allowed() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=1, stream_in_flight=2) as stubs:
        shard = galleries.shards("shop")[0]
        shard.gate = asyncio.Event()
        asking = asyncio.ensure_future(_asked(stubs, *map(_one, range(6))))
        await until(lambda: len(shard.batches) >= 2)
        await stubs.search.Compose(pb.ComposeRequest(gallery="shop", reference=by_vector(MATRIX[0]).reference))
        started = len(shard.batches)  # a whole call later there are still no more
        shard.gate.set()
        answers = await asking

    assert started == 2
    assert len(answers) == 6


async def test_headers_come_before_the_first_message() -> None:
    async with shop() as stubs:
        call = stubs.search.StreamSearch()
        await call.initial_metadata()
        done = call.done()
        call.cancel()

    assert not done


@pytest.mark.parametrize("in_flight", [1, 8])
async def test_a_search_that_is_given_up_is_ended_and_has_no_answer(in_flight: int) -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=1, stream_in_flight=in_flight) as stubs:
        shard = galleries.shards("shop")[0]
        shard.gate = asyncio.Event()
        call = stubs.search.StreamSearch()
        await call.write(_one(1))
        await until(lambda: len(shard.batches) == 1)
        await call.write(pb.StreamSearchRequest(correlation_id=1, cancel=True))
        await call.write(pb.StreamSearchRequest(correlation_id=5, cancel=True))  # there is no such search
        await until(lambda: shard.cancelled == 1)
        shard.gate.set()
        await call.write(_one(2))
        await call.done_writing()
        answers = [answer.correlation_id async for answer in call]

    assert answers == [2]


async def test_a_search_that_is_not_answered_in_its_time_is_told_so() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=1) as stubs:
        galleries.shards("shop")[0].gate = asyncio.Event()
        answers = await _asked(stubs, _one(1, timeout_us=1_000))

    assert answers[1].error.code == DEADLINE_EXCEEDED


async def test_more_time_than_a_timer_holds_is_no_limit() -> None:
    async with shop() as stubs:
        answers = await _asked(stubs, _one(1, timeout_us=2**64 - 1))

    assert list(answers[1].response.hits.ids) == ["item-01"]


async def test_each_message_is_counted_and_has_its_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="likewise.access")
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        await stubs.channel.close()
    server = fake_server(galleries)
    async with connected(server) as stubs:
        named = _one(1)
        named.request.request_id = "mine"
        caplog.clear()
        await _asked(stubs, named, _one(2, k=0), _matrix(3, MATRIX[:3]))

    def count(method: str, code: str) -> float | None:
        labels = {"method": f"likewise.v1.SearchService/{method}", "code": code}
        return server.metrics.registry.get_sample_value("likewise_rpc_requests_total", labels)

    assert (count("Search", "OK"), count("Search", "INVALID_ARGUMENT"), count("SearchVectors", "OK")) == (1, 1, 1)
    assert count("StreamSearch", "OK") == 1
    lines = [vars(record)["call"] for record in caplog.records if record.name == "likewise.access"]
    told = {(line.method.rpartition("/")[2], line.code, line.rows) for line in lines}
    assert told == {
        ("Search", "OK", None),
        ("Search", "INVALID_ARGUMENT", None),
        ("SearchVectors", "OK", 3),
        ("StreamSearch", "OK", 3),
    }
    assert [line.request_id for line in lines if line.code == "OK" and line.method.endswith("/Search")] == ["mine"]


async def test_open_streams_are_no_calls_in_progress_but_their_searches_are() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=1, max_calls=1) as stubs:
        idle = [stubs.search.StreamSearch() for _ in range(3)]
        for call in idle:
            await call.initial_metadata()
        shard = galleries.shards("shop")[0]
        shard.gate = asyncio.Event()
        await idle[0].write(_one(1))
        await until(lambda: len(shard.batches) == 1)
        await idle[1].write(_one(2))
        refused: Any = await idle[1].read()
        shard.gate.set()
        answered: Any = await idle[0].read()
        for call in idle:
            call.cancel()

    assert (refused.error.code, _reason(refused)) == (EXHAUSTED, "TOO_MANY_CALLS")
    assert list(answered.response.hits.ids) == ["item-01"]


async def test_more_streams_than_may_be_open_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likewise.server.search_streams.MAX_STREAMS", 1)
    async with shop() as stubs:
        first, second = stubs.search.StreamSearch(), stubs.search.StreamSearch()
        await first.initial_metadata()
        with pytest.raises(aio.AioRpcError) as caught:
            await second.read()
        await first.done_writing()
        assert await first.read() is aio.EOF
        answers = await _asked(stubs, _one(1))

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert info(caught.value).reason == "TOO_MANY_STREAMS"
    assert list(answers[1].response.hits.ids) == ["item-01"]


async def test_an_answer_over_the_message_limit_is_refused_and_the_stream_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with shop() as stubs:
        monkeypatch.setattr("likewise.server.call_handlers.MAX_MESSAGE_BYTES", 300)
        answers = await _asked(stubs, _one(1, k=20), _one(2))

    assert (answers[1].error.code, _reason(answers[1])) == (EXHAUSTED, "RESPONSE_TOO_LARGE")
    assert list(answers[2].response.hits.ids) == ["item-02"]


async def test_draining_ends_idle_streams_and_answers_what_is_in_work() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=1) as stubs:
        await stubs.channel.close()
    server = fake_server(galleries, drain_grace_s=60.0)
    shard = galleries.shards("shop")[0]
    shard.gate = asyncio.Event()
    await server.start()
    async with aio.insecure_channel(server.address) as channel:
        stubs = Stubs(channel, server.address)
        idle, busy = stubs.search.StreamSearch(), stubs.search.StreamSearch()
        await idle.initial_metadata()
        await busy.write(_one(1))
        await until(lambda: len(shard.batches) == 1)

        stopping = asyncio.create_task(server.stop())
        ended = await idle.read()
        shard.gate.set()
        answer: Any = await busy.read()
        rest = await busy.read()
        await stopping

    assert ended is aio.EOF
    assert await idle.code() is grpc.StatusCode.OK
    assert list(answer.response.hits.ids) == ["item-01"]
    assert rest is aio.EOF
