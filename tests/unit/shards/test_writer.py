import asyncio
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from tests.unit.shards.gated_gallery import GatedGallery, queued, stored, writing
from tests.unit.shards.store_fixtures import DIM, SPEC, Follower, StuckFollower, cheaper_than, prices, rows

from likewise.shards.columns import ColumnError
from likewise.shards.delivery import Feed
from likewise.shards.layout import empty_batch
from likewise.shards.maintenance import MaintenancePolicy
from likewise.shards.partition import Partition
from likewise.shards.protocols import (
    Delta,
    HistoryGone,
    UnknownAttribute,
    WriteResult,
)
from likewise.shards.store import Store
from likewise.shards.write_queue import WriterLimits


@pytest.fixture
def gallery(tmp_path: Path) -> GatedGallery:
    return GatedGallery(Store(str(tmp_path), sync=False).create(SPEC).uri)


async def test_an_acknowledged_write_is_in_the_store_at_the_version_told(gallery: GatedGallery) -> None:
    async with writing(gallery) as writer:
        result = await writer.upsert(rows({"a": 1, "b": 2}))

        assert (result.rows, result.version) == (2, await writer.version())
        assert prices(Partition(gallery, 0, 1).load(result.version)) == {"a": 1, "b": 2}


async def test_what_waits_during_a_commit_becomes_one_commit(gallery: GatedGallery) -> None:
    async with writing(gallery) as writer:
        began = await writer.version()
        gallery.gate.clear()
        first = await queued(writer.upsert(rows({"first": 1})))
        await gallery.reached()
        rest = await queued(*(writer.upsert(rows({f"{i}": i})) for i in range(200)))
        gallery.gate.set()

        results = await asyncio.gather(*first, *rest)

    assert gallery.commits == 2
    assert {result.version for result in results} == {began + 1, began + 2}
    assert stored(gallery) == {"first": 1} | {f"{i}": i for i in range(200)}


async def test_a_group_is_cut_at_its_limits(gallery: GatedGallery) -> None:
    async with writing(gallery, limits=WriterLimits(group_rows=10)) as writer:
        gallery.gate.clear()
        first = await queued(writer.upsert(rows({"first": 1})))
        await gallery.reached()
        rest = await queued(*(writer.upsert(rows({f"{i}-{j}": i for j in range(4)})) for i in range(5)))
        gallery.gate.set()
        await asyncio.gather(*first, *rest)

    assert gallery.commits == 1 + 3


async def test_the_last_write_of_an_id_wins_and_deletes_count_what_was_there(gallery: GatedGallery) -> None:
    async with writing(gallery) as writer:
        await writer.upsert(rows({"old": 1, "gone": 2}))
        gallery.at_gate = threading.Semaphore(0)
        gallery.gate.clear()
        first = await queued(writer.upsert(rows({"first": 1})))
        await gallery.reached()
        rest = await queued(
            writer.upsert(rows([("a", 1), ("b", 1), ("a", 2)])),
            writer.delete(ids=["a", "a", "gone", "never there"]),
            writer.upsert(rows({"a": 3})),
            writer.delete(ids=["b", "gone"]),
            writer.upsert(rows({"old": 9})),
        )
        gallery.gate.set()
        results = await asyncio.gather(*rest)
        await asyncio.gather(*first)

    assert [result.rows for result in results] == [2, 2, 1, 1, 1]
    assert len({result.version for result in results}) == 1
    assert stored(gallery) == {"old": 9, "first": 1, "a": 3}


async def test_a_delete_by_filter_sees_the_writes_before_it_and_not_those_after(gallery: GatedGallery) -> None:
    async with writing(gallery) as writer:
        await writer.upsert(rows({"cheap": 1, "dear": 100}))
        gallery.at_gate = threading.Semaphore(0)
        gallery.gate.clear()
        tasks = await queued(writer.upsert(rows({"first": 50})))
        await gallery.reached()
        tasks += await queued(
            writer.upsert(rows({"cheap too": 2, "dear": 3})),
            writer.delete(filter=cheaper_than(10)),
            writer.upsert(rows({"cheap later": 4})),
        )
        gallery.gate.set()
        results = await asyncio.gather(*tasks)

    assert [result.rows for result in results] == [1, 2, 3, 1]
    assert stored(gallery) == {"first": 50, "cheap later": 4}


async def test_a_filter_that_does_not_fit_is_refused_even_by_an_empty_gallery(gallery: GatedGallery) -> None:
    async with writing(gallery) as writer:
        began = await writer.version()
        with pytest.raises(UnknownAttribute, match="'size'"):
            await writer.delete(filter=cheaper_than(10, attribute="size"))
        with pytest.raises(ValueError, match="ids or a filter"):
            await writer.delete(ids=["a"], filter=cheaper_than(10))

        assert (await writer.delete(filter=cheaper_than(10))).rows == 0
        assert await writer.version() == began


async def test_bad_rows_are_refused_whole_and_nothing_is_stored(gallery: GatedGallery) -> None:
    bad = rows({"a": 1, "b": 2})
    bad = bad.set_column(0, "id", pa.array(["a", None]))

    async with writing(gallery) as writer:
        began = await writer.version()
        with pytest.raises(ColumnError, match=r"id\[1\]"):
            await writer.upsert(bad)

        assert (await writer.upsert(rows({"c": 3}))).version == began + 1
    assert stored(gallery) == {"c": 3}


async def test_a_vector_that_is_not_finite_fails_its_own_request_only(gallery: GatedGallery) -> None:
    bad = rows({"bad": 1, "also": 2})
    vectors = pa.array([[1.0] * DIM, [float("nan")] * DIM], pa.list_(pa.float32(), DIM))
    bad = bad.set_column(bad.schema.get_field_index("vector_default"), "vector_default", vectors)
    async with writing(gallery) as writer:
        gallery.gate.clear()
        tasks = await queued(writer.upsert(rows({"first": 1})))
        await gallery.reached()
        tasks += await queued(writer.upsert(rows({"a": 1})), writer.upsert(bad), writer.delete(ids=["first"]))
        gallery.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(result) for result in results] == [WriteResult, WriteResult, ColumnError, WriteResult]
    assert "vector_default[1]: must be finite" in str(results[2])
    assert stored(gallery) == {"a": 1}


async def test_a_follower_that_never_takes_anything_does_not_keep_the_writer_from_closing(
    gallery: GatedGallery,
) -> None:
    async with writing(gallery, limits=WriterLimits(drain_s=0.01)) as writer:
        writer.add_sink(StuckFollower(1))
        await writer.upsert(rows({"a": 1}))

    assert stored(gallery) == {"a": 1}


async def test_deltas_come_in_order_without_gaps_and_rebuild_the_gallery(gallery: GatedGallery) -> None:
    async with writing(gallery, policy=MaintenancePolicy(fan_in=2)) as writer:
        follower = Follower(await writer.version())
        writer.add_sink(follower)
        for i in range(6):
            await writer.upsert(rows({f"{i}": i, "shared": i}))
            await writer.delete(ids=[f"{i - 2}", "never there"])
        await writer.maintain()
        await writer.update_spec(replace(SPEC, shards=3))
        await writer.delete(filter=cheaper_than(5))

    assert follower.gaps == 0
    assert follower.version == gallery.newest_version()
    assert follower.items == stored(gallery) == {"5": 5, "shared": 5}
    assert any(delta.upserts.num_rows == 0 and not delta.deleted_ids for delta in follower.deltas)
    stamps = [stamp for delta in follower.deltas for stamp in delta.upserts.column("stamp").to_pylist()]
    assert stamps == sorted(set(stamps))


async def test_a_removed_follower_hears_nothing_more(gallery: GatedGallery) -> None:
    follower = Follower(1)
    async with writing(gallery) as writer:
        writer.add_sink(follower)
        writer.add_sink(follower)
        await writer.remove_sink(follower)
        await writer.upsert(rows({"a": 1}))

    assert follower.deltas == []


async def test_a_follower_that_fails_does_not_disturb_the_others(gallery: GatedGallery) -> None:
    class Failing(Follower):
        async def apply(self, delta: Delta) -> None:
            raise RuntimeError("no")

    good = Follower(1)
    async with writing(gallery) as writer:
        writer.add_sink(Failing(1))
        writer.add_sink(good)
        await writer.upsert(rows({"a": 1}))

    assert good.items == {"a": 1}


async def test_a_stuck_follower_is_bounded_and_then_told_of_the_gap() -> None:
    stuck = StuckFollower(1)
    feed = Feed(stuck, max_deltas=2)
    for version in range(1, 9):
        feed.offer(Delta(version, version + 1, empty_batch(SPEC), ()))
        await asyncio.sleep(0)

    stuck.go.set()
    await feed.drained()
    await feed.close()

    seen = [(delta.base_version, delta.version) for delta in stuck.deltas]
    assert seen == [(1, 2), (2, 3), (3, 4), (9, 9)]


async def test_maintenance_merges_small_files_and_forgets_old_versions(gallery: GatedGallery) -> None:
    policy = MaintenancePolicy(fan_in=4, keep_s=0, keep_versions=3, clean_up_every=5)
    async with writing(gallery, policy=policy) as writer:
        for i in range(20):
            await writer.upsert(rows({f"{i}": i}))
        before = len(gallery.fragments())
        await writer.maintain()
        await writer.maintain()

        assert before == 20
        with pytest.raises(HistoryGone):
            gallery.checkout(await writer.version() - 5)
        assert len(gallery.fragments()) < policy.fan_in * 2
        assert stored(gallery) == {f"{i}": i for i in range(20)}
        assert await writer.version() == gallery.newest_version()


async def test_a_writer_that_never_rests_is_maintained_too(gallery: GatedGallery) -> None:
    policy = MaintenancePolicy(fan_in=4, busy_every=8)
    async with writing(gallery, policy=policy, limits=WriterLimits(group_rows=1)) as writer:
        await asyncio.gather(*(writer.upsert(rows({f"{i}": i})) for i in range(64)))

        assert len(gallery.fragments()) < 64
    assert len(stored(gallery)) == 64


KILLED = """
import asyncio, sys
from likewise.shards.store import Store
from likewise.shards.writer import GalleryWriter
from tests.unit.shards.store_fixtures import DIM, SPEC, match_price, rows


async def main() -> None:
    writer = GalleryWriter(Store(sys.argv[1]).create(SPEC), match_price)
    await writer.start()
    async def client(c: int) -> None:
        for i in range(100_000):
            await writer.upsert(rows({f"{c}-{i}": i, f"{c}-{i}-x": i}))
            print(f"+ {c}-{i}", flush=True)
            await writer.delete(ids=[f"{c}-{i}-x"])
            print(f"- {c}-{i}-x", flush=True)
    await asyncio.gather(*(client(c) for c in range(8)))

asyncio.run(main())
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().split() for _ in range(300)]
    process.kill()
    acknowledged += [line.split() for line in process.communicate()[0].splitlines(keepends=True) if line.endswith("\n")]

    gallery = Store(str(tmp_path)).open("shapes")

    items = stored(gallery)
    assert {item_id for sign, item_id in acknowledged if sign == "+"} <= set(items)
    assert not {item_id for sign, item_id in acknowledged if sign == "-"} & set(items)
    gallery.commit(rows_table := pa.Table.from_batches([rows({"after": 1})]))
    assert rows_table.num_rows == gallery.count() - len(items)
