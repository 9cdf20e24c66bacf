"""A server on a real store, and the calls that make, restore, export and import its galleries."""

from pathlib import Path
from typing import Any

from tests.unit.server.fakes import FakeModels
from tests.unit.server.stubs import Stubs, by_vector, ids, upsert, vectors

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
