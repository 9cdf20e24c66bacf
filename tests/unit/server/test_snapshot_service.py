"""Snapshots, exports and imports through a real channel, on a real store in this process."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import field_mask_pb2
from grpc import aio
from tests.unit.server.fakes import FakeModels, field_of, info
from tests.unit.server.gate import Gate
from tests.unit.server.stubs import Stubs, by_vector, connected, ids, shop, upsert, vectors
from typer.testing import CliRunner

from likewise.client import AsyncClient, LikewiseError
from likewise.client.cli.app import app
from likewise.server.app import Server, ServerOptions
from likewise.server.galleries import EmbeddedGalleries, StoreOptions
from likewise.shards.staging import STAGING_PREFIX
from likewise.v1 import common_pb2, item_service_pb2
from likewise.v1 import gallery_service_pb2 as pb

MATRIX = vectors(20)
IDS = ids(20)


def server(folder: Path, *, export_root: bool = True) -> Server:
    root = folder / "exports" if export_root else None
    galleries = EmbeddedGalleries(StoreOptions(uri=str(folder / "store"), export_root=root))
    return Server(ServerOptions(port=0, drain_grace_s=5), models=FakeModels(), galleries=galleries, parts=(galleries,))


async def fill(stubs: Stubs) -> None:
    spec = pb.GallerySpec(name="shop", shards=2, spaces=[pb.Space(encoder="fake")])
    await stubs.galleries.Create(pb.GalleryServiceCreateRequest(spec=spec))
    await stubs.items.Upsert(upsert(IDS, MATRIX))


async def snapshot(stubs: Stubs, name: str = "s", **fields: Any) -> pb.Snapshot:
    request = pb.GalleryServiceCreateSnapshotRequest(gallery="shop", snapshot=name, **fields)
    return (await stubs.galleries.CreateSnapshot(request)).snapshot


async def restore(stubs: Stubs, name: str, **fields: Any) -> pb.Gallery:
    request = pb.GalleryServiceRestoreSnapshotRequest(**{"gallery": "shop", "snapshot": "s", "name": name, **fields})
    return (await stubs.galleries.RestoreSnapshot(request)).gallery


async def export(stubs: Stubs, folder: str, **fields: Any) -> list[pb.GalleryServiceExportGalleryResponse]:
    request = pb.GalleryServiceExportGalleryRequest(**{"gallery": "shop", "folder": folder, **fields})
    return [message async for message in stubs.galleries.ExportGallery(request)]


async def load(stubs: Stubs, folder: str, **fields: Any) -> list[pb.GalleryServiceImportGalleryResponse]:
    request = pb.GalleryServiceImportGalleryRequest(folder=folder, **fields)
    return [message async for message in stubs.galleries.ImportGallery(request)]


async def delete(stubs: Stubs, *item_ids: str, gallery: str = "shop") -> None:
    await stubs.items.Delete(
        item_service_pb2.ItemServiceDeleteRequest(gallery=gallery, ids=item_service_pb2.IdList(ids=item_ids))
    )


async def found(stubs: Stubs, gallery: str) -> list[str]:
    newest = (await stubs.galleries.Get(pb.GalleryServiceGetRequest(name=gallery))).gallery
    token = common_pb2.VersionToken(gallery_id=newest.gallery_id, version=newest.version)
    request = by_vector(MATRIX[0], k=50, at_least=token)
    request.gallery = gallery
    return list((await stubs.search.Search(request)).hits.ids)


async def names(stubs: Stubs) -> list[str]:
    answer = await stubs.galleries.List(pb.GalleryServiceListRequest())
    return [gallery.spec.name for gallery in answer.galleries]


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{STAGING_PREFIX}*"))


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


CREATE, RESTORE = pb.GalleryServiceCreateSnapshotRequest, pb.GalleryServiceRestoreSnapshotRequest
DELETE, LIST = pb.GalleryServiceDeleteSnapshotRequest, pb.GalleryServiceListSnapshotsRequest
EXPORT, IMPORT = pb.GalleryServiceExportGalleryRequest, pb.GalleryServiceImportGalleryRequest
METHODS = {CREATE: "CreateSnapshot", RESTORE: "RestoreSnapshot", DELETE: "DeleteSnapshot", LIST: "ListSnapshots"}
STREAMS = {EXPORT: "ExportGallery", IMPORT: "ImportGallery"}


async def ask(stubs: Stubs, request: Any) -> None:
    if type(request) in METHODS:
        await getattr(stubs.galleries, METHODS[type(request)])(request)
    else:
        async for _ in getattr(stubs.galleries, STREAMS[type(request)])(request):
            pass


@pytest.mark.parametrize(
    ("request_", "code", "reason", "field", "words"),
    [
        pytest.param(CREATE(gallery="no", snapshot="x"), "NOT_FOUND", "GALLERY_NOT_FOUND", "", "'no'", id="gallery"),
        pytest.param(CREATE(snapshot="x"), "INVALID_ARGUMENT", "", "gallery", "required", id="no gallery"),
        pytest.param(CREATE(gallery="shop"), "INVALID_ARGUMENT", "", "snapshot", "required", id="no name"),
        pytest.param(
            CREATE(gallery="shop", snapshot="A b"), "INVALID_ARGUMENT", "", "snapshot", "'A b' does not", id="bad name"
        ),
        pytest.param(
            CREATE(gallery="shop", snapshot="s"), "ALREADY_EXISTS", "SNAPSHOT_EXISTS", "", "'s' already", id="twice"
        ),
        pytest.param(
            CREATE(gallery="shop", snapshot="x", note="n" * 1025), "INVALID_ARGUMENT", "", "note", "got 1025", id="note"
        ),
        pytest.param(
            CREATE(gallery="shop", snapshot="x", version=99), "INVALID_ARGUMENT", "", "version", "got 99", id="future"
        ),
        pytest.param(
            CREATE(gallery="shop", snapshot="x", version=0), "INVALID_ARGUMENT", "", "version", "got 0", id="version 0"
        ),
        pytest.param(LIST(gallery="no"), "NOT_FOUND", "GALLERY_NOT_FOUND", "", "'no'", id="list unknown"),
        pytest.param(LIST(gallery="shop", page_size=0), "INVALID_ARGUMENT", "", "page_size", "got 0", id="page size"),
        pytest.param(
            DELETE(gallery="shop", snapshot="x"), "NOT_FOUND", "SNAPSHOT_NOT_FOUND", "", "it has ['s']", id="delete"
        ),
        pytest.param(
            RESTORE(gallery="shop", snapshot="x", name="new"),
            "NOT_FOUND",
            "SNAPSHOT_NOT_FOUND",
            "",
            "'x'",
            id="restore",
        ),
        pytest.param(RESTORE(gallery="shop", snapshot="s"), "INVALID_ARGUMENT", "", "name", "required", id="no target"),
        pytest.param(
            RESTORE(gallery="shop", snapshot="s", name="../x"), "INVALID_ARGUMENT", "", "name", "not match", id="target"
        ),
        pytest.param(
            RESTORE(gallery="shop", snapshot="s", name="shop"),
            "ALREADY_EXISTS",
            "GALLERY_EXISTS",
            "",
            "'shop'",
            id="onto",
        ),
        pytest.param(
            EXPORT(gallery="no", folder="x"), "NOT_FOUND", "GALLERY_NOT_FOUND", "", "'no'", id="export unknown"
        ),
        pytest.param(
            EXPORT(gallery="shop", folder="x", snapshot="y"),
            "NOT_FOUND",
            "SNAPSHOT_NOT_FOUND",
            "",
            "'y'",
            id="export y",
        ),
        pytest.param(EXPORT(gallery="shop"), "INVALID_ARGUMENT", "", "folder", "required", id="no folder"),
        pytest.param(
            EXPORT(gallery="shop", folder="../x"), "INVALID_ARGUMENT", "", "folder", "not a path", id="export out"
        ),
        pytest.param(
            EXPORT(gallery="shop", folder="/etc"), "INVALID_ARGUMENT", "", "folder", "not a path", id="absolute"
        ),
        pytest.param(
            EXPORT(gallery="shop", folder="kept"), "ALREADY_EXISTS", "EXPORT_EXISTS", "", "'kept' exists", id="over"
        ),
        pytest.param(IMPORT(folder="none"), "NOT_FOUND", "EXPORT_NOT_FOUND", "", "no export 'none'", id="import none"),
        pytest.param(IMPORT(folder=".."), "INVALID_ARGUMENT", "", "folder", "not a path", id="import out"),
        pytest.param(IMPORT(folder="kept"), "ALREADY_EXISTS", "GALLERY_EXISTS", "", "'shop' exists", id="import onto"),
        pytest.param(
            IMPORT(folder="kept", name="A b"), "INVALID_ARGUMENT", "", "name", "'A b' does not", id="import name"
        ),
        pytest.param(
            IMPORT(folder="foreign", name="new"),
            "FAILED_PRECONDITION",
            "NOT_AN_EXPORT",
            "",
            "no manifest",
            id="foreign",
        ),
        pytest.param(
            IMPORT(folder="newer", name="new"), "FAILED_PRECONDITION", "NEWER_FORMAT", "", "format 2", id="newer"
        ),
        pytest.param(
            IMPORT(folder="unnamed"), "FAILED_PRECONDITION", "NOT_AN_EXPORT", "", "give another", id="unusable name"
        ),
        pytest.param(
            IMPORT(folder="damaged", name="new"), "DATA_LOSS", "EXPORT_DAMAGED", "", "is damaged: its SHA", id="damaged"
        ),
    ],
)
async def test_bad_requests_are_refused_and_change_nothing(
    prepared: Path, tmp_path: Path, request_: Any, code: str, reason: str, field: str, words: str
) -> None:
    shutil.copytree(prepared, tmp_path / "server")
    exports = tmp_path / "server" / "exports"
    async with connected(server(tmp_path / "server")) as stubs:
        before = (await stubs.galleries.ListSnapshots(LIST(gallery="shop"))).snapshots
        with pytest.raises(aio.AioRpcError) as error:
            await ask(stubs, request_)
        after = (await stubs.galleries.ListSnapshots(LIST(gallery="shop"))).snapshots

        assert error.value.code().name == code
        assert words in (error.value.details() or "")
        assert str(tmp_path) not in (error.value.details() or "")
        if reason:
            assert info(error.value).reason == reason
        if field:
            assert field_of(error.value) == field
        assert [one.name for one in before] == ["s"]
        assert list(after) == list(before)
        assert await names(stubs) == ["shop"]
        assert len(await found(stubs, "shop")) == 20
    assert sorted(path.name for path in exports.iterdir()) == ["damaged", "foreign", "kept", "newer", "unnamed"]
    assert leftovers(tmp_path) == []


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's folder: a gallery with a snapshot, and exports good and bad."""
    folder = tmp_path_factory.mktemp("prepared")

    async def prepare() -> None:
        async with connected(server(folder)) as stubs:
            await fill(stubs)
            await snapshot(stubs)
            await export(stubs, "kept")

    asyncio.run(prepare())
    exports = folder / "exports"
    for name in ("newer", "damaged", "unnamed"):
        shutil.copytree(exports / "kept", exports / name)
    (exports / "foreign").mkdir()
    _rewrite(exports / "newer", format=2)
    _rewrite(exports / "unnamed", gallery="../shop")
    data = next((exports / "damaged" / "gallery.lance" / "data").iterdir())
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    return folder


def _rewrite(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


async def test_a_version_that_was_cleaned_up_is_told_from_one_to_come(tmp_path: Path) -> None:
    made = server(tmp_path)
    async with connected(made) as stubs:
        await fill(stubs)
        gallery = made._galleries.store_of("shop")  # type: ignore[attr-defined]
        gallery.clean_up(older_than_s=0, keep=1)
        with pytest.raises(aio.AioRpcError) as error:
            await snapshot(stubs, version=1)

    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert info(error.value).reason == "VERSION_GONE"


async def test_without_an_export_root_nothing_is_exported_or_imported(tmp_path: Path) -> None:
    async with connected(server(tmp_path, export_root=False)) as stubs:
        await fill(stubs)
        for request in (EXPORT(gallery="shop", folder="x"), IMPORT(folder="x")):
            with pytest.raises(aio.AioRpcError) as error:
                await ask(stubs, request)
            assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert info(error.value).reason == "EXPORT_ROOT_UNSET"


@pytest.mark.parametrize(
    "request_",
    [
        CREATE(gallery="shop", snapshot="x"),
        LIST(gallery="shop"),
        DELETE(gallery="shop", snapshot="x"),
        RESTORE(gallery="shop", snapshot="x", name="new"),
        EXPORT(gallery="shop", folder="x"),
        IMPORT(folder="x"),
    ],
    ids=lambda request: type(request).__name__,
)
async def test_galleries_without_snapshots_say_so(request_: Any) -> None:
    async with shop() as stubs:
        with pytest.raises(aio.AioRpcError) as error:
            await ask(stubs, request_)

    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "are not served here" in (error.value.details() or "")


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
            call = stubs.galleries.ExportGallery(EXPORT(gallery="shop", folder="second"))
        else:
            call = stubs.galleries.ImportGallery(IMPORT(folder="kept", name="second"))
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
