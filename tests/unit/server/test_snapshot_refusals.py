"""Snapshots, exports and imports that cannot be: refused with their reason, and nothing is changed."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from tests.unit.server.fakes import field_of, info
from tests.unit.server.snapshot_calls import export, fill, found, leftovers, names, server, snapshot
from tests.unit.server.stubs import Stubs, connected, shop

from likewise.v1 import gallery_service_pb2 as pb

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
