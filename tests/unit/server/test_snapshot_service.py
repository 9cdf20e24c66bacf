"""Snapshots, exports and imports through a real channel, on a real store in this process."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import field_mask_pb2
from grpc import aio
from tests.unit.server.fakes import info
from tests.unit.server.gate import Gate
from tests.unit.server.snapshot_calls import (
    IDS,
    MATRIX,
    delete,
    export,
    fill,
    found,
    leftovers,
    load,
    names,
    restore,
    server,
    snapshot,
)
from tests.unit.server.stubs import connected, upsert
from typer.testing import CliRunner

from likewise.client import AsyncClient, LikewiseError
from likewise.client.cli.app import app
from likewise.v1 import gallery_service_pb2 as pb


async def test_a_past_version_is_searched_in_a_read_only_gallery(tmp_path: Path) -> None:
    async with connected(server(tmp_path)) as stubs:
        await fill(stubs)
        before = await found(stubs, "shop")
        made = await snapshot(stubs, note="all of them")
        await delete(stubs, *IDS[:15])
        gallery = await restore(stubs, "past", read_only=True)
        past, now = await found(stubs, "past"), await found(stubs, "shop")
        late = upsert(["x"], MATRIX[:1])
        late.gallery = "past"
        with pytest.raises(aio.AioRpcError) as write:
            await stubs.items.Upsert(late)
        with pytest.raises(aio.AioRpcError) as removal:
            await delete(stubs, "x", gallery="past")
        with pytest.raises(aio.AioRpcError) as change:
            await stubs.galleries.Update(
                pb.GalleryServiceUpdateRequest(
                    spec=pb.GallerySpec(name="past", shards=3),
                    update_mask=field_mask_pb2.FieldMask(paths=["shards"]),
                )
            )

    assert (made.rows, made.note) == (20, "all of them")
    assert past == before
    assert now == [item for item in before if item in IDS[15:]]
    assert gallery.read_only
    for refused in (write, removal, change):
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert info(refused.value).reason == "GALLERY_READ_ONLY"

    async with connected(server(tmp_path)) as stubs:
        assert await found(stubs, "past") == before
        again = (await stubs.galleries.Get(pb.GalleryServiceGetRequest(name="past"))).gallery
        assert again == gallery, "nothing writes to it, not even a restart"
        await stubs.galleries.Delete(pb.GalleryServiceDeleteRequest(name="past"))
        assert await names(stubs) == ["shop"]


async def test_a_restored_gallery_takes_writes_of_its_own_and_outlives_its_source(tmp_path: Path) -> None:
    async with connected(server(tmp_path)) as stubs:
        await fill(stubs)
        await snapshot(stubs)
        await restore(stubs, "twin")
        await stubs.galleries.Delete(pb.GalleryServiceDeleteRequest(name="shop"))
        request = upsert(["new"], MATRIX[:1])
        request.gallery = "twin"
        token = (await stubs.items.Upsert(request)).version

    async with connected(server(tmp_path)) as stubs:
        assert sorted(await found(stubs, "twin")) == sorted([*IDS, "new"])
        assert await names(stubs) == ["twin"]
    assert token.version > 0


async def test_snapshots_are_listed_by_name_page_by_page_and_survive_a_restart(tmp_path: Path) -> None:
    async with connected(server(tmp_path)) as stubs:
        await fill(stubs)
        for name in ("c", "a", "b"):
            await snapshot(stubs, name)
        await stubs.galleries.DeleteSnapshot(pb.GalleryServiceDeleteSnapshotRequest(gallery="shop", snapshot="b"))
        await snapshot(stubs, "d")

    async with connected(server(tmp_path)) as stubs:
        pages = []
        token = ""
        while True:
            request = pb.GalleryServiceListSnapshotsRequest(gallery="shop", page_size=2, page_token=token)
            page = await stubs.galleries.ListSnapshots(request)
            pages.append([one.name for one in page.snapshots])
            token = page.next_page_token
            if not token:
                break
        assert pages == [["a", "c"], ["d"]]
        foreign = pb.GalleryServiceListSnapshotsRequest(gallery="shop", page_token="x")
        with pytest.raises(aio.AioRpcError) as error:
            await stubs.galleries.ListSnapshots(foreign)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_gallery_travels_to_another_store_as_a_folder(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    async with connected(server(here)) as stubs:
        await fill(stubs)
        before = await found(stubs, "shop")
        await snapshot(stubs)
        await delete(stubs, *IDS[:5])
        newest, named = await export(stubs, "newest"), await export(stubs, "named", snapshot="s")
    there.mkdir()
    (here / "exports").rename(there / "exports")

    async with connected(server(there)) as stubs:
        steps = await load(stubs, "named")
        await load(stubs, "newest", name="later", read_only=True)
        assert await found(stubs, "shop") == before
        assert await found(stubs, "later") == [item for item in before if item in IDS[5:]]
        assert await names(stubs) == ["later", "shop"]

    assert (named[-1].export.rows, newest[-1].export.rows) == (20, 15)
    assert (named[-1].export.folder, named[-1].export.gallery) == ("named", "shop")
    assert [message.HasField("export") for message in named] == [False] * (len(named) - 1) + [True]
    assert steps[-1].gallery.spec.name == "shop"
    assert steps[-1].progress.bytes_done == steps[-1].progress.bytes == named[-1].export.bytes
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("direction", ["export", "import"])
async def test_a_transfer_whose_caller_goes_away_stops_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    async with connected(server(tmp_path)) as stubs:
        await fill(stubs)
        await export(stubs, "kept")
        gate = Gate(monkeypatch)
        call: Any
        if direction == "export":
            call = stubs.galleries.ExportGallery(pb.GalleryServiceExportGalleryRequest(gallery="shop", folder="second"))
        else:
            call = stubs.galleries.ImportGallery(pb.GalleryServiceImportGalleryRequest(folder="kept", name="second"))
        reading = asyncio.ensure_future(anext(aiter(call)))
        await gate.passed()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await gate.told_to_stop()
        gate.open.set()
    # The server is stopped: whatever it did has ended.
    assert leftovers(tmp_path) == []
    assert [path.name for path in (tmp_path / "exports").iterdir()] == ["kept"]
    assert sorted(path.name for path in (tmp_path / "store").glob("*.lance")) == ["shop.lance"]


async def test_more_transfers_than_may_run_are_told_when_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(server(tmp_path)) as stubs:
        await fill(stubs)
        await snapshot(stubs)
        gate = Gate(monkeypatch)
        running = [asyncio.ensure_future(export(stubs, f"e{i}")) for i in range(2)]
        for _ in running:
            await gate.passed()
        with pytest.raises(aio.AioRpcError) as error:
            await restore(stubs, "new")
        gate.open.set()
        await asyncio.gather(*running)
        await restore(stubs, "new")

    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert info(error.value).reason == "TRANSFERS_BUSY"


async def test_galleries_can_be_made_and_written_while_one_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(server(tmp_path)) as stubs:
        await fill(stubs)
        gate = Gate(monkeypatch)
        running = asyncio.ensure_future(export(stubs, "backup"))
        await gate.passed()
        await stubs.items.Upsert(upsert(["late"], MATRIX[:1]))
        spec = pb.GallerySpec(name="other", spaces=[pb.Space(dim=2)])
        await stubs.galleries.Create(pb.GalleryServiceCreateRequest(spec=spec))
        gate.open.set()
        steps = await running

        assert steps[-1].export.rows == 20
        assert len(await found(stubs, "shop")) == 21


async def _sdk_errors(calls: list[Callable[[], Awaitable[Any]]]) -> list[str]:
    codes = []
    for call in calls:
        with pytest.raises(LikewiseError) as error:
            await call()
        codes.append(type(error.value).__name__)
    return codes


async def test_the_sdk_does_it_all(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    async with connected(server(tmp_path)) as stubs, AsyncClient(stubs.address) as client:
        shop = await client.create_gallery("shop", dim=8)
        await shop.upsert(IDS, vectors=MATRIX)
        made = await shop.create_snapshot("s", note="n", version=shop.version)
        assert await shop.snapshots() == [made]
        past = await shop.restore_snapshot("s", "past", read_only=True)
        out = await shop.export("backup", snapshot="s", progress=lambda done, total: progress.append((done, total)))
        back = await client.import_gallery("backup", "back")
        errors = await _sdk_errors(
            [
                lambda: shop.create_snapshot("s"),
                lambda: shop.restore_snapshot("t", "x"),
                lambda: shop.export("backup"),
                lambda: client.import_gallery("none"),
                lambda: past.upsert(["x"], vectors=MATRIX[:1]),
            ]
        )
        await shop.delete_snapshot("s")
        left = await shop.snapshots()
        counts = [await gallery.count() for gallery in (shop, past, back)]
        read_only = [(await gallery.info()).read_only for gallery in (shop, past, back)]

    assert (made.rows, made.note, left) == (20, "n", [])
    assert counts == [20, 20, 20]
    assert read_only == [False, True, False]
    assert 0 < progress[-1][0] == progress[-1][1] <= out.bytes
    assert errors == ["AlreadyExists", "NotFound", "AlreadyExists", "NotFound", "FailedPrecondition"]


async def test_the_command_line_exports_and_imports(tmp_path: Path) -> None:
    async with connected(server(tmp_path)) as stubs:
        await fill(stubs)

        async def run(*arguments: str) -> tuple[int, str]:
            line = [*arguments, "--address", stubs.address]
            result = await asyncio.to_thread(CliRunner().invoke, app, line)
            return result.exit_code, result.output

        out = await run("gallery", "export", "shop")
        again = await run("gallery", "export", "shop", "shop")
        back = await run("gallery", "import", "shop", "--name", "copy", "--read-only", "--json")
        onto = await run("gallery", "import", "shop")
        count = len(await found(stubs, "copy"))

    assert out[0] == 0
    assert out[1].startswith("exported shop at version 4 to shop: 20 items, ")
    assert (again[0], again[1]) == (1, "likewise: the export 'shop' exists already; choose another name or remove it\n")
    assert (json.loads(back[1])["read_only"], count) == (True, 20)
    assert onto == (1, "likewise: the gallery 'shop' exists already\n")
