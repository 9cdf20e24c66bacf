"""The limit of any server around FAISS: the same index and parameters, searched in this process."""

import time
from dataclasses import dataclass
from typing import Any

import faiss as typed_faiss
import numpy as np

from likewise.cli.benchmark.dataset import F32, I64, Mask
from likewise.cli.benchmark.figures import Speed, speed

faiss: Any = typed_faiss  # its own type information knows the C++ signatures, not the Python ones


@dataclass(frozen=True, slots=True)
class RawIndex:
    """A FAISS index and how long it took to build; `rows[i]` is the data set's row of its position i."""

    index: Any
    rows: I64
    build_s: float


def build_hnsw(base: F32, *, m: int, ef_construction: int, threads: int) -> RawIndex:
    """HNSW over all rows, inner product."""
    faiss.omp_set_num_threads(threads)
    started = time.perf_counter()
    index = faiss.IndexHNSWFlat(base.shape[1], m, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = ef_construction
    index.add(base)
    return RawIndex(index, np.arange(len(base)), time.perf_counter() - started)


def build_flat(base: F32, *, allowed: Mask | None = None) -> RawIndex:
    """All rows, or the allowed ones, for exact search by inner product."""
    started = time.perf_counter()
    rows = np.arange(len(base)) if allowed is None else np.flatnonzero(allowed)
    index = faiss.IndexFlatIP(base.shape[1])
    index.add(base[rows])
    return RawIndex(index, rows, time.perf_counter() - started)


def search(
    raw: RawIndex,
    queries: F32,
    k: int,
    *,
    batch: int,
    threads: int,
    measure_s: float,
    ef: int | None = None,
    allowed: Mask | None = None,
) -> tuple[Speed, I64]:
    """Search all queries over and over.

    Args:
        raw: The index.
        queries: (m, dim).
        k: Hits a query.
        batch: Queries a call; 1 gives the latency of a single query, 256 lets FAISS use BLAS and all threads.
        threads: OpenMP threads.
        measure_s: Seconds to measure, after one unmeasured pass over the queries.
        ef: For HNSW.
        allowed: (n,) rows that may be answers, as a bitmap selector.

    Returns:
        Queries a second with the latency of a call, and (m, k) rows found, -1 for none.
    """
    faiss.omp_set_num_threads(threads)
    parameters, _bitmap = _parameters(raw, ef=ef, allowed=allowed)
    slices = [queries[start : start + batch] for start in range(0, len(queries), batch)]
    found = [raw.index.search(part, k, params=parameters)[1] for part in slices]
    latencies: list[float] = []
    asked = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < measure_s or not latencies:
        part = slices[len(latencies) % len(slices)]
        before = time.perf_counter()
        raw.index.search(part, k, params=parameters)
        latencies.append(time.perf_counter() - before)
        asked += len(part)
    calls = speed(latencies, elapsed)
    positions = np.concatenate(found)
    rows = np.where(positions < 0, -1, raw.rows[np.maximum(positions, 0)])
    return Speed(asked / elapsed, calls.p50_ms, calls.p95_ms, calls.p99_ms), rows


def _parameters(raw: RawIndex, *, ef: int | None, allowed: Mask | None) -> tuple[Any, Any]:
    """Search parameters, and what they point to and must outlive them."""
    if ef is None and allowed is None:
        return None, None
    options: dict[str, Any] = {}
    bitmap = None
    if allowed is not None:
        bitmap = np.packbits(allowed[raw.rows], bitorder="little")
        options["sel"] = faiss.IDSelectorBitmap(bitmap)
    if ef is not None:
        return faiss.SearchParametersHNSW(efSearch=ef, **options), bitmap
    return faiss.SearchParameters(**options), bitmap
