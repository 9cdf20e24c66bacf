"""What is asked of the system about memory, and that nothing but that changes."""

import mmap
from typing import Any

import numpy as np
import pytest

from likewise.shards import index, index_build, memory
from likewise.shards.memory import LARGE_PAGE
from likewise.shards.recipe import Recipe
from likewise.shards.spec import IndexSpec

HUGEPAGE, COLLAPSE = 14, 25


class Advice:
    """The C library's madvise: what it was told, and what it answers."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, answer: int = 0, modes: str = "always [madvise] never"
    ) -> None:
        self.told: list[tuple[int, int, int]] = []
        self.answer = answer

        def madvise(address: Any, size: Any, advice: int) -> int:
            self.told.append((address.value, size.value, advice))
            return self.answer

        class Modes:
            @staticmethod
            def read_text() -> str:
                return modes

        monkeypatch.setattr(memory, "_of_libc", {"madvise": madvise}.get)
        monkeypatch.setattr(memory, "_LARGE_PAGES", Modes)


def test_only_whole_large_pages_within_the_block_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    advice = Advice(monkeypatch)

    memory.use_large_pages(3 * LARGE_PAGE - 5, 2 * LARGE_PAGE + 10)

    assert advice.told == [(3 * LARGE_PAGE, 2 * LARGE_PAGE, HUGEPAGE), (3 * LARGE_PAGE, 2 * LARGE_PAGE, COLLAPSE)]


def test_a_large_block_is_done_in_pieces_until_it_is_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    advice = Advice(monkeypatch)

    memory.use_large_pages(LARGE_PAGE, 40 * LARGE_PAGE, stop=lambda: len(advice.told) >= 4)

    pieces = [(address, size) for address, size, told in advice.told if told == HUGEPAGE]
    assert pieces == [(LARGE_PAGE, 16 * LARGE_PAGE), (17 * LARGE_PAGE, 16 * LARGE_PAGE)]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        pytest.param({}, LARGE_PAGE - 1, id="a block without a whole page"),
        pytest.param({"modes": "always madvise [never]"}, 4 * LARGE_PAGE, id="told never to"),
    ],
)
def test_nothing_is_asked_where_it_would_do_nothing(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], size: int
) -> None:
    advice = Advice(monkeypatch, **options)

    memory.use_large_pages(LARGE_PAGE, size)

    assert advice.told == []


def test_a_system_that_refuses_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    advice = Advice(monkeypatch, answer=-1)

    memory.use_large_pages(LARGE_PAGE, 40 * LARGE_PAGE)

    assert len(advice.told) == 1


def test_what_is_moved_stays_what_it_was() -> None:
    block = mmap.mmap(-1, 6 * LARGE_PAGE)
    numbers = np.frombuffer(block, dtype=np.int64)
    numbers[:] = np.arange(len(numbers))

    memory.use_large_pages(numbers.ctypes.data, numbers.nbytes)

    assert (numbers == np.arange(len(numbers))).all()


@pytest.mark.parametrize("factory", ["HNSW8,Flat", "HNSW8,SQfp16", "HNSW8,SQ8"])
def test_rows_and_links_of_a_graph_are_what_goes_there(monkeypatch: pytest.MonkeyPatch, factory: str) -> None:
    rows = np.random.default_rng(0).normal(size=(1500, 16)).astype(np.float32)
    sealed = index_build.build(1500, 16, Recipe(factory, 40), IndexSpec(kind=factory), gather=rows.__getitem__)
    before = sealed.search(rows[:9], 5, ef=40, nprobe=0).positions
    asked: list[int] = []
    monkeypatch.setattr(memory, "use_large_pages", lambda _, size, **__: asked.append(size))

    index.use_large_pages(sealed)

    row_bytes = {"HNSW8,Flat": 64, "HNSW8,SQfp16": 32, "HNSW8,SQ8": 16}[factory]
    links, codes = asked
    assert codes == 1500 * row_bytes
    assert links >= 1500 * 16 * 4
    np.testing.assert_array_equal(sealed.search(rows[:9], 5, ef=40, nprobe=0).positions, before)


def test_an_index_that_is_read_in_order_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(1500, 16)).astype(np.float32)
    sealed = index_build.build(1500, 16, Recipe("IVF4,Flat"), IndexSpec(kind="ivf"), gather=rows.__getitem__)
    monkeypatch.setattr(memory, "use_large_pages", lambda *_, **__: pytest.fail("asked for"))

    index.use_large_pages(sealed)
