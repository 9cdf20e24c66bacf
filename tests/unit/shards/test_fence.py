"""A writer that was presumed dead cannot commit after its successor, however long it slept and wherever."""

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.shards.gated_gallery import GatedGallery, queued, stored, writing
from tests.unit.shards.store_fixtures import SPEC, rows, table

from likewise.shards.fence import CLAIM_KEY, Claim, Fenced, claim_in
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.maintenance import MaintenancePolicy
from likewise.shards.protocols import StoreFailure, Unavailable
from likewise.shards.spec import AttributeSpec
from likewise.shards.store import Store
from likewise.v1 import common_pb2 as pb


class SleepyGallery(GalleryStore):
    """A gallery whose commits, once prepared to the last file, run `meanwhile` right before Lance is called."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.meanwhile: Callable[[], None] | None = None

    def _commit(self, transaction: Any) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        super()._commit(transaction)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return Store(str(tmp_path / "store"), sync=False).create(SPEC).uri


def taken(uri: str) -> GalleryStore:
    gallery = GalleryStore(uri)
    gallery.take_over()
    return gallery


def claim(uri: str) -> Claim:
    gallery = GalleryStore(uri)
    return claim_in(gallery.checkout(gallery.newest_version()).schema.metadata)


def attribute_added() -> Any:
    return replace(SPEC, attributes=(*SPEC.attributes, AttributeSpec("weight", pb.ATTRIBUTE_TYPE_DOUBLE)))


COMMITS = [
    pytest.param(lambda gallery: gallery.commit(table({"new": 1})), id="new rows"),
    pytest.param(lambda gallery: gallery.commit(table({"a": 9})), id="replaced rows"),
    pytest.param(lambda gallery: gallery.commit(None, ["a"]), id="deletes"),
    pytest.param(lambda gallery: gallery.compact([0, 1]), id="compaction"),
    pytest.param(lambda gallery: gallery.update_spec(replace(SPEC, shards=7)), id="description"),
    pytest.param(lambda gallery: gallery.update_spec(attribute_added()), id="new attribute"),
    pytest.param(lambda gallery: gallery.renew_barrier(after=0), id="barrier"),
]


@pytest.mark.parametrize("commit", COMMITS)
def test_a_writer_with_a_successor_commits_nothing_more(uri: str, commit: Callable[[GalleryStore], Any]) -> None:
    first = taken(uri)
    first.commit(table({"a": 1}))
    first.commit(table({"b": 2}))
    second = taken(uri)
    second.commit(table({"c": 3}))
    version = second.newest_version()

    for _ in range(2):  # it stays that way
        with pytest.raises(Fenced, match=r"epoch 1\) has been succeeded by process \d+ .*epoch 2.*nothing was written"):
            commit(first)

    assert second.newest_version() == version
    assert stored(second) == {"a": 1, "b": 2, "c": 3}
    assert second.commit(table({"d": 4})).base_version == version


@pytest.mark.parametrize("update", [{"new": 1}, {"a": 9}], ids=["new rows", "replaced rows"])
@pytest.mark.parametrize("successor_writes", [True, False])
def test_a_commit_that_slept_while_a_successor_took_over_is_refused_by_the_store(
    uri: str, update: dict[str, int], successor_writes: bool
) -> None:
    first = SleepyGallery(uri)
    first.take_over()
    first.commit(table({"a": 1}))
    second: list[GalleryStore] = []

    def successor() -> None:
        second.append(taken(uri))
        if successor_writes:
            second[0].commit(table({"b": 2}))

    first.meanwhile = successor
    with pytest.raises(Fenced, match="nothing was written"):
        first.commit(table(update))

    expected = {"a": 1, "b": 2} if successor_writes else {"a": 1}
    assert stored(second[0]) == stored(GalleryStore(uri)) == expected
    with pytest.raises(Fenced):
        first.commit(table({"z": 1}))


def test_a_deep_sleeper_is_refused_although_every_old_version_was_forgotten_meanwhile(uri: str) -> None:
    first = SleepyGallery(uri)
    first.take_over()
    first.commit(table({"a": 1}))
    kept: list[int] = []

    def successor() -> None:
        second = taken(uri)
        for i in range(6):
            second.commit(table({f"s{i}": i}))
            if i == 3:
                second.renew_barrier(after=1)
            second.clean_up(older_than_s=0, keep=1)
        kept.extend(version["version"] for version in second.checkout(second.newest_version()).versions())

    first.meanwhile = successor
    with pytest.raises(Fenced):
        first.commit(table({"new": 1}))

    assert stored(GalleryStore(uri)) == {"a": 1} | {f"s{i}": i for i in range(6)}
    assert len(kept) == 3, "the renewed barrier and the two commits after it"


def test_a_reopened_gallery_cleans_up_nothing_that_the_fence_needs(uri: str) -> None:
    first = SleepyGallery(uri)
    first.take_over()
    first.commit(table({"a": 1}))

    def successor() -> None:
        taken(uri).commit(table({"b": 2}))
        GalleryStore(uri).clean_up(older_than_s=0, keep=1)
        first.clean_up(older_than_s=0, keep=1)  # whoever is fenced off forgets nothing at all

    first.meanwhile = successor
    with pytest.raises(Fenced):
        first.commit(table({"new": 1}))

    assert stored(GalleryStore(uri)) == {"a": 1, "b": 2}


def test_what_a_predecessor_commits_during_a_take_over_is_kept_and_seen_by_the_successor(uri: str) -> None:
    first, second = SleepyGallery(uri), SleepyGallery(uri)
    first.take_over()
    prepared, go = threading.Event(), threading.Event()

    def sleep() -> None:
        prepared.set()
        assert go.wait(10)

    first.meanwhile = sleep
    with ThreadPoolExecutor(1) as pool:
        commit = pool.submit(first.commit, table({"a": 1}))
        assert prepared.wait(10)

        def let_it_land() -> None:
            go.set()
            commit.exception()

        second.meanwhile = let_it_land  # between the claim and the barrier
        second.take_over()

    with pytest.raises(Fenced, match="has been succeeded"):
        first.commit(table({"b": 1}))
    assert stored(second) == {"a": 1}


def test_take_overs_at_the_same_time_leave_one_writer(uri: str) -> None:
    galleries = [GalleryStore(uri) for _ in range(4)]
    start = threading.Barrier(4)

    def attempt(gallery: GalleryStore) -> bool:
        start.wait(10)
        try:
            gallery.take_over()
        except Fenced:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(attempt, galleries))

    able: list[int] = []
    for i, gallery in enumerate(galleries):
        try:
            gallery.commit(table({f"{i}": i}))
        except Fenced:
            continue
        able.append(i)
    assert len(able) == 1
    assert outcomes[able[0]]
    assert claim(uri).epoch == 4
    assert stored(GalleryStore(uri)) == {f"{able[0]}": able[0]}


def test_a_commit_that_a_successor_may_have_overtaken_is_not_acknowledged(uri: str) -> None:
    class Overtaken(GalleryStore):
        def _commit(self, transaction: Any) -> None:
            super()._commit(transaction)
            if self._overtake:
                taken(uri)

        _overtake = False

    first = Overtaken(uri)
    first.take_over()
    first._overtake = True

    with pytest.raises(Fenced, match="whether this write was stored is not known"):
        first.commit(table({"a": 1}))


@settings(max_examples=25)
@given(steps=st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=12))
def test_only_the_last_who_took_over_can_commit(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    uri = Store(str(tmp_path_factory.mktemp("store")), sync=False).create(SPEC).uri
    galleries = [GalleryStore(uri) for _ in range(3)]
    owner: int | None = None
    expected: dict[str, int] = {}

    for number, (who, takes_over) in enumerate(steps):
        if takes_over:
            galleries[who].take_over()
            owner = who
        elif owner in (None, who):
            galleries[who].commit(table({f"{number}": number}))
            expected[f"{number}"] = number
        else:
            with pytest.raises(Fenced):
                galleries[who].commit(table({f"{number}": number}))

    assert stored(GalleryStore(uri)) == expected


async def test_a_paused_writer_answers_unavailable_and_its_successor_has_everything(uri: str) -> None:
    gallery = GatedGallery(uri)
    async with writing(gallery) as first:
        await first.upsert(rows({"a": 1}))
        gallery.gate.clear()
        waiting = await queued(first.upsert(rows({"late": 1})), first.upsert(rows({"later": 1})))
        await gallery.reached()
        async with writing(GalleryStore(uri)) as second:
            acknowledged = await second.upsert(rows({"b": 2}))
            gallery.gate.set()
            for task in waiting:
                with pytest.raises(Unavailable, match="has been succeeded"):
                    await task
            await first.maintain()
            with pytest.raises(Unavailable):
                await first.delete(ids=["a"])
            assert (await second.upsert(rows({"c": 3}))).version == acknowledged.version + 1

    assert stored(GalleryStore(uri)) == {"a": 1, "b": 2, "c": 3}


async def test_a_store_that_takes_no_writes_yet_can_be_read_and_is_taken_over_by_the_first_write(uri: str) -> None:
    class FullAtFirst(GalleryStore):
        refusals = 1

        def take_over(self) -> Any:
            if self.refusals:
                self.refusals -= 1
                raise StoreFailure("no space left on the store's device")
            return super().take_over()

    taken(uri).commit(table({"a": 1}))
    gallery = FullAtFirst(uri)
    async with writing(gallery) as writer:
        assert await writer.version() == gallery.newest_version()
        await writer.upsert(rows({"b": 2}))

    assert claim(uri).epoch == 2
    assert stored(gallery) == {"a": 1, "b": 2}


async def test_a_busy_writer_renews_its_barrier_so_that_old_versions_go(uri: str) -> None:
    gallery = GatedGallery(uri)
    policy = MaintenancePolicy(keep_s=0, keep_versions=4, clean_up_every=4, busy_every=4)
    async with writing(gallery, policy=policy) as writer:
        for i in range(30):
            await writer.upsert(rows({f"{i}": i}))
        await writer.maintain()
        await writer.maintain()
        versions = gallery.checkout(gallery.newest_version()).versions()

    assert len(versions) < 15
    assert stored(gallery) == {f"{i}": i for i in range(30)}


def test_a_take_over_changes_no_row_and_no_description(uri: str) -> None:
    first = taken(uri)
    first.commit(table({"a": 1, "b": 2}))
    first.commit(table({"b": 3}), ["a"])
    first.update_spec(attribute_added())
    columns = ["id", "stamp", "_row_created_at_version", "_row_last_updated_at_version"]
    before = first.checkout(first.version).to_table(columns=columns, with_row_id=True)

    second = taken(uri)

    dataset = second.checkout(second.version)
    assert dataset.to_table(columns=columns, with_row_id=True) == before
    assert dataset.lance_schema == first.checkout(first.version).lance_schema
    assert second.spec == first.spec == attribute_added()
    changes = dataset.delta(begin_version=first.version, end_version=second.version)
    assert changes.get_deleted_row_ids().read_all().num_rows == changes.get_updated_rows().read_all().num_rows == 0


def test_a_claim_that_cannot_be_read_stops_the_writer_before_it_writes(uri: str) -> None:
    gallery = GalleryStore(uri)
    gallery.checkout(1).update_schema_metadata({CLAIM_KEY: "{"})

    with pytest.raises(StoreFailure, match=r"'likewise\.writer' cannot be read"):
        GalleryStore(uri)
    with pytest.raises(StoreFailure, match=r"'likewise\.writer' cannot be read"):
        gallery.commit(table({"a": 1}))


ROOT = Path(__file__).resolve().parents[3]

_WRITER = """
import sys
from tests.unit.shards.store_fixtures import table
from likewise.shards.fence import Fenced
from likewise.shards.gallery_store import GalleryStore
gallery = GalleryStore(sys.argv[1])
gallery.take_over()
for number in range(1_000_000):
    try:
        gallery.commit(table({f"{sys.argv[2]}-{number}": number}))
    except Fenced as error:
        print("doubt" if "not known" in str(error) else "refused", number, flush=True)
        break
    print("stored", number, flush=True)
"""


@pytest.mark.slow
def test_processes_stopped_wherever_they_are_commit_nothing_after_their_successors(uri: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choice = random.Random(seed)
    acknowledged: set[str] = set()
    in_doubt: set[str] = set()
    for round_ in range(6):
        program = [sys.executable, "-c", _WRITER, uri, f"r{round_}"]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            for _ in range(choice.randint(1, 40)):
                word, number = process.stdout.readline().split()
                acknowledged.add(f"r{round_}-{number}")
            process.send_signal(signal.SIGSTOP)
            successor = taken(uri)
            for i in range(choice.randint(0, 3)):
                successor.commit(table({f"s{round_}-{i}": i}))
                acknowledged.add(f"s{round_}-{i}")
            if choice.random() < 0.5:
                successor.renew_barrier(after=1)
                successor.clean_up(older_than_s=0, keep=1)
            before = stored(GalleryStore(uri))
            process.send_signal(signal.SIGCONT)
            for line in process.stdout:
                word, number = line.split()
                if word != "refused":
                    (in_doubt if word == "doubt" else acknowledged).add(f"r{round_}-{number}")

        assert word in ("refused", "doubt"), "it ended by being fenced off"
        assert stored(GalleryStore(uri)) == before, "nothing changed after the successor took over"
    assert acknowledged <= before.keys() <= acknowledged | in_doubt
