"""The controller names versions of a store's galleries, and makes galleries of them that are placed like others."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.server.cluster.placement import SPEC, FakePlacement

from likewise.server.cluster import supervisor
from likewise.server.cluster.catalogue import StoreCatalogue
from likewise.server.cluster.controller import Controller
from likewise.server.cluster.parts import ShardPart
from likewise.server.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound, Unavailable
from likewise.shards.spec import IndexSpec


@pytest.fixture
def placement() -> FakePlacement:
    return FakePlacement()


@pytest.fixture
async def controller(
    tmp_path: Path, placement: FakePlacement, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Controller]:
    """A controller with the empty gallery SPEC and its snapshot "empty"."""
    monkeypatch.setattr(supervisor, "BACKOFF_S", (0.0, 0.0))
    controller = await _started(tmp_path, placement)
    await controller.create(SPEC)
    await controller.create_snapshot("shoes", "empty", version=None, note="nothing yet")
    yield controller
    await controller.close(stop_parts=True)


async def _started(store: Path, placement: FakePlacement) -> Controller:
    controller = Controller(
        StoreCatalogue(str(store), lock_wait_s=5), placement, connect=placement.connect, drain_s=0.0
    )
    await controller.start()
    return controller


def _galleries(controller: Controller) -> list[tuple[str, bool]]:
    galleries = [route.gallery for route in controller.board.table.galleries]
    return [(gallery.spec.name, gallery.read_only) for gallery in galleries]


async def test_snapshots_are_listed_until_they_are_deleted(controller: Controller) -> None:
    await controller.create_snapshot("shoes", "again", version=1, note="")

    found = await controller.snapshots_of("shoes")
    await controller.delete_snapshot("shoes", "empty")

    assert [(one.name, one.version, one.rows, one.note) for one in found] == [
        ("again", 1, 0, ""),
        ("empty", 1, 0, "nothing yet"),
    ]
    assert [one.name for one in await controller.snapshots_of("shoes")] == ["again"]


async def test_what_cannot_be_is_refused(controller: Controller) -> None:
    with pytest.raises(NotFound, match="no gallery 'hats'"):
        await controller.create_snapshot("hats", "empty", version=None, note="")
    with pytest.raises(NotFound, match="no snapshot 'full'"):
        await controller.restore("shoes", "full", "old", read_only=False)
    with pytest.raises(AlreadyExists, match="'empty' already"):
        await controller.create_snapshot("shoes", "empty", version=None, note="")
    with pytest.raises(AlreadyExists, match="'shoes' exists already"):
        await controller.restore("shoes", "empty", "shoes", read_only=False)
    with pytest.raises(InvalidRequest, match=r"version must be in \[1, 1\], got 7"):
        await controller.create_snapshot("shoes", "later", version=7, note="")


async def test_a_restored_gallery_is_placed_and_has_an_identity_of_its_own(
    controller: Controller, placement: FakePlacement
) -> None:
    gallery = await controller.restore("shoes", "empty", "old", read_only=False)

    assert _galleries(controller) == [("old", False), ("shoes", False)]
    assert gallery.spec.shards == 2
    assert len({route.gallery.gallery_id for route in controller.board.table.galleries}) == 2
    assert all(shard.addresses for route in controller.board.table.galleries for shard in route.shards)
    assert len(placement.of(ShardPart)) == 4


async def test_a_read_only_gallery_stays_so_and_cannot_be_changed(
    controller: Controller, placement: FakePlacement, tmp_path: Path
) -> None:
    gallery = await controller.restore("shoes", "empty", "old", read_only=True)
    assert gallery.read_only

    with pytest.raises(FailedPrecondition, match="read-only"):
        await controller.update(replace(SPEC, name="old", index=IndexSpec(kind="hnsw")))
    await controller.close(stop_parts=False)
    again = await _started(tmp_path, placement)

    assert _galleries(again) == [("old", True), ("shoes", False)]
    await again.delete("old")
    assert _galleries(again) == [("shoes", False)]
    await again.close(stop_parts=True)


async def test_a_restored_gallery_whose_parts_do_not_start_is_not_left_behind(
    controller: Controller, placement: FakePlacement, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = placement.place

    async def failing(part: object) -> object:
        if getattr(getattr(part, "spec", None), "name", "") == "old":
            raise RuntimeError("no node has room")
        return await place(part)  # type: ignore[arg-type]  # whatever came

    monkeypatch.setattr(placement, "place", failing)

    with pytest.raises(Unavailable, match="does not start"):
        await controller.restore("shoes", "empty", "old", read_only=False)

    assert _galleries(controller) == [("shoes", False)]
    monkeypatch.undo()
    await controller.restore("shoes", "empty", "old", read_only=False)
    assert _galleries(controller) == [("old", False), ("shoes", False)]
