"""The same search for each row of a matrix: every row is answered as a search of its own would be."""

import itertools
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode, aio
from tests.unit.server.fakes import details
from tests.unit.server.stubs import Stubs, by_vector, equals, ids, shop, upsert, vectors

from likewise import wire
from likewise.server import prepare
from likewise.v1 import common_pb2
from likewise.v1 import search_service_pb2 as pb

MATRIX = vectors(7, seed=1)


def _request(matrix: Any = MATRIX, **fields: Any) -> pb.SearchVectorsRequest:
    return pb.SearchVectorsRequest(
        search=pb.SearchRequest(gallery="shop", **fields), vectors=wire.encode_vectors(matrix)
    )


def _rows(reply: pb.SearchVectorsResponse) -> list[slice]:
    bounds = wire.unpack(reply.offsets, "<i4").tolist()
    assert bounds[0] == 0
    assert bounds[-1] == len(reply.answer.hits.ids)
    return [slice(start, end) for start, end in itertools.pairwise(bounds)]


def _columns(hits: pb.Hits) -> list[list[Any]]:
    """The hits column by column, so that those of a row can be cut out."""
    found: list[list[Any]] = [list(hits.ids), wire.unpack(hits.scores, "<f4").tolist()]
    found += [wire.decode_column(column) for column in hits.attributes]
    if hits.HasField("vectors"):
        found.append(wire.decode_vectors(hits.vectors).tolist())
    return found


async def _refused(stubs: Stubs, request: pb.SearchVectorsRequest) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await stubs.search.SearchVectors(request)
    return caught.value


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="nothing more"),
        pytest.param({"k": 3}, id="k"),
        pytest.param({"k": 30}, id="more than there are"),
        pytest.param({"k": 4, "filter": equals("colour", "red")}, id="filter"),
        pytest.param({"k": 4, "filter": equals("colour", "green")}, id="filter that leaves nothing"),
        pytest.param({"k": 20, "cutoff": pb.Cutoff(min_score=0.3)}, id="least score"),
        pytest.param({"k": 20, "cutoff": pb.Cutoff(min_score=2)}, id="least score that nothing has"),
        pytest.param({"k": 20, "cutoff": pb.Cutoff(relative=0.5)}, id="share of the best score"),
        pytest.param({"k": 5, "mask": pb.ResultMask(attributes=["*"], vectors=True)}, id="columns"),
        pytest.param(
            {"k": 9, "mask": pb.ResultMask(attributes=["*"], vectors=True), "cutoff": pb.Cutoff(relative=0.5)},
            id="columns, cut",
        ),
        pytest.param({"params": pb.SearchParams(exact=True)}, id="exact"),
        pytest.param({"partial": pb.PartialPolicy(mode=pb.PARTIAL_POLICY_MODE_ALLOW)}, id="partial"),
        pytest.param({"include_reference": True}, id="reference"),
    ],
)
async def test_every_row_has_the_answer_of_a_search_of_its_own(fields: dict[str, Any]) -> None:
    async with shop() as stubs:
        reply = await stubs.search.SearchVectors(_request(**fields))
        alone = [await stubs.search.Search(by_vector(row, **fields)) for row in MATRIX]

    rows, found = _rows(reply), _columns(reply.answer.hits)
    assert len(rows) == len(MATRIX)
    for row, expected in zip(rows, alone, strict=True):
        assert [column[row] for column in found] == _columns(expected.hits)
        assert reply.answer.coverage == expected.coverage
        assert reply.answer.plan == expected.plan
        assert reply.answer.version == expected.version
        assert list(reply.answer.warnings) == list(expected.warnings)
    assert not reply.errors


async def test_numbers_of_half_the_size_and_any_length_are_taken_as_in_a_search() -> None:
    matrix = (MATRIX * [[3.0], [0.01], [1], [1], [1], [1], [1]]).astype(np.float16)
    async with shop() as stubs:
        reply = await stubs.search.SearchVectors(_request(matrix, k=2))
        alone = [await stubs.search.Search(by_vector(row, k=2)) for row in matrix]

    ids_, scores = _columns(reply.answer.hits)
    assert [[ids_[row], scores[row]] for row in _rows(reply)] == [_columns(one.hits) for one in alone]


async def test_a_large_matrix_leaves_the_event_loop_and_is_answered_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = MATRIX.copy()
    matrix[1] = 0
    async with shop() as stubs:
        small = await stubs.search.SearchVectors(_request(matrix, k=2))
        monkeypatch.setattr(prepare, "_OFF_LOOP_NUMBERS", 0)
        large = await stubs.search.SearchVectors(_request(matrix, k=2))

    assert large.answer.hits == small.answer.hits
    assert large.offsets == small.offsets
    assert list(large.errors) == list(small.errors)


async def test_rows_without_direction_have_errors_of_their_own() -> None:
    matrix = MATRIX.copy()
    matrix[1] = 0
    matrix[4, 3] = np.nan
    async with shop() as stubs:
        reply = await stubs.search.SearchVectors(_request(matrix, k=2))
        expected = await stubs.search.Search(by_vector(matrix[5], k=2))

    rows = _rows(reply)
    assert [row.stop - row.start for row in rows] == [2, 0, 2, 2, 0, 2, 2]
    assert list(reply.answer.hits.ids)[rows[5]] == list(expected.hits.ids)
    assert [error.row for error in reply.errors] == [1, 4]
    for error, what in zip(reply.errors, ("all zeros", "number 3 of the vector is nan"), strict=True):
        assert error.error.code == StatusCode.INVALID_ARGUMENT.value[0]
        assert f"vectors[{error.row}]" in error.error.message
        assert what in error.error.message


async def test_a_matrix_of_nothing_but_wrong_rows_and_one_without_rows_are_answered_without_a_search() -> None:
    async with shop() as stubs:
        wrong = await stubs.search.SearchVectors(_request(np.zeros((3, 8), np.float32)))
        empty = await stubs.search.SearchVectors(_request(MATRIX[:0]))

    assert [error.row for error in wrong.errors] == [0, 1, 2]
    assert wire.unpack(wrong.offsets, "<i4").tolist() == [0] * 4
    assert wire.unpack(empty.offsets, "<i4").tolist() == [0]
    assert not wrong.answer.hits.ids
    assert not empty.errors


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        pytest.param(pb.SearchVectorsRequest(), StatusCode.INVALID_ARGUMENT, "gallery", id="nothing"),
        pytest.param(
            pb.SearchVectorsRequest(search=by_vector(MATRIX[0]), vectors=wire.encode_vectors(MATRIX)),
            StatusCode.INVALID_ARGUMENT,
            "search.reference",
            id="reference",
        ),
        pytest.param(
            _request(conditions=[pb.Condition(text="in red")]),
            StatusCode.INVALID_ARGUMENT,
            "search.conditions",
            id="conditions",
        ),
        pytest.param(_request(k=0), StatusCode.INVALID_ARGUMENT, "k", id="k"),
        pytest.param(_request(space="other"), StatusCode.INVALID_ARGUMENT, "space", id="space"),
        pytest.param(_request(request_id="x" * 129), StatusCode.INVALID_ARGUMENT, "request_id", id="request id"),
        pytest.param(_request(MATRIX[:, :3]), StatusCode.INVALID_ARGUMENT, "vectors.dim", id="dimension"),
        pytest.param(_request(np.ones((257, 8))), StatusCode.INVALID_ARGUMENT, "vectors", id="rows"),
        pytest.param(_request(k=10_000), StatusCode.INVALID_ARGUMENT, "vectors", id="hits"),
        pytest.param(
            pb.SearchVectorsRequest(
                search=pb.SearchRequest(gallery="shop"), vectors=common_pb2.Vectors(dim=8, data=bytes(33))
            ),
            StatusCode.INVALID_ARGUMENT,
            "vectors.data",
            id="bytes",
        ),
        pytest.param(
            _request(at_least=common_pb2.VersionToken(gallery_id="another", version=1)),
            StatusCode.FAILED_PRECONDITION,
            "at_least.gallery_id",
            id="token",
        ),
    ],
)
async def test_what_is_wrong_for_all_rows_is_the_error_of_the_call(
    request_: pb.SearchVectorsRequest, code: StatusCode, field: str
) -> None:
    async with shop() as stubs:
        error = await _refused(stubs, request_)

    assert error.code() is code
    assert field in str(details(error))


async def test_the_largest_matrix_and_the_largest_k_are_taken() -> None:
    async with shop() as stubs:
        many = await stubs.search.SearchVectors(_request(np.ones((256, 8)), k=256))
        deep = await stubs.search.SearchVectors(_request(MATRIX[:6], k=10_000))

    assert len(_rows(many)) == 256
    assert [row.stop - row.start for row in _rows(deep)] == [20] * 6


async def test_a_version_is_waited_for() -> None:
    async with shop() as stubs:
        reply = await stubs.search.SearchVectors(_request(k=1))
        written = await stubs.items.Upsert(upsert(ids(1), MATRIX[:1]))
        token = written.version
        again = await stubs.search.SearchVectors(_request(k=1, at_least=token))
        token.version += 1
        error = await _refused(stubs, _request(k=1, at_least=token))

    assert again.answer.version > reply.answer.version
    assert again.answer.hits.ids[0] == "item-00"
    assert error.code() is StatusCode.INVALID_ARGUMENT


async def test_the_id_of_the_call_is_the_one_it_was_given() -> None:
    async with shop() as stubs:
        call = stubs.search.SearchVectors(_request(request_id="mine"))
        reply = await call

        assert reply.answer.request_id == "mine"
        assert dict(await call.trailing_metadata())["x-request-id"] == "mine"
