"""The writer's counts of partitions, by the store: also of rows that no shard has yet."""

import asyncio
from pathlib import Path

import pytest
from tests.unit.shards.gated_gallery import GatedGallery, writing
from tests.unit.shards.store_fixtures import SPEC, rows

from likewise.shards.spec import shard_hash
from likewise.shards.store import Store

IDS = [f"item-{i}" for i in range(40)]


@pytest.fixture
def gallery(tmp_path: Path) -> GatedGallery:
    return GatedGallery(Store(str(tmp_path), sync=False).create(SPEC).uri)


async def test_partitions_are_counted_at_the_newest_version(gallery: GatedGallery) -> None:
    async with writing(gallery) as writer:
        assert await writer.live_rows(0, 3) == 0
        await writer.upsert(rows(dict.fromkeys(IDS, 1)))
        await writer.upsert(rows({IDS[0]: 2}))  # replaced, not added
        before = [await writer.live_rows(shard, 3) for shard in range(3)]
        await writer.delete(ids=IDS[:10])
        after = [await writer.live_rows(shard, 3) for shard in range(3)]

    assert before == [sum(shard_hash(item) % 3 == shard for item in IDS) for shard in range(3)]
    assert after == [sum(shard_hash(item) % 3 == shard for item in IDS[10:]) for shard in range(3)]


async def test_one_version_is_counted_once_however_many_ask_and_give_up(
    gallery: GatedGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    def count(self: object, version: int) -> int:
        counted.append(version)
        return 7

    monkeypatch.setattr("likewise.shards.partition.Partition.count", count)
    async with writing(gallery) as writer:
        given_up = asyncio.create_task(writer.live_rows(0, 2))
        await asyncio.sleep(0)
        given_up.cancel()
        answers = await asyncio.gather(*(writer.live_rows(0, 2) for _ in range(20)))
        version = await writer.version()

    assert answers == [7] * 20
    assert counted == [version]


async def test_a_count_that_failed_is_tried_again(gallery: GatedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, version: int) -> int:
        raise OSError("the store is away")

    async with writing(gallery) as writer:
        with monkeypatch.context() as patch:
            patch.setattr("likewise.shards.partition.Partition.count", fail)
            with pytest.raises(OSError, match="away"):
                await writer.live_rows(0, 1)

        assert await writer.live_rows(0, 1) == 0


async def test_a_partition_that_cannot_be_is_refused(gallery: GatedGallery) -> None:
    async with writing(gallery) as writer:
        with pytest.raises(ValueError, match=r"\[0, 2\)"):
            await writer.live_rows(2, 2)
