"""Precomputed features: Parquet files of keys (or texts) and raw vectors."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from likewise.export.evaluation.columns import read_table
from likewise.export.evaluation.problems import EvaluationError, first_repeated, some

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Vectors by key.

    Attributes:
        path: Where they come from, for errors.
        rows: Key to row.
        vectors: (n, d) float32 or float64 as in the file, finite, of any length but zero.
        norms: (n,) float64 lengths.
    """

    path: Path
    rows: dict[str, int]
    vectors: npt.NDArray[Any]
    norms: F64

    @property
    def dim(self) -> int:
        """Numbers a vector."""
        return int(self.vectors.shape[1])

    def places(self, keys: Iterable[str], *, what: str) -> I64:
        """(k,) rows of keys.

        Args:
            keys: Any number of them, repeats allowed.
            what: What they are, for the error ("image keys", "texts").

        Raises:
            EvaluationError: Some are not in the file; the first few are named.
        """
        wanted = list(keys)
        try:
            return np.fromiter((self.rows[key] for key in wanted), np.int64, len(wanted))
        except KeyError:
            absent = list(dict.fromkeys(key for key in wanted if key not in self.rows))
            raise EvaluationError(
                f"{self.path}: {len(absent):,} of {len(set(wanted)):,} {what} are not in it: {some(absent)}"
                f"{self._hint(absent[0])}; compute their features and add them"
            ) from None

    def raw(self, rows: I64) -> F64:
        """(k, d) vectors as given."""
        return self.vectors[rows].astype(np.float64)

    def unit(self, rows: I64) -> F64:
        """(k, d) vectors at length one."""
        return self.raw(rows) / self.norms[rows, None]

    def _hint(self, absent: str) -> str:
        present = next(iter(self.rows), None)
        return "" if present is None else f" (its keys look like {present!r}, wanted was {absent!r})"


def read_features(path: Path, *, key: str = "key", canonical: Callable[[str], str] = str) -> Features:
    """Read a Parquet file with the columns `key` (or `text`) and `vector`.

    Args:
        path: The file. Keys are strings or integers, vectors lists of floats of one length.
        key: Name of the key column.
        canonical: Applied to every key.

    Raises:
        EvaluationError: The file is absent or not of this form, a key is there twice, or a vector is null, of another
            length than the first, not finite or zero.
    """
    table = read_table(path, needed=(key, "vector"), only=True)
    if not table.num_rows:
        raise EvaluationError(f"{path}: has no rows")
    keys = _keys(path, key, table.column(key), canonical)
    if repeated := first_repeated(keys):
        raise EvaluationError(f"{path}: {key} {repeated!r} is there twice; keep one row of it")
    vectors = _vectors(path, table.column("vector"), keys)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise EvaluationError(
            f"{path}: the vector of {key} {keys[row]!r} (row {row}) holds NaN or infinity; {int((~finite).sum()):,} "
            "such rows in all; compute them again"
        )
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    if not norms.all():
        row = int(np.argmin(norms))
        raise EvaluationError(f"{path}: the vector of {key} {keys[row]!r} (row {row}) is zero: it has no direction")
    return Features(path, {name: row for row, name in enumerate(keys)}, vectors, norms)


def _keys(path: Path, name: str, column: pa.ChunkedArray, canonical: Callable[[str], str]) -> list[str]:
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        raise EvaluationError(f"{path}: column {name!r} must hold strings or integers, holds {kind}")
    if column.null_count:
        raise EvaluationError(f"{path}: column {name!r} has {column.null_count:,} nulls; every row needs a {name}")
    return [canonical(str(value)) for value in column.to_pylist()]


def _vectors(path: Path, column: pa.ChunkedArray, keys: list[str]) -> npt.NDArray[Any]:
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not pa.types.is_floating(kind.value_type):
        raise EvaluationError(f"{path}: column 'vector' must hold lists of floats, holds {kind}")
    if column.null_count:
        raise EvaluationError(f"{path}: column 'vector' has {column.null_count:,} nulls; every row needs a vector")
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of an empty table
        array = pa.concat_arrays(array.chunks)
    if pa.types.is_fixed_size_list(kind):
        lengths = np.full(len(array), kind.list_size, np.int64)
    else:
        lengths = np.diff(array.offsets.to_numpy()).astype(np.int64)
    dim = int(lengths[0])
    if dim < 1 or (lengths != dim).any():
        row = int(np.argmax(lengths != dim)) if dim else 0
        raise EvaluationError(
            f"{path}: the vector of {keys[row]!r} (row {row}) has {int(lengths[row]):,} numbers, that of {keys[0]!r} "
            f"{dim:,}; all need the same"
        )
    values = array.flatten()
    if values.null_count:
        raise EvaluationError(f"{path}: vectors hold {values.null_count:,} null numbers; compute them again")
    numbers = values.to_numpy(zero_copy_only=False)
    wide = np.float64 if numbers.dtype == np.float64 else np.float32
    return np.ascontiguousarray(numbers.reshape(len(keys), dim), wide)
