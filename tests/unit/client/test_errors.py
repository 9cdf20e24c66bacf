"""Errors: what is retried, what is raised, and what an error knows."""

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from tests.unit.client.conftest import Connect
from tests.unit.client.fake_failures import Failure
from tests.unit.client.fake_server import FakeServer

from likewise.client import (
    AlreadyExists,
    AnswerTooLarge,
    AsyncClient,
    Cancelled,
    Client,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    LikewiseError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServerError,
    Unavailable,
    Unimplemented,
)
from likewise.client.errors import from_rpc

DROPPED = Failure(StatusCode.CANCELLED, "", "")
AWAY = Failure(StatusCode.UNAVAILABLE, "shard 1 is away", "SHARD_UNAVAILABLE", {"shard": "1"})

CLASSES: list[tuple[StatusCode, type[LikewiseError], type[Exception]]] = [
    (StatusCode.INVALID_ARGUMENT, InvalidArgument, ValueError),
    (StatusCode.NOT_FOUND, NotFound, LookupError),
    (StatusCode.ALREADY_EXISTS, AlreadyExists, Exception),
    (StatusCode.FAILED_PRECONDITION, FailedPrecondition, Exception),
    (StatusCode.RESOURCE_EXHAUSTED, ResourceExhausted, Exception),
    (StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded, TimeoutError),
    (StatusCode.UNIMPLEMENTED, Unimplemented, Exception),
    (StatusCode.PERMISSION_DENIED, PermissionDenied, Exception),
    (StatusCode.UNAUTHENTICATED, PermissionDenied, Exception),
    (StatusCode.DATA_LOSS, DataLoss, Exception),
    (StatusCode.INTERNAL, ServerError, Exception),
    (StatusCode.UNKNOWN, ServerError, Exception),
]


@pytest.fixture
def gallery(client: Any) -> Any:
    made = client.create_gallery("g", dim=2)
    made.upsert(["a"], vectors=[[1.0, 0.0]])
    return made


@pytest.mark.parametrize(("code", "wanted", "also"), CLASSES)
def test_each_status_has_its_class_and_is_not_retried(
    server: FakeServer, gallery: Any, code: StatusCode, wanted: type[LikewiseError], also: type[Exception]
) -> None:
    server.fail("Search", Failure(code, "said so", "WHY", {"name": "value"}, "a.field", 1.5))

    with pytest.raises(wanted, match="said so") as caught:
        gallery.search(vector=[1, 0], request_id="r-7")

    error = caught.value
    assert isinstance(error, also)
    assert (error.code, error.reason, error.details) == (code, "WHY", {"name": "value"})
    assert (error.field, error.retry_after_s, error.request_id) == ("a.field", 1.5, "r-7")
    assert isinstance(error.__cause__, grpc.RpcError)
    assert len(server.calls("Search")) == 1


def test_unavailable_is_retried_until_it_is_over(server: FakeServer, gallery: Any) -> None:
    server.fail("Search", AWAY, AWAY)

    assert gallery.search(vector=[1, 0]).ids == ["a"]
    assert len(server.calls("Search")) == 3


def test_a_call_that_the_server_drops_unread_is_sent_again(server: FakeServer, gallery: Any) -> None:
    server.fail("Search", DROPPED)

    assert gallery.search(vector=[1, 0]).ids == ["a"]
    assert len(server.calls("Search")) == 2


def test_calls_that_are_dropped_again_and_again_end_as_cancelled(server: FakeServer, gallery: Any) -> None:
    server.fail("Search", *[DROPPED] * 9)

    with pytest.raises(Cancelled):
        gallery.search(vector=[1, 0])

    assert len(server.calls("Search")) == 5


def test_unavailable_that_stays_is_raised_with_its_reason(server: FakeServer, gallery: Any) -> None:
    server.fail("Count", *[AWAY] * 9)

    with pytest.raises(Unavailable) as caught:
        gallery.count()

    assert (caught.value.reason, caught.value.details) == ("SHARD_UNAVAILABLE", {"shard": "1"})
    assert len(server.calls("Count")) == 5


def test_requests_larger_than_grpcs_own_retry_buffer_are_retried_too(server: FakeServer, gallery: Any) -> None:
    server.fail("Upsert", AWAY)
    rows = 1000  # of 256 numbers: 1 MB, where gRPC by itself keeps 256 KiB

    gallery.upsert([f"i{row}" for row in range(rows)], vectors=np.ones((rows, 256)))

    assert gallery.count() == rows + 1


@pytest.mark.parametrize("method", ["Create", "Delete"])
def test_making_and_deleting_galleries_is_never_repeated(server: FakeServer, client: Any, method: str) -> None:
    server.fail(method, AWAY)

    with pytest.raises(Unavailable):
        client.create_gallery("g", dim=2) if method == "Create" else client.delete_gallery("g")

    assert len(server.calls(method)) == 1


def test_a_server_that_is_not_there_is_named(connect: Connect) -> None:
    with pytest.raises(Unavailable, match=r"no answer from 127\.0\.0\.1:1"):
        connect("127.0.0.1:1").galleries()


def test_a_deadline_ends_the_call(server: FakeServer, connect: Connect) -> None:
    patient, hasty = connect(), connect(timeout=0.05)
    patient.create_gallery("g", dim=2)
    server.gate.clear()

    with pytest.raises(DeadlineExceeded):
        hasty.gallery("g").count()
    with pytest.raises(DeadlineExceeded):
        patient.gallery("g").count(timeout=0.05)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_timeout_that_is_no_time_is_refused(gallery: Any, timeout: float) -> None:
    with pytest.raises(InvalidArgument, match="timeout"):
        gallery.count(timeout=timeout)


def test_an_answer_over_the_limit_explains_itself(connect: Connect) -> None:
    connect().create_gallery("g", dim=4096).upsert(["a"], vectors=np.ones((1, 4096)))

    with pytest.raises(AnswerTooLarge, match="limit of 8192 bytes") as caught:
        connect(max_message_bytes=8192).gallery("g").search(id="a", vectors=True)

    assert caught.value.code is StatusCode.RESOURCE_EXHAUSTED


def test_details_that_cannot_be_read_leave_the_plain_message() -> None:
    metadata: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", b"\xff\xff"), ("x-request-id", "theirs")]

    error = from_rpc(StatusCode.NOT_FOUND, "no such thing", metadata, request_id="mine")

    assert (str(error), error.reason, error.request_id) == ("no such thing", "", "theirs")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "empty"),
        ("localhost", "host:port"),
        ("a:1,b:2", "dns:///"),
        (["127.0.0.1:1", "[::1]:2"], "one IP family"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(address: Any, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        Client(address)


def test_calls_go_to_all_of_several_addresses(connect: Connect) -> None:
    with FakeServer().serving() as first, FakeServer().serving() as second:
        client = connect(f"{first.address},{second.address}")
        for fake in (first, second):
            connect(fake.address).create_gallery("g", dim=2)

        for _ in range(40):
            client.gallery("g").count()

        assert first.calls("Count")
        assert second.calls("Count")


def test_own_headers_are_sent_with_every_call(server: FakeServer, connect: Connect) -> None:
    connect(metadata={"authorization": "Bearer t"}).galleries()

    assert server.calls("List")[0].metadata["authorization"] == "Bearer t"


async def test_a_cancelled_task_cancels_its_call(server: FakeServer) -> None:
    server.gate.clear()
    async with AsyncClient(server.address) as client:
        task = asyncio.create_task(client.galleries())
        assert await asyncio.to_thread(server.arrived.acquire, timeout=10)

        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.given_up.acquire, timeout=10)
