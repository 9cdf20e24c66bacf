"""One gallery's Lance dataset: atomic commits, versions to read from, compaction and clean-up.

A commit is one Lance transaction of the kind Update: fragments with the new rows, and deletion files that retire the
old rows of the replaced and deleted ids. So a group with new, replaced and deleted ids is one version, and a replaced
row costs a deletion mark instead of the join that `merge_insert` runs (1,000 of 50k x 512
rows: 20 ms against 45).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from lance import Session  # type: ignore[attr-defined]
from lance.fragment import write_fragments
from lance.optimize import Compaction

from likewise.shards import layout
from likewise.shards.failures import is_missing, told_apart
from likewise.shards.known_ids import KnownIds
from likewise.shards.protocols import HistoryGone, ShardError, StoreFailure
from likewise.shards.spec import GallerySpec, from_json, to_json
from likewise.shards.sync import sync_files

_log = logging.getLogger(__name__)

SPEC_KEY: Final = "likewise"
"""Schema metadata key of the gallery's description."""

FRAGMENT_BYTES: Final = 128 << 20
"""A bulk commit is cut into files of about this size, so that compaction never has to touch larger ones."""

_LOOKUP_IDS: Final = 10_000
"""Ids looked up with one predicate: 55 ms in 2 M rows, where the parse of 100,000 would dominate."""

# Lance would take 1 GB for metadata and 6 GB for indices (which we do not use) per dataset.
_METADATA_CACHE_BYTES: Final = 64 << 20
_INDEX_CACHE_BYTES: Final = 16 << 20

_ADDRESS_BITS: Final = 32
_NEWEST_MANIFEST: Final = (1 << 64) - 1
_MANIFEST_END: Final = b"LANC"

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit did.

    Attributes:
        base_version: Version before.
        version: Version after; the same if there was nothing to do.
        upserts: The rows written, in the store's schema.
        deleted_ids: Ids that were there and are gone.
        existed: All ids named in the commit that were there before it.
    """

    base_version: int
    version: int
    upserts: pa.RecordBatch
    deleted_ids: Sequence[str]
    existed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Fragment:
    """One file of rows: its id, rows in the file, and how many of them are retired."""

    id: int
    rows: int
    deleted: int


class GalleryStore:
    """One gallery's dataset.

    `commit`, `compact` and `update_spec` belong to one thread; `checkout`, `newest_version` and `clean_up` may be
    called from any at the same time.

    Attributes:
        uri: Where the dataset lies; plain `lance.dataset(uri)` reads it.
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
        self._folder = folder if sync else None
        with told_apart("opening the gallery"):
            # A session of its own: one shared by galleries would answer for a deleted and recreated one from its cache.
            session = Session(
                index_cache_size_bytes=_INDEX_CACHE_BYTES, metadata_cache_size_bytes=_METADATA_CACHE_BYTES
            )
            try:
                self._reader: Any = lance.dataset(uri, storage_options=storage_options, session=session)
            except ValueError as error:
                if folder is not None and (damage := _damage(folder)):
                    raise StoreFailure(damage) from error
                raise
            self._dataset: Any = self._reader.checkout_version(self._reader.version)
        self._spec = _spec_of(self._dataset)
        self._known: KnownIds | None = None

    @property
    def spec(self) -> GallerySpec:
        """The gallery's description as of `version`."""
        return self._spec

    @property
    def version(self) -> int:
        """The version last committed or seen here."""
        return int(self._dataset.version)

    def newest_version(self) -> int:
        """The newest version in the store, whoever committed it."""
        with told_apart("reading the store's version"):
            return int(self._reader.latest_version)

    def checkout(self, version: int) -> Any:
        """A `lance.LanceDataset` at a version.

        Raises:
            HistoryGone: If it has been cleaned up.
            StoreFailure: If it cannot be read or is not there yet.
        """
        try:
            return self._reader.checkout_version(version)
        except Exception as error:
            if not is_missing(error):
                raise StoreFailure(f"store version {version} cannot be read") from error
            newest = self.newest_version()
            if version > newest:
                raise StoreFailure(f"store version {version} is not there yet, the newest is {newest}") from error
            raise HistoryGone(f"store version {version} has been cleaned up, the newest is {newest}") from error

    def count(self) -> int:
        """Live rows at `version`."""
        return int(self._dataset.count_rows())

    def scan(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The named columns of all live rows at `version`, in batches."""
        for batch in self._dataset.scanner(columns=list(columns)).to_batches():
            yield pa.Table.from_batches([batch])

    def prepare(self) -> None:
        """Catch up with the store and read the ids' hashes (12 ms for 2 M rows); otherwise the first commit does it."""
        with told_apart("reading the gallery's ids"):
            self._follow()
            if self._known is None or self._known.wants_rebuild:
                hashes = self._dataset.to_table(columns=["shard_hash"])["shard_hash"]
                self._known = KnownIds(hashes.to_numpy())

    def commit(self, upserts: pa.Table | None, deleted_ids: Sequence[str] = ()) -> Commit:
        """Write rows and delete ids as one version, all or nothing.

        Args:
            upserts: Rows in `layout.input_schema`, each id once; None or empty for none.
            deleted_ids: Ids to delete, none of them in `upserts`; those that are not there are no error.

        Raises:
            StoreFailure: If the store refused; nothing is stored.
        """
        with told_apart("the commit failed"):
            self.prepare()
            base = self.version
            rows = layout.stamped(upserts, self._spec, base + 1) if upserts is not None and upserts.num_rows else None
            new_ids: list[str] = [] if rows is None else rows.column("id").to_pylist()
            existing, addresses = self._locate([*new_ids, *deleted_ids])
            existed = frozenset(existing)
            gone = [item_id for item_id in dict.fromkeys(deleted_ids) if item_id in existed]
            if rows is None and not gone:
                return Commit(base, base, layout.empty_batch(self._spec), (), existed)
            self._write(rows, addresses)
            return self._committed(base, layout.empty_batch(self._spec) if rows is None else rows, gone, existed)

    def update_spec(self, spec: GallerySpec) -> Commit:
        """Store a changed description; attributes that it adds become columns of nulls.

        Raises:
            ValueError: If it changes what rows already written depend on.
            StoreFailure: If the store refused.
        """
        with told_apart("the description could not be stored"):
            self._follow()
            base = self.version
            _check_change(self._spec, spec)
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
        with told_apart("the compaction failed"):
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
            before = self._data_files()
            results = [task.execute(self._dataset) for task in plan.tasks]
            if results:
                self._sync(self._data_files() - before)
                Compaction.commit(self._dataset, results, options)
                self._dataset = self._reader.checkout_version(self.newest_version())
            return self._committed(base, layout.empty_batch(self._spec), [], frozenset())

    def clean_up(self, *, older_than_s: float, keep: int) -> int:
        """Remove versions that are older than that and not among the newest `keep`; returns how many went."""
        with told_apart("the clean-up failed"):
            dataset = self._reader.checkout_version(self.newest_version())
            stats = dataset.cleanup_old_versions(older_than=timedelta(seconds=older_than_s), retain_versions=keep)
            return int(stats.old_versions)

    def _follow(self) -> None:
        newest = self.newest_version()
        if newest == self.version:
            return
        _log.info("the gallery moved from version %d to %d by another hand", self.version, newest)
        self._dataset = self._reader.checkout_version(newest)
        self._spec = _spec_of(self._dataset)
        self._known = None

    def _locate(self, ids: Sequence[str]) -> tuple[list[str], U64]:
        """Those of the ids that are there, with their rows' addresses."""
        assert self._known is not None
        hashes = layout.shard_hashes(ids)
        maybe = np.flatnonzero(self._known.may_contain(hashes))
        found: list[str] = []
        addresses: list[U64] = []
        for start in range(0, len(maybe), _LOOKUP_IDS):
            chunk = maybe[start : start + _LOOKUP_IDS]
            predicate = f"shard_hash IN ({','.join(map(str, hashes[chunk].tolist()))})"
            table = self._dataset.to_table(columns=["id"], filter=predicate, with_row_address=True)
            wanted = pa.array([ids[i] for i in chunk.tolist()], pa.string())
            table = table.filter(pc.is_in(table["id"], value_set=wanted))
            found.extend(table["id"].to_pylist())
            addresses.append(table["_rowaddr"].to_numpy())
        return found, np.unique(np.concatenate(addresses)) if addresses else np.empty(0, np.uint64)

    def _write(self, rows: pa.RecordBatch | None, retired: U64) -> None:
        base = self.version
        fragments: list[Any] = []
        if rows is not None:
            per_file = max(1, FRAGMENT_BYTES // layout.row_bytes(self._spec))
            table = pa.Table.from_batches([rows])
            fragments = write_fragments(table, self._dataset, mode="append", max_rows_per_file=per_file)
        updated, removed = self._retire(retired)
        self._sync(self._files_of(fragments) | self._deletions_of(updated))
        operation = lance.LanceOperation.Update(
            removed_fragment_ids=removed, updated_fragments=updated, new_fragments=fragments
        )
        transaction = lance.Transaction(base, operation)
        try:
            self._dataset = lance.LanceDataset.commit(self._dataset, transaction)
        except Exception:
            # A commit may have happened although the call failed, when only what comes after the manifest went wrong.
            if not self._landed(transaction):
                raise
        if self.version != base + 1:
            _log.error("another process committed versions %d to %d meanwhile", base + 1, self.version - 1)

    def _retire(self, addresses: U64) -> tuple[list[Any], list[int]]:
        """Fragments with new deletion files, and the ids of fragments of which nothing is left."""
        updated: list[Any] = []
        removed: list[int] = []
        owners = (addresses >> np.uint64(_ADDRESS_BITS)).astype(np.int64)
        offsets = (addresses & np.uint64((1 << _ADDRESS_BITS) - 1)).astype(np.int64)
        for fragment_id in np.unique(owners).tolist():
            fragment = self._dataset.get_fragment(fragment_id)
            metadata = fragment.delete_rows(offsets[owners == fragment_id].tolist())
            if metadata is None:
                removed.append(fragment_id)
            else:
                updated.append(metadata)
        return updated, removed

    def _landed(self, transaction: Any) -> bool:
        self._known = None
        newest = self._reader.checkout_version(self.newest_version())
        for version in range(transaction.read_version + 1, newest.version + 1):
            stored = newest.read_transaction(version)
            if stored is not None and stored.uuid == transaction.uuid:
                self._dataset = newest
                return True
        return False

    def _committed(self, base: int, rows: pa.RecordBatch, gone: Sequence[str], existed: frozenset[str]) -> Commit:
        self._sync(self._manifests(base))
        if self._known is not None:
            self._known.add(rows.column("shard_hash").to_numpy())
            self._known.stale += len(gone)
        return Commit(base, self.version, rows, gone, existed)

    # Paths below exist for flushing alone; without a local folder, or with sync off, there are none.

    def _sync(self, paths: set[Path]) -> None:
        sync_files(paths)

    def _files_of(self, fragments: Sequence[Any]) -> set[Path]:
        if self._folder is None:
            return set()
        return {self._folder / "data" / file.path for fragment in fragments for file in fragment.files}

    def _deletions_of(self, fragments: Sequence[Any]) -> set[Path]:
        if self._folder is None:
            return set()
        return {self._folder / fragment.deletion_file.path(fragment.id) for fragment in fragments}

    def _data_files(self) -> set[Path]:
        return set() if self._folder is None else set((self._folder / "data").iterdir())

    def _manifests(self, base: int) -> set[Path]:
        if self._folder is None:
            return set()
        # Lance counts manifest names down, so that the newest is listed first.
        names = (f"{_NEWEST_MANIFEST - version:020d}.manifest" for version in range(base + 1, self.version + 1))
        return {self._folder / "_versions" / name for name in names}


def _spec_of(dataset: Any) -> GallerySpec:
    text = (dataset.schema.metadata or {}).get(SPEC_KEY.encode())
    if text is None:
        raise StoreFailure(f"the dataset is no gallery: its schema metadata has no key {SPEC_KEY!r}")
    return from_json(text.decode())


def _damage(folder: Path) -> str:
    """What a power loss in the middle of a commit did to the newest manifest, "" if it is whole."""
    # Names count down, so the newest manifest is the first.
    newest = min(folder.glob("_versions/*.manifest"), default=None)
    if newest is None or newest.read_bytes().endswith(_MANIFEST_END):
        return ""
    version = _NEWEST_MANIFEST - int(newest.stem)
    return (
        f"the manifest of version {version} of {folder.stem!r} is cut short, as by a power loss during its commit; "
        f"to go on from version {version - 1}, move {folder.name}/_versions/{newest.name} away"
    )


class SpecChange(ShardError, ValueError):
    """A description that rows already written do not fit."""


def _check_change(old: GallerySpec, new: GallerySpec) -> None:
    if new.name != old.name or new.gallery_id != old.gallery_id or new.spaces != old.spaces:
        raise SpecChange(f"name, identity and spaces of gallery {old.name!r} cannot be changed")
    types = {attribute.name: attribute.type for attribute in new.attributes}
    for attribute in old.attributes:
        if types.get(attribute.name) != attribute.type:
            raise SpecChange(f"attribute {attribute.name!r} can be neither removed nor given another type")
