"""Rows that others write into a gallery's folder, committed by its writer."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.unit.shards.gated_gallery import stored, writing
from tests.unit.shards.store_fixtures import SPEC, Follower, rows, table

from likewise.shards import bulk
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.known_ids import RECENT, KnownIds
from likewise.shards.partition import Partition
from likewise.shards.protocols import FragmentsUnusable, Stage, Unavailable
from likewise.shards.store import Store
from likewise.shards.writer import GalleryWriter


@pytest.fixture
def gallery(tmp_path: Path) -> GalleryStore:
    return Store(str(tmp_path), sync=False).create(SPEC)


def _written(stage: Stage, items: dict[str, int], *, offset: int = 0) -> list[str]:
    return bulk.write(table(items), SPEC, uri=stage.uri, first_stamp=stage.first_stamps[0] + offset)


async def _filled(writer: GalleryWriter) -> Stage:
    await writer.upsert(rows({"a": 1, "b": 2}))
    return await writer.stage(1000)


async def test_files_are_seen_all_at_once_and_replace_what_was_there(gallery: GalleryStore) -> None:
    async with writing(gallery) as writer:
        stage = await _filled(writer)
        fragments = [*_written(stage, {"b": 3, "c": 4}), *_written(stage, {"d": 5}, offset=2)]
        before = stored(gallery)
        result = await writer.commit_fragments(fragments, request_id="ingest")

        assert before == {"a": 1, "b": 2}
        assert (result.rows, result.version) == (3, await writer.version())
        await writer.upsert(rows({"d": 6}))
    assert stored(gallery) == {"a": 1, "b": 3, "c": 4, "d": 6}


async def test_of_an_id_in_several_files_the_last_row_stays(gallery: GalleryStore) -> None:
    async with writing(gallery) as writer:
        stage = await _filled(writer)
        fragments = [
            *_written(stage, {"a": 7, "x": 1}),
            *_written(stage, {"x": 2}, offset=2),
            *_written(stage, {"x": 3, "y": 4}, offset=3),
        ]
        result = await writer.commit_fragments(fragments, request_id="ingest")

    assert result.rows == 3
    assert stored(gallery) == {"a": 7, "b": 2, "x": 3, "y": 4}


async def test_followers_are_told_of_the_version_and_read_the_rows_from_the_store(gallery: GalleryStore) -> None:
    async with writing(gallery) as writer:
        stage = await _filled(writer)
        follower = Follower(await writer.version())
        writer.add_sink(follower)
        result = await writer.commit_fragments(_written(stage, {"b": 9}), request_id="ingest")

    changes = Partition(gallery, 0, 1).changes(result.version - 1, result.version)
    assert [(delta.base_version, delta.version) for delta in follower.deltas] == [(result.version, result.version)]
    assert changes.upserts.column("id").to_pylist() == ["b"]
    assert changes.deleted_ids == []


async def test_a_commit_that_is_repeated_is_made_once_also_by_the_next_writer(gallery: GalleryStore) -> None:
    async with writing(gallery) as writer:
        fragments = _written(await _filled(writer), {"c": 3})
        first = await writer.commit_fragments(fragments, request_id="ingest")

        assert await writer.commit_fragments(fragments, request_id="ingest") == first

    async with writing(GalleryStore(gallery.uri)) as again:
        assert await again.commit_fragments(fragments, request_id="ingest") == first
        with pytest.raises(FragmentsUnusable, match="part of the gallery already") as caught:
            await again.commit_fragments(fragments, request_id="another")
    assert caught.value.committed
    assert stored(gallery) == {"a": 1, "b": 2, "c": 3}


async def test_stamps_that_are_lent_are_nobody_elses(gallery: GalleryStore) -> None:
    async with writing(gallery) as writer:
        stage = await _filled(writer)
        other = await writer.stage(1)
        for items, lent in (({"c": 3, "d": 4}, stage), ({"e": 5}, other)):
            await writer.commit_fragments(_written(lent, items), request_id=str(items))
        await writer.upsert(rows({"f": 6}))

    batches = Partition(gallery, 0, 1).load(gallery.newest_version())
    stamps = [stamp for batch in batches for stamp in batch.column("stamp").to_pylist()]
    assert len(set(stamps)) == len(stamps) == 6


async def test_many_rows_are_lent_as_many_blocks_as_they_need(
    gallery: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("likewise.shards.gallery_store.BLOCK_STAMPS", 10)
    async with writing(gallery) as writer:
        stage = await writer.stage(21)

    assert len(set(stage.first_stamps)) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"path": "../../other/data/x.lance"}, "no new file of the gallery's own", id="elsewhere"),
        pytest.param({"path": "none.lance"}, "is gone", id="missing"),
        pytest.param({"base_id": 1}, "no new file of the gallery's own", id="another base"),
    ],
)
async def test_files_that_are_not_what_they_should_be_are_refused_and_nothing_is_stored(
    gallery: GalleryStore, change: dict[str, object], said: str
) -> None:
    async with writing(gallery) as writer:
        fragments = _written(await _filled(writer), {"c": 3})
        forged = json.loads(fragments[0])
        forged["files"][0] |= change
        version = await writer.version()

        with pytest.raises(FragmentsUnusable, match=said):
            await writer.commit_fragments([*fragments, json.dumps(forged)], request_id="ingest")
        with pytest.raises(FragmentsUnusable, match="no description"):
            await writer.commit_fragments(["{"], request_id="ingest")
        assert await writer.version() == version
    with pytest.raises(Unavailable):
        await writer.commit_fragments(fragments, request_id="ingest")
    assert stored(gallery) == {"a": 1, "b": 2}


def test_a_large_number_of_new_ids_is_remembered() -> None:
    known = KnownIds(np.array([5, 9]))
    known.add(np.array([7]))
    known.add(np.arange(100, 100 + RECENT + 1))

    assert known.may_contain(np.array([5, 7, 9, 100, 100 + RECENT, 101 + RECENT])).tolist() == [True] * 5 + [False]
