"""Rows of a CSV, JSONL or Parquet file, and the attribute types they suggest."""

import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final

from likewise.client.errors import InvalidArgument

SUFFIXES: Final = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_PARQUET_ROWS: Final = 1024
_TRUE: Final = frozenset({"true", "yes", "1"})
_FALSE: Final = frozenset({"false", "no", "0"})


@dataclass(frozen=True, slots=True)
class Record:
    """One row: its place in the file for messages, and its values, or what is wrong with it."""

    place: str
    values: Mapping[str, Any]
    problem: str = ""


def read_records(path: Path) -> Iterator[Record]:
    """Rows of a file in their order; a line that cannot be read comes as a problem.

    Raises:
        InvalidArgument: If the file itself cannot be read.
    """
    reader = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet}.get(path.suffix.lower(), _jsonl)
    try:
        yield from reader(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidArgument(f"cannot read {path}: {error}", field="source") from error


def count_records(path: Path) -> int | None:
    """How many rows a file has, where that is cheap to know."""
    if path.suffix.lower() == ".parquet":
        rows: int = _parquet_file(path).metadata.num_rows
        return rows
    return None


def infer_types(path: Path, skip: Iterable[str]) -> dict[str, str]:
    """Attribute types that fit every row; columns that never have a value are strings.

    Args:
        path: The file.
        skip: Columns that are no attributes.
    """
    left_out = set(skip)
    if path.suffix.lower() == ".parquet":
        schema = _parquet_file(path).schema_arrow
        return {field.name: _arrow_type(field.name, field.type) for field in schema if field.name not in left_out}
    text = path.suffix.lower() in (".csv", ".tsv")
    found: dict[str, str | None] = {}
    for record in read_records(path):
        for name, value in record.values.items():
            if name not in left_out:
                seen = _text_type(value) if text and isinstance(value, str) else _value_type(value)
                found[name] = _wider(found.get(name), seen)
    return {name: kind or "string" for name, kind in found.items()}


def convert(value: Any, kind: str) -> Any:
    """A value of a file as an attribute of this type: text is read, "" is no value.

    Raises:
        ValueError: If it does not fit.
    """
    if value is None or (value == "" and kind != "string"):
        return None
    if not isinstance(value, str):
        return _typed(value, kind)
    if kind == "int64":
        return int(value)
    if kind == "double":
        return _typed(float(value), kind)
    if kind == "bool":
        if value.lower() not in _TRUE | _FALSE:
            raise ValueError(f"{value!r} is neither true nor false")
        return value.lower() in _TRUE
    if kind == "timestamp":
        return datetime.fromisoformat(value)
    if kind == "string_list":
        return _typed(json.loads(value) if value.startswith("[") else [part.strip() for part in value.split(";")], kind)
    return value


def _typed(value: Any, kind: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "string" and (number or isinstance(value, bool)):
        return str(value)
    if kind == "int64" and number and float(value).is_integer():
        return int(value)
    if kind == "double" and number:
        return None if math.isnan(value) else float(value)  # pandas writes nan for no value
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "timestamp" and isinstance(value, date):
        return value
    if kind == "string_list" and isinstance(value, list) and all(isinstance(part, str) for part in value):
        return value
    raise ValueError(f"{value!r} is no {kind}")


def _csv(path: Path) -> Iterator[Record]:
    csv.field_size_limit(min(sys.maxsize, (1 << 31) - 1))  # a vector of 32,768 numbers is far over the default
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        for row in reader:
            place = f"line {reader.line_num}"
            if None in row:
                yield Record(place, {}, f"has {len(row[None])} values more than the header")
            else:
                yield Record(place, {name: value for name, value in row.items() if value is not None})


def _jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except ValueError as error:
                yield Record(f"line {number}", {}, f"is no JSON: {error}")
                continue
            if isinstance(values, dict):
                yield Record(f"line {number}", values)
            else:
                yield Record(f"line {number}", {}, f"must be an object, got {type(values).__name__}")


def _parquet(path: Path) -> Iterator[Record]:
    number = 0
    for batch in _parquet_file(path).iter_batches(batch_size=_PARQUET_ROWS):
        for values in batch.to_pylist():
            number += 1
            yield Record(f"row {number}", values)


def _parquet_file(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as missing:
        raise InvalidArgument(
            f"reading {path} needs pyarrow: pip install 'likewise[cpu]', or use CSV or JSONL", field="source"
        ) from missing
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read {path}: {error}", field="source") from error


def _arrow_type(name: str, kind: Any) -> str:
    # By name, so that pyarrow stays behind one function.
    text = str(kind)
    if text.startswith("dictionary"):
        text = str(kind.value_type)
    if text in ("string", "large_string", "string_view", "null"):
        return "string"
    if text.startswith(("int", "uint")):
        return "int64"
    if text in ("halffloat", "float", "double"):
        return "double"
    if text == "bool":
        return "bool"
    if text.startswith(("timestamp", "date")):
        return "timestamp"
    if text.startswith(("list<", "large_list<")) and "string" in text:
        return "string_list"
    raise InvalidArgument(f"column {name!r} has the type {text}, which no attribute has; leave it out with --attribute")


def _text_type(value: str) -> str | None:
    if value == "":
        return None
    for kind in ("int64", "double", "timestamp"):
        try:
            convert(value, kind)
        except ValueError:
            continue
        return kind
    return "bool" if value.lower() in ("true", "false") else "string"


def _value_type(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64"
    if isinstance(value, float):
        return "double"
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "string_list"
    return "string"


def _wider(known: str | None, seen: str | None) -> str | None:
    if known is None or seen is None or known == seen:
        return known or seen
    return "double" if {known, seen} == {"int64", "double"} else "string"
