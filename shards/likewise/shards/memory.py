"""Freed memory given back to the system: allocators keep what a load or a build let go, for as long as they live."""

import ctypes
import gc
from collections.abc import Callable

import pyarrow as pa


def give_back() -> None:
    """Return unused pages of Arrow's and the C library's allocators; some ms, for a thread without callers waiting.

    Measured after 20,000 x 512 rows were written and sealed: see docs/benchmarks.md, Memory.
    """
    gc.collect()  # cycles that a failed or stopped build left may hold arrays
    pa.default_memory_pool().release_unused()
    if _trim is not None:
        _trim(0)


def _find_trim() -> Callable[[int], int] | None:
    """`malloc_trim`, which glibc has and other C libraries do not."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return trim


_trim = _find_trim()
