"""The controller switches to other shards only when they are good, and is where it was when they are not."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import pytest
from tests.unit.server.cluster.placement import SPEC, FakeCatalogue, FakePart, FakePlacement
from tests.unit.server.waiting import until

from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.server import reshape
from likewise.server.cluster import supervisor
from likewise.server.cluster.controller import Controller
from likewise.server.cluster.parts import ShardPart, WriterPart
from likewise.server.errors import FailedPrecondition, Unavailable
from likewise.shards.spec import GallerySpec, IndexSpec

FOUR = dataclasses.replace(SPEC, shards=4)
HNSW = dataclasses.replace(SPEC, index=IndexSpec(kind="hnsw"))


@pytest.fixture
def placement() -> FakePlacement:
    return FakePlacement()


@pytest.fixture
def catalogue() -> FakeCatalogue:
    return FakeCatalogue()


@pytest.fixture
async def controller(
    catalogue: FakeCatalogue, placement: FakePlacement, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Controller]:
    """A controller with the gallery SPEC, of two shards."""
    monkeypatch.setattr(supervisor, "BACKOFF_S", (0.0, 0.0))
    controller = Controller(catalogue, placement, connect=placement.connect, drain_s=0.0)
    await controller.start()
    await controller.create(SPEC)
    yield controller
    await controller.close(stop_parts=True)


def _writer(placement: FakePlacement) -> FakePart:
    (writer,) = placement.of(WriterPart)
    return writer


def _names(placement: FakePlacement) -> list[str]:
    return [part.part.name for part in placement.of(ShardPart)]


async def _as_before(controller: Controller, placement: FakePlacement, before: pb.RoutingTable) -> None:
    """Nothing is left of a change: routers, parts and the writer are where they were."""
    assert list(controller.board.table.galleries) == list(before.galleries)
    assert len(placement.of(ShardPart)) == 2
    assert all(part.stopped == [] for part in placement.of(ShardPart))
    writer = _writer(placement)
    assert writer.specs == []
    assert (writer.followed[-1], writer.beside[-1]) == ([list(s.addresses) for s in before.galleries[0].shards], [])


@pytest.mark.parametrize("changed", [FOUR, HNSW], ids=["shards", "index"])
async def test_new_shards_follow_the_writer_before_they_serve(
    controller: Controller, placement: FakePlacement, changed: GallerySpec
) -> None:
    before = controller.board.table.galleries[0]
    placement.checking.clear()

    change = asyncio.create_task(controller.update(changed))
    await until(lambda: len(placement.of(ShardPart)) == 2 + changed.shards)
    await until(lambda: any(beside and all(map(all, beside)) for beside in _writer(placement).beside))

    assert controller.board.table.galleries[0] == before
    assert _writer(placement).specs == []
    placement.checking.set()
    gallery = await change
    assert [spec.index for spec in _writer(placement).specs] == [changed.index]
    assert controller.board.table.galleries[0].gallery == gallery
    await until(lambda: len(placement.of(ShardPart)) == changed.shards)
    assert not set(_names(placement)) & {ShardPart(controller_spec(controller, SPEC), n, 0).name for n in range(2)}


def controller_spec(controller: Controller, spec: GallerySpec) -> GallerySpec:
    """The spec with the identity that the controller gave the gallery."""
    return dataclasses.replace(spec, gallery_id=controller.board.table.galleries[0].gallery.gallery_id)


async def test_shards_that_lack_a_row_do_not_take_over(controller: Controller, placement: FakePlacement) -> None:
    before = controller.board.table
    placement.lacking.add(3)

    with pytest.raises(FailedPrecondition, match="check of counts: shard 3 holds 0 rows at version 1, the store has 1"):
        await controller.update(FOUR)

    await _as_before(controller, placement, before)


async def test_shards_that_do_not_start_do_not_take_over(controller: Controller, placement: FakePlacement) -> None:
    before = controller.board.table
    placement.broken.add(ShardPart(controller_spec(controller, FOUR), 2, 0).name)

    with pytest.raises(Unavailable, match="does not start"):
        await controller.update(FOUR)

    await _as_before(controller, placement, before)


async def test_a_description_that_cannot_be_stored_is_not_served(
    controller: Controller, placement: FakePlacement
) -> None:
    before = controller.board.table
    placement.refusing.add(_writer(placement).part.name)

    with pytest.raises(Unavailable, match="does not take the new description"):
        await controller.update(FOUR)

    await _as_before(controller, placement, before)


async def test_a_description_that_was_stored_is_served_although_the_answer_was_lost(
    controller: Controller, placement: FakePlacement, catalogue: FakeCatalogue
) -> None:
    placement.refusing.add(_writer(placement).part.name)
    stored = catalogue.galleries["shoes"]
    catalogue.galleries["shoes"] = dataclasses.replace(stored, shards=4)

    gallery = await controller.update(FOUR)

    assert gallery.spec.shards == 4
    assert len(controller.board.table.galleries[0].shards) == 4


async def test_a_caller_that_gives_up_changes_nothing(controller: Controller, placement: FakePlacement) -> None:
    before = controller.board.table
    placement.checking.clear()
    change = asyncio.create_task(controller.update(FOUR))
    await until(lambda: any(beside for beside in _writer(placement).beside))

    change.cancel()
    await asyncio.gather(change, return_exceptions=True)

    await _as_before(controller, placement, before)
    placement.checking.set()
    assert (await controller.update(FOUR)).spec.shards == 4


async def test_other_galleries_can_be_made_and_this_one_not_changed_meanwhile(
    controller: Controller, placement: FakePlacement
) -> None:
    placement.checking.clear()
    change = asyncio.create_task(controller.update(FOUR))
    await until(lambda: any(beside for beside in _writer(placement).beside))

    await controller.create(dataclasses.replace(SPEC, name="hats"))
    with pytest.raises(FailedPrecondition, match="'shoes' is being changed already") as caught:
        await controller.update(HNSW)

    assert caught.value.reason == reshape.CHANGE_RUNNING
    placement.checking.set()
    assert (await change).spec.shards == 4


async def test_deleting_ends_the_change(
    controller: Controller, placement: FakePlacement, catalogue: FakeCatalogue
) -> None:
    placement.checking.clear()
    change = asyncio.create_task(controller.update(FOUR))
    await until(lambda: any(beside for beside in _writer(placement).beside))

    await controller.delete("shoes")

    with pytest.raises(Unavailable, match="it was not changed"):
        await change
    assert placement.parts == {}
    assert catalogue.galleries == {}


async def test_a_shape_that_is_just_being_left_can_be_gone_back_to(
    controller: Controller, placement: FakePlacement
) -> None:
    await controller.update(FOUR)

    gallery = await controller.update(SPEC)

    assert gallery.spec.shards == 2
    await until(lambda: len(placement.of(ShardPart)) == 2)
    assert all(part.stopped == [] for part in placement.of(ShardPart))
    addresses = [list(shard.addresses) for shard in controller.board.table.galleries[0].shards]
    assert [len(replicas) for replicas in addresses] == [1, 1]


async def test_another_number_of_replicas_leaves_the_first_ones_running(
    controller: Controller, placement: FakePlacement
) -> None:
    first = placement.of(ShardPart)

    await controller.update(dataclasses.replace(SPEC, replicas=2))
    assert [len(shard.addresses) for shard in controller.board.table.galleries[0].shards] == [2, 2]
    await controller.update(SPEC)
    await controller.update(dataclasses.replace(SPEC, replicas=2))
    assert [len(shard.addresses) for shard in controller.board.table.galleries[0].shards] == [2, 2]
    await controller.update(SPEC)

    await until(lambda: len(placement.of(ShardPart)) == 2)
    assert placement.of(ShardPart) == first
    assert [part.stopped for part in first] == [[], []]
