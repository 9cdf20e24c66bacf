"""What commands print: JSON for programs, tables for people."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_PIPE_WIDTH: Final = 1000


def print_json(value: Any) -> None:
    """Print dataclasses, arrays, datetimes and plain values as one JSON document."""
    typer.echo(json.dumps(value, default=_plain, ensure_ascii=False, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under a head; numbers are right-aligned."""
    taken = [list(row) for row in rows]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(columns):
        numeric = bool(taken) and all(isinstance(row[index], int | float) for row in taken)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in taken:
        table.add_row(*(escape(shown(cell)) for cell in row))
    # Into a pipe or a file a row stays a line.
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values, a line each."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {shown(value)}")


def shown(value: Any) -> str:
    """A value for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {shown(part)}" for name, part in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "-"
    return str(value)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Not asdict, which would copy arrays deeply.
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")
