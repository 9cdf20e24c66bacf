from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.shards.fakes import F32, oracle, unit

import likewise.shards.scan_threads
from likewise.shards import distance
from likewise.shards.distance import Abandoned, Part, Ranked, inner_products, rank, rank_table, scan, select
from likewise.shards.scan_threads import ScanThreads

THREADS = {count: ScanThreads(count) for count in (1, 2, 3)}


def ids_of(count: int) -> list[str]:
    """Ids whose order is not the order of the rows."""
    return [f"{(i * 7919) % 10_007:05d}" for i in range(count)]


def answers(ranked: Ranked, ids: list[str]) -> list[list[str]]:
    return [
        [ids[slot] for slot in ranked.slots[low:high].tolist()]
        for low, high in zip(ranked.offsets, ranked.offsets[1:], strict=False)
    ]


@st.composite
def worlds(draw: st.DrawFn) -> tuple[F32, F32, list[int] | None, int, int]:
    """Rows with many copies, queries (some of them rows), rows allowed, where the second part begins, k."""
    seed = draw(st.integers(0, 1 << 30))
    rng = np.random.default_rng(seed)
    count, dim = draw(st.integers(1, 300)), draw(st.integers(1, 12))
    kinds = unit(rng.standard_normal((draw(st.integers(1, 40)), dim)) + 1e-3)
    vectors = kinds[rng.integers(0, len(kinds), count)]
    if draw(st.booleans()):  # nearly equal: apart by less than float32 rounding of a product
        vectors = unit(vectors + rng.standard_normal(vectors.shape) * 3e-8)
    queries = np.concatenate((vectors[:3], unit(rng.standard_normal((draw(st.integers(1, 6)), dim)) + 1e-3)))
    rows = (
        sorted(rng.choice(count, draw(st.integers(0, count)), replace=False).tolist()) if draw(st.booleans()) else None
    )
    return vectors, queries, rows, draw(st.integers(0, count)), draw(st.integers(1, 20))


@given(worlds(), st.sampled_from([1, 16, 4_096]), st.sampled_from([64, 1 << 20]), st.sampled_from([1, 2, 3]))
def test_a_scan_is_exact_whatever_the_ties_the_blocks_the_parts_and_the_threads(
    world: tuple[F32, F32, list[int] | None, int, int], strip_rows: int, block_bytes: int, threads: int
) -> None:
    vectors, queries, rows, cut, k = world
    ids = ids_of(len(vectors))
    if rows is None:
        parts = [Part(vectors[:cut], 0), Part(vectors[cut:], cut)]
    else:
        chosen = np.array(rows, dtype=np.int64)
        parts = [Part(vectors[:cut], 0, chosen[chosen < cut]), Part(vectors[cut:], cut, chosen[chosen >= cut] - cut)]
    allowed = None if rows is None else [i in set(rows) for i in range(len(vectors))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distance, "STRIP_ROWS", strip_rows)
        patch.setattr(distance, "BLOCK_BYTES", block_bytes)
        patch.setattr(distance, "scan_threads", THREADS[threads])
        patch.setattr(likewise.shards.scan_threads, "MIN_NUMBERS", 1)
        ranked = scan(queries, parts, k, ids=ids, gather=vectors.__getitem__)

    found = answers(ranked, ids)
    for query in range(len(queries)):
        _, expected_scores = oracle(ids, vectors, queries[query], k, allowed=allowed)
        low, high = ranked.offsets[query], ranked.offsets[query + 1]
        np.testing.assert_allclose(ranked.scores[low:high], expected_scores, atol=1e-6)
        exact = inner_products(np.broadcast_to(queries[query], vectors.shape), vectors)
        candidates = range(len(vectors)) if rows is None else rows
        order = sorted(candidates, key=lambda i: (-exact[i], ids[i]))
        assert found[query] == [ids[i] for i in order[:k]]


def test_more_ties_than_may_be_held_are_decided_by_id() -> None:
    vectors = np.tile(unit([[1.0, 2.0, 3.0]]), (30_000, 1))
    ids = [f"{i * 7919 % 30_011:05d}" for i in range(30_000)]
    queries = np.tile(vectors[:1], (6, 1))

    ranked = scan(queries, [Part(vectors, 0)], 5, ids=ids, gather=vectors.__getitem__)

    assert answers(ranked, ids) == [sorted(ids)[:5]] * 6


@given(st.integers(0, 1 << 30), st.integers(1, 700), st.integers(1, 70))
def test_an_inner_product_does_not_depend_on_its_neighbours(seed: int, dim: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((2, count, dim)).astype(np.float32)

    together = inner_products(left, right)

    alone = [inner_products(left[i : i + 1], right[i : i + 1])[0] for i in range(count)]
    assert together.tobytes() == np.array(alone, dtype=np.float32).tobytes()


def test_select_orders_ties_by_id_and_cuts_each_query_at_k() -> None:
    owners, slots = np.array([0, 1, 0, 0, 1]), np.array([0, 0, 1, 2, 2])
    scores = np.array([0.5, 0.1, 0.5, 0.9, 0.1], dtype=np.float32)

    ranked = select(owners, slots, scores, 2, n=3, ids=["b", "a", "c"])

    assert answers(ranked, ["b", "a", "c"]) == [["c", "a"], ["b", "c"], []]


def test_a_scan_nobody_waits_for_stops() -> None:
    vectors = unit(np.random.default_rng(0).standard_normal((10, 4)))

    with pytest.raises(Abandoned):
        scan(vectors[:1], [Part(vectors, 0)], 3, ids=ids_of(10), gather=vectors.__getitem__, stop=lambda: True)


def test_nothing_to_scan_gives_nothing() -> None:
    empty: Any = np.zeros((0, 4), dtype=np.float32)

    ranked = scan(unit(np.ones((2, 4))), [Part(empty, 0)], 3, ids=[], gather=empty.__getitem__)

    assert ranked.offsets.tolist() == [0, 0, 0]


@given(worlds(), st.integers(1, 64))
def test_a_table_of_candidates_is_ranked_as_the_same_candidates_in_a_row(
    world: tuple[F32, F32, list[int] | None, int, int], rescore_bytes: int
) -> None:
    vectors, queries, _, _, k = world
    ids = ids_of(len(vectors))
    candidates = min(len(vectors), 2 * k)
    rng = np.random.default_rng(len(vectors))
    table = np.stack([rng.permutation(len(vectors))[:candidates] for _ in queries])
    owners = np.repeat(np.arange(len(queries)), candidates)

    expected = rank(queries, owners, table.reshape(-1), k, ids=ids, gather=vectors.__getitem__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distance, "RESCORE_BYTES", rescore_bytes)
        ranked = rank_table(queries, table, k, ids=ids, gather=vectors.__getitem__)

    assert answers(ranked, ids) == answers(expected, ids)
    assert ranked.scores.tobytes() == expected.scores.tobytes()
    assert ranked.offsets.tolist() == expected.offsets.tolist()


def test_rows_that_were_gathered_are_known_by_their_own_slots() -> None:
    rng = np.random.default_rng(5)
    vectors, query = unit(rng.standard_normal((200, 8))), unit(rng.standard_normal((1, 8)))
    slots = np.sort(rng.choice(200, 70, replace=False))
    ids = ids_of(200)

    gathered = scan(query, [Part(vectors[slots], 0, slots=slots)], 9, ids=ids, gather=vectors.__getitem__)
    in_place = scan(query, [Part(vectors, 0, slots)], 9, ids=ids, gather=vectors.__getitem__)

    assert gathered.slots.tolist() == in_place.slots.tolist()
    assert gathered.scores.tobytes() == in_place.scores.tobytes()
