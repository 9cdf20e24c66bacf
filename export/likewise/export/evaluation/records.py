"""Annotation files as checked records: every refusal names file, entry, field and what was there instead."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likewise.export.evaluation.problems import EvaluationError


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object of an annotation file.

    Attributes:
        values: Its fields.
        where: File and entry, for errors ("/data/val.json, entry 12").
    """

    values: Mapping[str, Any]
    where: str

    def text(self, name: str) -> str:
        """A string field; may be blank."""
        value = self._field(name, "a string")
        if not isinstance(value, str):
            raise self.wrong(name, "a string", value)
        return value

    def integer(self, name: str) -> int:
        """An integer field; true and false are none."""
        value = self._field(name, "an integer")
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(name, "an integer", value)
        return value

    def box(self, name: str) -> tuple[float, float, float, float]:
        """A field [x, y, w, h] in pixels: finite, w and h above 0."""
        what = "[x, y, width, height] in pixels, width and height above 0"
        value = self._field(name, what)
        numbers = value if isinstance(value, list) else []
        if len(numbers) != 4 or not all(_is_number(n) for n in numbers) or not (numbers[2] > 0 and numbers[3] > 0):
            raise self.wrong(name, what, value)
        x, y, width, height = (float(n) for n in numbers)
        return x, y, width, height

    def texts(self, name: str, count: int | None = None) -> tuple[str, ...]:
        """A list of strings, of `count` if that is given."""
        what = "a list of strings" if count is None else f"a list of {count} strings"
        value = self._field(name, what)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.wrong(name, what, value)
        if count is not None and len(value) != count:
            raise self.wrong(name, what, value)
        return tuple(value)

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers."""
        value = self._field(name, "a list of integers")
        if not isinstance(value, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in value):
            raise self.wrong(name, "a list of integers", value)
        return tuple(value)

    def record(self, name: str) -> "Record":
        """A field that is an object."""
        value = self._field(name, "an object")
        if not isinstance(value, dict):
            raise self.wrong(name, "an object", value)
        return Record(value, f"{self.where}, {name}")

    def records(self, name: str) -> list["Record"]:
        """A field that is a list of objects."""
        value = self._field(name, "a list of objects")
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self.wrong(name, "a list of objects", value)
        return [Record(one, f"{self.where}, {name}[{index}]") for index, one in enumerate(value)]

    def has(self, name: str) -> bool:
        """Whether the field is there."""
        return name in self.values

    def wrong(self, name: str, expected: str, got: object) -> EvaluationError:
        """The refusal of a field."""
        shown = json.dumps(got, ensure_ascii=False, default=str)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return EvaluationError(f"{self.where}: {name!r} must be {expected}, got {shown}")

    def _field(self, name: str, expected: str) -> Any:
        if name not in self.values:
            raise EvaluationError(
                f"{self.where}: no field {name!r} ({expected}), only {sorted(self.values)}: an annotation file of "
                "another kind or version?"
            )
        return self.values[name]


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        EvaluationError: The file cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise EvaluationError(f"{path}: is no JSON file ({error}); download it again") from error


def read_records(path: Path) -> list[Record]:
    """A JSON file that holds one list of objects, at least one.

    Raises:
        EvaluationError: It holds something else.
    """
    content = read_json(path)
    if not isinstance(content, list) or not content or not all(isinstance(one, dict) for one in content):
        got = "an empty list" if content == [] else f"a {type(content).__name__}"
        if isinstance(content, list) and content:
            got = "a list with other things in it"
        raise EvaluationError(f"{path}: must hold one JSON list of objects, holds {got}")
    return [Record(one, f"{path}, entry {index}") for index, one in enumerate(content)]


def find_file(folder: Path, names: Sequence[str], *, what: str) -> Path:
    """The first of several relative paths that is a file.

    Raises:
        EvaluationError: The folder or all of the files are absent.
    """
    found = optional_file(folder, names)
    if found is None:
        raise EvaluationError(f"no {what} in {folder}: expected {' or '.join(names)}")
    return found


def optional_file(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of several relative paths that is a file, if there is one.

    Raises:
        EvaluationError: The folder is absent.
    """
    if not folder.is_dir():
        raise EvaluationError(f"no folder {folder}: give --annotations the folder that the official files lie in")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
