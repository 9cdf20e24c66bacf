"""Searches and reads of items through both clients; every test runs on each."""

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from PIL import Image
from tests.unit.client.fake_failures import Failure
from tests.unit.client.fake_server import FakeServer

from likewise.client import (
    BatchError,
    Condition,
    F,
    FailedPrecondition,
    Hits,
    InvalidArgument,
    NotFound,
    Query,
    VersionToken,
)
from likewise.v1 import common_pb2, search_service_pb2

MOMENT = datetime(2024, 5, 31, 12, 30, 0, 250, tzinfo=UTC)
TYPES: dict[str, object] = {
    "colour": "string",
    "count": int,
    "price": "double",
    "sold": bool,
    "taken": datetime,
    "tags": list[str],
}


def test_a_search_gives_columns_rows_and_the_truth_about_itself(filled: Any) -> None:
    hits = filled.search(vector=[1.0, 0.0], k=2, attributes=True, vectors=True, request_id="mine")

    assert hits.ids == ["a", "b"]
    assert hits.scores.dtype == np.float32
    np.testing.assert_allclose(hits.scores, [1.0, 0.5**0.5], rtol=1e-6)
    assert hits.attributes == [{"price": 10.0, "colour": "red"}, {"price": 20.5, "colour": "blue"}]
    assert hits.column("colour") == ["red", "blue"]
    np.testing.assert_allclose(hits.vectors[1], [0.5**0.5] * 2, rtol=1e-6)
    assert (hits.coverage.fraction, hits.coverage.items_total) == (1.0, 3)
    assert (hits.timing.total_us, hits.plan.shards[0].kind, hits.score_kind) == (1500, "exact", "cosine")
    assert (hits.models[0].name, hits.version, hits.warnings[0].code) == ("m", 1, "TEXT_CUT")
    assert hits.request_id == "mine"


def test_hits_are_a_sequence(filled: Any) -> None:
    hits = filled.search(id="a", attributes=["colour"])

    assert len(hits) == 3
    assert [hit.id for hit in hits] == hits.ids
    assert hits[-1].attributes == {"colour": "red"}
    assert [hit.id for hit in hits[1:]] == hits.ids[1:]


def test_a_filter_narrows_every_kind_of_read(filled: Any) -> None:
    red = F.colour == "red"

    assert filled.search(vector=[1, 0], where=red).ids == ["a", "c"]
    assert filled.count(where=red) == 2
    assert [item.id for item in filled.list(where=red)] == ["a", "c"]
    assert filled.delete(where=red & F.price.exists()) == 1
    assert filled.count() == 2


def test_every_argument_of_a_search_reaches_the_server(client: Any, server: FakeServer, filled: Any) -> None:
    filled.search(
        text="a star",
        conditions=[Condition("round", weight=2.0, negative=True), Condition(aspects={"colour": 0.5})],
        condition="in red",
        mode="change",
        k=7,
        where=F.price < 5,
        min_score=0.25,
        exact=True,
        ef=99,
        nprobe=3,
        over_fetch=2.0,
        target_recall=0.9,
        attributes=["price"],
        vectors=True,
        explanation=True,
        include_reference=True,
        partial=True,
        min_coverage=0.5,
        at_least=VersionToken("id-1", 5),
        space="other",
        request_id="r-1",
    )

    request = server.calls("Search")[-1].request
    positive, negative = search_service_pb2.POLARITY_POSITIVE, search_service_pb2.POLARITY_NEGATIVE
    assert request.reference.text == "a star"
    assert [one.text for one in request.conditions] == ["in red", "round", ""]
    assert request.conditions[0].mode == search_service_pb2.CONDITION_MODE_CHANGE
    assert [one.polarity for one in request.conditions] == [positive, negative, positive]
    assert request.conditions[1].weight == 2.0
    assert request.conditions[2].aspects.weights == {"colour": 0.5}
    assert (request.k, request.cutoff.min_score, request.filter.comparison.attribute) == (7, 0.25, "price")
    params = request.params
    assert (params.exact, params.ef, params.nprobe, params.over_fetch) == (True, 99, 3, 2.0)
    assert params.target_recall == 0.9
    assert (list(request.mask.attributes), request.mask.vectors, request.mask.explanation) == (["price"], True, True)
    assert request.partial.mode == search_service_pb2.PARTIAL_POLICY_MODE_ALLOW
    assert request.partial.min_coverage == 0.5
    assert request.at_least == common_pb2.VersionToken(gallery_id="id-1", version=5)
    assert (request.include_reference, request.space, request.request_id) == (True, "other", "r-1")
    assert server.calls("Search")[-1].metadata["x-request-id"] == "r-1"


def test_what_is_not_given_is_not_sent(server: FakeServer, filled: Any) -> None:
    filled.search(condition="a red star", at_least=False)

    request = server.calls("Search")[-1].request
    assert {field.name for field, _ in request.ListFields()} <= {"gallery", "conditions", "mask", "request_id"}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        pytest.param({"text": "a", "id": "b"}, "text and id", id="two references"),
        pytest.param({}, "reference", id="nothing at all"),
        pytest.param({"text": "a", "mode": "focus"}, "mode=", id="a mode without a condition"),
        pytest.param({"condition": "x", "mode": "blur"}, "'blur'", id="an unknown mode"),
        pytest.param({"text": "a", "partial": False, "min_coverage": 0.5}, "partial", id="coverage without partial"),
        pytest.param({"text": "a", "min_score": 1.0, "relative": 0.5}, "one cut-off", id="two cut-offs"),
        pytest.param({"text": "a", "k": -1}, "k cannot be -1", id="negative k"),
        pytest.param({"text": "a", "k": "ten"}, "'ten'", id="k in words"),
        pytest.param({"text": "a", "kk": 1}, "'kk'", id="an unknown argument"),
        pytest.param({"id": 17}, "str(id)", id="a number for an id"),
        pytest.param({"vector": ["a"]}, "numbers", id="a vector of words"),
        pytest.param({"text": "a", "where": "price < 5"}, "parse_filter", id="text for a filter"),
        pytest.param({"text": "a", "attributes": "price"}, "['price']", id="one name for a list"),
        pytest.param({"image": "/no/such.png"}, "/no/such.png", id="a missing image"),
        pytest.param({"text": "a", "request_id": "é"}, "ASCII", id="a request id that no header takes"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_sent(
    server: FakeServer, filled: Any, query: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        filled.search(**query)

    assert said in str(caught.value)
    assert server.calls("Search") == []


@pytest.mark.parametrize("form", ["path", "bytes", "array", "pil", "grey"])
def test_an_image_may_come_in_any_form(server: FakeServer, filled: Any, tmp_path: Path, form: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    path = tmp_path / "p.png"
    picture.save(path)
    forms = {"path": path, "bytes": path.read_bytes(), "array": pixels, "pil": picture, "grey": pixels[:, :, 0]}

    filled.search(image=forms[form])

    sent = Image.open(io.BytesIO(server.calls("Search")[-1].request.reference.image))
    np.testing.assert_array_equal(np.asarray(sent), pixels[:, :, 0] if form == "grey" else pixels)


def test_a_photograph_keeps_its_orientation_and_its_colours(server: FakeServer, filled: Any) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("CMYK", (8, 4), (0, 255, 255, 0)).save(buffer, "JPEG", exif=exif)

    filled.search(image=Image.open(buffer))

    sent = Image.open(io.BytesIO(server.calls("Search")[-1].request.reference.image))
    assert (sent.format, sent.mode, sent.getexif()[0x0112]) == ("PNG", "RGB", 6)


def test_attributes_of_every_type_come_back_as_they_were_given(client: Any) -> None:
    gallery = client.create_gallery("g", dim=2, attributes=TYPES)
    rows = [
        {"colour": "röt", "count": -(1 << 62), "price": 1.5, "sold": False, "taken": MOMENT, "tags": ["a", ""]},
        {"colour": "", "tags": []},
        {},
    ]

    gallery.upsert(["x", "y", "z"], vectors=np.ones((3, 2)), attributes=rows)

    nothing = dict.fromkeys(TYPES)
    got = gallery.get(["z", "y", "x"])
    assert got.attributes == [nothing, {**nothing, "colour": "", "tags": []}, rows[0]]
    assert [item.attributes for item in gallery.list()] == got.attributes[::-1]
    assert gallery.search(id="x", attributes=True, k=1).attributes == [rows[0]]


def test_get_keeps_the_order_and_names_what_is_missing(filled: Any) -> None:
    got = filled.get(["c", "nobody", "a"], vectors=True)

    assert (got.ids, got.missing, got.version) == (["c", "a"], ["nobody"], 1)
    np.testing.assert_array_equal(got.vectors, [[0.0, 2.0], [1.0, 0.0]])
    assert got[0].attributes == {"price": None, "colour": "red"}


def test_get_asks_for_long_vectors_in_several_calls(client: Any, server: FakeServer) -> None:
    gallery = client.create_gallery("g", dim=32_768)
    ids = [f"i{row}" for row in range(130)]
    gallery.upsert(ids, vectors=np.ones((130, 32_768), dtype=np.float16))

    got = gallery.get(ids, vectors=True)

    assert got.ids == ids
    assert got.vectors.shape == (130, 32_768)
    assert len(server.calls("Get")) > 1


def test_list_goes_through_all_pages(client: Any) -> None:
    gallery = client.create_gallery("g", dim=2)
    ids = [f"i{row:02d}" for row in range(25)]
    gallery.upsert(ids, vectors=np.ones((25, 2)))

    assert [item.id for item in gallery.list(page_size=4)] == ids


def test_a_handle_reads_its_own_writes(server: FakeServer, client: Any, filled: Any) -> None:
    filled.upsert(["d"], vectors=[[1, 1]])
    filled.search(vector=[1, 0])
    filled.delete(["d"])
    filled.count()
    client.gallery("g").count()
    filled.count(at_least=False)

    searched = server.calls("Search")[-1].request
    counts = [call.request for call in server.calls("Count")]
    assert (searched.at_least.gallery_id, searched.at_least.version) == ("id-1", 2)
    assert [count.at_least.version for count in counts] == [3, 0, 0]
    assert filled.version == VersionToken("id-1", 3)


def test_a_batch_is_answered_in_order(filled: Any) -> None:
    answers = filled.search_batch([Query(id="c", k=1), Query(vector=[1, 0])], k=2, attributes=True)

    assert [hits.ids for hits in answers] == [["c"], ["a", "b"]]
    assert answers[0].attributes == [{"price": None, "colour": "red"}]


def test_a_batch_is_cut_at_a_thousand_queries(server: FakeServer, filled: Any) -> None:
    answers = filled.search_batch([Query(id="a"), Query(id="c")] * 1001, k=1)

    assert [hits.ids[0] for hits in answers] == ["a", "c"] * 1001
    assert sorted(len(call.request.requests) for call in server.calls("BatchSearch")) == [2, 1000, 1000]


@pytest.mark.parametrize(("k", "rows"), [(1, [46, 256, 256]), (600, [13, *[109] * 5]), (70_000, [1] * 558)])
def test_a_matrix_of_vectors_goes_in_columns_in_as_few_calls_as_the_server_allows(
    server: FakeServer, filled: Any, k: int, rows: list[int]
) -> None:
    answers = filled.search_batch(np.tile([[1.0, 0.0], [0.0, 1.0]], (279, 1)), k=k)

    assert [hits.ids[0] for hits in answers] == ["a", "c"] * 279
    assert [len(hits.ids) for hits in answers] == [min(k, 3)] * 558
    sent = [len(call.request.vectors.data) // 8 for call in server.calls("SearchVectors")]
    assert sorted(sent) == rows
    assert not server.calls("BatchSearch")


def test_hits_of_a_matrix_bring_all_that_those_of_a_search_do(filled: Any) -> None:
    matrix = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    wanted: Any = {"k": 2, "attributes": True, "vectors": True}

    together = filled.search_batch(matrix, **wanted)

    for found, vector in zip(together, matrix, strict=True):
        alone = filled.search(vector=vector, **wanted)
        assert list(map(str, found)) == list(map(str, alone))
        assert found.attributes == alone.attributes
        assert found.column("colour") == alone.column("colour")
        np.testing.assert_array_equal(found.scores, alone.scores)
        np.testing.assert_array_equal(found.vectors, alone.vectors)
        assert (found.coverage, found.version, found.score_kind) == (alone.coverage, alone.version, alone.score_kind)
        with pytest.raises(KeyError):
            found.column("weight")


def test_a_row_without_direction_is_told_by_its_number_and_the_others_are_answered(filled: Any) -> None:
    with pytest.raises(BatchError) as caught:
        filled.search_batch(np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), k=1)

    first, wrong, last = caught.value.results
    assert isinstance(wrong, InvalidArgument)
    assert [hits.ids for hits in (first, last) if isinstance(hits, Hits)] == [["a"], ["c"]]


def test_a_row_without_direction_is_told_by_its_place_in_the_matrix_not_in_a_call(filled: Any) -> None:
    matrix = np.ones((300, 2))
    matrix[[2, 259]] = 0

    with pytest.raises(BatchError) as caught:
        filled.search_batch(matrix, k=1)

    assert str(caught.value) == "2 of 300 queries failed, the first is query 2: queries[2]: all zeros"
    assert str(caught.value.results[259]) == "queries[259]: all zeros"
    assert isinstance(caught.value.results[259], InvalidArgument)


@pytest.mark.parametrize("matrix", [np.ones((2, 0)), np.array([["x", "y"]])], ids=["no columns", "words"])
def test_a_matrix_that_is_none_of_numbers_is_refused_by_name(filled: Any, matrix: Any) -> None:
    with pytest.raises(InvalidArgument, match="queries"):
        filled.search_batch(matrix)


def test_a_batch_with_a_failed_query_says_which_and_keeps_the_rest(filled: Any) -> None:
    with pytest.raises(BatchError) as caught:
        filled.search_batch([Query(id="a"), Query(id="nobody")])

    assert "query 1" in str(caught.value)
    assert isinstance(caught.value.results[0], Hits)
    assert isinstance(caught.value.results[1], NotFound)
    assert caught.value.reason == "ITEM_NOT_FOUND"


def test_a_stream_goes_on_after_a_failed_query(server: FakeServer, filled: Any) -> None:
    server.fail("Search", Failure(StatusCode.FAILED_PRECONDITION, "no encoder", "NO_ENCODER"))
    queries = (Query(vector=vector) for vector in [[1, 0], [1, 0], [0, 1], [1, 0], [1, 0], [0, 1]])

    outcomes = list(filled.search_stream(queries, k=1))

    failed = [outcome for outcome in outcomes if isinstance(outcome, FailedPrecondition)]
    answers = [outcome.ids[0] for outcome in outcomes if isinstance(outcome, Hits)]
    assert len(outcomes) == 6
    assert [error.reason for error in failed] == ["NO_ENCODER"]
    assert set(answers) == {"a", "c"}


def test_a_stream_is_answered_in_order(filled: Any) -> None:
    hits = list(filled.search_stream(np.tile([[1.0, 0.0], [0.0, 1.0]], (20, 1)), k=1))

    assert [one.ids for one in hits] == [["a"], ["c"]] * 20


def test_compose_gives_the_query_vector(filled: Any) -> None:
    composed = filled.compose(text="a star", condition="in red")

    np.testing.assert_allclose(composed.vector, [0.6, 0.8], rtol=1e-6)
    assert composed.composition == "text"
    with pytest.raises(InvalidArgument, match="takes no k"):
        filled.compose(text="a", k=3)


def test_explain_brings_hits_and_items(filled: Any) -> None:
    explained = filled.explain(["a", "nobody"], vector=[1, 0])

    assert explained.hits.ids[0] == "a"
    assert [(item.id, item.found) for item in explained.items] == [("a", True), ("nobody", False)]
