"""SearchService through a real channel, over fake shards and models."""

import asyncio

import grpc
import numpy as np
import pytest
from grpc import aio
from tests.unit.server.fakes import DIM, SPACE, FakeGalleries, embedding, field_of, info
from tests.unit.server.stubs import Stubs, by_vector, equals, ids, scores, shop, upsert, vectors
from tests.unit.server.waiting import until

from likewise import wire
from likewise.server import content
from likewise.server.protocols import Family
from likewise.v1 import common_pb2, item_service_pb2
from likewise.v1 import search_service_pb2 as pb

MATRIX = vectors(20)


def _unit(rows: wire.F32) -> wire.F32:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)


def _oracle(query: wire.F32, k: int, *, without: tuple[str, ...] = ()) -> list[str]:
    similarity = _unit(MATRIX) @ _unit(query)
    order = sorted(range(20), key=lambda i: (-similarity[i], ids(20)[i]))
    return [ids(20)[i] for i in order if ids(20)[i] not in without][:k]


@pytest.mark.parametrize("shards", [1, 2, 5])
async def test_the_best_items_come_first_whatever_the_shards(shards: int) -> None:
    async with shop(shards=shards) as stubs:
        response = await stubs.search.Search(by_vector(MATRIX[3], k=5))

    assert list(response.hits.ids) == _oracle(MATRIX[3], 5)
    assert scores(response)[0] == pytest.approx(1.0, abs=1e-6)
    assert response.hits.score_kind == pb.SCORE_KIND_COSINE


async def test_ten_hits_come_when_k_is_not_given() -> None:
    async with shop() as stubs:
        response = await stubs.search.Search(by_vector(MATRIX[0]))

    assert len(response.hits.ids) == 10


async def test_the_reply_tells_coverage_plan_version_and_timing() -> None:
    async with shop() as stubs:
        response = await stubs.search.Search(by_vector(MATRIX[0], filter=equals("colour", "red")))

    assert (response.coverage.fraction, response.coverage.items_searched, response.coverage.items_total) == (1, 20, 20)
    assert response.plan.summary == "exact over 10 of 20 (filter 50.0 %), 2 shards"
    assert response.plan.composition == "vector"
    assert response.version == 2
    assert response.timing.total_us >= response.timing.fan_out_us > 0


async def test_a_filter_leaves_only_what_it_allows() -> None:
    async with shop() as stubs:
        response = await stubs.search.Search(
            by_vector(MATRIX[0], k=20, filter=equals("colour", "red"), mask=pb.ResultMask(attributes=["colour"]))
        )

    assert len(response.hits.ids) == 10
    assert wire.decode_column(response.hits.attributes[0]) == ["red"] * 10


async def test_hits_bring_the_attributes_and_unit_vectors_asked_for() -> None:
    async with shop() as stubs:
        response = await stubs.search.Search(
            by_vector(MATRIX[0], k=3, mask=pb.ResultMask(attributes=["*"], vectors=True))
        )

    rows = [ids(20).index(item_id) for item_id in response.hits.ids]
    assert [column.name for column in response.hits.attributes] == ["colour", "price"]
    assert wire.decode_column(response.hits.attributes[1]) == [None, None, None]
    np.testing.assert_allclose(wire.decode_vectors(response.hits.vectors), _unit(MATRIX[rows]), atol=1e-6)
    assert response.hits.vectors.space == SPACE


async def test_a_stored_reference_and_its_copies_are_left_out() -> None:
    async with shop() as stubs:
        await stubs.items.Upsert(upsert(["copy"], MATRIX[3:4]))

        response = await stubs.search.Search(
            pb.SearchRequest(gallery="shop", k=5, reference=pb.Reference(item_id="item-03"))
        )

    assert list(response.hits.ids) == _oracle(MATRIX[3], 5, without=("item-03",))
    assert response.plan.composition == "stored vector"


async def test_a_stored_reference_comes_when_it_is_asked_for() -> None:
    async with shop() as stubs:
        response = await stubs.search.Search(
            pb.SearchRequest(gallery="shop", k=2, reference=pb.Reference(item_id="item-03"), include_reference=True)
        )

    assert response.hits.ids[0] == "item-03"


async def test_an_unknown_stored_reference_is_not_found() -> None:
    async with shop() as stubs:
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(pb.SearchRequest(gallery="shop", reference=pb.Reference(item_id="item-99")))

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert info(caught.value).reason == "ITEM_NOT_FOUND"


async def test_copies_of_a_reference_image_are_left_out_and_counted() -> None:
    async with shop() as stubs:
        await _upsert_images(stubs, {"a": b"one", "b": b"one", "c": b"two"})

        found = await stubs.search.Search(_by_image(b"one", k=30))
        included = await stubs.search.Search(_by_image(b"one", k=30, include_reference=True))

    assert {"a", "b"}.isdisjoint(found.hits.ids)
    assert "c" in found.hits.ids
    assert [warning.code for warning in found.warnings] == ["REFERENCE_EXCLUDED"]
    assert "2 items" in found.warnings[0].message
    assert list(included.hits.ids[:2]) == ["a", "b"]
    assert not included.warnings


async def test_a_new_image_brings_no_warning() -> None:
    async with shop() as stubs:
        response = await stubs.search.Search(_by_image(b"never seen"))

    assert not response.warnings
    assert [model.name for model in response.models] == ["fake-image_encoder"]
    assert (response.timing.decode_us, response.timing.encode_us) == (5, 7)


async def test_a_condition_alone_searches_for_what_it_describes() -> None:
    async with shop() as stubs:
        response = await stubs.search.Search(
            pb.SearchRequest(gallery="shop", k=4, conditions=[pb.Condition(text="a red circle")])
        )

    assert list(response.hits.ids) == _oracle(embedding(b"a red circle"), 4)
    assert response.plan.composition == "text"


async def test_reference_and_condition_meet_in_the_composer() -> None:
    async with shop() as stubs:
        response = await stubs.search.Search(_by_image(b"one", conditions=[pb.Condition(text="in red")], k=4))

    assert list(response.hits.ids) == _oracle(embedding(b"one") + embedding(b"in red"), 4)
    assert "fake-composer/1" in response.plan.composition
    assert [model.kind for model in response.models] == ["image_encoder", "text_encoder", "composer"]


async def test_hits_below_min_score_are_cut_and_an_empty_answer_is_fine() -> None:
    async with shop() as stubs:
        some = await stubs.search.Search(by_vector(MATRIX[0], k=20, cutoff=pb.Cutoff(min_score=0.5)))
        none = await stubs.search.Search(by_vector(MATRIX[0], k=20, cutoff=pb.Cutoff(min_score=1.5)))

    similarity = _unit(MATRIX) @ _unit(MATRIX[0])
    assert len(some.hits.ids) == int((similarity >= 0.5).sum())
    assert min(scores(some)) >= 0.5
    assert len(none.hits.ids) == 0


async def test_a_relative_cut_keeps_a_share_of_the_best_score() -> None:
    async with shop() as stubs:
        response = await stubs.search.Search(by_vector(MATRIX[0], k=20, cutoff=pb.Cutoff(relative=0.6)))

    similarity = _unit(MATRIX) @ _unit(MATRIX[0])
    assert len(response.hits.ids) == int((similarity >= 0.6).sum())


async def test_a_parameter_without_effect_is_told() -> None:
    async with shop() as stubs:
        response = await stubs.search.Search(by_vector(MATRIX[0], params=pb.SearchParams(ef=100)))

    assert [warning.code for warning in response.warnings] == ["PARAMETER_UNUSED"]
    assert "params.ef" in response.warnings[0].message


async def test_a_version_that_was_committed_is_waited_for_by_every_shard() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        written = await stubs.items.Upsert(upsert(["new"], vectors(1)))
        await stubs.search.Search(by_vector(MATRIX[0], at_least=written.version))

    assert {shard.options[-1].min_version for shard in galleries.shards("shop")} == {3}


async def test_the_version_of_another_gallery_is_refused() -> None:
    async with shop() as stubs:
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(
                by_vector(MATRIX[0], at_least=common_pb2.VersionToken(gallery_id="other", version=1))
            )

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert info(caught.value).reason == "VERSION_TOKEN_FOREIGN"


async def test_a_version_that_was_never_committed_is_refused() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        token = common_pb2.VersionToken(gallery_id=galleries.get("shop").spec.gallery_id, version=99)
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(by_vector(MATRIX[0], at_least=token))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field_of(caught.value) == "at_least.version"


async def test_models_other_than_the_gallerys_are_refused_with_both_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    async with shop() as stubs:
        monkeypatch.setattr("tests.unit.server.fakes.FakeModels.family", _newer_family)
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Search(_by_image(b"one"))

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert info(caught.value).reason == "SPACE_MISMATCH"
    assert dict(info(caught.value).metadata) == {"got": "sha256:newer", "expected": SPACE}


async def test_a_batch_answers_each_search_by_itself_and_in_order() -> None:
    async with shop() as stubs:
        response = await stubs.search.BatchSearch(
            pb.BatchSearchRequest(
                requests=[
                    by_vector(MATRIX[0], k=3, request_id="first"),
                    by_vector(MATRIX[1], k=0),
                    pb.SearchRequest(gallery="shop", k=2, reference=pb.Reference(item_id="item-05")),
                ]
            )
        )

    first, second, third = response.results
    assert list(first.response.hits.ids) == _oracle(MATRIX[0], 3)
    assert first.response.request_id == "first"
    assert second.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "k must be in" in second.error.message
    assert list(third.response.hits.ids) == _oracle(MATRIX[5], 2, without=("item-05",))


async def test_searches_of_a_batch_that_differ_only_in_the_vector_reach_a_shard_as_one() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as stubs:
        response = await stubs.search.BatchSearch(
            pb.BatchSearchRequest(requests=[by_vector(row, k=2) for row in MATRIX[:7]])
        )

    assert [shard.batches for shard in galleries.shards("shop")] == [[7], [7]]
    assert [result.response.hits.ids[0] for result in response.results] == ids(7)


async def test_a_batch_over_the_limit_is_refused() -> None:
    async with shop() as stubs:
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.BatchSearch(pb.BatchSearchRequest(requests=[pb.SearchRequest()] * 1001))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "1,001" in (caught.value.details() or "")


async def test_an_empty_batch_is_answered_empty() -> None:
    async with shop() as stubs:
        response = await stubs.search.BatchSearch(pb.BatchSearchRequest())

    assert len(response.results) == 0


async def test_searches_of_several_callers_reach_a_shard_as_one_call_and_say_how_long_they_waited() -> None:
    galleries = FakeGalleries()
    async with shop(galleries, shards=1) as stubs:
        shard = galleries.shards("shop")[0]
        shard.gate = asyncio.Event()
        calls = [asyncio.ensure_future(stubs.search.Search(by_vector(row, k=1))) for row in MATRIX[:6]]
        await until(lambda: sum(shard.batches) == 6)
        shard.gate.set()
        answers = await asyncio.gather(*calls)

    assert [answer.hits.ids[0] for answer in answers] == [f"item-{i:02d}" for i in range(6)]
    assert len(shard.batches) < 6
    assert all(answer.timing.gather_us + answer.timing.fan_out_us <= answer.timing.total_us for answer in answers)
    assert max(answer.timing.gather_us for answer in answers) >= 1_000  # the one under way did not come back


async def test_searches_by_different_items_reach_a_shard_as_one_call_and_each_leaves_its_own_item_out() -> None:
    galleries = FakeGalleries()
    items = [f"item-{i:02d}" for i in range(6)]
    requests = [pb.SearchRequest(gallery="shop", k=3, reference=pb.Reference(item_id=item)) for item in items]
    async with shop(galleries, shards=1) as stubs:
        alone = [await stubs.search.Search(request) for request in requests]
        shard = galleries.shards("shop")[0]
        shard.batches.clear()
        shard.gate = asyncio.Event()
        calls = [asyncio.ensure_future(stubs.search.Search(request)) for request in requests]
        await until(lambda: sum(shard.batches) == 6)
        shard.gate.set()
        together = await asyncio.gather(*calls)

    assert len(shard.batches) < 6
    assert [list(answer.hits.ids) for answer in together] == [list(answer.hits.ids) for answer in alone]
    assert all(item not in answer.hits.ids for item, answer in zip(items, together, strict=True))


async def test_compose_gives_the_vector_that_search_would_use() -> None:
    async with shop() as stubs:
        composed = await stubs.search.Compose(_compose_request())
        by_composed = await stubs.search.Search(
            pb.SearchRequest(gallery="shop", reference=pb.Reference(vector=composed.vector))
        )
        direct = await stubs.search.Search(_by_image(b"one", conditions=[pb.Condition(text="in red")]))

    assert np.linalg.norm(wire.decode_vectors(composed.vector)) == pytest.approx(1, abs=1e-6)
    assert list(by_composed.hits.ids) == list(direct.hits.ids)


async def test_explain_is_unimplemented_in_words() -> None:
    async with shop() as stubs:
        with pytest.raises(aio.AioRpcError) as caught:
            await stubs.search.Explain(pb.ExplainRequest())

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "Explain" in (caught.value.details() or "")


def test_copies_are_told_by_their_bytes() -> None:
    first, second = content.of_images([b"one", b"two"])

    assert content.of_bytes(b"one") == first != second
    assert content.of_texts(["one"])[0] == first
    np.testing.assert_array_equal(
        content.of_vectors(MATRIX[:2]), [content.of_bytes(row.tobytes()) for row in MATRIX[:2]]
    )


async def _upsert_images(stubs: Stubs, images: dict[str, bytes]) -> None:
    items = item_service_pb2.Items(ids=list(images), images=item_service_pb2.Images(data=list(images.values())))
    await stubs.items.Upsert(item_service_pb2.UpsertRequest(gallery="shop", items=items))


def _by_image(data: bytes, **fields: object) -> pb.SearchRequest:
    return pb.SearchRequest(gallery="shop", reference=pb.Reference(image=data), **fields)  # type: ignore[arg-type]


def _compose_request() -> pb.ComposeRequest:
    return pb.ComposeRequest(
        gallery="shop", reference=pb.Reference(image=b"one"), conditions=[pb.Condition(text="in red")]
    )


def _newer_family(self: object, name: str) -> Family:
    return Family(name, "sha256:newer", DIM, None, None, None)
