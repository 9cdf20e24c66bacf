"""Filters as bitmaps, shared by the searches that use the same one.

A filter's matches are kept per slot numbering and only extended by the rows that came since, because a slot's
attributes never change; which of them are alive is kept per mutation. The allowed rows themselves are kept too where
they are not too many: reduced ones, of which there are sealed ones alone, until many of them are gone. All are bounded
together, in bytes, least recently used first.
"""

import functools
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from likewise.shards.filter import Predicate, compile_filter
from likewise.shards.protocols import F32
from likewise.shards.rows import Mask, Snapshot, SpaceRows
from likewise.shards.spec import AttributeSpec
from likewise.shards.strips import Part, Transposed

MAX_BYTES: Final = 64 << 20
MAX_PREDICATES: Final = 128
GONE_SHARE: Final = 8
"""Rows that were copied out are used after changes too, until an eighth of them is gone: 200,000 of 32 numbers take 14
ms to copy."""
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
    key: "AllowedKey | None" = None


class AllowedKey(NamedTuple):
    """What a cache knows allowed rows by: the filter, the numbering of slots and what of them is alive."""

    filter: bytes
    generation: int
    mutation: int


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
        key = AllowedKey(filter, snapshot.generation, snapshot.mutation)
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
            return AllowedKey(filter, snapshot.generation, snapshot.mutation) in self._kept

    def gathers(self, snapshot: Snapshot, allowed: Allowed, space: str) -> bool:
        """Whether the allowed rows are kept side by side once they were needed: not if they are too many."""
        size = _gathered_bytes(snapshot, allowed, space)
        return allowed.key is not None and 0 < size <= self._max_bytes // GATHERED_SHARE

    def gathered(self, snapshot: Snapshot, allowed: Allowed, space: str) -> Part | Transposed | None:
        """The allowed rows copied out, for all searches of this filter; None where they are too many to keep.

        Of rows that an index has reduced, the sealed ones alone, reduced.
        """
        if allowed.key is None or not self.gathers(snapshot, allowed, space):
            return None
        rows = snapshot.spaces[space]
        if rows.reduced is None:
            return self._whole(rows, allowed.mask, allowed.key, space)
        return self._reduced(rows.reduced, allowed.mask[: snapshot.sealed], allowed.key, space)

    def _whole(self, rows: SpaceRows, mask: Mask, of: AllowedKey, space: str) -> Part:
        kept = self._get((of, space))
        if isinstance(kept, _Rows) and isinstance(kept.part, Part):
            return kept.part
        slots = np.flatnonzero(mask)
        part = Part(np.ascontiguousarray(rows.vectors(slots)), 0, slots=slots)
        self._put((of, space), _Rows(part, of), part.vectors.nbytes + slots.nbytes)
        return part

    def _reduced(self, block: F32, mask: Mask, of: AllowedKey, space: str) -> Transposed:
        key = of.filter, of.generation, space
        kept, part = self._get(key), None
        if isinstance(kept, _Rows) and isinstance(kept.part, Transposed):
            if kept.of == of:
                return kept.part
            if kept.of.mutation < of.mutation:  # sealed rows are none that come, and those that went do not come back
                gone = np.flatnonzero(~mask[kept.part.slots])
                if GONE_SHARE * len(gone) <= len(kept.part.slots):
                    part = replace(kept.part, gone=gone if len(gone) else None)
        part = part or Transposed.of(block, np.flatnonzero(mask))
        self._put(key, _Rows(part, of), part.numbers.nbytes + part.slots.nbytes)
        return part

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

    def _get(self, key: Hashable) -> "Mask | Allowed | _Rows | None":
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            self._kept.move_to_end(key)
            return kept.value

    def _put(self, key: Hashable, value: "Mask | Allowed | _Rows", size: int) -> None:
        with self._lock:
            if (old := self._kept.pop(key, None)) is not None:
                self._bytes -= old.bytes
            self._kept[key] = _Kept(value, size)
            self._bytes += size
            while self._bytes > self._max_bytes and self._kept:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= dropped.bytes
                rows = dropped.value
                if isinstance(rows, _Rows) and (without := self._kept.pop(rows.of, None)) is not None:
                    self._bytes -= without.bytes  # see `holds`


class _Rows(NamedTuple):
    """Rows copied out, and of which allowed ones they were last."""

    part: Part | Transposed
    of: AllowedKey


def _gathered_bytes(snapshot: Snapshot, allowed: Allowed, space: str) -> int:
    rows = snapshot.spaces[space]
    reduced = rows.reduced
    held = rows.sealed if reduced is None else reduced
    count = allowed.count if reduced is None else allowed.sealed
    return count * (4 * int(held.shape[1]) + 8)


@dataclass(frozen=True, slots=True)
class _Kept:
    value: "Mask | Allowed | _Rows"
    bytes: int
