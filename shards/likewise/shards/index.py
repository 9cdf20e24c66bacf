"""The door to FAISS: build, extend, search and serialise the sealed index of one space.

Rows are named by their position, which FAISS gives them by itself: `IndexIDMap` would change the parameters of a search
that other threads share (facebookresearch/faiss 1.15.1, IndexIDMap.cpp). Parameters are made for each call. No selector
is used at all, see `likewise.shards.planner`.
"""

import functools
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import faiss as _faiss
import numpy as np
import numpy.typing as npt

from likewise.shards import memory
from likewise.shards.planner import IndexTraits
from likewise.shards.protocols import F32, I64
from likewise.shards.recipe import FLAT, GPU_KINDS, Recipe, default_nprobe, recipe, training_positions
from likewise.shards.spec import IndexSpec, SpecError

faiss: Any = _faiss
"""Untyped on purpose: the stubs that come with it lack most of what is used here."""

QUERIES_PER_THREAD: Final = 4
"""Queries of a batch for each thread of a search. Beside other work on two cores, HNSW, 50,000 x 512, a query took 448,
596, 381 and 786 us on one thread in batches of 4, 8, 16 and 32, and 757, 828, 398 and 740 us on two. With 8 callers and
nothing else, 901 answers a second with 4 and 749 with 8."""

PIECE_S: Final = 2.0
"""About how long rows are added before `stop` and `busy` are looked at again. Each piece costs FAISS 40 to 90 ms of one
thread while the others wait: HNSW, 512 dimensions, two threads had 1.6 cores in pieces of 4,096 rows, 1.85 in such of
16,384, which took a tenth less time."""
FIRST_PIECE: Final = 4_096
LEAST_PIECE: Final = 256
PIECE_BYTES: Final = 32 << 20
"""Of copies of the rows that are being added."""

_IO_BYTES: Final = 1 << 20
_RETRAIN_GROWTH: Final = 2.0
_THREADS: Final = int(faiss.omp_get_max_threads())
"""What OpenMP may use: the cores there are, or fewer where the environment says so."""


class BuildStopped(Exception):
    """The build was asked to stop."""


class Found(NamedTuple):
    """What an index found for n queries.

    Attributes:
        positions: (n, depth) of rows, best first, -1 in empty places.
        scores: (n, depth) float32 inner products with the rows as the index holds them.
    """

    positions: I64
    scores: F32


@dataclass(frozen=True)  # no slots: `traits` is kept beside the fields
class SealedIndex:
    """A FAISS index over positions 0 to rows - 1, never changed after it is made.

    Attributes:
        recipe: What it was built from.
        faiss_index: The index itself.
        vectors: (rows, dim) float32 view of the index's own storage; None where it holds none to look at.
        trained_rows: Rows there were when it was trained.
        nprobe: The gallery's own number of lists to visit, 0 for one that follows from nlist.
        ef: The gallery's own candidate list of HNSW, 0 for one that follows from what is asked.
    """

    recipe: Recipe
    faiss_index: Any
    vectors: F32 | None
    trained_rows: int
    nprobe: int = 0
    ef: int = 0

    @property
    def rows(self) -> int:
        """Rows in it."""
        return int(self.faiss_index.ntotal)

    @property
    def memory_bytes(self) -> int:
        """Estimate of what it takes, its vectors included."""
        core = _core(self.faiss_index)
        if hasattr(core, "hnsw"):
            links = 4 * int(core.hnsw.neighbors.size()) + 12 * self.rows
            return links + self.rows * int(core.storage.sa_code_size())
        return self.rows * (int(getattr(core, "code_size", 4 * core.d)) + 8)

    @functools.cached_property
    def traits(self) -> IndexTraits:
        """What the planner has to know; looked up once, since asking FAISS takes longer than to plan."""
        core = _core(self.faiss_index)
        nlist = int(core.nlist) if isinstance(core, faiss.IndexIVF) else 0
        kind = "hnsw" if isinstance(core, faiss.IndexHNSW) else "ivf" if nlist else "other"
        lossless = isinstance(core, faiss.IndexHNSWFlat | faiss.IndexIVFFlat | faiss.IndexFlat)
        return IndexTraits(
            kind=kind,
            rows=self.rows,
            lossy=not lossless or isinstance(self.faiss_index, faiss.IndexPreTransform),
            ef=self.ef,
            nlist=nlist,
            nprobe=self.nprobe or default_nprobe(nlist),
        )

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
        parameters = _parameters(self.faiss_index, ef=ef, nprobe=nprobe)
        threads = int(faiss.omp_get_max_threads())
        # For the calling thread alone. FAISS waits for the last of its threads, which small batches do not pay for.
        faiss.omp_set_num_threads(max(1, min(threads, len(queries) // QUERIES_PER_THREAD)))
        try:
            scores, positions = self.faiss_index.search(np.ascontiguousarray(queries), depth, params=parameters)
        finally:
            faiss.omp_set_num_threads(threads)
        return Found(np.asarray(positions), np.asarray(scores))


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


def lowest_thread_priority() -> None:
    """Make the calling thread run when nobody else wants to, and FAISS use no other one for it."""
    faiss.omp_set_num_threads(1)
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def serves(index: SealedIndex | None, spec: IndexSpec, rows: int) -> bool:
    """Whether an index is still what a spec means for so many rows.

    A number of lists that follows from the row count may lag behind it by the growth that calls for new training.
    """
    wanted = recipe(spec, rows)
    if index is None:
        return wanted.factory == FLAT
    if spec.kind.lower() == "ivf" and spec.nlist is None and wanted.factory != FLAT:
        return index.recipe.factory.startswith("IVF") and rows <= _RETRAIN_GROWTH * index.trained_rows
    # Some way below the row count that asks for another index, the one there is stays: no building to and fro.
    return index.recipe in (wanted, recipe(spec, rows + rows // 4))


def validate_index(spec: IndexSpec, dim: int, *, field: str = "spec.index.kind") -> None:
    """Raise for an index that FAISS cannot make; builds an empty one.

    Raises:
        SpecError: With FAISS's reason.
    """
    if spec.kind.lower() in ("auto", FLAT, "hnsw", "ivf", *GPU_KINDS):
        return
    if "IDMap" in spec.kind:
        raise SpecError(field, f"{spec.kind!r} maps ids, which the shard does itself; leave IDMap out")
    try:
        index = faiss.index_factory(dim, spec.kind, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).rsplit(": ", 1)[-1]
        raise SpecError(
            field,
            f"{spec.kind!r} is none of auto, flat, hnsw, ivf, nor a FAISS factory string for dimension {dim}: {reason}",
        ) from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise SpecError(field, f"{spec.kind!r} does not search by inner product")


def build(
    rows: int,
    dim: int,
    wanted: Recipe,
    spec: IndexSpec,
    *,
    gather: Callable[[I64], F32],
    base: SealedIndex | None = None,
    stop: Callable[[], bool] = lambda: False,
    busy: Callable[[], bool] = lambda: False,
) -> SealedIndex:
    """Build an index over positions 0 to rows - 1.

    Args:
        rows: How many.
        dim: Numbers a vector.
        wanted: What to build; not flat.
        spec: Where the parameters of a search come from.
        gather: (m, dim) vectors of positions, asked for in pieces, so that no second copy of all of them is made.
        base: An index of the same recipe over the first positions: copied and added to.
        stop: Looked at between pieces.
        busy: Likewise; while true, half of the cores are left to others.

    Raises:
        BuildStopped: If `stop()` was true.
        RuntimeError: FAISS's reason, for example too few rows to train on.
    """
    if base is not None:
        index, trained_rows = faiss.clone_index(base.faiss_index), base.trained_rows
    else:
        index, trained_rows = faiss.index_factory(dim, wanted.factory, faiss.METRIC_INNER_PRODUCT), rows
        core = _core(index)
        if isinstance(core, faiss.IndexHNSW) and wanted.ef_construction:
            core.hnsw.efConstruction = wanted.ef_construction
        if not index.is_trained:
            _take_cores(busy())
            nlist = int(core.nlist) if isinstance(core, faiss.IndexIVF) else 0
            index.train(np.ascontiguousarray(gather(training_positions(rows, nlist))))
    start, piece = int(index.ntotal), FIRST_PIECE
    while start < rows:
        if stop():
            raise BuildStopped
        _take_cores(busy())
        end = min(start + piece, rows)
        began = time.perf_counter()
        index.add(np.ascontiguousarray(gather(np.arange(start, end))))
        start, piece = end, next_piece(end - start, time.perf_counter() - began, dim)
    return adopt(index, wanted, spec, trained_rows=trained_rows)


def next_piece(rows: int, took_s: float, dim: int) -> int:
    """How many rows of `dim` numbers to add next, where adding so many took so long."""
    in_time = rows * PIECE_S / max(took_s, PIECE_S / 4)  # not much more at once: adding becomes slower as it goes on
    return max(min(round(in_time), PIECE_BYTES // (4 * dim)), LEAST_PIECE)


def extendable(index: SealedIndex | None, wanted: Recipe, *, rows: int, dead: int) -> bool:
    """Whether adding to an index beats building one: same recipe, few tombstones, training not outgrown."""
    return (
        index is not None
        and index.recipe == wanted
        and wanted.factory not in GPU_KINDS
        and dead <= index.rows // 8
        and rows <= _RETRAIN_GROWTH * index.trained_rows * (1 if _needs_training(index) else math.inf)
    )


def adopt(index: Any, wanted: Recipe, spec: IndexSpec, *, trained_rows: int) -> SealedIndex:
    """Wrap a FAISS index that is complete."""
    return SealedIndex(
        recipe=wanted,
        faiss_index=index,
        vectors=_storage(index),
        trained_rows=trained_rows,
        nprobe=spec.nprobe or 0,
        ef=spec.ef or 0,
    )


def retuned(index: SealedIndex, spec: IndexSpec) -> SealedIndex:
    """The same index with the search parameters of another spec."""
    return replace(index, nprobe=spec.nprobe or 0, ef=spec.ef or 0)


def use_large_pages(index: SealedIndex | None, stop: Callable[[], bool] = lambda: False) -> None:
    """Have what HNSW reads at random, rows and links, in large pages, see `memory`; searches go on meanwhile."""
    core = None if index is None else _core(index.faiss_index)
    if not isinstance(core, faiss.IndexHNSW):
        return
    storage = faiss.downcast_index(core.storage)
    held = [core.hnsw.neighbors, storage.codes] if hasattr(storage, "codes") else [core.hnsw.neighbors]
    for block in held:
        view = faiss.rev_swig_ptr(block.data(), int(block.size()))
        memory.use_large_pages(view.ctypes.data, view.nbytes, stop=stop)


def write(index: SealedIndex, write_bytes: Callable[[bytes], object]) -> None:
    """Serialise in pieces of a mebibyte. FAISS adds no checksum."""
    writer = faiss.PyCallbackIOWriter(write_bytes, _IO_BYTES)
    faiss.write_index(index.faiss_index, faiss.BufferedIOWriter(writer, _IO_BYTES))


def read(path: Path) -> Any:
    """Deserialise what a file begins with; only bytes whose checksum holds may come here."""
    return faiss.read_index(faiss.FileIOReader(str(path)))


def lower_thread_priority() -> None:
    """Make the calling thread, and the OpenMP team it will start, give way to searches."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _take_cores(busy: bool) -> None:
    """Set how many threads FAISS starts for the calling one: all, or half while somebody searches."""
    faiss.omp_set_num_threads(max(1, _THREADS // 2) if busy else _THREADS)


def _downcast(index: Any) -> Any:
    """The index as what it is; most are already, and asking FAISS takes 6 us."""
    return index if type(index) is not faiss.Index else faiss.downcast_index(index)


def _core(index: Any) -> Any:
    """The index below transforms and refinements."""
    index = _downcast(index)
    if isinstance(index, faiss.IndexPreTransform):
        return _core(index.index)
    if isinstance(index, faiss.IndexRefine):
        return _core(index.base_index)
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


def _needs_training(index: SealedIndex) -> bool:
    core = _core(index.faiss_index)
    return not isinstance(core, faiss.IndexHNSWFlat | faiss.IndexFlat)
