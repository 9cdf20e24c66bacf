"""Filters as bitmaps, shared by the searches that use the same one.

A filter's matches are kept per slot numbering and only extended by the rows that came since, because a slot's
attributes never change; which of them are alive is kept per mutation. Both are bounded together, in bytes, least
recently used first.
"""

import functools
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from likewise.shards.filter import Predicate, compile_filter
from likewise.shards.rows import Mask, Snapshot
from likewise.shards.spec import AttributeSpec

MAX_BYTES: Final = 64 << 20
MAX_PREDICATES: Final = 128


@dataclass(frozen=True, slots=True)
class Allowed:
    """Live rows that pass a filter.

    Attributes:
        mask: (size,) booleans; not to be written to.
        count: How many are true.
        sealed: How many of those are sealed.
        filtered: There was a filter; without one all live rows are allowed.
    """

    mask: Mask
    count: int
    sealed: int
    filtered: bool


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
        self._kept: OrderedDict[Hashable, Mask] = OrderedDict()
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
        key = (filter, snapshot.generation, snapshot.mutation)
        mask = self._get(key)
        if mask is None:
            mask = self._matches(snapshot, filter, predicate) & snapshot.alive
            mask.flags.writeable = False
            self._put(key, mask)
        return Allowed(mask, int(np.count_nonzero(mask)), int(np.count_nonzero(mask[: snapshot.sealed])), filtered=True)

    def _matches(self, snapshot: Snapshot, filter: bytes, predicate: Predicate) -> Mask:
        key = (filter, snapshot.generation)
        held = self._get(key)
        if held is None:
            matches = predicate.mask(snapshot.table)
        elif len(held) < snapshot.size:
            matches = np.concatenate((held, predicate.mask(snapshot.table.slice(len(held)))))
        else:
            return held[: snapshot.size]
        self._put(key, matches)
        return matches

    def _get(self, key: Hashable) -> Mask | None:
        with self._lock:
            mask = self._kept.get(key)
            if mask is not None:
                self._kept.move_to_end(key)
            return mask

    def _put(self, key: Hashable, mask: Mask) -> None:
        with self._lock:
            if (old := self._kept.pop(key, None)) is not None:
                self._bytes -= old.nbytes
            self._kept[key] = mask
            self._bytes += mask.nbytes
            while self._bytes > self._max_bytes and self._kept:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= dropped.nbytes
