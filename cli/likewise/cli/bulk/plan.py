"""What a bulk ingest writes, unit by unit: a unit is what one worker writes at a time, and again if it was lost."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import pyarrow.parquet as pq

from likewise.client.cli.sources import Folder
from likewise.client.errors import InvalidArgument
from likewise.shards.bulk import BLOCK_STAMPS

UNIT_BYTES: Final = 64 << 20
"""Of a Parquet file's rows, uncompressed: what a worker holds a few times over."""

UNIT_IMAGES: Final = 512

Kind = Literal["images", "vectors"]


@dataclass(frozen=True, slots=True)
class Unit:
    """Some rows of one file, or some images.

    Attributes:
        number: From 0, in the order of the source.
        path: The Parquet file, or the folder of the images.
        rows: How many.
        first_row: Number of the first in its file, from 1.
        groups: Row groups of the file.
        names: Paths of the images below the folder; their ids.
        first_stamp: Stamp of the first row; 0 while none is lent.
    """

    number: int
    path: str
    rows: int
    first_row: int = 1
    groups: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    first_stamp: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """All units of a source.

    Attributes:
        kind: What the rows' content is.
        units: In order.
        fingerprint: Another when the source's files are others.
    """

    kind: Kind
    units: tuple[Unit, ...]
    fingerprint: str

    @property
    def rows(self) -> int:
        """Rows of all units."""
        return sum(unit.rows for unit in self.units)


def make_plan(source: Path, vector_column: str) -> Plan:
    """Divide a folder of images, a Parquet file or a folder of Parquet files.

    Raises:
        InvalidArgument: If it is neither, or has no rows.
    """
    source = source.absolute()
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    if source.is_dir() and not files:
        names = [path.relative_to(source).as_posix() for path in Folder(source).files]
        units = tuple(
            Unit(number, str(source), len(some), names=tuple(some)) for number, some in enumerate(_cut(names))
        )
        return Plan("images", units, _fingerprint([source / name for name in names]))
    if any(path.suffix.lower() != ".parquet" for path in files):
        raise InvalidArgument(
            f"--ray reads folders of images and Parquet files, got {source}; leave --ray out for other files",
            field="source",
        )
    units = tuple(replace(unit, number=number) for number, unit in enumerate(_parquet_units(files, vector_column)))
    if not units:
        raise InvalidArgument(f"{source} has no rows", field="source")
    return Plan("vectors", units, _fingerprint(files))


def blocks(units: Sequence[Unit]) -> list[list[Unit]]:
    """Units that share a block of stamps; none lies in two."""
    found: list[list[Unit]] = []
    room = 0
    for unit in units:
        if unit.rows > BLOCK_STAMPS:
            raise InvalidArgument(
                f"a row group of {unit.path} has {unit.rows:,} rows, at most {BLOCK_STAMPS:,} may be in one: write the "
                "file with smaller ones",
                field="source",
            )
        if not found or unit.rows > room:
            found.append([])
            room = BLOCK_STAMPS
        found[-1].append(unit)
        room -= unit.rows
    return found


def stamped(units: Sequence[Unit], first_stamps: Sequence[int]) -> list[Unit]:
    """The units with the stamps lent to them, one block of stamps for each of `blocks`."""
    made: list[Unit] = []
    for block, first in zip(blocks(units), first_stamps, strict=True):
        for unit in block:
            made.append(replace(unit, first_stamp=first))
            first += unit.rows
    return made


def _cut(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), UNIT_IMAGES):
        yield names[start : start + UNIT_IMAGES]


def _parquet_units(files: Sequence[Path], vector_column: str) -> Iterator[Unit]:
    for path in files:
        try:
            metadata = pq.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"cannot read {path}: {error}", field="source") from error
        if vector_column not in metadata.schema_arrow.names:
            raise InvalidArgument(
                f"{path} has no column {vector_column!r}, it has {metadata.schema_arrow.names}; --ray reads Parquet "
                "files with vectors",
                field="source",
            )
        groups: list[int] = []
        rows = size = 0
        first = 1
        for number in range(metadata.num_row_groups):
            group = metadata.metadata.row_group(number)
            groups.append(number)
            rows += group.num_rows
            size += group.total_byte_size
            if size >= UNIT_BYTES or number == metadata.num_row_groups - 1:
                if rows:
                    yield Unit(0, str(path), rows, first, tuple(groups))
                first += rows
                groups, rows, size = [], 0, 0


def _fingerprint(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        found = path.stat()
        digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    return digest.hexdigest()
