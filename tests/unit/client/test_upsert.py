"""Bulk writes: chunks, limits, what is stored when one fails."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from grpc import StatusCode
from tests.unit.client.conftest import Connect
from tests.unit.client.fake_failures import Failure
from tests.unit.client.fake_server import FakeServer

from likewise.client import (
    DeadlineExceeded,
    InvalidArgument,
    InvalidType,
    MessageTooLarge,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from likewise.client.rpc import UPSERT, Call
from likewise.client.upsert_stream import Window
from likewise.v1 import item_service_pb2 as item_pb

LIMIT = 64 << 10  # a thousandth of the real one: 200 MiB become 200 KiB


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(max_message_bytes=LIMIT).serving() as fake:
        yield fake


@pytest.fixture
def gallery(connect: Connect) -> Any:
    return connect(max_message_bytes=LIMIT).create_gallery("g", dim=64, attributes={"note": "string", "n": "int64"})


def _ids(rows: int) -> list[str]:
    return [f"item-{row:05d}" for row in range(rows)]


def test_a_large_upsert_goes_in_messages_far_below_the_limit(server: FakeServer, gallery: Any) -> None:
    vectors = np.random.default_rng(0).normal(size=(1000, 64))  # 250 KiB as float32
    notes = {"note": ["x" * (row % 50) for row in range(1000)]}

    result = gallery.upsert(_ids(1000), vectors=vectors, attributes=notes)

    sizes = [call.size for call in server.calls("Upsert")]
    assert (result.upserted, gallery.count()) == (1000, 1000)
    assert len(sizes) > 4
    assert max(sizes) <= LIMIT
    assert result.version.version == len(sizes)
    stored = gallery.get(["item-00777"], vectors=True)
    np.testing.assert_allclose(stored.vectors[0], vectors[777], rtol=1e-6)
    assert stored[0].attributes["note"] == "x" * 27


def test_rows_of_very_different_sizes_are_divided_until_they_fit(server: FakeServer, gallery: Any) -> None:
    notes = ["x" * 40_000 if row in (3, 4, 5) else "" for row in range(400)]

    gallery.upsert(_ids(400), vectors=np.ones((400, 64)), attributes={"note": notes})

    assert max(call.size for call in server.calls("Upsert")) <= LIMIT
    assert gallery.count() == 400


def test_one_row_over_the_limit_explains_itself(server: FakeServer, gallery: Any) -> None:
    notes = ["", "x" * LIMIT]

    with pytest.raises(MessageTooLarge) as caught:
        gallery.upsert(["small", "big"], vectors=np.ones((2, 64)), attributes={"note": notes})

    assert "'big'" in str(caught.value)
    assert str(LIMIT) in str(caught.value)
    assert caught.value.details["limit"] == str(LIMIT)
    assert caught.value.code is StatusCode.RESOURCE_EXHAUSTED


def test_a_search_over_the_limit_is_refused_here(server: FakeServer, gallery: Any) -> None:
    with pytest.raises(MessageTooLarge, match=f"the limit is {LIMIT}"):
        gallery.search(image=b"x" * (LIMIT + 1))

    assert server.calls("Search") == []


def test_images_are_read_as_their_chunks_go(server: FakeServer, gallery: Any, tmp_path: Path) -> None:
    paths = [tmp_path / f"{row}.png" for row in range(40)]
    for path in paths:
        path.write_bytes(b"x" * 5000)

    gallery.upsert(_ids(40), images=paths)

    assert gallery.count() == 40
    assert max(call.size for call in server.calls("Upsert")) <= LIMIT // 2 + 6000


def test_an_image_that_cannot_be_read_says_what_is_stored(gallery: Any, tmp_path: Path) -> None:
    images: list[Any] = [b"x" * 5000] * 40
    images[30] = tmp_path / "none.png"

    with pytest.raises(InvalidArgument, match=r"none\.png") as caught:
        gallery.upsert(_ids(40), images=images)

    failure = caught.value.upsert
    assert failure is not None
    assert failure.item == "item-00030"
    assert failure.not_stored[0] == "item-00030"
    assert set(failure.not_stored).isdisjoint(gallery.get(_ids(40)).ids)
    assert failure.stored == gallery.count() == 40 - len(failure.not_stored)


def test_a_refused_chunk_names_the_item_and_what_is_not_stored(server: FakeServer, gallery: Any) -> None:
    server.bad_rows = {"item-00500"}

    with pytest.raises(InvalidArgument, match="is bad") as caught:
        gallery.upsert(_ids(1000), vectors=np.ones((1000, 64)))

    failure = caught.value.upsert
    assert failure is not None
    assert failure.item == "item-00500"
    assert "item-00500" in failure.refused
    assert failure.stored == gallery.count()
    assert sorted(failure.not_stored) == gallery.get(_ids(1000)).missing
    assert "item-00500" in caught.value.__notes__[0]


def test_no_chunk_is_sent_after_a_refused_one(server: FakeServer, gallery: Any) -> None:
    server.bad_rows = {"item-00000"}

    with pytest.raises(InvalidArgument):
        gallery.upsert(_ids(5000), vectors=np.ones((5000, 64)))

    assert len(server.calls("Upsert")) <= 5


def test_of_an_id_given_twice_the_last_row_stays_even_over_chunks(server: FakeServer, gallery: Any) -> None:
    ids = [*_ids(600), "item-00000"]
    vectors = np.ones((601, 64))
    vectors[600] = 2.0

    result = gallery.upsert(ids, vectors=vectors, attributes={"n": list(range(601))})

    assert result.upserted == 600
    got = gallery.get(["item-00000"], vectors=True)
    assert (got[0].attributes["n"], got.vectors[0][0]) == (600, 2.0)


@pytest.mark.parametrize(
    ("ids", "given", "said"),
    [
        pytest.param(["a", ""], {}, "ids[1]", id="empty id"),
        pytest.param(["a", "é" * 257], {}, "514", id="long id"),
        pytest.param(["a", "\ud800"], {}, "UTF-8", id="id that is no text"),
        pytest.param(["a", 3], {}, "ids[1]", id="number for an id"),
        pytest.param("ab", {}, "['ab']", id="one id for a list"),
        pytest.param(
            ["a", "b"], {"vectors": np.array([[1.0, 1], [1, np.nan]])}, "vectors[1]: number 1 is NaN", id="nan"
        ),
        pytest.param(["a", "b"], {"vectors": np.array([[1.0, 1], [1, 1e39]])}, "inf", id="too large for float32"),
        pytest.param(["a", "b"], {"vectors": np.array([[1.0, 1], [0, 0]])}, "vectors[1] is zero", id="zero"),
        pytest.param(["a", "b"], {"vectors": np.ones((3, 2))}, "(2, d)", id="wrong row count"),
        pytest.param(["a", "b"], {"vectors": [["x"], ["y"]]}, "numbers", id="words for vectors"),
        pytest.param(["a", "b"], {"texts": ["x", "y"]}, "vectors and texts", id="two kinds of content"),
        pytest.param(["a", "b"], {"vectors": None}, "none", id="no content"),
        pytest.param(["a", "b"], {"attributes": [{"n": 1}]}, "1 rows for 2 ids", id="too few rows"),
        pytest.param(["a", "b"], {"attributes": {"n": [1]}}, "1 values for 2 ids", id="a short column"),
        pytest.param(
            ["a", "b"], {"attributes": {"m": [1, 2]}}, "'m', the gallery has: n, note", id="unknown attribute"
        ),
        pytest.param(["a", "b"], {"attributes": {"n": [1, "x"]}}, "row 1: 'x'", id="wrong type"),
        pytest.param(["a", "b"], {"attributes": {"n": [1, 1 << 63]}}, "row 1", id="an int of 65 bits"),
        pytest.param(["a", "b"], {"attributes": {"n": [1, True]}}, "row 1: True", id="a bool for a number"),
        pytest.param(["a", "b"], {"attributes": "n"}, "list of dicts", id="text for attributes"),
    ],
)
def test_a_bad_row_is_found_before_anything_is_sent(
    server: FakeServer, gallery: Any, ids: Any, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        gallery.upsert(ids, **{"vectors": np.ones((2, 2)), **given})

    assert said in str(caught.value)
    assert server.calls("Upsert") == []


def test_a_double_that_is_not_finite_is_refused_with_its_row(connect: Connect) -> None:
    gallery = connect().create_gallery("p", dim=2, attributes={"price": "double"})

    with pytest.raises(InvalidArgument, match="row 1: nan is not finite"):
        gallery.upsert(["a", "b"], vectors=np.ones((2, 2)), attributes={"price": [1.0, float("nan")]})


@pytest.mark.parametrize(
    "attributes",
    [
        pytest.param([{"n": 1, "note": "a"}, {"note": None}], id="rows"),
        pytest.param({"n": [1, None], "note": ["a", None]}, id="columns"),
        pytest.param({"n": pa.array([1, None]), "note": np.array(["a", None], dtype=object)}, id="arrays"),
        pytest.param(pa.table({"n": [1, None], "note": ["a", None]}), id="arrow table"),
    ],
)
def test_attributes_may_be_rows_columns_or_tables(gallery: Any, attributes: Any) -> None:
    gallery.upsert(["a", "b"], vectors=np.ones((2, 2)), attributes=attributes)

    assert gallery.get(["a", "b"]).attributes == [{"note": "a", "n": 1}, {"note": None, "n": None}]


def test_numbers_of_numpy_are_numbers(gallery: Any) -> None:
    gallery.upsert(["a", "b"], vectors=np.ones((2, 2)), attributes={"n": np.array([3, 4], dtype=np.int32)})

    assert [row["n"] for row in gallery.get(["a", "b"]).attributes] == [3, 4]


def test_a_chunk_that_met_unavailable_is_sent_again_under_its_own_id(server: FakeServer, gallery: Any) -> None:
    server.fail("Upsert", Failure(StatusCode.UNAVAILABLE, "draining", "DRAINING"))

    result = gallery.upsert(_ids(10), vectors=np.ones((10, 64)), request_id="once")

    assert [call.request.request_id for call in server.calls("Upsert")] == ["once", "once"]
    assert (result.upserted, gallery.count()) == (10, 10)


def test_an_upsert_repeated_with_its_request_id_is_the_same_stream_again(server: FakeServer, gallery: Any) -> None:
    for _ in range(2):
        gallery.upsert(_ids(1000), vectors=np.ones((1000, 64)), request_id="again")

    ids = [call.request.request_id for call in server.calls("Upsert")]
    assert server.opened == server.ended == ["again", "again"]
    assert len(set(ids)) * 2 == len(ids)
    assert gallery.version.version == len(set(ids))


def test_a_stream_that_breaks_is_taken_up_again_and_nothing_is_applied_twice(server: FakeServer, gallery: Any) -> None:
    server.lost_answers = 2

    result = gallery.upsert(_ids(1000), vectors=np.ones((1000, 64)))

    ids = [call.request.request_id for call in server.calls("Upsert")]
    assert len(server.opened) == 3
    assert len(set(server.opened)) == 1
    assert len(ids) >= len(set(ids)) + 2
    assert result.version.version == len(set(ids))  # one version a chunk
    assert gallery.count() == 1000


def test_a_stream_that_breaks_without_an_answer_five_times_in_a_row_is_given_up(
    server: FakeServer, gallery: Any
) -> None:
    server.fail("Upsert", *[Failure(StatusCode.UNAVAILABLE, "draining", "DRAINING")] * 5)

    with pytest.raises(Unavailable, match="draining") as caught:
        gallery.upsert(_ids(1000), vectors=np.ones((1000, 64)))

    assert caught.value.upsert is not None
    assert (caught.value.upsert.stored, len(caught.value.upsert.not_stored)) == (0, 1000)
    assert len(server.opened) == 5


def test_a_full_queue_is_told_and_not_tried_again_and_again(server: FakeServer, gallery: Any) -> None:
    server.fail("Upsert", *[Failure(StatusCode.RESOURCE_EXHAUSTED, "the write queue is full", "QUEUE_FULL")] * 2)

    with pytest.raises(ResourceExhausted, match="the write queue is full"):
        gallery.upsert(_ids(1000), vectors=np.ones((1000, 64)))


def test_a_stream_that_is_asked_to_wait_goes_on_afterwards(server: FakeServer, gallery: Any) -> None:
    server.back_off_s = 0.005

    gallery.upsert(_ids(1000), vectors=np.ones((1000, 64)))

    assert gallery.count() == 1000


def test_while_a_stream_is_asked_to_wait_only_answers_are_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("likewise.client.upsert_stream.time.monotonic", lambda: now[0])
    window: Window[int, int] = Window("g", "s")
    call = Call(UPSERT, item_pb.UpsertRequest(), lambda _: 7, "r")
    sent = [window.add(key, call) for key in (1, 2)]
    answer = item_pb.StreamUpsertResponse(sequence=1, response=item_pb.UpsertResponse())
    answer.back_off.FromNanoseconds(2_000_000_000)

    assert not window.full
    assert window.answered(answer) == (1, 7)
    assert (window.full, window.pause_s) == (True, 2.0)
    now[0] += 2.0
    assert (window.full, window.pause_s) == (False, 0.0)
    assert [(message.sequence, message.acknowledged) for message in sent] == [(1, 0), (2, 0)]
    assert window.add(3, call).acknowledged == 1


def test_a_stream_without_an_acknowledgement_in_time_is_given_up(server: FakeServer, gallery: Any) -> None:
    server.gate.clear()

    with pytest.raises(DeadlineExceeded, match=r"no acknowledgement for 0\.2 s"):
        gallery.upsert(_ids(1000), vectors=np.ones((1000, 64)), timeout=0.2)


def test_progress_counts_the_items_stored(gallery: Any) -> None:
    seen: list[tuple[int, int]] = []

    gallery.upsert(_ids(1000), vectors=np.ones((1000, 64)), progress=lambda done, total: seen.append((done, total)))

    assert seen[-1] == (1000, 1000)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_bar_draws_on_stderr_only_when_wanted(gallery: Any, capsys: pytest.CaptureFixture[str]) -> None:
    gallery.upsert(_ids(1000), vectors=np.ones((1000, 64)))
    quiet = capsys.readouterr()
    gallery.upsert(_ids(1000), vectors=np.ones((1000, 64)), progress=True)
    drawn = capsys.readouterr()

    assert (quiet.out, quiet.err, drawn.out) == ("", "", "")
    assert "1,000/1,000" in drawn.err


def test_an_empty_upsert_is_fine(server: FakeServer, gallery: Any) -> None:
    result = gallery.upsert([], vectors=np.ones((0, 64)))

    assert (result.upserted, result.version) == (0, None)
    assert server.calls("Upsert") == []


def test_an_upsert_into_nowhere_is_not_found(connect: Connect) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        connect().gallery("nowhere").upsert(["a"], vectors=[[1.0]])


def test_delete_takes_ids_or_a_filter_and_never_everything(server: FakeServer, gallery: Any) -> None:
    gallery.upsert(_ids(3), vectors=np.ones((3, 64)))

    assert gallery.delete(["item-00000", "nobody"]) == 1
    assert gallery.delete([]) == 0
    with pytest.raises(InvalidArgument, match="never everything"):
        gallery.delete()
    with pytest.raises(InvalidType, match=r"\['item-00001'\]"):
        gallery.delete("item-00001")
    assert gallery.count() == 2
