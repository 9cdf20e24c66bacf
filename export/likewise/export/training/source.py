"""Captioned images of a folder or a table, with every row that cannot be used named."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})
TABLE_SUFFIXES: Final = (".csv", ".jsonl", ".parquet")
_TABLES: Final = tuple(f"captions{suffix}" for suffix in TABLE_SUFFIXES)
_MAX_CAPTION: Final = 2000
_MAX_LINE: Final = 1 << 20
_SHOWN: Final = 10


class SourceError(ValueError):
    """The folder or table cannot be used, or too much of it."""


@dataclass(frozen=True, slots=True)
class Captioned:
    """One image with its caption; ``place`` says where it was read ("captions.csv, row 12")."""

    path: Path
    caption: str
    place: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One row or file that cannot be used, and why."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Listing:
    """What was found, in order, and what cannot be used of it."""

    items: tuple[Captioned, ...]
    problems: tuple[Problem, ...]


def read_source(path: Path, *, path_column: str = "path", caption_column: str = "caption") -> Listing:
    """List captioned images; none is opened yet.

    Args:
        path: A folder whose images have a text file of the same name beside them, or a file captions.csv,
            captions.jsonl or captions.parquet in it; or such a table itself, under any name.
        path_column: Column of image paths, relative to the table.
        caption_column: Column of captions.

    Raises:
        SourceError: There is nothing at ``path``, nothing usable in it, or a table has no such columns.
    """
    if path.is_dir():
        tables = [path / name for name in _TABLES if (path / name).is_file()]
        if len(tables) > 1:
            raise SourceError(f"{path} holds {' and '.join(t.name for t in tables)}: name the one to use")
        rows = _table(tables[0], path_column, caption_column) if tables else _folder(path)
    elif path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        rows = _table(path, path_column, caption_column)
    elif path.exists():
        raise SourceError(
            f"{path} must be a folder of captioned images or a file ending in {', '.join(TABLE_SUFFIXES)}"
        )
    else:
        raise SourceError(f"there is no {path}")
    items: list[Captioned] = []
    problems: list[Problem] = []
    for row in rows:
        if isinstance(row, Problem):
            problems.append(row)
        else:
            items.append(row)
    if not items:
        found = f": {problems[0]}" if problems else ""
        raise SourceError(f"{path} holds no usable captioned image{found}")
    return Listing(tuple(items), tuple(problems))


def refuse_above(problems: tuple[Problem, ...], total: int, share: float) -> None:
    """Refuse a source of which too much cannot be used.

    Raises:
        SourceError: More than ``share`` of ``total`` rows have problems; the first are listed.
    """
    if len(problems) <= share * total:
        return
    shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN])
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    raise SourceError(
        f"{len(problems)} of {total} rows ({100 * len(problems) / total:.1f} %) cannot be used, the limit is "
        f"{100 * share:.1f} % (--max-bad):\n{shown}{more}"
    )


def _folder(folder: Path) -> Iterator[Captioned | Problem]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    if not files:
        raise SourceError(
            f"{folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))}) and none of {', '.join(_TABLES)}"
        )
    for file in files:
        text, place = file.with_suffix(".txt"), str(file.relative_to(folder))
        try:
            yield _checked(file, text.read_text(encoding="utf-8"), place)
        except FileNotFoundError:
            yield Problem(place, f"no caption: {text.name} is missing beside it")
        except (OSError, UnicodeDecodeError) as error:
            yield Problem(place, f"{text.name} cannot be read: {error}")


def _table(table: Path, path_column: str, caption_column: str) -> Iterator[Captioned | Problem]:
    first = True
    for number, row in _rows(table):
        place = f"{table.name}, row {number}"
        if isinstance(row, str):
            yield Problem(place, row)
            continue
        if first and (missing := [c for c in (path_column, caption_column) if c not in row]):
            raise SourceError(
                f"{table} has no column {missing[0]!r}, it has {', '.join(map(repr, row))}; "
                "other names: --path-column, --caption-column"
            )
        first = False
        path, caption = row.get(path_column), row.get(caption_column)
        if not isinstance(path, str) or not path:
            yield Problem(place, f"{path_column} must be a path, got {path!r}")
            continue
        file = table.parent / path
        if not file.is_file():
            yield Problem(place, f"there is no image {file}")
        else:
            yield _checked(file, caption, place)


def _checked(file: Path, caption: Any, place: str) -> Captioned | Problem:
    if not isinstance(caption, str) or not caption.strip():
        return Problem(place, f"the caption is empty ({caption!r})")
    text = " ".join(caption.split())
    if len(text) > _MAX_CAPTION:
        return Problem(place, f"the caption has {len(text)} characters, the limit is {_MAX_CAPTION}")
    return Captioned(file, text, place)


def _rows(table: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Rows from 1 with their number; a text in place of a row says what is wrong with it."""
    if table.suffix.lower() == ".parquet":
        yield from _parquet(table)
        return
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            if table.suffix.lower() == ".csv":
                yield from enumerate(csv.DictReader(stream), start=1)
                return
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, _json_row(line)
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{table} cannot be read as UTF-8 {table.suffix[1:]}: {error}") from error


def _json_row(line: str) -> Mapping[str, Any] | str:
    if len(line) > _MAX_LINE:
        return f"the line has {len(line)} characters, the limit is {_MAX_LINE}"
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        return f"no JSON: {error}"
    return row if isinstance(row, dict) else f"a row must be a JSON object, got {type(row).__name__}"


def _parquet(table: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise SourceError(f"{table}: Parquet needs pyarrow (pip install pyarrow); CSV and JSONL do not") from error
    number = 0
    try:
        with parquet.ParquetFile(table) as file:
            for batch in file.iter_batches(4096):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, ValueError) as error:  # pyarrow's errors are subclasses of these
        raise SourceError(f"{table} cannot be read as Parquet: {error}") from error
