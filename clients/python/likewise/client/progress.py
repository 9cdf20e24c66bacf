"""A progress bar for long calls: one line on a terminal, nothing anywhere else."""

import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

ProgressChoice = bool | Callable[[int, int], None] | None
"""True or False to show the bar or not, None to show it on a terminal, or a function of (items done, items in all)."""

_WIDTH: Final = 30
_REDRAW_S: Final = 0.1  # ten times a second: smooth to the eye, cheap


class Bar:
    """Draws "items 1,024/5,000 [######......] 512/s" in place.

    Args:
        total: Items in all.
        stream: Where to.
        unit: What is counted.
    """

    def __init__(self, total: int, stream: TextIO, unit: str = "items") -> None:
        self._total = total
        self._unit = unit
        self._stream = stream
        self._started = time.monotonic()
        self._drawn = 0.0
        self._open = False

    def update(self, done: int) -> None:
        """Show that so many items are done; a bar that is full at once is never drawn."""
        now = time.monotonic()
        if done >= self._total and not self._open:
            return
        if done < self._total and self._open and now - self._drawn < _REDRAW_S:
            return
        filled = _WIDTH * done // max(self._total, 1)
        rate = done / max(now - self._started, 1e-9)
        bar = "#" * filled + "." * (_WIDTH - filled)
        self._stream.write(f"\r{self._unit} {done:,}/{self._total:,} [{bar}] {rate:,.0f}/s ")
        self._stream.flush()
        self._drawn, self._open = now, True

    def close(self) -> None:
        """End the line."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False


class Reporter:
    """Tells one call's progress as its caller chose; a context manager.

    Args:
        choice: See `ProgressChoice`.
        total: Items in all.
        unit: What is counted, if not items.
    """

    def __init__(self, choice: ProgressChoice, total: int, unit: str = "items") -> None:
        shown = sys.stderr.isatty() if choice is None else choice is True
        self._bar = Bar(total, sys.stderr, unit) if shown else None
        self._function = choice if callable(choice) else None
        self._total = total

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.close()

    def update(self, done: int) -> None:
        """Tell how many items are done."""
        if self._bar:
            self._bar.update(done)
        if self._function:
            self._function(done, self._total)
