"""What to ingest: a folder of images, or a file of rows that name images, vectors or texts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np

from likewise.client.cli.records import SUFFIXES, Record, convert, count_records, infer_types, read_records
from likewise.client.errors import InvalidArgument

Kind = Literal["images", "vectors", "texts"]

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_MAGIC_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class Row:
    """One item to store: its content is a path, a vector or a text."""

    id: str
    content: Any
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bad:
    """One row that cannot be stored: which, and why."""

    item: str
    reason: str


class Source(Protocol):
    """Where items come from."""

    def kind(self) -> Kind:
        """What their content is."""

    def total(self) -> int | None:
        """How many there are, where that is cheap to know."""

    def attribute_types(self) -> dict[str, str]:
        """Attributes and the types that their values suggest."""

    def dim(self) -> int | None:
        """Numbers a vector, for vectors."""

    def rows(self, types: Mapping[str, str], dim: int | None) -> Iterator[Row | Bad]:
        """The items in order, attributes as the gallery's types want them; may be iterated again."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a file mean what.

    Attributes:
        id: Column of ids.
        path: Column of image paths, relative to the file.
        vector: Column of vectors.
        text: Column of texts.
        attributes: Columns that are attributes; None for all others.
    """

    id: str = "id"
    path: str = "path"
    vector: str = "vector"
    text: str = "text"
    attributes: tuple[str, ...] | None = None


def open_source(path: Path, columns: Columns) -> Source:
    """The source at a path.

    Raises:
        InvalidArgument: If there is none, or it is of no known kind.
    """
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise InvalidArgument(f"there is no {path}", field="source")
    if path.suffix.lower() not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise InvalidArgument(f"{path} must be a folder of images or a file ending in {known}", field="source")
    return Table(path, columns)


class Folder:
    """A folder of images, however deep; an image's id is its path below the folder.

    Attributes:
        files: The images, sorted.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.files = sorted(
            path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
        )
        if not self.files:
            raise InvalidArgument(f"{root} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})", field="source")

    def kind(self) -> Kind:
        """Images."""
        return "images"

    def total(self) -> int:
        """How many files there are."""
        return len(self.files)

    def attribute_types(self) -> dict[str, str]:
        """None: files have no attributes."""
        return {}

    def dim(self) -> None:
        """None: the encoder decides."""

    def rows(self, types: Mapping[str, str], dim: int | None) -> Iterator[Row | Bad]:
        """The images in path order."""
        del types, dim
        for path in self.files:
            name = path.relative_to(self._root).as_posix()
            problem = image_problem(path)
            yield Bad(str(path), problem) if problem else Row(name, path, {})


class Table:
    """A CSV, JSONL or Parquet file: ids, one of paths, vectors and texts, and attributes."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self._path = path
        self._columns = columns
        first = next((record for record in read_records(path) if not record.problem), None)
        if first is None:
            raise InvalidArgument(f"{path} has no rows", field="source")
        self._first = first
        named: dict[str, Kind] = {columns.path: "images", columns.vector: "vectors", columns.text: "texts"}
        present = [column for column in named if column in first.values]
        # A column of descriptions beside images or vectors is an attribute, not the content.
        self._content = present[0] if present else ""
        if columns.id not in first.values or not present or present[:2] == [columns.path, columns.vector]:
            raise InvalidArgument(
                f"{path} must have a column {columns.id!r} and one of {columns.path!r}, {columns.vector!r} and "
                f"{columns.text!r}, got {list(first.values)}; other names: --id-column, --path-column, ...",
                field="source",
            )
        self._kind = named[self._content]

    def kind(self) -> Kind:
        """What its content column holds."""
        return self._kind

    def total(self) -> int | None:
        """Rows of a Parquet file; the others would have to be read."""
        return count_records(self._path)

    def attribute_types(self) -> dict[str, str]:
        """Types that fit every row; reads the whole file unless it is Parquet."""
        found = infer_types(self._path, (self._columns.id, self._content))
        wanted = self._columns.attributes
        if wanted is None:
            return found
        if absent := [name for name in wanted if name not in found]:
            raise InvalidArgument(f"{self._path} has no column {absent[0]!r}, it has {list(found)}", field="attribute")
        return {name: found[name] for name in wanted}

    def dim(self) -> int | None:
        """Numbers of the first vector."""
        return len(_vector(self._first.values[self._content])) if self._kind == "vectors" else None

    def rows(self, types: Mapping[str, str], dim: int | None) -> Iterator[Row | Bad]:
        """The rows in file order.

        Raises:
            InvalidArgument: If a column is no attribute of the gallery.
        """
        for record in read_records(self._path):
            if record.problem:
                yield Bad(record.place, record.problem)
                continue
            wanted = self._wanted(record, types)
            try:
                yield self._row(record, {name: types[name] for name in wanted}, dim)
            except ValueError as error:
                item = record.values.get(self._columns.id)
                yield Bad(f"{record.place} ({item})" if item else record.place, str(error))

    def _wanted(self, record: Record, types: Mapping[str, str]) -> Sequence[str]:
        own = (self._columns.id, self._content)
        wanted = self._columns.attributes or [name for name in record.values if name not in own]
        if unknown := [name for name in wanted if name not in types]:
            raise InvalidArgument(
                f"{self._path}: column {unknown[0]!r} is no attribute of the gallery, which has: "
                f"{', '.join(types) or 'none'}; name the columns to take with --attribute",
                field="attribute",
            )
        return wanted

    def _row(self, record: Record, types: Mapping[str, str], dim: int | None) -> Row:
        item, content = record.values.get(self._columns.id), record.values.get(self._content)
        if item in (None, ""):
            raise ValueError(f"{self._columns.id} is missing")
        if content in (None, ""):
            raise ValueError(f"{self._content} is missing")
        if self._kind == "images":
            content = self._path.parent / str(content)
            if problem := image_problem(content):
                raise ValueError(f"{content}: {problem}")
        elif self._kind == "vectors":
            content = _vector(content)
            if dim is not None and len(content) != dim:
                raise ValueError(f"{self._content} has {len(content)} numbers, the gallery's vectors have {dim}")
        attributes: dict[str, Any] = {}
        for name, kind in types.items():
            try:
                attributes[name] = convert(record.values.get(name), kind)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return Row(str(item), content, attributes)


def image_problem(path: Path) -> str:
    """Why a file cannot be an image, seen from its first bytes; "" when nothing speaks against it."""
    try:
        with path.open("rb") as file:
            head = file.read(_MAGIC_BYTES)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if not head:
        return "is empty"
    known = head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
    return "" if known else "is no JPEG, PNG or WebP"


def _vector(value: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    if isinstance(value, str):
        text = value.strip()
        value = json.loads(text) if text.startswith("[") else text.replace(";", " ").replace(",", " ").split()
    try:
        vector = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the vector is no list of numbers: {error}") from error
    if vector.ndim != 1 or not vector.size:
        raise ValueError(f"the vector must be a list of numbers, got the shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError("the vector has a number that is not finite")
    if not vector.any():
        raise ValueError("the vector is zero: it has no direction")
    return vector
