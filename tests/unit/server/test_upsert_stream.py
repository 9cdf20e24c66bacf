"""StreamUpsert with an id: taken up again after it broke, and told when to wait."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc import aio
from tests.unit.server.fakes import FakeGalleries, field_of, info
from tests.unit.server.stubs import shop, upsert, vectors
from tests.unit.server.waiting import until

from likewise.server.errors import Overloaded
from likewise.server.write_room import WriteRoom
from likewise.shards import protocols
from likewise.shards.protocols import StreamPosition
from likewise.v1 import item_service_pb2 as pb

MATRIX = vectors(20)


def _opening(stream_id: str = "s", gallery: str = "shop") -> pb.StreamUpsertRequest:
    return pb.StreamUpsertRequest(opening=pb.StreamUpsertOpening(gallery=gallery, stream_id=stream_id))


def _message(sequence: int, *, acknowledged: int = 0, scale: float = 1, gallery: str = "shop") -> Any:
    request = upsert([f"i{sequence}"], MATRIX[sequence : sequence + 1] * scale, gallery=gallery)
    return pb.StreamUpsertRequest(sequence=sequence, request=request, acknowledged=acknowledged)


async def _answers(stubs: Any, *messages: pb.StreamUpsertRequest) -> list[pb.StreamUpsertResponse]:
    return [answer async for answer in stubs.items.StreamUpsert(iter(messages))]


async def test_a_stream_that_opens_again_is_told_how_far_it_came() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        galleries.writer("shop").settled["s"] = 6

        opened, answered = await _answers(stubs, _opening(), _message(7, acknowledged=5))

    assert opened.opened.acknowledged == 6
    assert (answered.sequence, answered.response.upserted) == (7, 1)
    assert galleries.writer("shop").positions[-1] == StreamPosition("s", 7, 5)


async def test_a_message_of_a_stream_with_an_id_that_is_refused_for_good_is_answered() -> None:
    async with shop() as stubs:
        answers = await _answers(
            stubs, _opening(), _message(1), _message(2, scale=0), _message(3, gallery="other"), _message(4)
        )

    assert [answer.WhichOneof("outcome") for answer in answers] == ["opened", "response", "error", "error", "response"]
    assert "opened for gallery 'shop', got 'other'" in answers[3].error.message


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        pytest.param(protocols.Unavailable("restarting"), "UNAVAILABLE", id="unavailable"),
        pytest.param(protocols.Overloaded("full", retry_after_s=1.5), "RESOURCE_EXHAUSTED", id="overloaded"),
    ],
)
async def test_what_may_go_well_the_next_time_ends_a_stream_with_an_id_unacknowledged(
    failure: Exception, code: str
) -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        call = stubs.items.StreamUpsert()
        await call.write(_opening())
        await call.write(_message(1))
        answers: list[Any] = [await call.read(), await call.read()]
        galleries.writer("shop").failure = failure
        await call.write(_message(2))
        with pytest.raises(aio.AioRpcError) as caught:
            await call.read()

    assert [answer.WhichOneof("outcome") for answer in answers] == ["opened", "response"]
    assert caught.value.code() is grpc.StatusCode[code]


async def test_what_waits_for_a_message_that_ends_its_stream_is_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        writer = galleries.writer("shop")
        apply, go = writer.upsert, asyncio.Event()

        async def held(rows: Any, **options: Any) -> Any:
            if options["position"].sequence == 1:
                await go.wait()
                raise protocols.Unavailable("restarting")
            return await apply(rows, **options)

        monkeypatch.setattr(writer, "upsert", held)
        call = stubs.items.StreamUpsert()
        await call.write(_opening())
        for sequence in (1, 2):
            await call.write(pb.StreamUpsertRequest(sequence=sequence, request=upsert(["a"], MATRIX[:1])))
        await call.write(pb.StreamUpsertRequest(sequence=3, request=upsert(["z"], MATRIX[:1])))
        await until(lambda: ["z"] in writer.log)
        go.set()
        with pytest.raises(aio.AioRpcError):
            _ = [answer async for answer in call]

    assert writer.log[1:] == [["z"]]  # after the gallery's own items


@pytest.mark.parametrize(
    ("messages", "code", "field"),
    [
        pytest.param([_message(1), _opening()], "INVALID_ARGUMENT", "opening", id="late opening"),
        pytest.param([_opening(), _opening()], "INVALID_ARGUMENT", "opening", id="two openings"),
        pytest.param([_opening("")], "INVALID_ARGUMENT", "opening.stream_id", id="no id"),
        pytest.param([_opening("x" * 129)], "INVALID_ARGUMENT", "opening.stream_id", id="long id"),
        pytest.param([_opening(gallery="none")], "NOT_FOUND", None, id="unknown gallery"),
        pytest.param([_opening(), _message(1), _message(3)], "INVALID_ARGUMENT", "sequence", id="a gap"),
        pytest.param([_opening(), _message(0)], "INVALID_ARGUMENT", "sequence", id="sequence zero"),
        pytest.param(
            [_opening(), _message(1, acknowledged=1)], "INVALID_ARGUMENT", "acknowledged", id="acknowledges itself"
        ),
    ],
)
async def test_a_stream_that_breaks_the_rules_is_ended(messages: list[Any], code: str, field: str | None) -> None:
    async with shop() as stubs:
        with pytest.raises(aio.AioRpcError) as caught:
            await _answers(stubs, *messages)

    assert caught.value.code() is grpc.StatusCode[code]
    assert field is None or field_of(caught.value) == field


async def test_acknowledgements_say_when_to_back_off() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        free = await _answers(stubs, _message(1))
        galleries.writer("shop").back_off_s = 0.25
        full = await _answers(stubs, _message(2))

    assert not free[0].HasField("back_off")
    assert full[0].back_off.ToNanoseconds() == 250_000_000


async def test_upserts_over_the_bytes_in_work_are_refused_and_streams_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    galleries = FakeGalleries()
    async with shop(galleries, write_bytes=250) as stubs:
        writer = galleries.writer("shop")
        apply, reached, go = writer.upsert, asyncio.Event(), asyncio.Event()

        async def held(rows: Any, **options: Any) -> Any:
            reached.set()
            await go.wait()
            return await apply(rows, **options)

        monkeypatch.setattr(writer, "upsert", held)
        first = asyncio.ensure_future(stubs.items.Upsert(upsert(["a", "b", "c", "d"], MATRIX[:4])))
        await asyncio.wait_for(reached.wait(), 10)
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.items.Upsert(upsert(["e", "f", "g", "h"], MATRIX[:4]))
        call = stubs.items.StreamUpsert()
        await call.write(pb.StreamUpsertRequest(sequence=1, request=upsert(["i", "j", "k", "l"], MATRIX[:4])))
        go.set()

        assert (await first).upserted == 4
        answer: Any = await call.read()
        assert answer.response.upserted == 4
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert info(caught.value).reason == "TOO_MANY_WRITES"


async def test_room_is_given_in_order_and_back_by_those_who_give_up() -> None:
    room = WriteRoom(10)
    await room.take(8)
    large, small = asyncio.ensure_future(room.take(9)), asyncio.ensure_future(room.take(2))
    await asyncio.sleep(0)
    assert not small.done()  # although it would fit: the large one would never have its turn

    large.cancel()
    await small
    with pytest.raises(Overloaded, match=r"10 bytes .* at most 10 .* got 1 more"), room.taken(1):
        pass
    room.give_back(10)
    with room.taken(50):  # alone, however large
        pass
