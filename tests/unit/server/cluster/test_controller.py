"""The controller keeps up what the store lists and shows it in the routing table. Nothing here runs on Ray."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable

import pytest
from tests.unit.server.cluster.placement import MODEL, SPEC, FakeCatalogue, FakePart, FakePlacement
from tests.unit.server.waiting import until

from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.server.cluster import supervisor
from likewise.server.cluster.controller import Controller
from likewise.server.cluster.parts import EncoderPart, Serving, ShardPart, WriterPart
from likewise.server.errors import AlreadyExists, InvalidRequest, NotFound, Unavailable
from likewise.shards.spec import AttributeSpec, SpaceSpec
from likewise.shards.spec_change import SpecChange
from likewise.v1 import common_pb2, gallery_service_pb2


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
    monkeypatch.setattr(supervisor, "BACKOFF_S", (0.0, 0.0))
    controller = Controller(catalogue, placement, models=[MODEL], connect=placement.connect, drain_s=0.0)
    await controller.start()
    yield controller
    await controller.close(stop_parts=True)


async def test_a_new_gallery_is_shown_with_the_places_of_all_its_parts(
    controller: Controller, catalogue: FakeCatalogue, placement: FakePlacement
) -> None:
    gallery = await controller.create(SPEC)

    (route,) = controller.board.table.galleries
    assert route.gallery == gallery
    assert route.gallery.gallery_id == catalogue.galleries["shoes"].gallery_id != ""
    assert route.writer
    assert [shard.shard for shard in route.shards] == [0, 1]
    addresses = [list(shard.addresses) for shard in route.shards]
    assert all(len(replicas) == 1 for replicas in addresses)
    (writer,) = placement.of(WriterPart)
    assert writer.followed[-1] == addresses


async def test_replicas_are_placed_and_shown(controller: Controller, placement: FakePlacement) -> None:
    await controller.create(dataclasses.replace(SPEC, replicas=3))

    assert len(placement.of(ShardPart)) == 6
    assert [len(shard.addresses) for shard in controller.board.table.galleries[0].shards] == [3, 3]


async def test_more_replicas_are_added_to_those_there_and_fewer_leave_the_rest_alone(
    controller: Controller, placement: FakePlacement
) -> None:
    await controller.create(dataclasses.replace(SPEC, replicas=2))
    before = {part.part.name: part for part in placement.of(ShardPart)}

    await controller.update(dataclasses.replace(SPEC, replicas=3))
    grown = {part.part.name: part for part in placement.of(ShardPart)}
    shown = [len(shard.addresses) for shard in controller.board.table.galleries[0].shards]
    await controller.update(dataclasses.replace(SPEC, replicas=1))
    await until(lambda: len(placement.of(ShardPart)) == 2)  # the others end when nobody can be calling them

    assert shown == [3, 3]
    assert grown.items() > before.items()  # the same processes, and two more
    left = {part.part.name for part in placement.of(ShardPart)}
    assert left == {name for name in before if name.endswith("replica-0")}
    addresses = [list(shard.addresses) for shard in controller.board.table.galleries[0].shards]
    assert [len(replicas) for replicas in addresses] == [1, 1]
    (writer,) = placement.of(WriterPart)
    assert writer.followed[-1] == addresses
    # A cache file that the replica that stays may share with them is not theirs to delete.
    assert [part.stopped for name, part in grown.items() if name not in left] == [[False]] * 4


async def test_a_taken_name_is_refused(controller: Controller) -> None:
    first = await controller.create(SPEC)

    with pytest.raises(AlreadyExists, match="'shoes'"):
        await controller.create(SPEC)

    assert [route.gallery for route in controller.board.table.galleries] == [first]


async def test_a_description_that_cannot_be_is_refused_with_its_field(controller: Controller) -> None:
    with pytest.raises(InvalidRequest, match=r"must be in \[1, 1024\], got 5000") as caught:
        await controller.create(dataclasses.replace(SPEC, shards=5_000))

    assert caught.value.field == "spec.shards"


async def test_a_gallery_whose_part_does_not_start_is_not_left_behind(
    controller: Controller, catalogue: FakeCatalogue, placement: FakePlacement, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: FakePart) -> Serving:
        raise RuntimeError("no memory")

    monkeypatch.setattr(FakePart, "start", broken)

    with pytest.raises(Unavailable, match="a part of gallery 'shoes' does not start"):
        await controller.create(SPEC)

    assert catalogue.galleries == {}
    assert placement.of(ShardPart) == []
    assert list(controller.board.table.galleries) == []


async def test_a_lost_shard_leaves_the_table_and_returns_at_its_new_place(
    controller: Controller, placement: FakePlacement
) -> None:
    await controller.create(SPEC)
    before = controller.board.table.galleries[0].shards[0].addresses[0]
    lost, _ = placement.of(ShardPart)
    placement.broken.add(lost.part.name)

    lost.lose()
    await _shown(controller, lambda table: not table.galleries[0].shards[0].addresses)
    placement.broken.clear()
    await _shown(controller, lambda table: bool(table.galleries[0].shards[0].addresses))

    after = controller.board.table.galleries[0].shards[0].addresses[0]
    assert after != before
    (writer,) = placement.of(WriterPart)
    await until(lambda: writer.followed[-1][0] == [after])


async def test_a_writer_that_comes_back_is_told_its_shards(controller: Controller, placement: FakePlacement) -> None:
    await controller.create(SPEC)
    (writer,) = placement.of(WriterPart)
    writer.followed.clear()

    writer.lose()

    await until(lambda: bool(writer.followed))
    assert [len(replicas) for replicas in writer.followed[-1]] == [1, 1]


async def test_models_are_listed_before_their_encoders_are_up(catalogue: FakeCatalogue) -> None:
    placement = FakePlacement()
    placement.broken.add(EncoderPart("shapes", 0).name)
    controller = Controller(catalogue, placement, models=[MODEL])

    await controller.start()

    assert [(route.model.name, list(route.addresses)) for route in controller.board.table.models] == [
        ("shapes-image", [])
    ]
    placement.broken.clear()
    await _shown(controller, lambda table: len(table.models[0].addresses) == 1)
    assert controller.board.table.models[0].model.in_use
    await controller.close(stop_parts=True)


async def test_an_index_change_reaches_every_part_in_place(controller: Controller, placement: FakePlacement) -> None:
    created = await controller.create(SPEC)
    changed = dataclasses.replace(
        SPEC, attributes=(AttributeSpec("colour", common_pb2.ATTRIBUTE_TYPE_STRING),), gallery_id="ignored"
    )
    before = controller.board.table.galleries[0]

    gallery = await controller.update(changed)

    assert gallery.gallery_id == created.gallery_id
    assert [attribute.name for attribute in gallery.spec.attributes] == ["colour"]
    for part in (*placement.of(WriterPart), *placement.of(ShardPart)):
        assert [spec.attributes for spec in part.specs] == [changed.attributes]
    after = controller.board.table.galleries[0]
    assert (after.writer, after.shards) == (before.writer, before.shards)


async def test_another_shard_count_loads_new_shards_and_then_ends_the_old_ones(
    controller: Controller, placement: FakePlacement
) -> None:
    await controller.create(SPEC)
    old = placement.of(ShardPart)

    await controller.update(dataclasses.replace(SPEC, shards=3))

    await until(lambda: [part.stopped for part in old] == [[True], [True]])
    route = controller.board.table.galleries[0]
    assert [len(shard.addresses) for shard in route.shards] == [1, 1, 1]
    (writer,) = placement.of(WriterPart)
    await until(lambda: writer.beside[-1] == [])
    assert writer.followed[-1] == [list(shard.addresses) for shard in route.shards]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"spaces": (SpaceSpec("default", 5, "vectors:5"),)}, "spaces of gallery", id="spaces"),
        pytest.param({"attributes": ()}, "attribute 'size'", id="attribute gone"),
        pytest.param(
            {"attributes": (AttributeSpec("size", common_pb2.ATTRIBUTE_TYPE_DOUBLE),)}, "another type", id="type"
        ),
    ],
)
async def test_what_rows_depend_on_cannot_change(
    controller: Controller, placement: FakePlacement, change: dict[str, object], message: str
) -> None:
    sized = dataclasses.replace(SPEC, attributes=(AttributeSpec("size", common_pb2.ATTRIBUTE_TYPE_INT64),))
    await controller.create(sized)

    with pytest.raises(SpecChange, match=message):
        await controller.update(dataclasses.replace(sized, **change))  # type: ignore[arg-type]  # fields by name

    assert all(part.specs == [] for part in placement.parts.values())


async def test_deleting_stops_the_parts_and_forgets_the_gallery(
    controller: Controller, catalogue: FakeCatalogue, placement: FakePlacement
) -> None:
    await controller.create(SPEC)

    await controller.delete("shoes")

    assert catalogue.galleries == {}
    assert placement.of(ShardPart) == placement.of(WriterPart) == []
    assert list(controller.board.table.galleries) == []
    with pytest.raises(NotFound, match="'shoes'"):
        await controller.delete("shoes")


async def test_the_next_controller_finds_the_parts_and_ends_those_nobody_wants(
    catalogue: FakeCatalogue, placement: FakePlacement
) -> None:
    first = Controller(catalogue, placement)
    await first.start()
    await first.create(SPEC)
    running = set(placement.parts)
    await first.close(stop_parts=False)
    left_over = ShardPart(dataclasses.replace(SPEC, gallery_id="gone"), 0, 0)
    await placement.place(left_over)

    second = Controller(catalogue, placement)
    await second.start()
    await _shown(second, lambda table: all(shard.addresses for shard in table.galleries[0].shards))

    assert set(placement.parts) == running
    assert second.board.table.version > first.board.table.version
    await second.close(stop_parts=True)


async def test_a_controller_that_comes_back_settles_once_it_has_found_what_runs(
    catalogue: FakeCatalogue, placement: FakePlacement
) -> None:
    first = Controller(catalogue, placement)
    await first.start()
    await first.create(SPEC)
    await first.close(stop_parts=False)

    second = Controller(catalogue, placement)
    await second.start()
    await second.settle(timeout_s=60.0)

    (route,) = second.board.table.galleries
    assert route.writer
    assert all(shard.addresses for shard in route.shards)
    await second.close(stop_parts=True)


async def test_a_part_that_does_not_start_is_not_settled_for(
    catalogue: FakeCatalogue, placement: FakePlacement
) -> None:
    first = Controller(catalogue, placement)
    await first.start()
    await first.create(SPEC)
    await first.close(stop_parts=False)
    (broken, _) = placement.of(ShardPart)
    placement.broken.add(broken.part.name)

    second = Controller(catalogue, placement)
    await second.start()
    async with asyncio.timeout(30):
        await second.settle(timeout_s=3600.0)

    assert [bool(shard.addresses) for shard in second.board.table.galleries[0].shards] == [False, True]
    await second.close(stop_parts=True)


async def test_closing_gives_the_store_back(catalogue: FakeCatalogue, placement: FakePlacement) -> None:
    controller = Controller(catalogue, placement)
    await controller.start()

    await controller.close(stop_parts=True)

    assert catalogue.closed


async def _shown(controller: Controller, holds: Callable[[pb.RoutingTable], bool]) -> gallery_service_pb2.Gallery:
    async with asyncio.timeout(10):
        async for table in controller.board.watch(0):
            if holds(table):
                return table.galleries[0].gallery if table.galleries else gallery_service_pb2.Gallery()
    raise AssertionError("the watch ended")
