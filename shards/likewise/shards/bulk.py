"""Rows written beside a gallery's writer: Lance files in the dataset's folder that no version names until it does.

Whoever writes such a file stamps its rows with stamps that the writer lent, so that a stamp still names one row. Lance
leaves files alone that no version names for seven days; then a clean-up may remove them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata, write_fragments

from likewise.shards import layout
from likewise.shards.failures import is_missing
from likewise.shards.protocols import I64, FragmentsUnusable
from likewise.shards.spec import GallerySpec

BLOCK_STAMPS: Final = layout.MAX_COMMIT_ROWS - 1
"""Stamps that one lent store version has."""

FRAGMENT_BYTES: Final = 128 << 20
"""A bulk commit is cut into files of about this size, so that compaction never has to touch larger ones."""

_READ_ROWS: Final = 65_536


def write(rows: pa.Table, spec: GallerySpec, *, uri: str, first_stamp: int) -> list[str]:
    """Write rows into a gallery's folder; nobody sees them before `GalleryWriter.commit_fragments`.

    Args:
        rows: In `layout.input_schema`, checked.
        spec: The gallery.
        uri: Its dataset.
        first_stamp: Lent by its writer; as many are used as there are rows.

    Returns:
        Lance's description of each file, JSON.

    Raises:
        Exception: Whatever Lance says of a place that cannot be written.
    """
    batch = layout.stamped_from(rows, spec, first_stamp)
    per_file = max(1, FRAGMENT_BYTES // layout.row_bytes(spec))
    written = write_fragments(pa.Table.from_batches([batch]), uri, mode="append", max_rows_per_file=per_file)
    return [json.dumps(fragment.to_json()) for fragment in written]


@dataclass(frozen=True, slots=True)
class _File:
    fragment: Any
    path: str
    first: int


class StagedRows:
    """The rows of files that are to be committed together. Blocking.

    Attributes:
        hashes: (n,) `shard_hash` of every row, file after file.
    """

    def __init__(self, dataset: Any, descriptions: Sequence[str]) -> None:
        """Read the hashes of all rows.

        Args:
            dataset: A `lance.LanceDataset` of the gallery's newest version.
            descriptions: As `write` gave them, in the order in which the last row of an id counts.

        Raises:
            FragmentsUnusable: If a file is gone, is part of the gallery already, or is not what was described.
        """
        self._dataset = dataset
        self._files: list[_File] = []
        parts: list[I64] = []
        known = {file.path for fragment in dataset.get_fragments() for file in fragment.metadata.files}
        first = 0
        for description in descriptions:
            fragment = _fragment(description)
            path = fragment.files[0].path
            if path in known:
                raise FragmentsUnusable(f"the file {path!r} is part of the gallery already", committed=True)
            known.add(path)
            hashes = self._read(path, "shard_hash").to_numpy()
            if len(hashes) != fragment.physical_rows:
                raise FragmentsUnusable(f"the file {path!r} has {len(hashes)} rows, not {fragment.physical_rows}")
            self._files.append(_File(fragment, path, first))
            parts.append(hashes)
            first += len(hashes)
        self.hashes: I64 = np.concatenate(parts) if parts else np.empty(0, np.int64)

    def ids(self, rows: I64) -> list[str]:
        """Ids of some rows, ascending in `rows`."""
        found: list[str] = []
        for file, own in self._by_file(rows):
            reader = self._open(file.path, ["id"])
            found.extend(reader.take_rows(own.tolist()).to_table()["id"].to_pylist())
        return found

    def superseded(self) -> I64:
        """Rows, ascending, whose id comes again in a later row."""
        order = np.argsort(self.hashes, kind="stable")
        same = self.hashes[order][1:] == self.hashes[order][:-1]
        if not same.any():
            return np.empty(0, np.int64)
        # Equal hashes are equal ids but for one pair in some billions of rows: the ids decide.
        alike = np.sort(order[np.concatenate([same, [False]]) | np.concatenate([[False], same])]).astype(np.int64)
        last = dict(zip(self.ids(alike), alike.tolist(), strict=True))
        return np.setdiff1d(alike, np.fromiter(last.values(), dtype=np.int64, count=len(last)), assume_unique=True)

    def fragments_without(self, rows: I64) -> list[Any]:
        """The files as `lance.FragmentMetadata`, those with such rows written anew without them."""
        dropped = {file.path: own for file, own in self._by_file(rows)}
        fragments: list[Any] = []
        for file in self._files:
            if file.path not in dropped:
                fragments.append(file.fragment)
                continue
            kept = np.ones(file.fragment.physical_rows, dtype=bool)
            kept[dropped[file.path]] = False
            if kept.any():
                table = self._open(file.path, None).read_all(batch_size=_READ_ROWS).to_table().filter(pa.array(kept))
                fragments.extend(write_fragments(table, self._dataset, mode="append"))
        return fragments

    def _by_file(self, rows: I64) -> Iterator[tuple[_File, I64]]:
        for file in self._files:
            low, high = np.searchsorted(rows, [file.first, file.first + file.fragment.physical_rows])
            if high > low:
                yield file, rows[low:high] - file.first

    def _read(self, path: str, column: str) -> pa.ChunkedArray:
        return self._open(path, [column]).read_all(batch_size=_READ_ROWS).to_table()[column]

    def _open(self, path: str, columns: list[str] | None) -> Any:
        try:
            return LanceFileReader(f"{self._dataset.uri}/data/{path}", columns=columns)
        except Exception as error:
            if is_missing(error):
                raise FragmentsUnusable(f"the file {path!r} is gone") from error
            raise


def _fragment(description: str) -> Any:
    """A file's description, if it is of one plain new file in the dataset's own folder."""
    try:
        fragment = FragmentMetadata.from_json(description)
        plain = (
            len(fragment.files) == 1
            and fragment.files[0].base_id is None
            and fragment.deletion_file is None
            and fragment.row_id_meta is None
        )
        path = str(fragment.files[0].path)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise FragmentsUnusable(f"no description of a file: {description[:200]!r}") from error
    if not plain or "/" in path or "\\" in path or ".." in path:
        raise FragmentsUnusable(f"{path[:200]!r} is no new file of the gallery's own")
    return fragment
