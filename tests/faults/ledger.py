"""What each item may be at any moment, by the writes that were acknowledged, cut off, or are under way."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Final

from likewise.client import LikewiseError


@dataclass(slots=True)
class _Event:
    """A write of one item: sent at `began`, acknowledged at `ended`, which stays infinite when it was cut off."""

    value: int | None
    began: float
    ended: float = inf


class Ledger:
    """Every item's writes. Each item has one writer, which sends one write at a time; readers are many.

    A value is the number of the write that made the item; None stands for an item that is not there.
    """

    def __init__(self) -> None:
        self._events: dict[str, list[_Event]] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self.acknowledged = 0
        self.in_doubt = 0

    def next_value(self) -> int:
        """A value that nobody has written yet."""
        with self._lock:
            return next(self._numbers)

    @contextmanager
    def writing(self, values: dict[str, int | None]) -> Iterator[None]:
        """Around a write: when the block ends, it is acknowledged; when it raises a LikewiseError, it is in doubt."""
        began = time.monotonic()
        events = {item: _Event(value, began) for item, value in values.items()}
        with self._lock:
            for item, event in events.items():
                self._events.setdefault(item, []).append(event)
        try:
            yield
        except LikewiseError:
            with self._lock:
                self.in_doubt += 1
            raise
        ended = time.monotonic()
        with self._lock:
            self.acknowledged += 1
            for event in events.values():
                event.ended = ended

    def items(self) -> list[str]:
        """Every id ever written."""
        with self._lock:
            return list(self._events)

    def possible(self, item: str, since: float, until: float) -> set[int | None]:
        """What a read that ran from `since` to `until` (monotonic) may see of an item."""
        with self._lock:
            found: set[int | None] = set()
            for event in reversed(self._events.get(item, ())):
                if event.began < until:
                    found.add(event.value)
                    if event.ended <= since:
                        return found
            found.add(None)
            return found

    def certain(self, item: str) -> int | None:
        """The value of an item that is there for certain and stays so while its writer rests; None if it is not."""
        now = time.monotonic()
        possible = self.possible(item, now, now)
        return next(iter(possible)) if len(possible) == 1 else None

    def live_bounds(self, since: float, until: float) -> tuple[int, int]:
        """How few and how many items a read in that time may count."""
        few = many = 0
        for item in self.items():
            possible = self.possible(item, since, until)
            few += None not in possible
            many += possible != {None}
        return few, many


ABSENT: Final[frozenset[int | None]] = frozenset({None})
