import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.unit.shards.gated_gallery import GatedGallery, queued, stored, writing
from tests.unit.shards.store_fixtures import SPEC, Follower, rows

from likewise.shards.protocols import (
    Overloaded,
    StoreFailure,
    Unavailable,
    WriteResult,
)
from likewise.shards.store import Store
from likewise.shards.write_queue import WriterLimits


@pytest.fixture
def gallery(tmp_path: Path) -> GatedGallery:
    return GatedGallery(Store(str(tmp_path), sync=False).create(SPEC).uri)


async def test_a_write_that_fails_in_no_known_way_is_answered_and_the_writer_goes_on(
    gallery: GatedGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(writes: object) -> None:
        raise ZeroDivisionError

    async with writing(gallery) as writer:
        with monkeypatch.context() as patch:
            patch.setattr("likewise.shards.committer.fold", broken)
            with pytest.raises(StoreFailure, match="unexpected ZeroDivisionError"):
                await writer.upsert(rows({"a": 1}))
            patch.setattr("likewise.shards.committer.Committer._attempt", broken)
            with pytest.raises(StoreFailure, match="failed unexpectedly"):
                await writer.upsert(rows({"a": 1}))

        assert (await writer.upsert(rows({"a": 1}))).rows == 1


async def test_one_request_that_the_store_refuses_does_not_fail_its_neighbours(gallery: GatedGallery) -> None:
    gallery.refused = {"bad"}
    async with writing(gallery) as writer:
        gallery.gate.clear()
        tasks = await queued(writer.upsert(rows({"first": 1})))
        await gallery.reached()
        tasks += await queued(
            writer.upsert(rows({"a": 1})), writer.upsert(rows({"bad": 1, "also": 1})), writer.upsert(rows({"a": 2}))
        )
        gallery.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(result) for result in results] == [WriteResult, WriteResult, StoreFailure, WriteResult]
    assert stored(gallery) == {"first": 1, "a": 2}


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_fails_the_write_clearly_and_the_writer_goes_on(gallery: GatedGallery) -> None:
    big = rows({f"{i}": i for i in range(20_000)})
    async with writing(gallery) as writer:
        began = await writer.version()
        follower = Follower(began)
        writer.add_sink(follower)
        with file_size_limit(100_000), pytest.raises(StoreFailure, match="past the size limit of this process"):
            await writer.upsert(big)

        assert await writer.version() == gallery.newest_version() == began
        assert (await writer.upsert(rows({"a": 1}))).version == began + 1
    assert stored(gallery) == follower.items == {"a": 1}
    assert follower.gaps == 0


async def test_a_full_queue_turns_writes_away_with_a_delay_and_takes_them_later(gallery: GatedGallery) -> None:
    async with writing(gallery, limits=WriterLimits(queue_rows=10)) as writer:
        gallery.gate.clear()
        tasks = await queued(writer.upsert(rows({f"{i}": i for i in range(8)})))
        await gallery.reached()
        tasks += await queued(writer.upsert(rows({"a": 1, "b": 1})))

        with pytest.raises(Overloaded, match=r"10 rows and .* wait, at most 10 rows") as refused:
            await writer.upsert(rows({"c": 1}))

        gallery.gate.set()
        await asyncio.gather(*tasks)
        await writer.upsert(rows({"c": 1}))
    assert refused.value.retry_after_s > 0
    assert len(stored(gallery)) == 11


async def test_the_queue_is_bounded_in_bytes_too_but_never_refuses_what_could_never_fit(gallery: GatedGallery) -> None:
    async with writing(gallery, limits=WriterLimits(queue_bytes=100)) as writer:
        gallery.gate.clear()
        tasks = await queued(writer.upsert(rows({f"{i}": i for i in range(8)})))
        await gallery.reached()

        with pytest.raises(Overloaded, match=r"at most .* 100 bytes may"):
            await writer.upsert(rows({"c": 1}))

        gallery.gate.set()
        await asyncio.gather(*tasks)
    assert len(stored(gallery)) == 8


async def test_a_retry_with_the_same_request_id_is_not_applied_twice(gallery: GatedGallery) -> None:
    async with writing(gallery) as writer:
        first = await writer.upsert(rows({"a": 1}), request_id="one")
        await writer.delete(ids=["a"], request_id="two")

        assert await writer.upsert(rows({"a": 1}), request_id="one") == first
        assert (await writer.delete(ids=["a"], request_id="two")).rows == 1
    assert stored(gallery) == {}


async def test_a_retry_joins_its_first_try_while_that_waits_even_if_the_first_caller_left(
    gallery: GatedGallery,
) -> None:
    async with writing(gallery) as writer:
        gallery.gate.clear()
        tasks = await queued(writer.upsert(rows({"first": 1})))
        await gallery.reached()
        (leaver, retry) = await queued(
            writer.upsert(rows({"a": 1}), request_id="r"), writer.upsert(rows({"a": 1}), request_id="r")
        )
        leaver.cancel()
        gallery.gate.set()

        assert (await retry).rows == 1
        assert leaver.cancelled()
        await asyncio.gather(*tasks)
    assert stored(gallery) == {"first": 1, "a": 1}


async def test_a_failed_write_is_not_remembered_by_its_request_id(gallery: GatedGallery) -> None:
    gallery.refused = {"a"}
    async with writing(gallery) as writer:
        with pytest.raises(StoreFailure):
            await writer.upsert(rows({"a": 1}), request_id="r")
        gallery.refused = set()

        assert (await writer.upsert(rows({"a": 1}), request_id="r")).rows == 1


async def test_only_so_many_results_are_remembered(gallery: GatedGallery) -> None:
    async with writing(gallery, limits=WriterLimits(results=2)) as writer:
        first = [await writer.upsert(rows({"a": i}), request_id=f"{i}") for i in range(3)]

        assert await writer.upsert(rows({"a": 2}), request_id="2") == first[2]
        assert (await writer.upsert(rows({"a": 0}), request_id="0")).version > first[2].version


async def test_a_caller_who_leaves_before_the_commit_takes_the_write_along(gallery: GatedGallery) -> None:
    async with writing(gallery, limits=WriterLimits(queue_rows=2)) as writer:
        gallery.gate.clear()
        (begun,) = await queued(writer.upsert(rows({"begun": 1})))
        await gallery.reached()
        (waiting,) = await queued(writer.upsert(rows({"waiting": 1})))
        begun.cancel()
        waiting.cancel()
        await asyncio.gather(begun, waiting, return_exceptions=True)
        (room,) = await queued(writer.upsert(rows({"room": 1})))
        gallery.gate.set()
        await room

    assert stored(gallery) == {"begun": 1, "room": 1}


async def test_close_commits_what_waits_and_refuses_what_comes_after(gallery: GatedGallery) -> None:
    follower = Follower(1)
    async with writing(gallery) as writer:
        writer.add_sink(follower)
        gallery.gate.clear()
        tasks = await queued(writer.upsert(rows({"a": 1})))
        await gallery.reached()
        tasks += await queued(writer.upsert(rows({"b": 2})))
        closing = asyncio.ensure_future(writer.close())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="not taking writes"):
            await writer.upsert(rows({"late": 1}))
        gallery.gate.set()
        await closing

        assert [(await task).rows for task in tasks] == [1, 1]
        assert stored(gallery) == follower.items == {"a": 1, "b": 2}
        with pytest.raises(Unavailable):
            await writer.upsert(rows({"late": 1}))
