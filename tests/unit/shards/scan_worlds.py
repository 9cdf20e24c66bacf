"""Rows and queries that make exact search hard: copies, near copies, few rows, few dimensions."""

import numpy as np
from hypothesis import strategies as st
from tests.unit.shards.fakes import F32, unit

from likewise.shards.distance import Gather, Ranked


def copies_of(vectors: F32) -> Gather:
    """What scans and rankings ask for the rows of these by slot."""
    return lambda slots, room: np.take(vectors, slots, axis=0, out=room)


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
