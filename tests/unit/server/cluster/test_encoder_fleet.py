"""The controller keeps every encoder supplied with the versions that are loaded, and switches them for all routers."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from tests.unit.server.cluster.placement import FakeCatalogue, FakePart, FakePlacement, manifest
from tests.unit.server.waiting import until

from likewise.export.model_repository import Model
from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.server.cluster import encoder_fleet, supervisor
from likewise.server.cluster.controller import Controller
from likewise.server.cluster.parts import EncoderPart
from likewise.server.errors import FailedPrecondition, NotFound, Unavailable
from likewise.server.promotion_record import DOCUMENT, Recorded
from likewise.v1 import model_service_pb2

IMAGE, TEXT = "shapes-image", "shapes-text"
FIRST = {IMAGE: 1, TEXT: 1}


@pytest.fixture
def placement() -> FakePlacement:
    return FakePlacement()


@pytest.fixture
def catalogue() -> FakeCatalogue:
    return FakeCatalogue()


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Repositories in which every version below 9 of these models lies."""
    monkeypatch.setattr(supervisor, "BACKOFF_S", (0.0, 0.0))

    def find(folders: object, name: str, version: int | None) -> Model:
        if name not in (IMAGE, TEXT, "next-image") or (version or 8) > 8:
            raise NotFound(f"no {name}/{version}", reason="MODEL_NOT_FOUND")
        kind = "text_encoder" if name == TEXT else "image_encoder"
        space = "sha256:2" if version == 7 else "sha256:1"
        family = name.partition("-")[0]
        return Model(manifest(kind, version or 8, family=family, space=space), None)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder_fleet, "find_version", find)


async def started(catalogue: FakeCatalogue, placement: FakePlacement, replicas: int = 2) -> Controller:
    manifests = [manifest("image_encoder"), manifest("text_encoder")]
    controller = Controller(catalogue, placement, models=manifests, replicas=replicas)
    await controller.start()
    return controller


@pytest.fixture
async def controller(catalogue: FakeCatalogue, placement: FakePlacement) -> AsyncIterator[Controller]:
    made = await started(catalogue, placement)
    await shown(made, lambda table: all(len(model.addresses) == 2 for model in table.models))
    yield made
    await made.close(stop_parts=True)


async def shown(controller: Controller, holds: Callable[[pb.RoutingTable], bool]) -> None:
    await until(lambda: holds(controller.board.table))


def entry(controller: Controller, name: str, version: int) -> pb.ModelRoute:
    (found,) = (one for one in controller.board.table.models if (one.model.name, one.model.version) == (name, version))
    return found


def state(controller: Controller, name: str, version: int) -> str:
    return model_service_pb2.ModelState.Name(entry(controller, name, version).model.state).removeprefix("MODEL_STATE_")


def encoders(placement: FakePlacement) -> list[FakePart]:
    return placement.of(EncoderPart)


async def test_every_encoder_gets_the_versions_in_use_and_they_are_put_on_record(
    controller: Controller, catalogue: FakeCatalogue, placement: FakePlacement
) -> None:
    for part in encoders(placement):
        assert set(part.models) == {(IMAGE, 1), (TEXT, 1)}
    table = controller.board.table
    assert [(one.model.name, one.model.in_use) for one in table.models] == [(IMAGE, True), (TEXT, True)]
    assert [family.name for family in table.families] == ["shapes"]
    assert catalogue.documents[DOCUMENT]["families"] == {"shapes": {"current": FIRST}}


async def test_a_loaded_version_is_open_on_every_encoder_and_not_in_use(
    controller: Controller, placement: FakePlacement
) -> None:
    loaded = await controller.models.load(TEXT, None)

    assert (loaded.version, loaded.state, loaded.in_use) == (8, model_service_pb2.MODEL_STATE_READY, False)
    assert all((TEXT, 8) in part.models for part in encoders(placement))
    assert len(entry(controller, TEXT, 8).addresses) == 2


async def test_a_version_that_one_encoder_cannot_open_fails_with_its_reason(
    controller: Controller, placement: FakePlacement
) -> None:
    placement.damaged[TEXT, 2] = "model.onnx is missing"

    with pytest.raises(FailedPrecondition, match=r"shapes-text/2 cannot be served: model\.onnx is missing") as caught:
        await controller.models.load(TEXT, 2)

    assert caught.value.reason == "MODEL_FAILED"
    assert state(controller, TEXT, 2) == "FAILED"
    assert entry(controller, TEXT, 1).model.in_use
    placement.damaged.clear()
    assert (await controller.models.load(TEXT, 2)).state == model_service_pb2.MODEL_STATE_READY


async def test_a_version_that_is_nowhere_is_not_found(controller: Controller) -> None:
    with pytest.raises(NotFound):
        await controller.models.load(TEXT, 9)
    with pytest.raises(NotFound, match=r"'shapes-text' has no version 3 here, only \[1\]"):
        await controller.models.unload(TEXT, 3)
    with pytest.raises(NotFound, match="no model 'clip'"):
        await controller.models.unload("clip", 3)


async def test_a_switch_is_on_record_and_in_one_table_and_the_version_before_is_kept(
    controller: Controller, catalogue: FakeCatalogue
) -> None:
    await controller.models.load(TEXT, 2)
    before = controller.board.table.version

    await controller.models.switch("shapes", Recorded(FIRST | {TEXT: 2}, FIRST), expected=FIRST)

    assert controller.board.table.version == before + 1
    assert (entry(controller, TEXT, 1).model.in_use, entry(controller, TEXT, 1).model.previous) == (False, True)
    assert entry(controller, TEXT, 2).model.in_use
    assert state(controller, TEXT, 1) == "READY"
    assert catalogue.documents[DOCUMENT]["families"]["shapes"] == {"current": FIRST | {TEXT: 2}, "previous": FIRST}


async def test_what_is_not_kept_any_more_is_freed_on_every_encoder(
    controller: Controller, placement: FakePlacement
) -> None:
    for version in (2, 3):
        await controller.models.load(TEXT, version)
    second = FIRST | {TEXT: 2}
    await controller.models.switch("shapes", Recorded(second, FIRST), expected=FIRST)

    await controller.models.switch("shapes", Recorded(FIRST | {TEXT: 3}, second), expected=second)

    await until(lambda: all((TEXT, 1) not in part.models for part in encoders(placement)))
    await until(lambda: state(controller, TEXT, 1) == "AVAILABLE")
    assert all((IMAGE, 1) in part.models for part in encoders(placement))


async def test_switches_that_cannot_be_are_refused_and_change_nothing(controller: Controller) -> None:
    await controller.models.load(TEXT, 2)
    await controller.models.load(TEXT, 7)
    await controller.models.unload(TEXT, 2)
    table = controller.board.table

    for wanted, expected, reason in (
        (FIRST | {TEXT: 2}, FIRST, "MODEL_NOT_LOADED"),
        (FIRST | {TEXT: 7}, FIRST, "SPACE_MISMATCH"),
        (FIRST, FIRST | {TEXT: 2}, "MODELS_CHANGED"),
        (FIRST, None, "MODELS_CHANGED"),
    ):
        with pytest.raises(FailedPrecondition) as caught:
            await controller.models.switch("shapes", Recorded(wanted), expected=expected)
        assert caught.value.reason == reason

    assert controller.board.table == table


async def test_what_is_in_use_is_not_unloaded(controller: Controller) -> None:
    with pytest.raises(FailedPrecondition, match="shapes-text/1 is in use by 'shapes'") as caught:
        await controller.models.unload(TEXT, 1)

    assert caught.value.reason == "MODEL_IN_USE"


async def test_an_encoder_that_comes_back_is_given_all_that_the_others_have(
    controller: Controller, placement: FakePlacement
) -> None:
    await controller.models.load(TEXT, 2)
    await controller.models.switch("shapes", Recorded(FIRST | {TEXT: 2}, FIRST), expected=FIRST)
    lost = encoders(placement)[0]

    lost.lose()
    await shown(controller, lambda table: any(len(one.addresses) == 1 for one in table.models))
    await shown(controller, lambda table: all(len(one.addresses) == 2 for one in table.models))

    assert set(lost.models) == {(IMAGE, 1), (TEXT, 1), (TEXT, 2)}


async def test_an_encoder_is_shown_for_a_version_only_once_it_has_it(
    controller: Controller, placement: FakePlacement
) -> None:
    placement.gate.clear()
    encoders(placement)[0].lose()
    await shown(controller, lambda table: all(len(one.addresses) == 1 for one in table.models))

    for _ in range(20):
        await asyncio.sleep(0)
    assert all(len(one.addresses) == 1 for one in controller.board.table.models)
    placement.gate.set()

    await shown(controller, lambda table: all(len(one.addresses) == 2 for one in table.models))


async def test_the_next_controller_serves_what_was_promoted_and_knows_what_is_open(
    catalogue: FakeCatalogue, placement: FakePlacement
) -> None:
    first = await started(catalogue, placement)
    for version in (2, 3):
        await first.models.load(TEXT, version)
    await first.models.switch("shapes", Recorded(FIRST | {TEXT: 2}, FIRST), expected=FIRST)
    await first.close(stop_parts=False)
    manifests = [manifest("image_encoder"), *(manifest("text_encoder", version) for version in (1, 2, 3))]

    second = Controller(catalogue, placement, models=manifests, replicas=2)
    await second.start()
    await shown(second, lambda table: all(len(one.addresses) == 2 for one in table.models))

    assert [one.model.version for one in second.board.table.models if one.model.in_use] == [1, 2]
    assert [(one.model.name, one.model.version) for one in second.board.table.models if one.model.previous] == [
        (TEXT, 1)
    ]
    assert state(second, TEXT, 3) == "READY"
    await second.close(stop_parts=True)


async def test_a_family_that_was_not_there_at_the_start_gets_encoders_of_its_own(
    controller: Controller, placement: FakePlacement
) -> None:
    await controller.models.load("next-image", 1)
    await controller.models.switch("next", Recorded({"next-image": 1}), expected=None)

    assert len(encoders(placement)) == 4
    assert [family.name for family in controller.board.table.families] == ["next", "shapes"]
    assert entry(controller, "next-image", 1).model.in_use


async def test_an_encoder_that_does_not_answer_makes_a_load_unavailable(
    controller: Controller, placement: FakePlacement, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(self: FakePart, name: str, version: int) -> pb.ModelRoute:
        raise RuntimeError("actor died")

    monkeypatch.setattr(FakePart, "load", lost)

    with pytest.raises(Unavailable, match="does not load shapes-text/2"):
        await controller.models.load(TEXT, 2)

    assert state(controller, TEXT, 2) == "AVAILABLE"
