"""A scan finds the best rows exactly, whether it compares the rows themselves or reduced ones."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.shards.fakes import F32, oracle, unit
from tests.unit.shards.scan_worlds import answers, copies_of, ids_of, worlds

import likewise.shards.scan_threads
from likewise.shards import scan as scan_module
from likewise.shards import strips
from likewise.shards.distance import inner_products
from likewise.shards.protocols import I64
from likewise.shards.reduction import Reduction
from likewise.shards.scan import Abandoned, scan
from likewise.shards.scan_threads import ScanThreads
from likewise.shards.strips import Part, Transposed

THREADS = {count: ScanThreads(count) for count in (1, 2, 3)}


@given(worlds(), st.sampled_from([1, 16, 4_096]), st.sampled_from([1, 16, 256]), st.sampled_from([1, 2, 3]))
def test_a_scan_is_exact_whatever_the_ties_the_blocks_the_parts_and_the_threads(
    world: tuple[F32, F32, list[int] | None, int, int], strip_rows: int, groups: int, threads: int
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
        patch.setattr(strips, "STRIP_ROWS", (1, strip_rows))
        patch.setattr(scan_module, "GROUPS", groups)
        patch.setattr(scan_module, "scan_threads", THREADS[threads])
        patch.setattr(likewise.shards.scan_threads, "MIN_NUMBERS", 1)
        ranked = scan(queries, parts, k, ids=ids, gather=copies_of(vectors)).ranked

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

    ranked = scan(queries, [Part(vectors, 0)], 5, ids=ids, gather=copies_of(vectors)).ranked

    assert answers(ranked, ids) == [sorted(ids)[:5]] * 6


def test_a_scan_nobody_waits_for_stops() -> None:
    vectors = unit(np.random.default_rng(0).standard_normal((10, 4)))

    with pytest.raises(Abandoned):
        scan(vectors[:1], [Part(vectors, 0)], 3, ids=ids_of(10), gather=copies_of(vectors), stop=lambda: True)


def test_nothing_to_scan_gives_nothing() -> None:
    empty: Any = np.zeros((0, 4), dtype=np.float32)

    ranked = scan(unit(np.ones((2, 4))), [Part(empty, 0)], 3, ids=[], gather=copies_of(empty)).ranked

    assert ranked.offsets.tolist() == [0, 0, 0]


def test_rows_that_were_gathered_are_known_by_their_own_slots() -> None:
    rng = np.random.default_rng(5)
    vectors, query = unit(rng.standard_normal((200, 8))), unit(rng.standard_normal((1, 8)))
    slots = np.sort(rng.choice(200, 70, replace=False))
    ids = ids_of(200)

    kept = Part(vectors[slots], 0, slots=slots)
    gathered = scan(query, [kept], 9, ids=ids, gather=copies_of(vectors)).ranked
    in_place = scan(query, [Part(vectors, 0, slots)], 9, ids=ids, gather=copies_of(vectors)).ranked

    assert gathered.slots.tolist() == in_place.slots.tolist()
    assert gathered.scores.tobytes() == in_place.scores.tobytes()


@st.composite
def flat_worlds(draw: st.DrawFn) -> tuple[F32, F32, Reduction, int, int]:
    """Rows near a surface of few dimensions, queries on and off it, its directions, where fresh rows begin, k."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    count, dim = draw(st.integers(1, 400)), draw(st.sampled_from([8, 24, 70]))
    flat = draw(st.integers(1, dim - 1))
    noise = draw(st.sampled_from([0.0, 1e-7, 1e-3, 0.05, 1.0]))
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    vectors = rng.standard_normal((count, flat)) @ basis[:flat] + noise * rng.standard_normal((count, dim))
    if draw(st.booleans()):
        vectors = vectors[rng.integers(0, count, count)]
    outside = rng.standard_normal((draw(st.integers(1, 5)), dim))
    rows = unit(vectors + 1e-30)
    queries = np.concatenate((rows[:3], unit(outside)))
    reduction = Reduction(np.ascontiguousarray(basis[:flat], dtype=np.float32), slack=0.0)
    return rows, queries, reduction, draw(st.integers(0, count)), draw(st.integers(1, 20))


def reduced_part(kind: str, block: F32, rows: I64 | None) -> Part | Transposed:
    """Some rows of a block, or all, as those that are not copied or those that are."""
    if kind == "in place":
        return Part(block, 0, rows, reduced=True)
    everything = np.arange(len(block))
    if kind == "copied":
        return Transposed.of(block, everything if rows is None else rows)
    gone = None if rows is None else np.setdiff1d(everything, rows)
    return Transposed(np.ascontiguousarray(block.T), everything, gone)


@given(
    world=flat_worlds(),
    strip_rows=st.sampled_from([1, 16, 4_096]),
    groups=st.sampled_from([1, 256]),
    small=st.sampled_from([200, 1_000_000]),
    kind=st.sampled_from(["in place", "copied", "copied before some went"]),
    threads=st.sampled_from([1, 3]),
    chosen=st.booleans(),
)
def test_a_scan_of_reduced_rows_finds_what_one_of_the_rows_does_or_says_that_it_cannot(
    world: tuple[F32, F32, Reduction, int, int],
    strip_rows: int,
    groups: int,
    small: int,
    kind: str,
    threads: int,
    chosen: bool,
) -> None:
    vectors, queries, reduction, cut, k = world
    ids = ids_of(len(vectors))
    rows = np.arange(0, cut, 2) if chosen else None
    whole = [Part(vectors[:cut], 0, rows), Part(vectors[cut:], cut)]
    reduced = [reduced_part(kind, reduction.of(vectors[:cut]), rows), whole[1]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "STRIP_ROWS", (1, strip_rows))
        patch.setattr(strips, "SMALL_PRODUCT", small)
        patch.setattr(strips, "SMALL_ROWS", 1)
        patch.setattr(scan_module, "GROUPS", groups)
        patch.setattr(scan_module, "scan_threads", THREADS[threads])
        patch.setattr(likewise.shards.scan_threads, "MIN_NUMBERS", 1)
        found = scan(queries, reduced, k, ids=ids, gather=copies_of(vectors), bounds=reduction.bounds(queries))
        expected = scan(queries, whole, k, ids=ids, gather=copies_of(vectors)).ranked

    loose = found.loose.tolist()
    assert [[] if gone else hits for gone, hits in zip(loose, answers(expected, ids), strict=True)] == answers(
        found.ranked, ids
    )
    kept = np.repeat(~found.loose, np.diff(expected.offsets))
    assert found.ranked.scores.tobytes() == expected.scores[kept].tobytes()


def test_rows_that_are_gone_are_no_hits_even_where_fewer_are_left_than_wanted() -> None:
    rng = np.random.default_rng(3)
    vectors = unit(rng.standard_normal((6, 8)))
    reduction, ids = Reduction(np.eye(8, dtype=np.float32)[:3], slack=0.0), ids_of(6)
    part = reduced_part("copied before some went", reduction.of(vectors), np.array([0, 2, 4]))

    found = scan(
        vectors[:2], [part], 10, ids=ids, gather=copies_of(vectors), bounds=reduction.bounds(vectors[:2])
    ).ranked

    assert [sorted(hits) for hits in answers(found, ids)] == [sorted(ids[::2])] * 2


@given(flat_worlds())
def test_bounds_hold(world: tuple[F32, F32, Reduction, int, int]) -> None:
    vectors, queries, reduction, _, _ = world
    bounds, reduced = reduction.bounds(queries), reduction.of(vectors)

    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    upper = bounds.queries @ reduced.T
    lower = upper - bounds.spreads[:, np.newaxis] * reduced[:, -1]
    off = bounds.margins[:, np.newaxis] / 2

    assert (exact <= upper + off).all()
    assert (exact >= lower - off).all()


def test_only_queries_whose_bounds_tell_nothing_are_given_up() -> None:
    rng = np.random.default_rng(1)
    flat = unit(np.pad(rng.standard_normal((9_000, 3)), ((0, 0), (0, 37))) + 0.001 * rng.standard_normal((9_000, 40)))
    outside = unit(np.pad(rng.standard_normal((2, 37)), ((0, 0), (3, 0))))
    queries = np.stack((flat[0], outside[0], flat[1], outside[1]))
    reduction, ids = Reduction(np.eye(40, dtype=np.float32)[:3], slack=0.0), ids_of(9_000)
    part = Part(reduction.of(flat), 0, reduced=True)

    found = scan(queries, [part], 5, ids=ids, gather=copies_of(flat), bounds=reduction.bounds(queries))

    expected = answers(scan(queries, [Part(flat, 0)], 5, ids=ids, gather=copies_of(flat)).ranked, ids)
    assert found.loose.tolist() == [False, True, False, True]
    assert answers(found.ranked, ids) == [expected[0], [], expected[2], []]


def test_few_rows_are_scored_where_bounds_tell_much() -> None:
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    vectors = unit(rng.standard_normal((20_000, 8)) @ basis[:8] + 0.002 * rng.standard_normal((20_000, 64)))
    reduction, scored = Reduction(np.ascontiguousarray(basis[:8], dtype=np.float32), slack=0.0), []

    def gather(slots: Any, room: F32) -> None:
        scored.append(len(slots))
        np.take(vectors, slots, axis=0, out=room)

    part = Part(reduction.of(vectors), 0, reduced=True)
    scan(vectors[:4], [part], 10, ids=ids_of(20_000), gather=gather, bounds=reduction.bounds(vectors[:4]))

    assert sum(scored) < 4 * 40
