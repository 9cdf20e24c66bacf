"""The door to FAISS: search and serialise the sealed index of one space; `index_build` makes them.

Rows are named by their position, which FAISS gives them by itself: `IndexIDMap` would change the parameters of a search
that other threads share (facebookresearch/faiss 1.15.1, IndexIDMap.cpp). Parameters are made for each call. No selector
is used at all, see `likewise.shards.planner`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import faiss as _faiss
import numpy as np
import numpy.typing as npt

from likewise.shards import faiss_threads, memory
from likewise.shards.distance import margin
from likewise.shards.planner import IndexTraits
from likewise.shards.protocols import F32, I64
from likewise.shards.recipe import FLAT, Recipe, default_nprobe
from likewise.shards.reduction import Reduction
from likewise.shards.spec import IndexSpec

faiss: Any = _faiss
"""Untyped on purpose: the stubs that come with it lack most of what is used here."""

_IO_BYTES: Final = 1 << 20


class Found(NamedTuple):
    """What an index found for n queries.

    Attributes:
        positions: (n, depth) of rows, best first, -1 in empty places.
        scores: (n, depth) float32 inner products with the rows as the index holds them.
        margins: (n, 1) how far below the k-th best score that of a row has to be for the row to be no hit; None where
            the index does not know, because it holds compressed rows.
    """

    positions: I64
    scores: F32
    margins: F32 | None = None


@dataclass(frozen=True)  # no slots: `traits` is kept beside the fields
class SealedIndex:
    """A FAISS index over positions 0 to rows - 1, never changed after it is made.

    Attributes:
        recipe: What it was built from.
        faiss_index: The index itself.
        vectors: (rows, dim) float32 rows as they are: a view of the index's own storage, or beside it where that holds
            reduced ones; None where it holds compressed ones.
        trained_rows: Rows there were when it was trained.
        nprobe: The gallery's own number of lists to visit, 0 for one that follows from nlist.
        ef: The gallery's own candidate list of HNSW, 0 for one that follows from what is asked.
        reduction: How the rows in it are reduced; None for rows as they are.
    """

    recipe: Recipe
    faiss_index: Any
    vectors: F32 | None
    trained_rows: int
    nprobe: int = 0
    ef: int = 0
    reduction: Reduction | None = None

    @property
    def rows(self) -> int:
        """Rows in it."""
        return int(self.faiss_index.ntotal)

    @property
    def dim(self) -> int:
        """Numbers of a vector before it is reduced."""
        return int(self.faiss_index.d) if self.reduction is None else int(self.reduction.directions.shape[1])

    @property
    def description(self) -> str:
        """What it is, for people: the factory string, and the numbers it has of each vector if not all."""
        factory = self.recipe.factory
        return factory if self.reduction is None else f"{factory} over {self.reduction.width} of {self.dim} numbers"

    @property
    def memory_bytes(self) -> int:
        """Estimate of what it takes, its vectors included."""
        return self.core_bytes + (0 if self.reduction is None or self.vectors is None else self.vectors.nbytes)

    @functools.cached_property
    def core_bytes(self) -> int:
        """Estimate of what the index itself takes, vectors beside it not counted."""
        core = core_of(self.faiss_index)
        if hasattr(core, "hnsw"):
            links = 4 * int(core.hnsw.neighbors.size()) + 12 * self.rows
            return links + self.rows * int(core.storage.sa_code_size())
        if self.exact:
            return self.rows * 4 * int(core.d)
        return self.rows * (int(getattr(core, "code_size", 4 * core.d)) + 8)

    @property
    def exact(self) -> bool:
        """Whether its rows are all compared, so that nothing of it is approximate."""
        return self.recipe.factory == FLAT

    @functools.cached_property
    def traits(self) -> IndexTraits:
        """What the planner has to know; looked up once, since asking FAISS takes longer than to plan."""
        core = core_of(self.faiss_index)
        nlist = int(core.nlist) if isinstance(core, faiss.IndexIVF) else 0
        kind = "flat" if self.exact else "hnsw" if isinstance(core, faiss.IndexHNSW) else "ivf" if nlist else "other"
        lossless = isinstance(core, faiss.IndexHNSWFlat | faiss.IndexIVFFlat | faiss.IndexFlat)
        return IndexTraits(
            kind=kind,
            rows=self.rows,
            lossy=not lossless or isinstance(self.faiss_index, faiss.IndexPreTransform),
            reduced=self.reduction is not None,
            ef=self.ef,
            nlist=nlist,
            nprobe=self.nprobe or default_nprobe(nlist),
        )

    @functools.cached_property
    def reduced(self) -> F32 | None:
        """(rows, width) float32 the rows as it holds them, if these are reduced; a view of its storage."""
        return None if self.reduction is None else _storage(self.faiss_index)

    @property
    def filters(self) -> bool:
        """Whether `search` heeds its mask; otherwise what it finds has to be filtered."""
        return False

    def search(
        self, queries: F32, depth: int, *, ef: int, nprobe: int, mask: npt.NDArray[np.bool_] | None = None
    ) -> Found:
        """The nearest rows as the index sees them.

        Args:
            queries: (n, d).
            depth: Positions a query.
            ef: HNSW's candidate list.
            nprobe: IVF's lists visited.
            mask: (rows,) rows that may be found, for an index that `filters`.
        """
        asked = queries if self.reduction is None else self.reduction.of(queries)
        # First, while what is asked is at hand: after the walk it takes twice as long.
        margins = self._margins(asked)
        parameters = _parameters(self.faiss_index, ef=ef, nprobe=nprobe)
        faiss_threads.for_search(len(queries))
        scores, positions = self.faiss_index.search(asked, depth, params=parameters)
        return Found(positions, scores, margins)

    def _margins(self, asked: F32) -> F32 | None:
        if self.reduction is not None:
            return self.reduction.margins(asked)
        return None if self.traits.lossy else np.full((1, 1), margin(asked.shape[1]))


def nearest(vectors: F32, query: F32, depth: int, *, mask: npt.NDArray[np.bool_] | None = None) -> I64:
    """Positions of the rows of (rows, dim) vectors nearest to a (dim,) query by plain comparison, best first.

    Without BLAS, on as many threads as OpenMP has for the calling one.

    Args:
        vectors: C-contiguous.
        query: One.
        depth: Positions wanted; at most as many as there are rows to choose from.
        mask: (rows,) which rows may be named; None for all.
    """
    scores, positions = np.empty(depth, dtype=np.float32), np.empty(depth, dtype=np.int64)
    bits = None if mask is None else np.packbits(mask, bitorder="little")
    selector = None if bits is None else faiss.IDSelectorBitmap(bits)
    rows, dim = vectors.shape
    query, vectors = np.ascontiguousarray(query), np.ascontiguousarray(vectors)  # named: they have to outlive the call
    faiss.knn_inner_product(
        faiss.swig_ptr(query),
        faiss.swig_ptr(vectors),
        dim,
        1,
        rows,
        depth,
        faiss.swig_ptr(scores),
        faiss.swig_ptr(positions),
        selector,
    )
    return positions[positions >= 0]


def adopt(
    index: Any,
    wanted: Recipe,
    spec: IndexSpec,
    *,
    trained_rows: int,
    reduction: Reduction | None = None,
    vectors: F32 | None = None,
) -> SealedIndex:
    """Wrap a FAISS index that is complete; one of reduced vectors with the reduction and the vectors as they are."""
    return SealedIndex(
        recipe=wanted,
        faiss_index=index,
        vectors=_storage(index) if reduction is None else vectors,
        trained_rows=trained_rows,
        nprobe=spec.nprobe or 0,
        ef=spec.ef or 0,
        reduction=reduction,
    )


def retuned(index: SealedIndex, spec: IndexSpec) -> SealedIndex:
    """The same index with the search parameters of another spec."""
    return replace(index, nprobe=spec.nprobe or 0, ef=spec.ef or 0)


def use_large_pages(index: SealedIndex | None, stop: Callable[[], bool] = lambda: False) -> None:
    """Have what HNSW reads at random, rows and links, in large pages, see `memory`; searches go on meanwhile."""
    if index is None:
        return
    core = core_of(index.faiss_index)
    if not isinstance(core, faiss.IndexHNSW):
        return
    storage = faiss.downcast_index(core.storage)
    held = [core.hnsw.neighbors, storage.codes] if hasattr(storage, "codes") else [core.hnsw.neighbors]
    views = [faiss.rev_swig_ptr(block.data(), int(block.size())) for block in held]
    if index.reduction is not None and index.vectors is not None:
        views.append(index.vectors)
    for view in views:
        memory.use_large_pages(view.ctypes.data, view.nbytes, stop=stop)


def write(index: SealedIndex, write_bytes: Callable[[bytes], object]) -> None:
    """Serialise in pieces of a mebibyte. FAISS adds no checksum."""
    writer = faiss.PyCallbackIOWriter(write_bytes, _IO_BYTES)
    faiss.write_index(index.faiss_index, faiss.BufferedIOWriter(writer, _IO_BYTES))


def read(path: Path) -> Any:
    """Deserialise what a file begins with; only bytes whose checksum holds may come here."""
    return faiss.read_index(faiss.FileIOReader(str(path)))


def _downcast(index: Any) -> Any:
    """The index as what it is; most are already, and asking FAISS takes 6 us."""
    return index if type(index) is not faiss.Index else faiss.downcast_index(index)


def core_of(index: Any) -> Any:
    """The FAISS index below transforms and refinements."""
    index = _downcast(index)
    if isinstance(index, faiss.IndexPreTransform):
        return core_of(index.index)
    if isinstance(index, faiss.IndexRefine):
        return core_of(index.base_index)
    return index


def _parameters(index: Any, *, ef: int, nprobe: int) -> Any:
    index = _downcast(index)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(index.index, ef=ef, nprobe=nprobe)
        return faiss.SearchParametersPreTransform(index_params=inner) if inner is not None else None
    if isinstance(index, faiss.IndexRefine):
        inner = _parameters(index.base_index, ef=ef, nprobe=nprobe)
        return faiss.IndexRefineSearchParameters(base_index_params=inner) if inner is not None else None
    if isinstance(index, faiss.IndexHNSW):
        return _hnsw_parameters(max(ef, 1))
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=max(nprobe, 1))
    return None


@functools.lru_cache(maxsize=64)
def _hnsw_parameters(ef: int) -> Any:
    return faiss.SearchParametersHNSW(efSearch=ef)


def _storage(index: Any) -> F32 | None:
    """View of the raw vectors where the index holds them row after row; valid as long as the index lives."""
    index = faiss.downcast_index(index)
    flat = faiss.downcast_index(index.storage) if isinstance(index, faiss.IndexHNSWFlat) else index
    if not isinstance(flat, faiss.IndexFlat):
        return None
    rows, dim = int(flat.ntotal), int(flat.d)
    view: F32 = faiss.rev_swig_ptr(flat.get_xb(), rows * dim).reshape(rows, dim)
    view.flags.writeable = False
    return view
