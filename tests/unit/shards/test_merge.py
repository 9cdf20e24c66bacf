from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.shards.fakes import hits_of

from likewise.shards.merge import merge, take_attributes, take_vectors
from likewise.shards.protocols import ShardHits
from likewise.shards.recall import recall_at_k
from likewise.v1 import search_service_pb2 as pb

Scored = dict[str, float]


def part(queries: Sequence[Scored], k: int, *, columns: bool = True) -> ShardHits:
    """What a shard that holds these scored rows answers."""
    lists = [sorted(scored, key=lambda item_id: (-scored[item_id], item_id))[:k] for scored in queries]
    ids = [item_id for one in lists for item_id in one]
    scores = np.array([q[i] for q, one in zip(queries, lists, strict=True) for i in one], dtype=np.float32)
    return ShardHits(
        ids=ids,
        scores=scores,
        offsets=np.cumsum([0, *map(len, lists)]),
        attributes=pa.RecordBatch.from_pydict({"name": pa.array(ids, pa.string())}) if columns else None,
        vectors=scores[:, np.newaxis].repeat(2, axis=1) if columns else None,
        plan=pb.ShardPlan(),
        version=1,
        queue_us=0,
        search_us=0,
    )


IDS = st.sampled_from(["a", "b", "ba", "c", "é", "z", "😀", "A", "d", "e", "f", "g"])
SCORED = st.dictionaries(IDS, st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), max_size=12)


@given(st.lists(SCORED, min_size=1, max_size=4), st.integers(1, 8), st.integers(1, 5), st.randoms())
def test_any_partition_of_the_rows_merges_to_the_answer_of_one_shard(
    queries: list[Scored], k: int, shards: int, random: "np.random.Generator"
) -> None:
    home = {item_id: random.randint(0, shards - 1) for scored in queries for item_id in sorted(scored)}  # type: ignore[attr-defined]
    parts = [part([{i: s for i, s in q.items() if home[i] == n} for q in queries], k) for n in range(shards)]
    whole = part(queries, k)

    merged = merge(parts, k)

    assert merged.ids == whole.ids
    assert merged.scores.tolist() == whole.scores.tolist()
    assert merged.offsets.tolist() == whole.offsets.tolist()


@given(st.lists(SCORED, min_size=1, max_size=3), st.integers(1, 8))
def test_columns_follow_their_hits(queries: list[Scored], k: int) -> None:
    parts = [part(queries, k), part([{f"{i}2": s for i, s in q.items()} for q in queries], k)]

    merged = merge(parts, k)
    attributes, vectors = take_attributes(parts, merged), take_vectors(parts, merged)

    assert attributes is not None
    assert vectors is not None
    assert attributes.column("name").to_pylist() == merged.ids
    assert vectors[:, 0].tolist() == merged.scores.tolist()


def test_parts_without_columns_merge_without_them() -> None:
    parts = [part([{"a": 1.0}], 3, columns=False)]

    merged = merge(parts, 3)

    assert take_attributes(parts, merged) is None
    assert take_vectors(parts, merged) is None


def test_an_id_held_twice_stays_in_the_order_of_the_parts() -> None:
    parts = [part([{"a": 0.5}], 3), part([{"a": 0.5, "b": 0.5}], 3)]

    take = merge(parts, 3).take
    assert take is not None
    assert take.tolist() == [0, 1, 2]


def test_parts_that_answer_different_queries_do_not_merge() -> None:
    with pytest.raises(ValueError, match="1 and 2 queries"):
        merge([part([{}], 3), part([{}, {}], 3)], 3)
    with pytest.raises(ValueError, match="at least one part"):
        merge([], 3)


def test_recall_counts_the_exact_neighbours_found() -> None:
    assert recall_at_k([["a", "b"], ["x"]], [["b", "c"], []], 2) == 0.5
    assert recall_at_k([["a", "b"]], [["b", "a"]], 1) == 0.0
    assert recall_at_k([["a", "b", "c"]], [["c"]], 3) == 1.0
    assert recall_at_k([[]], [[]], 3) == 1.0
    with pytest.raises(ValueError, match="got 0"):
        recall_at_k([], [], 0)


def test_hits_of_a_query_are_found_by_its_offsets() -> None:
    assert hits_of(part([{"a": 1.0, "b": 0.5}, {"c": 1.0}], 5), 1) == ["c"]
