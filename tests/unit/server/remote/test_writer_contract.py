"""A writer behind a channel does what it does in process."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.unit.server.remote.loopback import SPEC, Loopback, rows

from likewise.internal.v1 import writer_service_pb2_grpc
from likewise.server.errors import FailedPrecondition, InvalidRequest
from likewise.server.remote.channels import Endpoint
from likewise.server.remote.writer_servicer import WriterServicer
from likewise.server.remote.writer_stub import WriterRoute, WriterStub
from likewise.shards.protocols import (
    FragmentsUnusable,
    Overloaded,
    Stage,
    StoreFailure,
    StreamPosition,
    Unavailable,
    Writer,
    WriteResult,
)
from likewise.v1 import common_pb2


class RememberingWriter:
    """A `Writer` that commits to a list."""

    def __init__(self) -> None:
        self.upserts: list[tuple[pa.RecordBatch, str]] = []
        self.deletes: list[tuple[list[str], common_pb2.Filter | None, str]] = []
        self.failure: Exception | None = None
        self.positions: list[StreamPosition | None] = []
        self.back_off_s = 0.0

    async def upsert(
        self, rows: pa.RecordBatch, *, request_id: str = "", position: StreamPosition | None = None
    ) -> WriteResult:
        if self.failure is not None:
            raise self.failure
        self.upserts.append((rows, request_id))
        self.positions.append(position)
        return WriteResult(rows.num_rows, 4, self.back_off_s)

    async def delete(
        self, *, ids: Sequence[str] = (), filter: common_pb2.Filter | None = None, request_id: str = ""
    ) -> WriteResult:
        self.deletes.append((list(ids), filter, request_id))
        return WriteResult(len(ids), 5)

    async def stream_progress(self, stream_id: str) -> int:
        return 9 if stream_id == "s" else 0

    async def stage(self, rows: int) -> Stage:
        return Stage("/store/shoes.lance", (rows, 7))

    async def commit_fragments(self, fragments: Sequence[str], *, request_id: str) -> WriteResult:
        if self.failure is not None:
            raise self.failure
        self.fragments = (list(fragments), request_id)
        return WriteResult(len(fragments), 8)

    async def version(self) -> int:
        return 5

    async def live_rows(self, shard: int, shards: int) -> int:
        return 100 * shard + shards


@pytest.fixture
def behind() -> RememberingWriter:
    return RememberingWriter()


async def _stub(loopback: Loopback, writer: RememberingWriter, gallery_id: str = SPEC.gallery_id) -> WriterStub:
    def register(endpoint: Endpoint) -> None:
        servicer = WriterServicer(writer, writer, gallery_id=SPEC.gallery_id)
        writer_service_pb2_grpc.add_WriterServiceServicer_to_server(servicer, endpoint.server)

    address = await loopback.endpoint(register)
    route: WriterRoute = WriterRoute(
        "the writer of gallery 'shoes'",
        loopback.channels,
        writer_service_pb2_grpc.WriterServiceStub,
        addresses=[address],
    )
    return WriterStub(route, gallery_id=gallery_id)


@pytest.fixture(params=["in process", "over gRPC"])
async def writer(request: pytest.FixtureRequest, loopback: Loopback, behind: RememberingWriter) -> Writer:
    return behind if request.param == "in process" else await _stub(loopback, behind)


async def test_rows_arrive_as_they_were(writer: Writer, behind: RememberingWriter) -> None:
    batch = rows(["a", "b"], np.eye(4, dtype=np.float32)[:2])

    result = await writer.upsert(batch, request_id="r1")

    assert result == WriteResult(2, 4)
    assert behind.upserts == [(batch, "r1")]
    assert await writer.version() == 5
    assert await writer.live_rows(2, 3) == 203


async def test_a_place_in_a_stream_arrives_as_it_was_and_hints_come_back(
    writer: Writer, behind: RememberingWriter
) -> None:
    batch = rows(["a"], np.eye(4, dtype=np.float32)[:1])
    behind.back_off_s = 0.25

    hinted = await writer.upsert(batch, position=StreamPosition("s", 7, 5))
    await writer.upsert(batch)

    assert behind.positions == [StreamPosition("s", 7, 5), None]
    assert hinted.back_off_s == 0.25
    assert (await writer.stream_progress("s"), await writer.stream_progress("t")) == (9, 0)


async def test_files_of_rows_are_staged_and_committed_as_in_process(writer: Any, behind: RememberingWriter) -> None:
    stage = await writer.stage(9)
    result = await writer.commit_fragments(["{1}", "{2}"], request_id="r")

    assert (stage.uri, tuple(stage.first_stamps)) == ("/store/shoes.lance", (9, 7))
    assert result == WriteResult(2, 8)
    assert behind.fragments == (["{1}", "{2}"], "r")


@pytest.mark.parametrize("committed", [True, False])
async def test_files_that_cannot_be_used_keep_their_reason(
    writer: Any, behind: RememberingWriter, committed: bool
) -> None:
    behind.failure = FragmentsUnusable("the file 'x' is gone", committed=committed)

    with pytest.raises(FragmentsUnusable, match="the file 'x' is gone") as caught:
        await writer.commit_fragments(["{}"], request_id="r")

    assert caught.value.committed is committed


async def test_deletes_by_id_and_by_filter_are_told_apart(writer: Writer, behind: RememberingWriter) -> None:
    colour = common_pb2.Filter(existence=common_pb2.Existence(attribute="colour"))

    await writer.delete(ids=["a", "b"], request_id="r2")
    await writer.delete(filter=colour)

    assert behind.deletes == [(["a", "b"], None, "r2"), ([], colour, "")]


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(Overloaded("9 rows wait, the limit is 9", retry_after_s=1.5), id="overloaded"),
        pytest.param(StoreFailure("the disk is full"), id="store"),
        pytest.param(Unavailable("the writer drains"), id="drains"),
    ],
)
async def test_failures_keep_their_type_and_words(
    writer: Writer, behind: RememberingWriter, failure: Exception
) -> None:
    behind.failure = failure

    with pytest.raises(type(failure), match=str(failure)):
        await writer.upsert(rows(["a"], np.eye(4, dtype=np.float32)[:1]))


async def test_a_full_disk_is_still_told_apart_behind_a_channel(writer: Writer, behind: RememberingWriter) -> None:
    behind.failure = StoreFailure("the store refused")
    behind.failure.__cause__ = OSError(28, "No space left on device")

    with pytest.raises(StoreFailure) as caught:
        await writer.upsert(rows(["a"], np.eye(4, dtype=np.float32)[:1]))

    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == 28


async def test_a_call_for_another_gallery_is_refused(loopback: Loopback, behind: RememberingWriter) -> None:
    stub = await _stub(loopback, behind, gallery_id="another")

    with pytest.raises(FailedPrecondition, match="gallery 'another'"):
        await stub.delete(ids=["a"])

    assert behind.deletes == []


async def test_a_partition_that_cannot_be_is_refused_before_the_store_is_asked(loopback: Loopback) -> None:
    writer = await _stub(loopback, RememberingWriter())

    with pytest.raises(InvalidRequest, match="got 3 of 3"):
        await writer.live_rows(3, 3)
