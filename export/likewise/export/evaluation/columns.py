"""Parquet files as columns, with refusals that name file and column."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from likewise.export.evaluation.problems import EvaluationError


def read_table(path: Path, *, needed: Sequence[str], only: bool = False) -> pa.Table:
    """A Parquet file.

    Args:
        path: The file.
        needed: Columns that must be there.
        only: Read no others.

    Raises:
        EvaluationError: The file is absent, is no Parquet file, or lacks a column.
    """
    if not path.is_file():
        raise EvaluationError(f"no file {path}: expected a Parquet file with the columns {', '.join(needed)}")
    try:
        names = pq.read_schema(path).names
        if missing := [name for name in needed if name not in names]:
            raise EvaluationError(f"{path}: no column {missing[0]!r}, only {names}; it needs {', '.join(needed)}")
        return pq.ParquetFile(path).read(columns=list(needed) if only else None)
    except (pa.ArrowInvalid, OSError) as error:
        raise EvaluationError(f"{path}: cannot be read as Parquet: {error}") from error


def read_columns(path: Path, *, needed: Sequence[str]) -> dict[str, list[Any]]:
    """A Parquet file as Python lists, one a column."""
    table = read_table(path, needed=needed)
    return {name: table.column(name).to_pylist() for name in table.column_names}
