"""One shard's share of a gallery's store, read by version."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from likewise.shards import layout
from likewise.shards.failures import is_missing, told_apart
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.protocols import I64, Changes, HistoryGone, ShardError

BATCH_BYTES: Final = 16 << 20
"""Rows are read in batches of about this size."""

_LIGHT_ROWS: Final = 65_536


class Partition:
    """A `PartitionSource`: the rows with `shard_hash % shards == shard`. Blocking; safe in several threads."""

    def __init__(self, gallery: GalleryStore, shard: int, shards: int) -> None:
        """A view of `gallery`; nothing is read yet.

        Raises:
            ValueError: If there is no such shard.
        """
        if not 0 <= shard < shards:
            raise ValueError(f"shard must be in [0, {shards}), got {shard}")
        self._gallery = gallery
        self._shard = shard
        self._shards = shards

    def version(self) -> int:
        """The newest committed store version."""
        return self._gallery.newest_version()

    def load(self, version: int, *, held: I64 | None = None) -> Iterator[pa.RecordBatch]:
        """All rows of the partition at a version, in the store's schema, in batches of about 16 MiB.

        Vectors of the rows in `held` are not read: the rest of a row is some 50 bytes.

        Args:
            version: Of the store.
            held: See `PartitionSource.load`.

        Raises:
            HistoryGone: If the version has been cleaned up, before or while it is read.
            StoreFailure: If it cannot be read.
        """
        if held is None:
            yield from self._read(version, "")
        else:
            yield from self._read_beside(version, held)

    def count(self, version: int) -> int:
        """Rows of the partition at a version.

        Raises:
            HistoryGone: If the version has been cleaned up.
            StoreFailure: If it cannot be read.
        """
        dataset = self._gallery.checkout(version)
        with told_apart("counting the store's rows"), _gone_is_history(version):
            return int(dataset.count_rows(filter=self._predicate() or None))

    def changes(self, since: int, until: int) -> Changes:
        """What happened after `since`, up to and with `until`: each changed id once, as it is at `until`.

        Raises:
            HistoryGone: If either version has been cleaned up.
            StoreFailure: If one cannot be read.
            ValueError: If `until` is before `since`.
        """
        if until < since:
            raise ValueError(f"changes up to version {until} cannot be after version {since}")
        schema = layout.store_schema(self._gallery.spec)
        if since == until:
            return Changes(until, layout.empty_batch(self._gallery.spec), ())
        self._gallery.checkout(since)
        written = f"_row_last_updated_at_version > {since} AND _row_last_updated_at_version <= {until}"
        batches = list(self._read(until, written))
        upserts = pa.Table.from_batches(batches, schema=schema).combine_chunks().to_batches()
        rows = upserts[0] if upserts else layout.empty_batch(self._gallery.spec)
        back = set(rows.column("id").to_pylist())
        return Changes(until, rows, [item_id for item_id in self._retired(since, until) if item_id not in back])

    def _read(self, version: int, condition: str) -> Iterator[pa.RecordBatch]:
        dataset = self._gallery.checkout(version)
        spec = self._gallery.spec
        schema = layout.store_schema(spec)
        have = set(dataset.schema.names)
        scanner = dataset.scanner(
            columns=[name for name in schema.names if name in have],
            filter=" AND ".join(part for part in (self._predicate(), condition) if part) or None,
            batch_size=max(64, min(65_536, BATCH_BYTES // layout.row_bytes(spec))),
        )
        with told_apart("reading the store"), _gone_is_history(version):
            for batch in scanner.to_batches():
                if batch.num_rows:
                    yield layout.conform(batch, schema)

    def _read_beside(self, version: int, held: I64) -> Iterator[pa.RecordBatch]:
        """Rows without vectors where they are in `held`, the others whole."""
        dataset = self._gallery.checkout(version)
        schema = layout.store_schema(self._gallery.spec)
        light = pa.schema([field for field in schema if not field.name.startswith("vector_")])
        have = set(dataset.schema.names)
        missing: list[I64] = []
        with told_apart("reading the store"), _gone_is_history(version):
            scanner = dataset.scanner(
                columns=[name for name in light.names if name in have],
                filter=self._predicate() or None,
                batch_size=_LIGHT_ROWS,
                with_row_id=True,
            )
            for batch in scanner.to_batches():
                new = ~_among(batch.column("stamp").to_numpy(), held)
                missing.append(batch.column("_rowid").to_numpy()[new])
                kept = batch.filter(pa.array(~new)) if new.any() else batch
                if kept.num_rows:
                    yield layout.conform(kept, light)
            rows = np.concatenate(missing) if missing else np.zeros(0, dtype=np.int64)
            step = max(64, BATCH_BYTES // layout.row_bytes(self._gallery.spec))
            for start in range(0, len(rows), step):
                # By row id, which a snapshot of the dataset resolves for itself, whatever was compacted since.
                taken = dataset._take_rows(
                    rows[start : start + step].tolist(), columns=[name for name in schema.names if name in have]
                )
                for batch in taken.combine_chunks().to_batches():
                    yield layout.conform(batch, schema)

    def _retired(self, since: int, until: int) -> list[str]:
        """Ids at `since` of the partition's rows that are no longer there at `until`: deleted or replaced."""
        with told_apart("reading the store"), _gone_is_history(since):
            delta = self._gallery.checkout(until).delta(begin_version=since, end_version=until)
            retired = delta.get_deleted_row_ids().read_all()["_rowid"].to_numpy()
            if not len(retired):
                return []
            scanner = self._gallery.checkout(since).scanner(
                columns=["id"], filter=self._predicate() or None, with_row_id=True
            )
            ids: list[str] = []
            for batch in scanner.to_batches():
                mask = np.isin(batch.column("_rowid").to_numpy(), retired)
                ids.extend(batch.column("id").filter(pa.array(mask)).to_pylist())
            return ids

    def _predicate(self) -> str:
        return "" if self._shards == 1 else f"shard_hash % {self._shards} = {self._shard}"


def _among(values: I64, ascending: I64) -> npt.NDArray[np.bool_]:
    """Which values are in a long sorted array; numpy.isin would sort all of that anew for every batch."""
    if not len(ascending):
        return np.zeros(len(values), dtype=bool)
    at = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    found: npt.NDArray[np.bool_] = ascending[at] == values
    return found


@contextmanager
def _gone_is_history(version: int) -> Iterator[None]:
    """Files that vanish while they are read belonged to a version that was cleaned up."""
    try:
        yield
    except ShardError:
        raise
    except Exception as error:
        if is_missing(error):
            raise HistoryGone(f"store version {version} was cleaned up while it was read") from error
        raise
