"""One gallery's Lance dataset: atomic commits, versions to read from, compaction and clean-up.

A commit is one Lance transaction of the kind Update: fragments with the new rows, and deletion files that retire the
old rows of the replaced and deleted ids. So a group with new, replaced and deleted ids is one version, and a replaced
row costs a deletion mark instead of the join that `merge_insert` runs (1,000 of 50k x 512
rows: 20 ms against 45).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import lance
import numpy as np
import pyarrow as pa
from lance import Session  # type: ignore[attr-defined]
from lance.fragment import write_fragments
from lance.optimize import Compaction

from likewise.shards import layout
from likewise.shards.bulk import BLOCK_STAMPS, FRAGMENT_BYTES, StagedRows
from likewise.shards.commit import Commit as Commit
from likewise.shards.commit import Fragment as Fragment
from likewise.shards.dataset_files import DatasetFiles, damage
from likewise.shards.failures import told_apart
from likewise.shards.fence import Fence, GalleryReadOnly, is_conflict
from likewise.shards.history import History
from likewise.shards.known_ids import KnownIds
from likewise.shards.protocols import ShardError, StoreFailure
from likewise.shards.row_addresses import U64, locate, retire
from likewise.shards.spec import GallerySpec, from_json, to_json
from likewise.shards.spec_change import check_change
from likewise.shards.sync import sync_files

_log = logging.getLogger(__name__)

SPEC_KEY: Final = "likewise"
"""Schema metadata key of the gallery's description."""

NOTE_KEY: Final = "likewise.answers"
"""Key of a commit's note in the properties of its transaction."""

READ_ONLY_KEY: Final = "likewise.read_only"
"""Schema metadata key that is "true" in a gallery that takes no writes."""

# Lance would take 1 GB for metadata and 6 GB for indices (which we do not use) per dataset.
_METADATA_CACHE_BYTES: Final = 64 << 20
_INDEX_CACHE_BYTES: Final = 16 << 20


class GalleryStore:
    """One gallery's dataset.

    `take_over`, `commit`, `compact` and `update_spec` belong to one thread; `checkout`, `newest_version`, `clean_up`
    and `history` may be used from any at the same time.

    Attributes:
        uri: Where the dataset lies; plain `lance.dataset(uri)` reads it.
        history: Its versions and their names.
    """

    def __init__(
        self,
        uri: str,
        *,
        folder: Path | None = None,
        storage_options: dict[str, str] | None = None,
        sync: bool = True,
    ) -> None:
        """Open a dataset.

        Args:
            uri: Anything Lance takes.
            folder: The same place as a local path; None for an object store.
            storage_options: Lance's options for an object store.
            sync: Flush commits to the device, so that they survive power loss too. Only with a `folder`.

        Raises:
            StoreFailure: If the dataset cannot be read or is no gallery.
            SpecError: If it was written by a newer release.
        """
        self.uri = uri
        self._files = DatasetFiles(folder if sync else None)
        with told_apart("opening the gallery"):
            # A session of its own: one shared by galleries would answer for a deleted and recreated one from its cache.
            session = Session(
                index_cache_size_bytes=_INDEX_CACHE_BYTES, metadata_cache_size_bytes=_METADATA_CACHE_BYTES
            )
            try:
                self._reader: Any = lance.dataset(uri, storage_options=storage_options, session=session)
            except ValueError as error:
                if folder is not None and (words := damage(folder)):
                    raise StoreFailure(words) from error
                raise
            self._dataset: Any = self._reader.checkout_version(self._reader.version)
            self._spec = _spec_of(self._dataset)
        self._known: KnownIds | None = None
        self._fence = Fence(self._reader, self._spec.name, self._barrier)
        self.history = History(self._reader, self._files, self._fence.oldest_needed)

    @property
    def spec(self) -> GallerySpec:
        """The gallery's description as of `version`."""
        return self._spec

    @property
    def version(self) -> int:
        """The version last committed or seen here."""
        return int(self._dataset.version)

    @property
    def read_only(self) -> bool:
        """Whether it takes no writes."""
        return (self._dataset.schema.metadata or {}).get(READ_ONLY_KEY.encode()) == b"true"

    def newest_version(self) -> int:
        """See `History.newest_version`."""
        return self.history.newest_version()

    def checkout(self, version: int) -> Any:
        """See `History.checkout`."""
        return self.history.checkout(version)

    def count(self) -> int:
        """Live rows at `version`."""
        return int(self._dataset.count_rows())

    def scan(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The named columns of all live rows at `version`, in batches."""
        for batch in self._dataset.scanner(columns=list(columns)).to_batches():
            yield pa.Table.from_batches([batch])

    def take_over(self) -> Commit:
        """Become the one who may commit: whoever did before, also from the middle of a commit, no longer can.

        Raises:
            Fenced: If yet another writer takes it over at the same time.
            GalleryReadOnly: If it takes no writes.
            StoreFailure: If the store refused.
        """
        with self._committing("the gallery could not be taken over"):
            base = self.version
            self._fence.take_over()
            self._known = None
            return self._committed(base, layout.empty_batch(self._spec), [], frozenset())

    def renew_barrier(self, *, after: int) -> Commit | None:
        """Set the barrier anew if so many versions came after it, so that those before it may be forgotten.

        Raises:
            Fenced: If another writer has taken the gallery over.
            StoreFailure: If the store refused.
        """
        if self._fence.age(self.version) < after:
            return None
        with self._committing("the barrier could not be renewed"):
            base = self.version
            self._fence.renew()
            return self._committed(base, layout.empty_batch(self._spec), [], frozenset())

    def prepare(self) -> None:
        """Catch up with the store and read the ids' hashes (12 ms for 2 M rows); otherwise the first commit does it."""
        with told_apart("reading the gallery's ids"):
            self._follow()
            if self._known is None or self._known.wants_rebuild:
                hashes = self._dataset.to_table(columns=["shard_hash"])["shard_hash"]
                self._known = KnownIds(hashes.to_numpy())

    def commit(
        self,
        upserts: pa.Table | None,
        deleted_ids: Sequence[str] = (),
        *,
        note: Callable[[frozenset[str]], str] = lambda _: "",
    ) -> Commit:
        """Write rows and delete ids as one version, all or nothing.

        Args:
            upserts: Rows in `layout.input_schema`, each id once; None or empty for none.
            deleted_ids: Ids to delete, none of them in `upserts`; those that are not there are no error.
            note: Text to keep with the commit, given `Commit.existed`; "" for none. See `History.notes`.

        Raises:
            Fenced: If another writer has taken the gallery over; nothing is stored, unless it says otherwise.
            GalleryReadOnly: If it takes no writes.
            StoreFailure: If the store refused; nothing is stored.
        """
        with self._committing("the commit failed"):
            self.prepare()
            assert self._known is not None
            base = self.version
            rows = layout.stamped(upserts, self._spec, base + 1) if upserts is not None and upserts.num_rows else None
            new_ids: list[str] = [] if rows is None else rows.column("id").to_pylist()
            existing, addresses = locate(self._dataset, self._known, [*new_ids, *deleted_ids])
            existed = frozenset(existing)
            gone = [item_id for item_id in dict.fromkeys(deleted_ids) if item_id in existed]
            if rows is None and not gone:
                return Commit(base, base, layout.empty_batch(self._spec), (), existed)
            self._write(rows, addresses, note(existed))
            return self._committed(base, layout.empty_batch(self._spec) if rows is None else rows, gone, existed)

    def lend_stamps(self, rows: int) -> tuple[list[int], Commit]:
        """First stamps of enough blocks for so many rows: each of a version that writes no rows itself."""
        with self._committing("no stamps could be lent"):
            self._follow()
            base = self.version
            firsts: list[int] = []
            for _ in range(-(-rows // BLOCK_STAMPS)):
                nothing = lance.LanceOperation.Update(removed_fragment_ids=[], updated_fragments=[], new_fragments=[])
                self._commit(lance.Transaction(self.version, nothing))
                firsts.append(layout.first_stamp(self.version))
            return firsts, self._committed(base, layout.empty_batch(self._spec), [], frozenset())

    def commit_fragments(self, descriptions: Sequence[str], *, note: Callable[[int], str]) -> tuple[int, Commit]:
        """Commit files that `bulk.write` wrote as one version, all or nothing; ids that are there are replaced.

        Args:
            descriptions: What `bulk.write` gave, in the order in which the last row of an id stays.
            note: As for `commit`, given how many ids are written.

        Returns:
            Distinct ids, and the commit.

        Raises:
            FragmentsUnusable: If a file cannot be used; nothing is stored.
            Fenced: If another writer has taken the gallery over.
            StoreFailure: If the store refused; nothing is stored.
        """
        with self._committing("the files could not be committed"):
            self.prepare()
            assert self._known is not None
            base = self.version
            rows = StagedRows(self._dataset, descriptions)
            superseded = rows.superseded()
            maybe = np.setdiff1d(np.flatnonzero(self._known.may_contain(rows.hashes)), superseded, assume_unique=True)
            _, addresses = locate(self._dataset, self._known, rows.ids(maybe))
            distinct = len(rows.hashes) - len(superseded)
            self._put(rows.fragments_without(superseded), addresses, note(distinct))
            self._known.add(rows.hashes)
            done = self._committed(base, layout.empty_batch(self._spec), [], frozenset())
            return distinct, replace(done, whole=False)

    def update_spec(self, spec: GallerySpec) -> Commit:
        """Store a changed description; attributes that it adds become columns of nulls.

        Raises:
            ValueError: If it changes what rows already written depend on.
            StoreFailure: If the store refused.
        """
        with self._committing("the description could not be stored"):
            self._follow()
            base = self.version
            check_change(self._spec, spec)
            have = set(self._dataset.schema.names)
            added = [field for field in layout.store_schema(spec) if field.name not in have]
            if added:
                self._dataset.add_columns(pa.schema(added))
            self._dataset.update_schema_metadata({SPEC_KEY: to_json(spec)})
            self._spec = spec
            return self._committed(base, layout.empty_batch(spec), [], frozenset())

    def fragments(self) -> list[Fragment]:
        """The files of rows, in order."""
        metadata = (fragment.metadata for fragment in self._dataset.get_fragments())
        return [Fragment(entry.id, entry.physical_rows, entry.num_deletions) for entry in metadata]

    def compact(self, fragment_ids: Sequence[int]) -> Commit:
        """Rewrite neighbouring fragments as one, without their retired rows. Rows keep their stamps and row ids.

        Raises:
            StoreFailure: If the store refused; nothing is lost.
        """
        with self._committing("the compaction failed"):
            self._follow()
            base = self.version
            chosen = set(fragment_ids)
            entries = self.fragments()
            rows = sum(entry.rows for entry in entries if entry.id in chosen)
            options: Any = {
                # Every chosen fragment is smaller than the target, so all of them go into one.
                "target_rows_per_fragment": rows + 1,
                "materialize_deletions_threshold": 0.0,
                "num_threads": 1,
                "excluded_fragment_ids": [entry.id for entry in entries if entry.id not in chosen],
            }
            plan = Compaction.plan(self._dataset, options)
            before = self._files.all_rows()
            results = [task.execute(self._dataset) for task in plan.tasks]
            if results:
                sync_files(self._files.all_rows() - before)
                Compaction.commit(self._dataset, results, options)
                self._dataset = self._reader.checkout_version(self.newest_version())
            return self._committed(base, layout.empty_batch(self._spec), [], frozenset())

    def clean_up(self, *, older_than_s: float, keep: int) -> int:
        """See `History.clean_up`."""
        return self.history.clean_up(older_than_s=older_than_s, keep=keep)

    def _follow(self) -> None:
        newest = self.newest_version()
        if newest == self.version:
            return
        _log.info("the gallery moved from version %d to %d by another hand", self.version, newest)
        dataset = self._reader.checkout_version(newest)
        # Before it is taken: whoever has been succeeded never gets past this.
        self._fence.check(dataset)
        self._dataset, self._spec, self._known = dataset, _spec_of(dataset), None

    @contextmanager
    def _committing(self, doing: str) -> Iterator[None]:
        """Tell what goes wrong inside apart; a commit that Lance refuses may have met a successor's barrier."""
        with told_apart(doing):
            if self.read_only:
                raise GalleryReadOnly(f"gallery {self._spec.name!r} takes no writes: it is a snapshot, read-only")
            try:
                yield
            except ShardError:
                raise
            except Exception as error:
                if is_conflict(error):
                    self._fence.check_newest(doubt=False)
                raise

    def _barrier(self) -> int:
        """A commit that changes nothing and that no commit made on top of an older version is rebased over."""
        self._follow()
        fragments = [fragment.metadata for fragment in self._dataset.get_fragments()]
        unchanged = lance.LanceOperation.Merge(fragments=fragments, schema=self._dataset.lance_schema)
        self._commit(lance.Transaction(self.version, unchanged))
        return self.version

    def _write(self, rows: pa.RecordBatch | None, retired: U64, note: str) -> None:
        fragments: list[Any] = []
        if rows is not None:
            per_file = max(1, FRAGMENT_BYTES // layout.row_bytes(self._spec))
            table = pa.Table.from_batches([rows])
            fragments = write_fragments(table, self._dataset, mode="append", max_rows_per_file=per_file)
        self._put(fragments, retired, note)

    def _put(self, fragments: list[Any], retired: U64, note: str) -> None:
        base = self.version
        updated, removed = retire(self._dataset, retired)
        sync_files(self._files.rows_of(fragments) | self._files.deletions_of(updated))
        operation = lance.LanceOperation.Update(
            removed_fragment_ids=removed, updated_fragments=updated, new_fragments=fragments
        )
        properties = {NOTE_KEY: note} if note else {}
        self._commit(lance.Transaction(base, operation, transaction_properties=properties))
        if self.version != base + 1:
            _log.error("another process committed versions %d to %d meanwhile", base + 1, self.version - 1)

    def _commit(self, transaction: Any) -> None:
        try:
            self._dataset = lance.LanceDataset.commit(self._dataset, transaction)
        except Exception as error:
            # A commit may have happened although the call failed, when only what comes after the manifest went wrong.
            if is_conflict(error) or not self._landed(transaction):
                raise

    def _landed(self, transaction: Any) -> bool:
        self._known = None
        newest = self._reader.checkout_version(self.newest_version())
        for version in range(transaction.read_version + 1, newest.version + 1):
            stored = newest.read_transaction(version)
            if stored is not None and stored.uuid == transaction.uuid:
                self._fence.check(newest, doubt=True)
                self._dataset = newest
                return True
        return False

    def _committed(self, base: int, rows: pa.RecordBatch, gone: Sequence[str], existed: frozenset[str]) -> Commit:
        sync_files(self._files.manifests(base, self.version))
        if self.newest_version() != self.version:
            # A writer that slept in the middle of its commit may have put it where nobody looks any more.
            self._fence.check_newest(doubt=True)
        if self._known is not None:
            self._known.add(rows.column("shard_hash").to_numpy())
            self._known.stale += len(gone)
        return Commit(base, self.version, rows, gone, existed)


def _spec_of(dataset: Any) -> GallerySpec:
    text = (dataset.schema.metadata or {}).get(SPEC_KEY.encode())
    if text is None:
        raise StoreFailure(f"the dataset is no gallery: its schema metadata has no key {SPEC_KEY!r}")
    return from_json(text.decode())
