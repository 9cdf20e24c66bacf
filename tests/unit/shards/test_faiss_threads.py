"""FAISS is told how many threads it may use when that changes, by each thread for itself."""

import threading

import pytest

from likewise.shards import faiss_threads
from likewise.shards.faiss_threads import QUERIES_PER_THREAD


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(thread, number) of each time FAISS was told."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(faiss_threads, "THREADS", 4)
    monkeypatch.setattr(faiss_threads, "_calling", faiss_threads._Calling())
    monkeypatch.setattr("faiss.omp_set_num_threads", lambda number: told.append((threading.get_ident(), number)))
    return told


def test_a_search_has_a_thread_for_some_queries_and_no_more_than_there_are(told: list[tuple[int, int]]) -> None:
    for queries in (1, 2, 2 * QUERIES_PER_THREAD, 3 * QUERIES_PER_THREAD - 1, 100 * QUERIES_PER_THREAD, 1):
        faiss_threads.for_search(queries)

    assert [number for _, number in told] == [1, 2, 4, 1]


def test_each_thread_is_told_for_itself(told: list[tuple[int, int]]) -> None:
    faiss_threads.for_search(2 * QUERIES_PER_THREAD)
    other = threading.Thread(target=faiss_threads.for_search, args=(2 * QUERIES_PER_THREAD,))
    other.start()
    other.join()

    assert len({thread for thread, _ in told}) == 2
    assert [number for _, number in told] == [2, 2]


def test_a_thread_that_gives_way_to_all_uses_no_other(
    told: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_threads, "_lower_priority", lambda nice: None)
    faiss_threads.give_way_to_all()
    faiss_threads.for_search(100 * QUERIES_PER_THREAD)

    assert [number for _, number in told] == [1]
