"""Writes that are sent again: known to the living writer, and to the one after it."""

import asyncio
from pathlib import Path

import pytest
from tests.unit.shards.gated_gallery import GatedGallery, queued, stored, writing
from tests.unit.shards.store_fixtures import SPEC, cheaper_than, rows

from likewise.shards.answers import Answers, Mark, to_text
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.protocols import StreamPosition, WriteResult
from likewise.shards.store import Store
from likewise.shards.write_queue import WriterLimits


@pytest.fixture
def gallery(tmp_path: Path) -> GatedGallery:
    return GatedGallery(Store(str(tmp_path), sync=False).create(SPEC).uri)


def _at(sequence: int, settled: int = 0) -> StreamPosition:
    return StreamPosition("stream", sequence, settled)


async def test_a_restarted_writer_knows_the_writes_that_the_one_before_it_committed(gallery: GatedGallery) -> None:
    async with writing(gallery) as writer:
        first = await writer.upsert(rows({"a": 1, "b": 2}), request_id="up")
        deleted = await writer.delete(ids=["a", "never there"], request_id="down")
        filtered = await writer.delete(filter=cheaper_than(10), request_id="away")
        await writer.upsert(rows({"a": 5}), request_id="later")

    async with writing(GalleryStore(gallery.uri)) as again:
        version = await again.version()

        assert await again.upsert(rows({"a": 1, "b": 2}), request_id="up") == first
        assert await again.delete(ids=["a", "never there"], request_id="down") == deleted
        assert await again.delete(filter=cheaper_than(10), request_id="away") == filtered
        assert await again.version() == version
    assert (first.rows, deleted.rows, filtered.rows) == (2, 1, 1)
    assert stored(gallery) == {"a": 5}


async def test_the_writes_of_one_commit_are_all_kept_with_it(gallery: GatedGallery) -> None:
    async with writing(gallery) as writer:
        gallery.gate.clear()
        first = await queued(writer.upsert(rows({"first": 1}), request_id="0"))
        await gallery.reached()
        rest = await queued(*(writer.upsert(rows({f"{i}": i}), request_id=f"{i}") for i in range(1, 5)))
        gallery.gate.set()
        results = await asyncio.gather(*first, *rest)

    async with writing(GalleryStore(gallery.uri)) as again:
        assert [await again.upsert(rows({"no": 0}), request_id=f"{i}") for i in range(5)] == results
    assert "no" not in stored(gallery)


async def test_a_restarted_writer_knows_how_far_a_stream_came(gallery: GatedGallery) -> None:
    async with writing(gallery) as writer:
        for sequence in (1, 2, 4):
            await writer.upsert(rows({f"{sequence}": sequence}), position=_at(sequence))
        assert await writer.stream_progress("stream") == 2

    async with writing(GalleryStore(gallery.uri)) as again:
        version = await again.version()

        assert await again.stream_progress("stream") == 2
        assert (await again.upsert(rows({"4": 9}), position=_at(4))).version < version
        await again.upsert(rows({"3": 3}), position=_at(3))
        assert await again.stream_progress("stream") == 4
    assert stored(gallery) == {"1": 1, "2": 2, "3": 3, "4": 4}


async def test_a_repetition_joins_the_write_that_is_under_way(gallery: GatedGallery) -> None:
    async with writing(gallery) as writer:
        gallery.gate.clear()
        tasks = await queued(writer.upsert(rows({"a": 1}), position=_at(1)))
        await gallery.reached()
        tasks += await queued(writer.upsert(rows({"a": 1}), position=_at(1)))
        tasks[0].cancel()
        gallery.gate.set()

        assert (await tasks[1]).rows == 1
    assert gallery.commits == 1


async def test_a_queue_that_is_over_half_full_says_when_to_come_back(gallery: GatedGallery) -> None:
    async with writing(gallery, limits=WriterLimits(queue_rows=10, group_rows=1)) as writer:
        gallery.gate.clear()
        first = await queued(writer.upsert(rows({"first": 1})))
        await gallery.reached()
        rest = await queued(*(writer.upsert(rows({f"{i}": i})) for i in range(9)))
        gallery.gate.set()
        hints = [(await task).back_off_s for task in [*first, *rest]]

    assert [hint > 0 for hint in hints] == [True] * 4 + [False] * 6


def test_a_refused_message_holds_a_stream_up_until_its_sender_confirms_it() -> None:
    answers = Answers(limit=100)
    for sequence in (1, 3, 4):
        answers.add(Mark(position=_at(sequence)), WriteResult(1, sequence))

    assert answers.settled("stream") == 1
    answers.add(Mark(position=_at(5, settled=2)), WriteResult(1, 5))
    assert answers.settled("stream") == 5


def test_a_settled_message_is_never_applied_again_even_when_its_answer_is_forgotten() -> None:
    answers = Answers(limit=2)
    for sequence in range(1, 10):
        answers.add(Mark(position=_at(sequence)), WriteResult(7, sequence))

    assert answers.find(Mark(position=_at(9)), version=20) == WriteResult(7, 9)
    assert answers.find(Mark(position=_at(1)), version=20) == WriteResult(0, 20)
    assert answers.find(Mark(position=_at(10)), version=20) is None


def test_what_is_remembered_is_bounded() -> None:
    answers = Answers(limit=3)
    for number in range(1, 50):
        answers.add(Mark(request_id=f"{number}"), WriteResult(1, number))
        answers.add(Mark(position=StreamPosition(f"s{number}", 1, 0)), WriteResult(1, number))
        answers.add(Mark(position=_at(2 * number + 1)), WriteResult(1, number))

    assert answers.find(Mark(request_id="1"), version=9) is None
    assert answers.settled("s1") == 0
    assert answers.settled("stream") >= 2 * (49 - 3)


def test_notes_that_cannot_be_read_are_passed_over() -> None:
    answers = Answers(limit=3)
    kept = to_text([(Mark("a"), 2), (Mark(position=_at(1)), 3), (Mark(), 4)])

    answers.read_back([(1, "{"), (2, '{"requests": []}'), (3, kept)])

    assert answers.find(Mark("a"), version=9) == WriteResult(2, 3)
    assert answers.find(Mark(position=_at(1)), version=9) == WriteResult(3, 3)
    assert to_text([(Mark(), 4)]) == ""
