"""A search that is checked and has its query vector, ready for the shards."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from likewise.server.compose import Composed
from likewise.server.protocols import GalleryHandle
from likewise.server.search_forms import Form
from likewise.shards.protocols import F32, NOTHING, Exclusion, SearchOptions
from likewise.shards.spec import SpaceSpec


class Prepared(NamedTuple):
    """One search up to its query vector, or the same search for each of several.

    A named tuple, like the other values that every search makes: a frozen dataclass takes twice as long to make.

    Attributes:
        handle: The gallery.
        form: What was asked for besides the query vector.
        space: The space searched.
        composed: The query vector, or several.
        options: What the shards are told, besides the exclusion.
        request_id: To echo.
        started: `time.perf_counter()` when it came.
        ready: The same when its query vector was there.
        exclusion: What is left out of its answer; None for nothing.
    """

    handle: GalleryHandle
    form: Form
    space: SpaceSpec
    composed: Composed
    options: SearchOptions
    request_id: str
    started: float
    ready: float
    exclusion: Exclusion | None = None

    @property
    def queries(self) -> F32:
        """(n, dim) query vectors."""
        vector = self.composed.vector
        return vector if vector.ndim == 2 else vector[np.newaxis]

    @property
    def size(self) -> int:
        """How many query vectors there are."""
        vector = self.composed.vector
        return len(vector) if vector.ndim == 2 else 1

    @property
    def key(self) -> tuple[int, SearchOptions, bool, float]:
        """Searches with equal keys, made while all of them are there, can be answered together."""
        partial = self.form.partial
        return id(self.handle), self.options, partial.allowed, partial.min_coverage


def exclusions(searches: Sequence[Prepared]) -> tuple[Exclusion, ...]:
    """What is left out of the answer to each query of searches that are answered together; () if nothing is."""
    if not any(search.exclusion for search in searches):
        return ()
    return tuple([search.exclusion or NOTHING for search in searches for _ in range(search.size)])
