"""ModelService changes which versions answer: through a real channel, over real graphs and galleries in memory."""

import asyncio
import logging
from pathlib import Path

import grpc
import pytest
from grpc import aio
from tests.unit.server.fakes import field_of, info
from tests.unit.server.model_fixtures import png, text_embedding, write_repository
from tests.unit.server.model_server import Documents, Shop, model_shop, spaces, versions
from tests.unit.server.promotion.promotion_answers import ALL_1, ALL_2, RED, oracle, refused
from tests.unit.server.version_fixtures import other_space, other_words, same_space, wider

from likewise.server.metrics import Metrics
from likewise.server.promotion_record import DOCUMENT
from likewise.v1 import model_service_pb2 as pb


async def test_a_promoted_version_answers_and_the_reply_names_it(shop: Shop) -> None:
    other_words(shop.folder, 2)
    await shop.load(2, "text")
    before = await shop.search("red")

    response = await shop.promote(2, "text")
    after = await shop.search("red")

    assert (versions(before), versions(after)) == ({"tiny-text": 1}, {"tiny-text": 2})
    assert list(before.hits.ids) == oracle(text_embedding("red"))
    assert list(after.hits.ids) != list(before.hits.ids)
    assert (response.model.name, response.model.version, response.model.in_use) == ("tiny-text", 2, True)
    assert {model.name: model.version for model in response.models} == ALL_1 | {"tiny-text": 2}


async def test_models_promoted_together_change_together(shop: Shop) -> None:
    same_space(shop.folder, 2)
    await shop.load(2)

    await shop.promote(2)

    assert await shop.in_use() == ALL_2
    assert versions(await shop.search("dog", image=png(RED))) == ALL_2


async def test_promoting_what_is_in_use_changes_nothing(shop: Shop) -> None:
    same_space(shop.folder, 2)
    await shop.load(2)
    await shop.promote(2)

    response = await shop.promote(2)

    assert response.model.version == 2
    assert (await shop.rollback()).model.version == 1


async def test_rollback_takes_the_whole_family_back_at_once(shop: Shop) -> None:
    same_space(shop.folder, 2)
    await shop.load(2)
    await shop.promote(2)

    response = await shop.rollback("tiny-image")

    assert (response.model.name, response.model.version) == ("tiny-image", 1)
    assert {model.name: model.version for model in response.models} == await shop.in_use() == ALL_1


async def test_a_rollback_cannot_be_rolled_back_and_what_it_left_can_be_promoted_again(shop: Shop) -> None:
    same_space(shop.folder, 2)
    await shop.load(2)
    await shop.promote(2)
    await shop.rollback()

    error = await refused(shop.rollback(), "NO_VERSION_BEFORE")
    assert "since the last rollback" in (error.details() or "")
    await shop.promote(2)

    assert await shop.in_use() == ALL_2


async def test_without_a_promotion_there_is_nothing_to_roll_back_to(shop: Shop) -> None:
    await refused(shop.rollback(), "NO_VERSION_BEFORE")
    error = await refused(shop.rollback("clip"), "MODEL_NOT_FOUND", grpc.StatusCode.NOT_FOUND)
    assert "tiny-text" in (error.details() or "")


async def test_a_rollback_loads_again_what_was_unloaded(shop: Shop) -> None:
    same_space(shop.folder, 2)
    await shop.load(2)
    await shop.promote(2)
    await shop.unload("tiny-text", 1)
    assert not (await shop.service.Get(pb.ModelServiceGetRequest(name="tiny-text", version=1))).model.provider

    await shop.rollback()

    assert await shop.in_use() == ALL_1
    assert versions(await shop.search("red")) == {"tiny-text": 1}


async def test_a_rollback_to_a_damaged_version_is_refused_and_changes_nothing(shop: Shop) -> None:
    same_space(shop.folder, 2)
    await shop.load(2)
    await shop.promote(2)
    await shop.unload("tiny-text", 1)
    (shop.folder / "tiny-text" / "1" / "model.onnx").write_bytes(b"?")

    await refused(shop.rollback(), "MODEL_FAILED")

    assert await shop.in_use() == ALL_2


@pytest.mark.parametrize(
    ("request_", "field", "message"),
    [
        (pb.ModelServicePromoteRequest(version=1), "name", "name is required"),
        (pb.ModelServicePromoteRequest(name="tiny-text"), "version", r"version must be in \[1, "),
        (pb.ModelServicePromoteRequest(name="a", version=1, min_overlap=1.5), "min_overlap", "must be in"),
        (pb.ModelServicePromoteRequest(name="a", version=1, min_overlap=float("nan")), "min_overlap", "got nan"),
        (
            pb.ModelServicePromoteRequest(name="a", version=1, also=[pb.ModelVersion(name="a", version=2)]),
            "also[0].name",
            "comes twice",
        ),
        (
            pb.ModelServicePromoteRequest(name="a", version=1, also=[pb.ModelVersion(name="b")]),
            "also[0].version",
            "must be in",
        ),
        (
            pb.ModelServicePromoteRequest(name="a", version=1, also=[pb.ModelVersion(name="b", version=1)] * 16),
            "also",
            "at most 15 models, got 16",
        ),
    ],
)
async def test_a_promotion_that_cannot_be_is_refused_with_its_field(
    shop: Shop, request_: pb.ModelServicePromoteRequest, field: str, message: str
) -> None:
    with pytest.raises(aio.AioRpcError, match=message) as caught:
        await shop.service.Promote(request_)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field_of(caught.value) == field


async def test_names_and_versions_that_are_not_there_are_not_found(shop: Shop) -> None:
    for call in (
        shop.service.Load(pb.ModelServiceLoadRequest(name="clip")),
        shop.service.Load(pb.ModelServiceLoadRequest(name="tiny-text", version=5)),
        shop.promote(5, "text"),
        shop.unload("tiny-text", 5),
    ):
        await refused(call, "MODEL_NOT_FOUND", grpc.StatusCode.NOT_FOUND)


async def test_a_version_that_is_not_loaded_is_not_promoted(shop: Shop) -> None:
    same_space(shop.folder, 2)
    await shop.load(2)
    await shop.unload("tiny-text", 2)

    error = await refused(shop.promote(2), "MODEL_NOT_LOADED")

    assert "tiny-text/2 is AVAILABLE, not READY: load it first" in (error.details() or "")


async def test_a_version_that_cannot_be_opened_is_told_with_its_reason(shop: Shop) -> None:
    same_space(shop.folder, 2)
    (shop.folder / "tiny-text" / "2" / "model.onnx").write_bytes(b"?")

    error = await refused(shop.load(2, "text"), "MODEL_FAILED")
    shown = (await shop.service.Get(pb.ModelServiceGetRequest(name="tiny-text", version=2))).model

    assert "has SHA-256" in (error.details() or "")
    assert (shown.state, "SHA-256" in shown.reason) == (pb.MODEL_STATE_FAILED, True)
    assert versions(await shop.search("red")) == {"tiny-text": 1}


async def test_what_is_in_use_is_not_unloaded(shop: Shop) -> None:
    error = await refused(shop.unload("tiny-text", 1), "MODEL_IN_USE")

    assert info(error).metadata == {"model": "tiny-text/1", "family": "tiny"}


async def test_models_of_two_families_are_not_promoted_in_one_call(tmp_path: Path, folder: Path) -> None:
    write_repository(folder, family="other")
    async with model_shop(folder) as shop:
        request = pb.ModelServicePromoteRequest(
            name="tiny-text", version=1, also=[pb.ModelVersion(name="other-text", version=1)]
        )
        error = await refused(shop.service.Promote(request), "FAMILIES_MIXED", grpc.StatusCode.INVALID_ARGUMENT)

    assert "['other', 'tiny']" in (error.details() or "")


async def test_of_two_promotions_at_once_one_is_told_that_the_models_changed(shop: Shop) -> None:
    for version in (2, 3):
        same_space(shop.folder, version)
        await shop.load(version)
    for text in ("red", "green"):
        await shop.search(text)

    outcomes = await asyncio.gather(shop.promote(2), shop.promote(3), return_exceptions=True)

    failed = [one for one in outcomes if isinstance(one, aio.AioRpcError)]
    assert [info(one).reason for one in failed] == ["MODELS_CHANGED"]
    assert await shop.in_use() in (ALL_2, dict.fromkeys(ALL_1, 3))


async def test_the_model_metric_follows_the_switch(shop: Shop) -> None:
    same_space(shop.folder, 2)
    await shop.load(2)
    metrics = Metrics(version="test")
    metrics.watch_models(shop.models.models)

    def used() -> dict[str, float | None]:
        return {
            version: metrics.registry.get_sample_value(
                "likewise_model_in_use", {"model": "tiny-text", "version": version, "family": "tiny"}
            )
            for version in ("1", "2")
        }

    assert used() == {"1": 1.0, "2": 0.0}
    await shop.promote(2)
    assert used() == {"1": 0.0, "2": 1.0}
    told = {(m.name, m.version): (m.in_use, m.previous) for m in shop.models.models()}
    assert told["tiny-text", 2] == (True, False)
    assert told["tiny-text", 1] == (False, True)


async def test_each_promotion_and_rollback_is_one_line_of_the_log(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    same_space(shop.folder, 2)
    await shop.load(2)
    await shop.search("red")
    with caplog.at_level(logging.INFO, "likewise.server.promotion"):
        await shop.promote(2, "text")
        await shop.rollback()

    promoted, rolled_back = (r.getMessage() for r in caplog.records if r.name == "likewise.server.promotion")
    assert promoted.startswith("promotion family=tiny from='tiny-composer/1, tiny-image/1, tiny-text/1'")
    assert "to='tiny-composer/1, tiny-image/1, tiny-text/2'" in promoted
    assert "compared=1 overlap=1.000" in promoted
    assert rolled_back.startswith("rollback family=tiny")
    assert "compared=0 overlap=-" in rolled_back


class TestRecord:
    async def test_a_restart_serves_what_was_promoted_and_not_the_highest(self, folder: Path) -> None:
        documents = Documents()
        for version in (2, 3):
            same_space(folder, version)
        async with model_shop(folder, documents=documents) as shop:
            assert await shop.in_use() == dict.fromkeys(ALL_1, 3)
            await shop.load(2)
            await shop.promote(2)
        same_space(folder, 4)

        async with model_shop(folder, documents=documents) as shop:
            assert await shop.in_use() == ALL_2
            assert (await shop.rollback()).model.version == 3

    async def test_what_is_served_first_is_recorded_and_a_version_put_there_later_is_not_taken_up(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        documents = Documents()
        async with model_shop(folder, documents=documents):
            pass
        assert documents.content[DOCUMENT] == {"format": 1, "families": {"tiny": {"current": ALL_1}}}
        other_space(folder, 2)

        async with model_shop(folder, documents=documents) as shop:
            assert await shop.in_use() == ALL_1

        assert "not in use: tiny-composer/2, tiny-image/2, tiny-text/2" in caplog.text

    async def test_what_cannot_be_recorded_is_not_switched_to(self, folder: Path) -> None:
        documents = Documents()
        same_space(folder, 2)
        async with model_shop(folder, documents=documents) as shop:
            await shop.load(1)
            documents.failure = OSError("disk full")
            with pytest.raises(aio.AioRpcError):
                await shop.promote(1)
            documents.failure = None

            assert await shop.in_use() == ALL_2
            await shop.promote(1)
            assert await shop.in_use() == ALL_1


async def test_under_load_no_request_is_lost_no_answer_mixes_and_each_equals_its_version_s(shop: Shop) -> None:
    other_words(shop.folder, 2)
    wider(shop.folder, 3)
    for version in (2, 3):
        await shop.load(version)
    expected = {}
    for version in (1, 2, 3):
        await shop.promote(version)
        answer = await shop.search("red", image=png(RED))
        expected[version] = list(answer.hits.ids)
    assert expected[1] != expected[2]
    sequence: list[int] = []
    stop = asyncio.Event()

    async def caller() -> None:
        while not stop.is_set():
            answer = await shop.search("red", image=png(RED))
            (version,) = {model.version for model in answer.models}
            assert len(spaces(answer.models)) == 1
            assert len(answer.models) == 3
            assert list(answer.hits.ids) == expected[version]
            sequence.append(version)

    callers = [asyncio.create_task(caller()) for _ in range(4)]
    swaps = [1, 3, 2, 1, 2, 3]
    for version in swaps:
        seen = len(sequence)
        await shop.load(version)  # freed by the second promotion after its own
        await shop.promote(version, force=True)
        # Promise of the contract: whatever begins after the reply is answered by the new version.
        (now,) = {model.version for model in (await shop.search("red", image=png(RED))).models}
        assert now == version
        while len(sequence) < seen + 8:
            await asyncio.sleep(0)
            for task in callers:
                if task.done():
                    task.result()
    stop.set()
    await asyncio.gather(*callers)

    assert len(sequence) >= 8 * len(swaps)
    assert set(sequence) == {1, 2, 3}
