"""Building sealed indexes, from nothing or from one of fewer rows, and which one a gallery's description asks for."""

import math
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from likewise.shards import faiss_threads
from likewise.shards.index import SealedIndex, adopt, core_of, faiss
from likewise.shards.protocols import F32, I64
from likewise.shards.recipe import FLAT, GPU_KINDS, Recipe, recipe, training_positions
from likewise.shards.reduction import fit, may_reduce, sample_positions
from likewise.shards.spec import IndexSpec, SpecError

PIECE_S: Final = 2.0
"""About how long rows are added before `stop` and `busy` are looked at again. Each piece costs FAISS 40 to 90 ms of one
thread while the others wait: HNSW, 512 dimensions, two threads had 1.6 cores in pieces of 4,096 rows, 1.85 in such of
16,384, which took a tenth less time."""
FIRST_PIECE: Final = 4_096
LEAST_PIECE: Final = 256
PIECE_BYTES: Final = 32 << 20
"""Of copies of the rows that are being added."""

_RETRAIN_GROWTH: Final = 2.0
_SETTLED_ROWS: Final = 65_536
_SETTLED_GROWTH: Final = 8.0
"""Growth that calls for new directions of a reduced index, where those it has were made of so many rows: they are many
times those of a sample, so that more of the same would hardly change them, but other rows may have come."""


class BuildStopped(Exception):
    """The build was asked to stop."""


def is_built(wanted: Recipe, dim: int) -> bool:
    """Whether there is anything to build of vectors of `dim` numbers; of flat ones what is compared before them."""
    return wanted.factory != FLAT or (wanted.reduced and may_reduce(dim))


def serves(index: SealedIndex | None, spec: IndexSpec, rows: int, dim: int) -> bool:
    """Whether an index is still what a spec means for so many rows of `dim` numbers.

    A number of lists that follows from the row count may lag behind it by the growth that calls for new training.
    """
    wanted = recipe(spec, rows)
    if index is None:
        return not is_built(wanted, dim)
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
    held: F32 | None = None,
    stop: Callable[[], bool] = lambda: False,
    busy: Callable[[], bool] = lambda: False,
) -> SealedIndex:
    """Build an index over positions 0 to rows - 1.

    Args:
        rows: How many.
        dim: Numbers a vector.
        wanted: What to build.
        spec: Where the parameters of a search come from.
        gather: (m, dim) vectors of positions, asked for in pieces, so that no second copy of all of them is made.
        base: An index of the same recipe over the first positions: copied and added to.
        held: (rows, dim) what `gather` gives, if it lies in memory as it is: the index then has no copy beside it.
        stop: Looked at between pieces.
        busy: Likewise; while true, half of the cores are left to others.

    Raises:
        BuildStopped: If `stop()` was true.
        RuntimeError: FAISS's reason, for example too few rows to train on.
    """
    if base is not None:
        index, trained_rows, reduction = faiss.clone_index(base.faiss_index), base.trained_rows, base.reduction
    else:
        reduction, trained_rows = fit(gather(sample_positions(rows, dim))) if wanted.reduced else None, rows
        width = dim if reduction is None else reduction.width
        factory = "Flat" if wanted.factory == FLAT else wanted.factory
        index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
        core = core_of(index)
        if isinstance(core, faiss.IndexHNSW) and wanted.ef_construction:
            core.hnsw.efConstruction = wanted.ef_construction
        if not index.is_trained:
            faiss_threads.for_build(busy())
            nlist = int(core.nlist) if isinstance(core, faiss.IndexIVF) else 0
            index.train(np.ascontiguousarray(gather(training_positions(rows, nlist))))
    start, piece = int(index.ntotal), FIRST_PIECE
    copied = np.empty((rows, dim), dtype=np.float32) if reduction is not None and held is None else None
    if copied is not None and base is not None:
        copied[:start] = base.vectors
    while start < rows:
        if stop():
            raise BuildStopped
        faiss_threads.for_build(busy())
        end = min(start + piece, rows)
        began = time.perf_counter()
        vectors = gather(np.arange(start, end))
        if copied is not None:
            copied[start:end] = vectors
        index.add(np.ascontiguousarray(vectors if reduction is None else reduction.of(vectors)))
        start, piece = end, next_piece(end - start, time.perf_counter() - began, dim)
    if copied is not None:
        copied.flags.writeable = False
    vectors_beside = held if copied is None else copied
    return adopt(index, wanted, spec, trained_rows=trained_rows, reduction=reduction, vectors=vectors_beside)


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
        and rows <= _growth(index) * index.trained_rows
    )


def _growth(index: SealedIndex) -> float:
    """To how many times the rows it was trained on an index may grow."""
    if index.recipe.reduced and may_reduce(index.dim):
        return _RETRAIN_GROWTH if index.trained_rows < _SETTLED_ROWS else _SETTLED_GROWTH
    core = core_of(index.faiss_index)
    return math.inf if isinstance(core, faiss.IndexHNSWFlat | faiss.IndexFlat) else _RETRAIN_GROWTH
