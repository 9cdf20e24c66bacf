"""A router has the controller export and import galleries: progress and errors arrive, nothing is left half done."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.server.cluster.placement import SPEC, FakePlacement
from tests.unit.server.gate import Gate
from tests.unit.server.remote.loopback import Loopback
from tests.unit.server.waiting import until

from likewise.internal.v1 import controller_service_pb2_grpc as pb_grpc
from likewise.server import errors
from likewise.server.cluster import supervisor
from likewise.server.cluster.catalogue import StoreCatalogue
from likewise.server.cluster.controller import Controller
from likewise.server.cluster.controller_servicer import ControllerServicer
from likewise.server.cluster.parts import Part, PlacedPart
from likewise.server.cluster.router import Routing
from likewise.server.protocols import GalleryHandle
from likewise.server.remote import deadlines
from likewise.server.remote.channels import Endpoint
from likewise.server.transfers import Done
from likewise.shards.copying import Progress
from likewise.shards.staging import STAGING_PREFIX


class Cluster:
    """A controller over a store with the empty gallery SPEC and its snapshot "s", and a router of it."""

    def __init__(self, folder: Path, loopback: Loopback) -> None:
        self.store, self.exports = folder / "store", folder / "exports"
        self.placement = FakePlacement()
        self.endpoint: Endpoint | None = None
        self._loopback = loopback

    async def start(self, *, export_root: bool = True) -> None:
        root = self.exports if export_root else None
        catalogue = StoreCatalogue(str(self.store), lock_wait_s=5, export_root=root)
        self.controller = Controller(catalogue, self.placement, connect=self.placement.connect, drain_s=0.0)
        await self.controller.start()

        def register(endpoint: Endpoint) -> None:
            self.endpoint = endpoint
            pb_grpc.add_ControllerServiceServicer_to_server(ControllerServicer(self.controller), endpoint.server)

        address = await self._loopback.endpoint(register)

        async def resolve() -> str:
            return address

        self.routing = Routing(resolve)
        await self.routing.start(timeout_s=10)
        self.snapshots = self.routing.galleries.snapshots
        if "shoes" not in self.names:
            await self.routing.galleries.create(SPEC)
            await self.snapshots.create("shoes", "s", version=None, note="")

    async def close(self) -> None:
        await self.routing.close()
        assert self.endpoint is not None
        await self.endpoint.stop(grace_s=0)
        await self.controller.close(stop_parts=True)

    @property
    def names(self) -> list[str]:
        return [handle.spec.name for handle in self.routing.galleries.handles()]

    @property
    def stored(self) -> list[str]:
        return sorted(path.stem for path in self.store.glob("*.lance"))

    def left(self) -> list[Path]:
        return [*self.store.glob(f"{STAGING_PREFIX}*"), *self.exports.glob(f"{STAGING_PREFIX}*")]


@pytest.fixture
async def cluster(tmp_path: Path, loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setattr(supervisor, "BACKOFF_S", (0.0, 0.0))
    cluster = Cluster(tmp_path, loopback)
    await cluster.start()
    yield cluster
    await cluster.close()


async def _all(steps: AsyncGenerator[Any]) -> tuple[list[Progress], Any]:
    """Every progress, and what came at the end."""
    async with aclosing(steps):
        found = [step async for step in steps]
    *before, done = found
    assert isinstance(done, Done)
    assert all(isinstance(step, Progress) for step in before)
    return [*before, done.progress], done.result


async def _export(cluster: Cluster, folder: str = "kept", gallery: str = "shoes", snapshot: str = "") -> Any:
    return await _all(cluster.snapshots.export(gallery, snapshot, folder))


async def _load(cluster: Cluster, folder: str = "kept", name: str = "", *, read_only: bool = False) -> Any:
    return await _all(cluster.snapshots.load(folder, name, read_only=read_only))


async def test_an_exported_gallery_comes_back_under_another_name(cluster: Cluster) -> None:
    out, export = await _export(cluster)
    await cluster.routing.galleries.delete("shoes")
    back, handle = await _load(cluster, name="boots", read_only=True)

    assert (export.folder, export.gallery, export.rows) == ("kept", "shoes", 0)
    assert isinstance(handle, GalleryHandle)
    assert handle is cluster.routing.galleries.get("boots")
    assert (handle.spec, handle.read_only) == (
        replace(SPEC, name="boots", gallery_id=handle.spec.gallery_id, created_micros=handle.spec.created_micros),
        True,
    )
    assert cluster.names == cluster.stored == ["boots"]
    assert 0 < out[-1].bytes_done == out[-1].bytes <= export.bytes
    assert back[-1].bytes_done == back[-1].bytes == export.bytes


async def test_an_import_without_a_name_has_that_of_the_exported_gallery(cluster: Cluster) -> None:
    await _export(cluster, snapshot="s")
    await cluster.routing.galleries.delete("shoes")

    await _load(cluster)

    assert cluster.names == ["shoes"]


@pytest.mark.parametrize(
    ("call", "error", "reason", "field", "words"),
    [
        pytest.param(
            lambda c: _export(c, gallery="hats"), errors.NotFound, "GALLERY_NOT_FOUND", "", "hats", id="gallery"
        ),
        pytest.param(
            lambda c: _export(c, "new", snapshot="t"), errors.NotFound, "SNAPSHOT_NOT_FOUND", "", "'t'", id="snapshot"
        ),
        pytest.param(_export, errors.AlreadyExists, "EXPORT_EXISTS", "", "'kept' exists", id="over"),
        pytest.param(lambda c: _export(c, "../x"), errors.InvalidRequest, "", "folder", "not a path", id="export out"),
        pytest.param(lambda c: _load(c, ".."), errors.InvalidRequest, "", "folder", "not a path", id="import out"),
        pytest.param(
            lambda c: _load(c, "none"), errors.NotFound, "EXPORT_NOT_FOUND", "", "no export 'none'", id="import none"
        ),
        pytest.param(_load, errors.AlreadyExists, "GALLERY_EXISTS", "", "'shoes' exists already", id="import onto"),
        pytest.param(
            lambda c: _load(c, name="A b"), errors.InvalidRequest, "", "name", "'A b' does not match", id="import name"
        ),
        pytest.param(
            lambda c: _load(c, "damaged", "new"), errors.DataLoss, "EXPORT_DAMAGED", "", "has 2 bytes", id="damaged"
        ),
    ],
)
async def test_errors_reach_the_callers_of_the_router_as_they_were_raised(
    cluster: Cluster,
    call: Callable[[Cluster], Any],
    error: type[errors.ServiceError],
    reason: str,
    field: str,
    words: str,
) -> None:
    await _export(cluster)
    await _export(cluster, "damaged")
    (cluster.exports / "damaged" / "spec.json").write_text("{}")

    with pytest.raises(error) as raised:
        await call(cluster)

    assert type(raised.value) is error
    assert words in str(raised.value)
    assert raised.value.field == field
    assert raised.value.reason == (reason or error.default_reason)
    assert (cluster.names, cluster.stored, cluster.left()) == (["shoes"], ["shoes"], [])


async def test_without_an_export_root_nothing_is_exported_or_imported(tmp_path: Path, loopback: Loopback) -> None:
    cluster = Cluster(tmp_path, loopback)
    await cluster.start(export_root=False)

    for call in (_export, _load):
        with pytest.raises(errors.FailedPrecondition, match="--export-root") as raised:
            await call(cluster)
        assert raised.value.reason == "EXPORT_ROOT_UNSET"
    await cluster.close()


async def test_more_transfers_than_may_run_are_told_when_to_come_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    running = [asyncio.ensure_future(_export(cluster, f"e{i}")) for i in range(2)]
    for _ in running:
        await gate.passed()

    with pytest.raises(errors.Overloaded) as raised:
        await _load(cluster)
    gate.open.set()
    await asyncio.gather(*running)

    assert raised.value.reason == "TRANSFERS_BUSY"
    assert raised.value.retry_after_s == 10.0


async def test_a_deadline_goes_along(cluster: Cluster) -> None:
    with deadlines.limited(0.0), pytest.raises(errors.DeadlinePassed):
        await _export(cluster)


async def test_a_controller_that_goes_is_unavailable(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    running = asyncio.ensure_future(_export(cluster))
    await gate.passed()
    assert cluster.endpoint is not None
    stopping = asyncio.ensure_future(cluster.endpoint.stop(grace_s=0))

    with pytest.raises(errors.Unavailable):
        await running
    gate.open.set()
    await stopping
    with pytest.raises(errors.Unavailable):
        await _export(cluster)


async def test_a_channel_closed_under_a_transfer_is_no_cancellation_of_the_caller(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    running = asyncio.ensure_future(_export(cluster))
    await gate.passed()

    await cluster.routing.galleries._channels.close()

    with pytest.raises(errors.Unavailable, match="has moved"):
        await running
    gate.open.set()


@pytest.mark.parametrize("direction", ["export", "import"])
async def test_a_transfer_whose_caller_goes_away_stops_and_leaves_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    await _export(cluster)
    gate = Gate(monkeypatch)
    going = _export(cluster, "second") if direction == "export" else _load(cluster, name="second")
    call = asyncio.ensure_future(going)
    await gate.passed()

    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await gate.told_to_stop()
    gate.open.set()
    await cluster.controller.transfers.close()  # whatever it did has ended

    assert (cluster.names, cluster.stored, cluster.left()) == (["shoes"], ["shoes"], [])
    assert [path.name for path in cluster.exports.iterdir()] == ["kept"]


class _Pause:
    """Holds the parts of one gallery back."""

    def __init__(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.reached, self.open = asyncio.Event(), asyncio.Event()
        place = cluster.placement.place

        async def slow(part: Part) -> PlacedPart:
            if getattr(getattr(part, "spec", None), "name", "") == name:
                self.reached.set()
                await self.open.wait()
            return await place(part)

        monkeypatch.setattr(cluster.placement, "place", slow)


async def test_an_import_given_up_while_its_parts_start_is_taken_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _export(cluster)
    pause = _Pause(cluster, monkeypatch, "boots")
    call = asyncio.ensure_future(_load(cluster, name="boots"))
    await pause.reached.wait()
    assert cluster.stored == ["boots", "shoes"]

    call.cancel()
    await asyncio.gather(call, return_exceptions=True)

    await until(lambda: cluster.stored == cluster.names == ["shoes"])
    monkeypatch.undo()
    await _load(cluster, name="boots")
    assert cluster.names == ["boots", "shoes"]


async def test_an_import_given_up_while_it_waits_for_another_change_is_taken_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _export(cluster)
    pause = _Pause(cluster, monkeypatch, "slow")
    other = asyncio.ensure_future(cluster.controller.create(replace(SPEC, name="slow")))
    await pause.reached.wait()
    call = asyncio.ensure_future(_load(cluster, name="boots"))
    await until(lambda: "boots" in cluster.stored)

    call.cancel()
    await asyncio.gather(call, return_exceptions=True)

    await until(lambda: cluster.stored == ["shoes", "slow"])
    pause.open.set()
    await other
    await until(lambda: cluster.names == ["shoes", "slow"])


async def test_an_import_whose_parts_do_not_start_is_not_left_behind(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _export(cluster)
    place = cluster.placement.place

    async def failing(part: Part) -> PlacedPart:
        if getattr(getattr(part, "spec", None), "name", "") == "boots":
            raise RuntimeError("no node has room")
        return await place(part)

    monkeypatch.setattr(cluster.placement, "place", failing)

    with pytest.raises(errors.Unavailable, match="does not start"):
        await _load(cluster, name="boots")

    assert cluster.stored == ["shoes"]
    await until(lambda: cluster.names == ["shoes"])
