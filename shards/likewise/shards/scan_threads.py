"""A large scan on several threads, each with its own rows.

BLAS could share one product among its own threads, but they wait for each other while they spin: beside the event loop,
on two busy cores, a product of 8 queries with 500 rows took 16 ms on two threads and 0.12 ms on one. Threads that each
scan their own rows meet once, at the end, and share what numpy does around the products too. `likewise serve` therefore
has BLAS use one thread.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

MIN_NUMBERS: Final = 1 << 26
"""Multiplications of a scan from which another thread is worth waking: about two milliseconds of one core."""


class Rows(Protocol):
    """Something with rows that can be cut; see `likewise.shards.strips`."""

    @property
    def total(self) -> int:
        """Rows there are."""
        ...

    @property
    def compared(self) -> int:
        """Rows that are meant."""
        ...

    def between(self: "_R", start: int, stop: int) -> "_R":
        """The rows [start, stop)."""
        ...


_R = TypeVar("_R", bound=Rows)
_T = TypeVar("_T")


class ScanThreads:
    """Threads for all scans of the process, started when the first large one comes.

    Args:
        count: Threads of one scan, its caller's among them.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        # A scan never waits for a place behind its own pieces: those that wait are in other threads.
        self._pool = ThreadPoolExecutor(max(1, count - 1), thread_name_prefix="likewise-scan")

    def shares(self, parts: Sequence[_R], numbers: int) -> list[list[_R]]:
        """The parts for each thread, about as many rows for each.

        Args:
            parts: What is to be scanned.
            numbers: Multiplications a row: queries times dimensions.
        """
        rows = sum(part.compared for part in parts)
        threads = max(1, min(self._count, rows * numbers // MIN_NUMBERS))
        if threads == 1:
            return [list(parts)]
        shares: list[list[_R]] = [[] for _ in range(threads)]
        for part in parts:
            total = part.total
            for i, share in enumerate(shares):
                start, stop = total * i // threads, total * (i + 1) // threads
                if stop > start:
                    share.append(part.between(start, stop))
        return shares

    def submit(self, work: Callable[[Sequence[_R]], _T], share: Sequence[_R]) -> "Future[_T]":
        """Begin the work on a share in another thread."""
        return self._pool.submit(work, share)


def usable_processors() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


scan_threads: Final = ScanThreads(usable_processors())
"""Of this process."""
