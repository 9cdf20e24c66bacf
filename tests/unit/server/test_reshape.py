"""A gallery of a real store in this process gets other shards while it serves, or keeps those it has."""

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import field_mask_pb2
from grpc import aio
from tests.unit.server.fakes import FakeModels, info
from tests.unit.server.stubs import Stubs, by_vector, connected, ids, upsert
from tests.unit.server.waiting import until

from likewise import wire
from likewise.server import reshape
from likewise.server.app import Server, ServerOptions
from likewise.server.galleries import EmbeddedGalleries, StoreOptions
from likewise.shards import audit
from likewise.shards.protocols import SearchOptions, StoreFailure
from likewise.shards.writer import GalleryWriter
from likewise.v1 import common_pb2, item_service_pb2, search_service_pb2
from likewise.v1 import gallery_service_pb2 as pb

DIM = 16
ROWS = 2_500
IDS = ids(ROWS)
MATRIX = np.random.default_rng(5).normal(size=(ROWS, DIM)).astype(np.float32)
EXACT = search_service_pb2.SearchParams(exact=True)
POOR = pb.IndexSpec(kind="hnsw", m=4, ef_construction=8, ef=1)
"""An index that misses much."""


@pytest.fixture
def galleries(tmp_path: Path) -> EmbeddedGalleries:
    return EmbeddedGalleries(StoreOptions(uri=str(tmp_path / "store")))


@pytest.fixture
async def stubs(galleries: EmbeddedGalleries) -> AsyncIterator[Stubs]:
    """A server with the gallery "shop" of two flat shards."""
    server = Server(
        ServerOptions(port=0, drain_grace_s=5), models=FakeModels(), galleries=galleries, parts=(galleries,)
    )
    async with connected(server) as stubs:
        spec = pb.GallerySpec(name="shop", shards=2, spaces=[pb.Space(dim=DIM)], index=pb.IndexSpec(kind="flat"))
        await stubs.galleries.Create(pb.GalleryServiceCreateRequest(spec=spec))
        await _answer(stubs, (await stubs.items.Upsert(upsert(IDS, MATRIX))).version)
        yield stubs


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """While it is not set, no check of new shards begins."""
    release = asyncio.Event()
    check = reshape.check

    async def waiting(*args: Any, **kwargs: Any) -> reshape.Verdict:
        await release.wait()
        return await check(*args, **kwargs)

    monkeypatch.setattr(reshape, "check", waiting)
    return release


def _update(min_recall: float | None = None, **fields: object) -> pb.GalleryServiceUpdateRequest:
    return pb.GalleryServiceUpdateRequest(
        spec=pb.GallerySpec(name="shop", **fields),  # type: ignore[arg-type]  # fields by name
        update_mask=field_mask_pb2.FieldMask(paths=list(fields)),
        min_recall=min_recall,
    )


async def _stats(stubs: Stubs) -> pb.GalleryServiceStatsResponse:
    return await stubs.galleries.Stats(pb.GalleryServiceStatsRequest(name="shop"))


async def _answer(stubs: Stubs, token: common_pb2.VersionToken | None = None) -> list[str]:
    return list((await stubs.search.Search(by_vector(MATRIX[0], k=100, params=EXACT, at_least=token))).hits.ids)


async def _refused(call: Awaitable[object]) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_another_index_is_built_before_the_call_returns(stubs: Stubs) -> None:
    before = await _answer(stubs)

    updated = await stubs.galleries.Update(_update(shards=4, index=pb.IndexSpec(kind="hnsw")))

    assert (updated.gallery.spec.shards, updated.gallery.spec.index.kind) == (4, "hnsw")
    stats = await _stats(stubs)
    # A shard of fewer than 1,024 rows has no index whatever is asked for.
    assert [shard.state for shard in stats.shards] == [pb.INDEX_STATE_READY] * 4
    assert await _answer(stubs) == before
    await stubs.galleries.Update(_update(shards=2))
    stats = await _stats(stubs)
    assert [shard.index for shard in stats.shards] == ["HNSW32,Flat"] * 2
    assert await _answer(stubs) == before


async def test_writes_during_the_build_are_in_both_generations(
    galleries: EmbeddedGalleries, stubs: Stubs, held: asyncio.Event
) -> None:
    change = asyncio.ensure_future(stubs.galleries.Update(_update(shards=4)))
    old = galleries.get("shop")
    await until(lambda: galleries._open["shop"].change is not None)

    token = (await stubs.items.Upsert(upsert(["new"], MATRIX[:1]))).version
    assert (await _answer(stubs, token))[:2] == ["item-00", "new"]
    held.set()
    await change

    assert (await _answer(stubs, token))[:2] == ["item-00", "new"]
    later = (await stubs.items.Upsert(upsert(["newer"], MATRIX[:1]))).version
    assert (await _answer(stubs, later))[:3] == ["item-00", "new", "newer"]
    counted = [await shard.count(b"", min_version=later.version) for shard in old.shards]
    assert sum(count for count, _ in counted) == ROWS + 2, "a call that began before the switch is not cut off"


async def test_replaced_shards_end_once_no_call_holds_them(galleries: EmbeddedGalleries, stubs: Stubs) -> None:
    old = galleries.get("shop")
    shards = list(old.shards)
    query = np.ascontiguousarray(MATRIX[:1])

    await stubs.galleries.Update(_update(shards=4))
    await asyncio.gather(*(shard.search(query, SearchOptions("default", 5)) for shard in old.shards))
    assert galleries._retiring
    del old

    await until(lambda: not galleries._retiring)
    with pytest.raises(Exception, match="closing"):
        await shards[0].search(query, SearchOptions("default", 5))


async def test_an_index_that_misses_too_much_does_not_take_over(stubs: Stubs, tmp_path: Path) -> None:
    before = await _answer(stubs)
    gallery = (await stubs.galleries.Get(pb.GalleryServiceGetRequest(name="shop"))).gallery

    error = await _refused(stubs.galleries.Update(_update(index=POOR, min_recall=1.0)))

    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert info(error).reason == reshape.CHECK_FAILED
    assert info(error).metadata["check"] == "recall"
    assert float(info(error).metadata["recall"]) < 1.0
    assert f"recall@10 over {reshape.PROBES} stored vectors is 0." in (error.details() or "")
    assert (await stubs.galleries.Get(pb.GalleryServiceGetRequest(name="shop"))).gallery == gallery
    assert [shard.index for shard in (await _stats(stubs)).shards] == ["flat"] * 2
    assert await _answer(stubs) == before
    assert list((tmp_path / "store" / ".cache").glob("*")) == []


async def test_the_caller_may_accept_a_worse_index(stubs: Stubs) -> None:
    await stubs.galleries.Update(_update(index=POOR, min_recall=0.0))

    assert [shard.index for shard in (await _stats(stubs)).shards] == ["HNSW4,Flat"] * 2


@pytest.mark.parametrize("asked", [-0.1, 1.1, float("nan")])
async def test_a_recall_that_cannot_be_is_refused(stubs: Stubs, asked: float) -> None:
    error = await _refused(stubs.galleries.Update(_update(shards=4, min_recall=asked)))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "min_recall must be in [0, 1]" in (error.details() or "")


async def test_an_index_that_cannot_be_built_leaves_everything_as_it_was(stubs: Stubs) -> None:
    before = await _answer(stubs)

    error = await _refused(stubs.galleries.Update(_update(index=pb.IndexSpec(kind="IVF4096,Flat"))))

    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert info(error).metadata["check"] == "build"
    assert (error.details() or "").endswith("should be at least as large as number of clusters (4096)")
    assert [(shard.index, shard.message) for shard in (await _stats(stubs)).shards] == [("flat", "")] * 2
    assert await _answer(stubs) == before


async def test_shards_that_lack_a_row_do_not_take_over(stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = audit.stored_rows

    def one_more(gallery: Any, version: int, shard: int, shards: int) -> int:
        return stored(gallery, version, shard, shards) + (shard == 3)

    monkeypatch.setattr(audit, "stored_rows", one_more)

    error = await _refused(stubs.galleries.Update(_update(shards=4)))

    metadata = info(error).metadata
    assert (metadata["check"], metadata["shard"]) == ("counts", "3")
    assert int(metadata["expected"]) == int(metadata["got"]) + 1
    assert len((await _stats(stubs)).shards) == 2


async def test_a_full_disk_at_the_switch_changes_nothing(stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(_self: GalleryWriter, _spec: object) -> int:
        failure = StoreFailure("the description could not be stored: no space left on the store's device")
        raise failure from OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(GalleryWriter, "update_spec", full)
        error = await _refused(stubs.galleries.Update(_update(shards=4)))

    assert (error.code(), info(error).reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL")
    assert len((await _stats(stubs)).shards) == 2
    await stubs.galleries.Update(_update(shards=4))
    assert len((await _stats(stubs)).shards) == 4


async def test_a_call_that_is_given_up_changes_nothing(
    galleries: EmbeddedGalleries, stubs: Stubs, held: asyncio.Event
) -> None:
    change = stubs.galleries.Update(_update(shards=4))
    await until(lambda: galleries._open["shop"].change is not None)

    change.cancel()

    await until(lambda: galleries._open["shop"].change is None)
    assert len((await _stats(stubs)).shards) == 2
    held.set()
    await stubs.galleries.Update(_update(shards=4))
    assert len((await _stats(stubs)).shards) == 4


async def test_a_second_change_meanwhile_is_refused(
    galleries: EmbeddedGalleries, stubs: Stubs, held: asyncio.Event
) -> None:
    change = asyncio.ensure_future(stubs.galleries.Update(_update(shards=4)))
    await until(lambda: galleries._open["shop"].change is not None)

    colour = pb.Attribute(name="colour", type=common_pb2.ATTRIBUTE_TYPE_STRING)
    errors = [
        await _refused(stubs.galleries.Update(_update(shards=3))),
        await _refused(stubs.galleries.Update(_update(attributes=[colour]))),
    ]
    held.set()
    await change

    assert [info(error).reason for error in errors] == [reshape.CHANGE_RUNNING] * 2
    assert len((await _stats(stubs)).shards) == 4


async def test_deleting_a_gallery_ends_its_change(
    galleries: EmbeddedGalleries, stubs: Stubs, held: asyncio.Event
) -> None:
    change = asyncio.ensure_future(stubs.galleries.Update(_update(shards=4)))
    await until(lambda: galleries._open["shop"].change is not None)

    await stubs.galleries.Delete(pb.GalleryServiceDeleteRequest(name="shop"))

    assert (await _refused(change)).code() is grpc.StatusCode.UNAVAILABLE
    assert list((await stubs.galleries.List(pb.GalleryServiceListRequest())).galleries) == []


async def test_attributes_can_be_added_together_with_shards(stubs: Stubs) -> None:
    colour = pb.Attribute(name="colour", type=common_pb2.ATTRIBUTE_TYPE_STRING)

    await stubs.galleries.Update(_update(shards=3, attributes=[colour]))

    token = (await stubs.items.Upsert(upsert(["new"], MATRIX[:1], colours=["red"]))).version
    request = item_service_pb2.ItemServiceGetRequest(
        gallery="shop", ids=["new", IDS[0]], attributes=["colour"], at_least=token
    )
    got = await stubs.items.Get(request)
    assert wire.decode_column(got.items.attributes[0]) == ["red", None]


async def test_a_restart_after_a_change_finds_one_generation_and_its_indexes(
    stubs: Stubs, galleries: EmbeddedGalleries, tmp_path: Path
) -> None:
    await stubs.galleries.Update(_update(index=pb.IndexSpec(kind="hnsw")))
    await stubs.galleries.Update(_update(index=pb.IndexSpec(kind="hnsw", m=8)))
    await until(lambda: not galleries._retiring)

    kept = [path.name for path in (tmp_path / "store" / ".cache").iterdir()]

    assert len(kept) == 2
    assert len({name.split("-of-")[1] for name in kept}) == 1
