"""Filters as bitmaps, shared by the searches that use the same one.

A filter's matches are kept per slot numbering and only extended by the rows that came since, because a slot's
attributes never change; which of them are alive is kept per mutation, and with it the allowed rows themselves where
they are few. All are bounded together, in bytes, least recently used first.
"""

import functools
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from likewise.shards.filter import Predicate, compile_filter
from likewise.shards.protocols import F32, I64
from likewise.shards.rows import Mask, Snapshot
from likewise.shards.spec import AttributeSpec

MAX_BYTES: Final = 64 << 20
MAX_PREDICATES: Final = 128
GATHERED_SHARE: Final = 2
"""One filter's rows may take half of the cache: where many hits are wanted, no list is as fast as comparing them."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Live rows that pass a filter.

    Attributes:
        mask: (size,) booleans; not to be written to.
        count: How many are true.
        sealed: How many of those are sealed.
        filtered: There was a filter; without one all live rows are allowed.
        key: What the cache knows the rows by; None where they are nobody else's.
    """

    mask: Mask
    count: int
    sealed: int
    filtered: bool
    key: Hashable | None = None


@dataclass(frozen=True, slots=True)
class Gathered:
    """Allowed rows side by side, so that searches with the same filter compare one block of memory.

    Attributes:
        slots: (rows,) int64, ascending.
        vectors: (rows, dim) float32; or, of the sealed ones alone, the reduced ones where there are such.
    """

    slots: I64
    vectors: F32


class FilterCache:
    """Bitmaps of recent filters; may be used from several threads.

    Args:
        attributes: Schema that filters are checked against.
        max_bytes: Bound of what is kept.
    """

    def __init__(self, attributes: Sequence[AttributeSpec], *, max_bytes: int = MAX_BYTES) -> None:
        known = tuple(attributes)

        @functools.lru_cache(maxsize=MAX_PREDICATES)
        def compile_once(filter: bytes) -> Predicate | None:
            return compile_filter(filter, known)

        self._compile = compile_once
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes kept."""
        return self._bytes

    def allowed(self, snapshot: Snapshot, filter: bytes) -> Allowed:
        """Live rows of a snapshot that pass a filter, b"" for none.

        Raises:
            InvalidFilter: If the filter does not fit the schema.
        """
        predicate = self._compile(filter)
        if predicate is None:
            return Allowed(snapshot.alive, snapshot.live, snapshot.sealed_live, filtered=False)
        key = _allowed_key(snapshot, filter)
        kept = self._get(key)
        if isinstance(kept, Allowed):
            return kept
        mask = self._matches(snapshot, filter, predicate) & snapshot.alive
        mask.flags.writeable = False
        sealed = int(np.count_nonzero(mask[: snapshot.sealed]))
        allowed = Allowed(mask, int(np.count_nonzero(mask)), sealed, filtered=True, key=key)
        self._put(key, allowed, mask.nbytes)
        return allowed

    def holds(self, snapshot: Snapshot, filter: bytes) -> bool:
        """Whether a search of the kind there was before has nothing to evaluate and no rows to copy."""
        with self._lock:
            return _allowed_key(snapshot, filter) in self._kept

    def gathers(self, snapshot: Snapshot, allowed: Allowed, space: str) -> bool:
        """Whether the allowed rows are kept side by side once they were needed: not if they are too many."""
        size = _gathered_bytes(snapshot, allowed, space)
        return allowed.key is not None and 0 < size <= self._max_bytes // GATHERED_SHARE

    def gathered(self, snapshot: Snapshot, allowed: Allowed, space: str) -> Gathered | None:
        """The allowed rows copied out, once for all searches of this filter; None where they are too many to keep."""
        if not self.gathers(snapshot, allowed, space):
            return None
        rows = snapshot.spaces[space]
        key = _OfAllowed(allowed.key, space)
        kept = self._get(key)
        if isinstance(kept, Gathered):
            return kept
        reduced = rows.reduced
        if reduced is None:
            slots = np.flatnonzero(allowed.mask)
            gathered = Gathered(slots, np.ascontiguousarray(rows.vectors(slots)))
        else:
            slots = np.flatnonzero(allowed.mask[: snapshot.sealed])
            gathered = Gathered(slots, reduced[slots])
        self._put(key, gathered, _gathered_bytes(snapshot, allowed, space))
        return gathered

    def _matches(self, snapshot: Snapshot, filter: bytes, predicate: Predicate) -> Mask:
        key = (filter, snapshot.generation)
        held = self._get(key)
        if not isinstance(held, np.ndarray):
            matches = predicate.mask(snapshot.table)
        elif len(held) < snapshot.size:
            matches = np.concatenate((held, predicate.mask(snapshot.table.slice(len(held)))))
        else:
            return held[: snapshot.size]
        self._put(key, matches, matches.nbytes)
        return matches

    def _get(self, key: Hashable) -> "Mask | Allowed | Gathered | None":
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            self._kept.move_to_end(key)
            return kept.value

    def _put(self, key: Hashable, value: "Mask | Allowed | Gathered", size: int) -> None:
        with self._lock:
            if (old := self._kept.pop(key, None)) is not None:
                self._bytes -= old.bytes
            self._kept[key] = _Kept(value, size)
            self._bytes += size
            while self._bytes > self._max_bytes and self._kept:
                key, dropped = self._kept.popitem(last=False)
                self._bytes -= dropped.bytes
                if isinstance(key, _OfAllowed) and (without := self._kept.pop(key.allowed, None)) is not None:
                    self._bytes -= without.bytes  # see `holds`


class _OfAllowed(NamedTuple):
    """What allowed rows of a space are kept under."""

    allowed: Hashable
    space: str


def _allowed_key(snapshot: Snapshot, filter: bytes) -> Hashable:
    return filter, snapshot.generation, snapshot.mutation


def _gathered_bytes(snapshot: Snapshot, allowed: Allowed, space: str) -> int:
    rows = snapshot.spaces[space]
    reduced = rows.reduced
    held = rows.sealed if reduced is None else reduced
    count = allowed.count if reduced is None else allowed.sealed
    return count * (4 * int(held.shape[1]) + 8)


@dataclass(frozen=True, slots=True)
class _Kept:
    value: "Mask | Allowed | Gathered"
    bytes: int
