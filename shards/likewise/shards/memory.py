"""Freed memory given back to the system, memory that is read at random put into large pages, and objects that stay.

A load, a build or a burst of writes needs several times the memory that is left in use after it, in many threads, and
glibc keeps what each thread's arena freed: 40,000 x 512 rows written and sealed left 422 MiB resident, with the bounds
below 304 MiB. Other C libraries are left alone.
"""

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

ARENAS_A_CORE: Final = 2
KEPT_BYTES: Final = 8 << 20
"""Free bytes at the end of an arena that are not given back, so that buffers of searches are not mapped each time."""

MAPPED_BYTES: Final = 32 << 20
"""Allocations from here on are mapped by themselves, and gone when freed; glibc's own largest threshold."""

LARGE_PAGE: Final = 2 << 20
"""Of x86-64 and of most ARM; where it is another size the system does what it can with the pieces."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_HUGEPAGE, _COLLAPSE = 14, 25  # madvise(2)
_PIECE_BYTES: Final = 32 << 20
_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def bound_allocator() -> None:
    """Bound what the C library keeps of freed memory, for a process of its own; before it starts its threads.

    What the environment sets (MALLOC_ARENA_MAX, ...) stays.
    """
    set_option = _of_libc("mallopt")
    if set_option is None:
        return
    for option, value, variable in (
        (_ARENA_MAX, ARENAS_A_CORE * (os.cpu_count() or 1), "MALLOC_ARENA_MAX"),
        (_TRIM_THRESHOLD, KEPT_BYTES, "MALLOC_TRIM_THRESHOLD_"),
        (_MMAP_THRESHOLD, MAPPED_BYTES, "MALLOC_MMAP_THRESHOLD_"),
    ):
        if variable not in os.environ:
            set_option(option, value)


def give_back() -> None:
    """Return unused pages of Arrow's and the C library's allocators; some ms, for a thread without callers waiting."""
    pa.default_memory_pool().release_unused()
    if (trim := _of_libc("malloc_trim")) is not None:
        trim(0)


def set_aside() -> None:
    """Leave the objects there are now out of Python's search for cycles, for a process that has started and stays.

    A full search looks at all of them while nothing else runs: 129,000 of a server, most of them made by imports, 50 to
    90 ms in which no call is answered. They are still freed when nothing refers to them.
    """
    gc.freeze()


def use_large_pages(address: int, size: int, *, stop: Callable[[], bool] = lambda: False) -> None:
    """Have the system keep `size` bytes from an address in large pages, as far as they fill any.

    A search of a graph reads rows all over the memory, and the processor's table of pages has room for few small ones.
    `benchmarks/large_pages.py` compares. It is a hint: a system without such pages, or told never to use
    them, does nothing. What is there already is moved at once, where the system can (Linux 6.1), else in its own time.

    Blocking, 240 ms for 108 MB on a busy machine; looks at `stop` between pieces.
    """
    first, last = -(-address // LARGE_PAGE) * LARGE_PAGE, (address + size) // LARGE_PAGE * LARGE_PAGE
    advise = _of_libc("madvise")
    if last <= first or advise is None or not _has_large_pages():
        return
    for start in range(first, last, _PIECE_BYTES):
        region = ctypes.c_void_p(start), ctypes.c_size_t(min(_PIECE_BYTES, last - start))
        if stop() or advise(*region, _HUGEPAGE):
            return
        advise(*region, _COLLAPSE)


def _has_large_pages() -> bool:
    try:
        return "[never]" not in _LARGE_PAGES.read_text()
    except OSError:
        return False


def _of_libc(name: str) -> Callable[..., Any] | None:
    """A function of the C library; None where it has none of that name."""
    try:
        function: Callable[..., Any] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):
        return None
    return function
