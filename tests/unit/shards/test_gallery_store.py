"""A gallery's commits, versions, compaction and description, and what becomes of them when something goes wrong."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.shards.store_fixtures import SPEC, prices, table

from likewise.shards import layout
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.layout import partition_delta, shard_hashes
from likewise.shards.partition import Partition
from likewise.shards.protocols import Delta, HistoryGone, StoreFailure
from likewise.shards.spec import AttributeSpec
from likewise.shards.spec_change import SpecChange
from likewise.shards.store import Store
from likewise.v1 import common_pb2 as pb


@pytest.fixture
def gallery(tmp_path: Path) -> GalleryStore:
    return Store(str(tmp_path / "store"), sync=False).create(SPEC)


def everything(gallery: GalleryStore, version: int | None = None) -> dict[str, int]:
    return prices(Partition(gallery, 0, 1).load(gallery.version if version is None else version))


def test_one_commit_inserts_replaces_and_deletes_as_one_version(gallery: GalleryStore) -> None:
    first = gallery.commit(table({"a": 1, "b": 2, "c": 3}))

    second = gallery.commit(table({"b": 20, "d": 4}), ["c", "never there"])

    assert (second.base_version, second.version) == (first.version, first.version + 1)
    assert list(second.deleted_ids) == ["c"]
    assert second.existed == {"b", "c"}
    assert everything(gallery) == {"a": 1, "b": 20, "d": 4}
    assert everything(gallery, first.version) == {"a": 1, "b": 2, "c": 3}


def test_a_commit_of_nothing_makes_no_version(gallery: GalleryStore) -> None:
    before = gallery.version

    commit = gallery.commit(None, ["never there"])

    assert (commit.version, gallery.newest_version(), list(commit.deleted_ids)) == (before, before, [])


def test_stamps_are_unique_and_grow_over_a_reopen_after_the_newest_rows_are_gone(tmp_path: Path) -> None:
    uri = str(tmp_path)
    gallery = Store(uri).create(SPEC)
    stamps = gallery.commit(table({"a": 1, "b": 2})).upserts.column("stamp").to_pylist()
    gallery.commit(None, ["a", "b"])

    again = Store(uri).open("shapes").commit(table({"a": 1})).upserts.column("stamp").to_pylist()

    assert len(set(stamps)) == 2
    assert again[0] > max(stamps)


def test_partitions_are_disjoint_and_whole(gallery: GalleryStore) -> None:
    gallery.commit(table({f"item-{i}": i for i in range(200)}))

    parts = [prices(Partition(gallery, shard, 3).load(gallery.version)) for shard in range(3)]

    assert all(parts)
    assert sum(map(len, parts)) == 200
    assert {key: value for part in parts for key, value in part.items()} == everything(gallery)


WRITES = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 99), max_size=5),
        st.sets(st.sampled_from("abcdefghij"), max_size=4),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=WRITES, shards=st.integers(1, 3), data=st.data())
def test_catching_up_equals_loading_anew_whatever_was_written(
    tmp_path: Path, writes: list[tuple[dict[str, int], set[str], bool]], shards: int, data: st.DataObject
) -> None:
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    gallery = Store(str(tmp_path / "store"), sync=False).create(SPEC)
    model: dict[str, int] = {}
    history = {gallery.version: dict(model)}
    for upserts, deleted, compact in writes:
        deleted = deleted - set(upserts)
        commit = gallery.commit(table(upserts) if upserts else None, sorted(deleted))
        assert set(commit.deleted_ids) == deleted & set(model)
        assert commit.existed == (deleted | set(upserts)) & set(model)
        model = {key: value for key, value in (model | upserts).items() if key not in deleted}
        if compact:
            gallery.compact([fragment.id for fragment in gallery.fragments()])
        history[gallery.version] = dict(model)
    versions = sorted(history)
    since = data.draw(st.sampled_from(versions))
    until = data.draw(st.sampled_from([version for version in versions if version >= since]))

    assert everything(gallery) == model
    for shard in range(shards):
        partition = Partition(gallery, shard, shards)
        caught_up = prices(partition.load(since))
        changes = partition.changes(since, until)
        for item_id in changes.deleted_ids:
            del caught_up[item_id]
        caught_up |= prices([changes.upserts])
        assert caught_up == prices(partition.load(until))
        assert caught_up == {
            key: value for key, value in history[until].items() if int(shard_hashes([key])[0]) % shards == shard
        }


def test_compaction_keeps_rows_and_stamps_and_changes_nothing_for_a_shard(gallery: GalleryStore) -> None:
    for i in range(5):
        gallery.commit(table({f"{i}": i, f"x{i}": i}))
    gallery.commit(table({"0": 100}), ["x1"])
    before = gallery.version
    stamps = {row["id"]: row["stamp"] for batch in gallery.scan(["id", "stamp"]) for row in batch.to_pylist()}

    commit = gallery.compact([fragment.id for fragment in gallery.fragments()])

    assert (commit.base_version, len(gallery.fragments())) == (before, 1)
    assert [fragment.deleted for fragment in gallery.fragments()] == [0]
    assert {r["id"]: r["stamp"] for batch in gallery.scan(["id", "stamp"]) for r in batch.to_pylist()} == stamps
    changes = Partition(gallery, 0, 1).changes(before, gallery.version)
    assert (changes.upserts.num_rows, list(changes.deleted_ids), changes.version) == (0, [], gallery.version)


def test_compaction_leaves_fragments_that_were_not_chosen(gallery: GalleryStore) -> None:
    for i in range(6):
        gallery.commit(table({f"{i}": i}))
    ids = [fragment.id for fragment in gallery.fragments()]

    gallery.compact(ids[1:4])

    left = [fragment.id for fragment in gallery.fragments()]
    assert set(ids[:1] + ids[4:]) < set(left)
    assert len(left) == 4
    assert everything(gallery) == {f"{i}": i for i in range(6)}


def test_rows_are_replaced_and_deleted_after_compaction_moved_them(gallery: GalleryStore) -> None:
    for i in range(4):
        gallery.commit(table({f"{i}": i}))
    gallery.compact([fragment.id for fragment in gallery.fragments()])

    gallery.commit(table({"1": 10}), ["2"])

    assert everything(gallery) == {"0": 0, "1": 10, "3": 3}


def test_a_version_that_was_cleaned_up_is_history_gone(gallery: GalleryStore) -> None:
    for i in range(5):
        gallery.commit(table({f"{i}": i}))

    removed = gallery.clean_up(older_than_s=0, keep=2)

    partition = Partition(gallery, 0, 1)
    assert removed == 4
    with pytest.raises(HistoryGone, match="version 2 has been cleaned up, the newest is 6"):
        partition.changes(2, gallery.version)
    with pytest.raises(HistoryGone):
        list(partition.load(3))
    assert prices([partition.changes(5, 6).upserts]) == {"4": 4}
    assert everything(gallery) == {f"{i}": i for i in range(5)}


def test_clean_up_keeps_young_versions_and_the_newest_ones(gallery: GalleryStore) -> None:
    for i in range(5):
        gallery.commit(table({f"{i}": i}))

    assert gallery.clean_up(older_than_s=3600, keep=1) == 0
    assert gallery.clean_up(older_than_s=0, keep=100) == 0


def test_a_version_still_to_come_is_told_apart_from_one_that_is_gone(gallery: GalleryStore) -> None:
    with pytest.raises(StoreFailure, match="version 9 is not there yet, the newest is 1"):
        gallery.checkout(9)


def test_a_gallery_gets_new_attributes_and_another_shard_count_in_place(gallery: GalleryStore, tmp_path: Path) -> None:
    gallery.commit(table({"a": 1}))
    weight = AttributeSpec("weight", pb.ATTRIBUTE_TYPE_DOUBLE)
    wider = replace(SPEC, shards=4, attributes=(*SPEC.attributes, weight))

    commit = gallery.update_spec(wider)
    gallery.commit(table({"b": 2}).append_column("weight", pa.array([0.5])))

    assert commit.upserts.schema == layout.store_schema(wider)
    reopened = Store(str(tmp_path / "store")).open("shapes")
    assert reopened.spec == wider
    weights = {row["id"]: row["weight"] for batch in reopened.scan(["id", "weight"]) for row in batch.to_pylist()}
    assert weights == {"a": None, "b": 0.5}
    assert everything(reopened, commit.base_version) == {"a": 1}


def test_what_stored_rows_depend_on_cannot_be_changed(gallery: GalleryStore) -> None:
    with pytest.raises(SpecChange, match="'price'"):
        gallery.update_spec(replace(SPEC, attributes=SPEC.attributes[:1]))
    with pytest.raises(SpecChange, match="spaces"):
        gallery.update_spec(replace(SPEC, spaces=()))

    assert gallery.spec == SPEC


def test_a_description_changed_by_another_hand_is_seen_at_the_next_commit(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    gallery = store.create(SPEC)
    gallery.prepare()
    store.open("shapes").update_spec(replace(SPEC, shards=7))
    store.open("shapes").commit(table({"a": 1}))

    commit = gallery.commit(table({"a": 2}))

    assert gallery.spec.shards == 7
    assert commit.existed == {"a"}
    assert everything(gallery) == {"a": 2}


def test_a_delta_is_cut_by_shard_without_losing_its_versions() -> None:
    ids = [f"item-{i}" for i in range(20)]
    whole = Delta(3, 4, layout.stamped(table(dict.fromkeys(ids[:15], 1)), SPEC, 4), ids[15:])

    parts = [partition_delta(whole, shard, 4) for shard in range(4)]

    assert {(part.base_version, part.version) for part in parts} == {(3, 4)}
    assert sorted(i for part in parts for i in part.upserts.column("id").to_pylist()) == sorted(ids[:15])
    assert sorted(i for part in parts for i in part.deleted_ids) == sorted(ids[15:])
    for shard, part in enumerate(parts):
        held = [*part.upserts.column("id").to_pylist(), *part.deleted_ids]
        assert np.all(shard_hashes(held) % 4 == shard)


def test_a_manifest_cut_short_by_a_power_loss_is_named_with_the_way_back(tmp_path: Path) -> None:
    gallery = Store(str(tmp_path)).create(SPEC)
    gallery.commit(table({"a": 1}))
    gallery.commit(table({"b": 2}))
    newest = min(tmp_path.glob("shapes.lance/_versions/*.manifest"))
    newest.write_bytes(newest.read_bytes()[:-20])

    with pytest.raises(StoreFailure, match=f"version 3 of 'shapes' is cut short.* version 2, move .*{newest.name}"):
        Store(str(tmp_path)).open("shapes")

    newest.unlink()
    assert everything(Store(str(tmp_path)).open("shapes")) == {"a": 1}


class Late(GalleryStore):
    """A writer that does not see what another one has just committed."""

    blind = False

    def newest_version(self) -> int:
        return self.version if self.blind else super().newest_version()


def test_two_writers_that_change_one_row_at_once_are_told_apart(gallery: GalleryStore) -> None:
    gallery.commit(table({"a": 1, "b": 1}))
    late = Late(gallery.uri)
    late.prepare()
    gallery.commit(table({"a": 2}))
    late.blind = True

    with pytest.raises(StoreFailure, match="another process committed to the same rows"):
        late.commit(table({"a": 3}))

    late.blind = False
    assert late.commit(table({"b": 3})).existed == {"b"}
    assert everything(gallery, late.version) == {"a": 2, "b": 3}


def test_a_commit_that_landed_although_the_call_failed_is_a_commit(
    gallery: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lance.LanceDataset.commit

    def lands_then_fails(*arguments: Any) -> None:
        real(*arguments)
        raise OSError("timed out (os error 5)")

    monkeypatch.setattr(lance.LanceDataset, "commit", lands_then_fails)
    commit = gallery.commit(table({"a": 1}))
    monkeypatch.undo()

    assert commit.version == gallery.newest_version() == 2
    assert gallery.commit(table({"a": 2})).existed == {"a"}


def test_a_commit_that_did_not_land_changes_nothing(gallery: GalleryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery.commit(table({"a": 1}))

    def fails(*arguments: Any) -> None:
        raise OSError("No space left on device (os error 28)")

    monkeypatch.setattr(lance.LanceDataset, "commit", fails)
    with pytest.raises(StoreFailure, match="no space left on the store's device"):
        gallery.commit(table({"a": 5, "b": 2}), ["c"])
    monkeypatch.undo()

    assert everything(gallery, gallery.newest_version()) == {"a": 1}
    assert gallery.commit(table({"a": 2, "b": 3})).existed == {"a"}


def test_plain_lance_reads_a_gallery(gallery: GalleryStore) -> None:
    gallery.commit(table({"a": 1, "b": 2}))

    dataset = lance.dataset(gallery.uri)

    assert dataset.to_table(columns=["id"], filter="price > 1").to_pylist() == [{"id": "b"}]
    assert json.loads(dataset.schema.metadata[b"likewise"])["name"] == "shapes"
