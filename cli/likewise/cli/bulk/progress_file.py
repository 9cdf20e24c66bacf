"""What a bulk ingest has written so far, in a file that outlives it: a header, and a line for each finished unit."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from likewise.cli.bulk.plan import Unit

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Bad:
    """One row that cannot be stored: where it is, and why."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a unit.

    Attributes:
        number: The unit's.
        rows: Rows written.
        fragments: Lance's descriptions of the files with them.
        bad: Rows left out.
    """

    number: int
    rows: int
    fragments: tuple[str, ...]
    bad: tuple[Bad, ...] = ()


@dataclass(frozen=True, slots=True)
class Header:
    """What the units belong to.

    Attributes:
        ingest_id: Of the one commit.
        key: Gallery, source and columns; another one means another ingest.
        gallery: As the server described it, serialised, in hex.
        uri: Its dataset.
        first_stamps: Lent for the plan's blocks.
    """

    ingest_id: str
    key: str
    gallery: str
    uri: str
    first_stamps: tuple[int, ...]


class ProgressFile:
    """The file of one ingest.

    Args:
        path: Where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, key: str) -> tuple[Header, dict[int, Outcome]] | None:
        """What an earlier run of the same ingest left; None without one. A line cut short by a crash is passed over."""
        try:
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            return None
        entries = [entry for entry in map(_parsed, lines) if entry is not None]
        if not entries or entries[0].get("format") != FORMAT or entries[0].get("key") != key:
            return None
        first = entries[0]
        header = Header(first["ingest_id"], key, first["gallery"], first["uri"], tuple(first["first_stamps"]))
        return header, {entry["number"]: outcome_of(entry) for entry in entries[1:]}

    def begin(self, header: Header) -> None:
        """Start anew."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")
        self._append({"format": FORMAT, **asdict(header)})

    def finished(self, outcome: Outcome) -> None:
        """Remember a unit; durable when this returns."""
        self._append(asdict(outcome))

    def remove(self) -> None:
        """Forget it all."""
        self.path.unlink(missing_ok=True)

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def outcome_of(entry: Mapping[str, Any]) -> Outcome:
    """An outcome from its fields."""
    bad = tuple(Bad(**one) for one in entry["bad"])
    return Outcome(entry["number"], entry["rows"], tuple(entry["fragments"]), bad)


def unfinished(units: Sequence[Unit], done: Mapping[int, Outcome]) -> list[Unit]:
    """The units that are still to be written."""
    return [unit for unit in units if unit.number not in done]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
