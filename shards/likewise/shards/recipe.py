"""Which index a gallery's description means for so many rows. Pure arithmetic."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from likewise.shards.protocols import I64
from likewise.shards.spec import AUTO_HNSW_ROWS, IndexSpec

FLAT: Final = "flat"
GPU_KINDS: Final = ("gpu-flat", "gpu-ivf", "gpu-cagra")
"""What `likewise.shards.gpu` builds."""

MIN_SEALED_ROWS: Final = 1_024
"""Rows below which no index is built: comparing all is faster than any of them."""

DEFAULT_M: Final = 32
DEFAULT_EF_CONSTRUCTION: Final = 100

_TRAIN_ROWS_PER_LIST: Final = 64
_TRAIN_ROWS_MIN: Final = 65_536


@dataclass(frozen=True, slots=True)
class Recipe:
    """What index to build.

    Attributes:
        factory: `flat` for rows that are all compared, or a FAISS factory string.
        ef_construction: For HNSW, else 0.
        reduced: Over reduced vectors, where they can be.
    """

    factory: str
    ef_construction: int = 0
    reduced: bool = False


def recipe(spec: IndexSpec, rows: int) -> Recipe:
    """The index that a spec means for so many rows."""
    kind = spec.kind.lower()
    if rows < MIN_SEALED_ROWS:
        return Recipe(FLAT)
    if kind == FLAT or (kind == "auto" and rows < AUTO_HNSW_ROWS):
        return Recipe(FLAT, reduced=True)
    if kind in GPU_KINDS:
        return Recipe(kind)
    ef_construction = spec.ef_construction or DEFAULT_EF_CONSTRUCTION
    if kind in ("auto", "hnsw"):
        return Recipe(f"HNSW{spec.m or DEFAULT_M},Flat", ef_construction, reduced=True)
    if kind == "ivf":
        return Recipe(f"IVF{spec.nlist or default_nlist(rows)},Flat")
    return Recipe(spec.kind, ef_construction if "HNSW" in spec.kind else 0)


def default_nlist(rows: int) -> int:
    """Lists of an IVF index: 4 * sqrt(rows), at least 39 training rows for each."""
    return max(1, min(round(4 * math.sqrt(rows)), rows // 39))


def default_nprobe(nlist: int) -> int:
    """Lists visited: a sixteenth, at least 8."""
    return min(nlist, max(8, math.ceil(nlist / 16)))


def training_positions(rows: int, nlist: int) -> I64:
    """A sample large enough for the lists; always the same one, so that a build can be repeated."""
    wanted = max(_TRAIN_ROWS_MIN, _TRAIN_ROWS_PER_LIST * nlist)
    if rows <= wanted:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, wanted, replace=False))
