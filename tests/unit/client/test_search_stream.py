"""Searches of an asyncio client travel as messages of a stream where they can, and as calls where they cannot."""

import asyncio
from collections.abc import Callable

import grpc
import pytest
from google.rpc import status_pb2
from tests.unit.client.stream_server import StreamServer, found, streaming

from likewise import message_stream
from likewise.client import AsyncGallery, ClientClosed, DeadlineExceeded, NotFound, search_stream


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def _opened(server: StreamServer, gallery: AsyncGallery, streams: int = 1) -> None:
    """Ask until a search goes by the last of so many streams."""
    number = 1_000
    while not (server.messages and server.streams >= streams):
        server.messages.clear()
        await found(gallery, number := number + 1)
        await asyncio.sleep(0.001)
    server.messages.clear()
    server.calls.clear()


async def test_the_first_search_is_a_call_and_those_after_it_are_messages_of_one_stream() -> None:
    async with streaming() as (server, gallery):
        assert await found(gallery, 1) == 1
        assert server.calls == [1]
        await _opened(server, gallery)

        assert [await found(gallery, number) for number in (2, 3)] == [2, 3]
        assert await asyncio.gather(*(found(gallery, number) for number in range(4, 9))) == [4, 5, 6, 7, 8]

    assert (server.calls, server.messages, server.streams) == ([], [2, 3, 4, 5, 6, 7, 8], 1)


async def test_stored_items_and_texts_are_messages_too_and_pictures_are_calls() -> None:
    async with streaming() as (server, gallery):
        await _opened(server, gallery)

        assert (await gallery.search(id="2")).ids == ["2"]
        assert (await gallery.search(text="3", condition="in red")).ids == ["3"]
        assert (await gallery.search(image=b"4")).ids == ["4"]

    assert (server.messages, server.calls) == ([2, 3], [4])


async def test_a_server_without_streams_is_asked_for_one_once() -> None:
    async with streaming() as (server, gallery):
        server.code = grpc.StatusCode.UNIMPLEMENTED
        for number in range(20):
            assert await found(gallery, number) == number
            await asyncio.sleep(0.001)

    assert (server.calls, server.streams) == (list(range(20)), 1)


async def test_a_stream_without_headers_holds_nothing_up() -> None:
    async with streaming() as (server, gallery):
        server.headers.clear()
        for number in range(20):
            assert await found(gallery, number) == number
            await asyncio.sleep(0.001)
        assert (server.calls, server.streams) == (list(range(20)), 1)

        server.headers.set()
        await _opened(server, gallery)

    assert server.streams == 1


async def test_a_stream_that_does_not_open_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_stream, "_WAIT_S", (0.01, 0.01))
    async with streaming() as (server, gallery):
        server.code = grpc.StatusCode.UNAVAILABLE
        assert await found(gallery, 1) == 1
        await _until(lambda: server.streams == 1)
        server.code = None
        await _opened(server, gallery, 2)

    assert server.streams == 2


async def test_a_stream_whose_headers_do_not_come_is_given_up_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_stream, "_WAIT_S", (0.01, 0.01))
    monkeypatch.setattr(message_stream, "OPENING_S", 0.01)
    async with streaming() as (server, gallery):
        server.headers.clear()
        number = 0
        while server.streams < 3:
            assert await found(gallery, number := number + 1) == number
        monkeypatch.setattr(message_stream, "OPENING_S", 10.0)
        server.headers.set()
        await _opened(server, gallery, 3)


async def test_what_a_broken_stream_did_not_answer_is_asked_again_as_a_call() -> None:
    async with streaming() as (server, gallery):
        await _opened(server, gallery)
        server.gate.clear()
        waiting = asyncio.create_task(found(gallery, 1, k=3))
        await _until(lambda: server.messages == [1])
        server.drop.add(2)

        assert await found(gallery, 2) == 2
        assert await waiting == 1

        server.gate.set()
        assert sorted(server.calls) == [1, 2]
        await _opened(server, gallery, 2)  # and there is another stream after it


async def test_a_server_that_drains_ends_the_stream_and_loses_nothing() -> None:
    async with streaming() as (server, gallery):
        await _opened(server, gallery)
        server.gate.clear()
        waiting = asyncio.create_task(found(gallery, 1))
        await _until(lambda: server.messages == [1])
        server.drain.set()

        assert await waiting == 1

    assert server.calls == [1]


async def test_an_error_of_a_message_is_told_as_that_of_a_call() -> None:
    async with streaming() as (server, gallery):
        await _opened(server, gallery)
        server.refuse[1] = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="no gallery 'g'")

        with pytest.raises(NotFound, match="no gallery 'g'") as caught:
            await found(gallery, 1)

        assert caught.value.request_id
        assert await found(gallery, 2) == 2
    assert (server.calls, server.messages) == ([], [1, 2])


async def test_what_may_pass_is_tried_again_as_a_call_which_is_repeated() -> None:
    async with streaming() as (server, gallery):
        await _opened(server, gallery)
        server.refuse[1] = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="shard 1 is loading")

        assert await found(gallery, 1) == 1

    assert (server.messages, server.calls) == ([1], [1])


async def test_a_caller_who_leaves_has_the_search_given_up_and_the_stream_goes_on() -> None:
    async with streaming() as (server, gallery):
        await _opened(server, gallery)
        server.gate.clear()
        leaving = asyncio.create_task(found(gallery, 1))
        await _until(lambda: server.messages == [1])
        leaving.cancel()
        await _until(lambda: server.cancelled == [1])
        server.gate.set()

        assert await found(gallery, 2) == 2
        assert leaving.cancelled()
    assert (server.messages, server.streams) == ([1, 2], 1)


async def test_whose_time_is_over_is_told_so_and_the_search_given_up() -> None:
    async with streaming() as (server, gallery):
        await _opened(server, gallery)
        server.gate.clear()

        with pytest.raises(DeadlineExceeded) as caught:
            await found(gallery, 1, timeout=0.02)

        assert caught.value.reason == "CLIENT_TIMEOUT"
        await _until(lambda: server.cancelled == [1])
        server.gate.set()
        assert await found(gallery, 2) == 2
    assert server.streams == 1


async def test_more_time_than_a_timer_holds_is_no_limit() -> None:
    async with streaming() as (server, gallery):
        await _opened(server, gallery)

        assert await asyncio.gather(*(found(gallery, number, timeout=1e300) for number in (1, 2))) == [1, 2]
        assert await found(gallery, 3, timeout=1e300) == 3
    assert (server.calls, server.messages) == ([], [1, 2, 3])


async def test_more_than_a_stream_carries_go_as_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_stream, "MOST", 2)
    async with streaming() as (server, gallery):
        await _opened(server, gallery)
        server.gate.clear()
        held = [asyncio.create_task(found(gallery, number, k=number)) for number in (1, 2)]
        await _until(lambda: sorted(server.messages) == [1, 2])

        assert await found(gallery, 3, k=3) == 3

        server.gate.set()
        assert await asyncio.gather(*held) == [1, 2]
    assert server.calls == [3]


async def test_an_old_stream_is_replaced_and_ends_when_all_of_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_stream, "AGE_S", 0.0)
    async with streaming() as (server, gallery):
        await _opened(server, gallery)
        server.gate.clear()
        waiting = asyncio.create_task(found(gallery, 1, k=3))
        await _until(lambda: server.messages == [1])
        streams = server.streams
        server.gate.set()
        await _opened(server, gallery, streams + 2)

        assert await waiting == 1
        await _until(lambda: server.ended >= streams)


async def test_a_closed_client_says_so_to_whoever_waits() -> None:
    async with streaming() as (server, gallery):
        await _opened(server, gallery)
        server.gate.clear()
        waiting = asyncio.create_task(found(gallery, 1))
        await _until(lambda: server.messages == [1])
    with pytest.raises(ClientClosed):
        await waiting
    with pytest.raises(ClientClosed):
        await found(gallery, 2)
