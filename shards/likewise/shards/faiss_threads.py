"""How many threads FAISS uses for the calling one, and before whom that thread gives way.

OpenMP keeps the number for each thread by itself. Asking and telling it are calls through SWIG, three of which took a
lone search 10 us, so what was told last is remembered.
"""

import os
import threading
from typing import Final

import faiss

QUERIES_PER_THREAD: Final = 4
"""Queries of a batch for each thread of a search. Beside other work on two cores, HNSW, 50,000 x 512, a query took 448,
596, 381 and 786 us on one thread in batches of 4, 8, 16 and 32, and 757, 828, 398 and 740 us on two. With 8 callers and
nothing else, 901 answers a second with 4 and 749 with 8."""

THREADS: Final = int(faiss.omp_get_max_threads())
"""What OpenMP may use: the cores there are, or fewer where the environment says so."""

_BUILD_PRIORITY: Final = 10
_LOWEST_PRIORITY: Final = 19


class _Calling(threading.local):
    """The calling thread.

    Attributes:
        most: Threads that FAISS may use for it.
        told: Those it uses.
    """

    def __init__(self) -> None:
        self.most = THREADS
        self.told = 0


_calling: Final = _Calling()


def for_search(queries: int) -> None:
    """Give FAISS what a search of so many queries pays for: it waits for the last of its threads."""
    _tell(max(1, min(_calling.most, queries // QUERIES_PER_THREAD)))


def for_build(busy: bool) -> None:
    """Give FAISS all threads, or half of them while somebody searches."""
    _tell(max(1, THREADS // 2) if busy else THREADS)


def give_way() -> None:
    """Make the calling thread, and those that FAISS will start for it, run after those that search."""
    _lower_priority(_BUILD_PRIORITY)


def give_way_to_all() -> None:
    """Make the calling thread run when nobody else wants to, and FAISS use no other one for it."""
    _calling.most = 1
    _lower_priority(_LOWEST_PRIORITY)


def _tell(threads: int) -> None:
    if threads != _calling.told:
        faiss.omp_set_num_threads(threads)
        _calling.told = threads


def _lower_priority(nice: int) -> None:
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
