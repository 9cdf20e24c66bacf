import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.shards.fakes import F32
from tests.unit.shards.scan_worlds import answers, copies_of, ids_of, worlds

from likewise.shards import distance
from likewise.shards.distance import inner_products, rank, rank_table, select


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

    expected = rank(queries, owners, table.reshape(-1), k, ids=ids, gather=copies_of(vectors))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distance, "RESCORE_BYTES", rescore_bytes)
        ranked = rank_table(queries, table, k, ids=ids, gather=copies_of(vectors))

    assert answers(ranked, ids) == answers(expected, ids)
    assert ranked.scores.tobytes() == expected.scores.tobytes()
    assert ranked.offsets.tolist() == expected.offsets.tolist()
