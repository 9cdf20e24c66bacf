"""Which of an index's candidates are scored exactly: no more than it takes, and never too few."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.unit.shards.conftest import Started
from tests.unit.shards.fakes import MemoryStore, gallery, hits_of, unit
from tests.unit.shards.shard_rows import HNSW, IDS, QUERIES, TEN, below, filled

from likewise.shards.candidates import Passed, Wanted, as_table
from likewise.shards.distance import inner_products, margin
from likewise.shards.index import Found
from likewise.shards.protocols import F32
from likewise.shards.spec import IndexSpec

WIDE = 384  # enough numbers for float32 sums to be wrong in their order


def near_ties() -> F32:
    """500 directions, four rows of each that differ in the last bits of some of their numbers."""
    rng = np.random.default_rng(3)
    rows = np.repeat(unit(rng.standard_normal((500, WIDE))), 4, axis=0)
    return rows * (1 + rng.integers(-2, 3, rows.shape) * np.float32(2.0**-23)).astype(np.float32)


@pytest.mark.parametrize("filter", [b"", below(1_000)], ids=["all rows", "a filter"])
async def test_rows_that_float32_cannot_order_are_ordered_exactly(started: Started, filter: bytes) -> None:
    rows = near_ties()
    store = MemoryStore(gallery(dim=WIDE, index=HNSW))
    # Not in the order of the groups, nor of the ids within them.
    order = np.random.default_rng(4).permutation(len(rows))
    store.commit([f"i{i:04d}" for i in range(len(rows))], rows[order], {"count": list(range(len(rows)))})
    shard = await started(store)
    queries = unit(np.random.default_rng(5).standard_normal((20, WIDE)))
    options = TEN._replace(filter=filter, ef=1_000, over_fetch=3.0)

    for query in queries:
        hits = await shard.search(query[np.newaxis], options._replace(exact=False))
        exact = await shard.search(query[np.newaxis], options._replace(exact=True))
        assert hits_of(hits, 0) == hits_of(exact, 0)
        np.testing.assert_array_equal(hits.scores, exact.scores)


@pytest.mark.parametrize("filter", [b"", below(1_000)], ids=["all rows", "a filter"])
async def test_candidates_that_float32_tells_apart_are_not_scored_again(started: Started, filter: bytes) -> None:
    shard = await started(filled(index=HNSW))

    hits = await shard.search(QUERIES, TEN._replace(filter=filter, exact=False, over_fetch=3.0))

    assert 10 <= hits.plan.compared <= 12


async def test_candidates_of_a_compressed_index_are_all_scored(started: Started) -> None:
    shard = await started(filled(index=IndexSpec(kind="HNSW8,SQ8")))

    hits = await shard.search(QUERIES, TEN._replace(exact=False, over_fetch=3.0))

    assert hits.plan.compared == 30
    assert set(hits.ids) <= set(IDS)


@given(st.integers(0, 2**32 - 1), st.integers(1, 600))
def test_the_margin_covers_what_float32_loses(seed: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    query, rows = unit(rng.standard_normal((1, dim))), unit(rng.standard_normal((50, dim)))

    one_by_one = np.zeros(50, dtype=np.float32)
    for column in range(dim):  # the worst order there is: every sum rounded
        one_by_one += query[0, column] * rows[:, column]

    assert np.abs(one_by_one - inner_products(query, rows)).max() <= margin(dim) / 2


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 6),
    depth=st.integers(5, 40),
    k=st.integers(1, 8),
    share=st.sampled_from([0.4, 0.6, 0.95]),
    levels=st.sampled_from([2, 8, 1_000]),
    margins=st.none() | st.lists(st.sampled_from([float(margin(512)), 0.1, 0.4]), min_size=6, max_size=6),
)
def test_a_table_of_candidates_leaves_out_none_that_may_be_a_hit(
    seed: int, n: int, depth: int, k: int, share: float, levels: int, margins: list[float] | None
) -> None:
    rng = np.random.default_rng(seed)
    scores = (np.sort(rng.integers(0, levels, (n, depth)), axis=1)[:, ::-1] / levels).astype(np.float32)
    positions = np.array([rng.permutation(1_000)[:depth] for _ in range(n)])
    kept = rng.random((n, depth)) < share
    most = k + 5

    which = Passed(kept, kept.sum(axis=1))
    assume(which.counts.min() >= k)
    known = None if margins is None else np.array(margins[:n], dtype=np.float32)[:, np.newaxis]
    table = as_table(Found(positions, scores, known), which, Wanted(k, most))

    for row in range(n):
        allowed = positions[row][kept[row]][:most]
        of_allowed = scores[row][kept[row]][:most].astype(np.float64)
        may_be_hits = allowed if known is None else allowed[of_allowed >= of_allowed[k - 1] - known[row]]
        assert table.positions[row][: table.counts[row]].tolist() == may_be_hits.tolist()


def test_a_table_has_what_each_query_needs_first_in_its_line() -> None:
    scores = np.tile(np.linspace(1, 0, 20).astype(np.float32), (3, 1))
    positions = np.arange(60).reshape(3, 20)
    kept = np.ones((3, 20), dtype=np.bool_)
    kept[1, ::2] = False

    margins = np.array([[0.01], [0.11], [0.01]], dtype=np.float32)
    table = as_table(Found(positions, scores, margins), Passed(kept, kept.sum(axis=1)), Wanted(4, 6))

    assert table.counts == [4, 5, 4]
    assert table.positions.shape == (3, 5)
    assert [line[:count].tolist() for line, count in zip(table.positions, table.counts, strict=True)] == [
        [0, 1, 2, 3],
        [21, 23, 25, 27, 29],
        [40, 41, 42, 43],
    ]
