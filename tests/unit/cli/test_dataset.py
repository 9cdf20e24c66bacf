import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likewise.cli.benchmark.dataset import as_ids, clustered, exact_topk, item_id


def test_the_same_numbers_give_the_same_vectors() -> None:
    first, second = clustered(500, 32, queries=20, seed=3), clustered(500, 32, queries=20, seed=3)

    assert np.array_equal(first.base, second.base)
    assert np.array_equal(first.queries, second.queries)
    assert np.array_equal(first.share, second.share)
    assert np.array_equal(first.cluster_share, second.cluster_share)


def test_another_seed_gives_other_vectors() -> None:
    assert not np.array_equal(clustered(100, 16, seed=1).base, clustered(100, 16, seed=2).base)


def test_a_smaller_data_set_is_a_prefix_of_a_larger_one() -> None:
    small, large = clustered(9_000, 8), clustered(20_000, 8)

    assert np.array_equal(small.base, large.base[:9_000])
    assert np.array_equal(small.share, large.share[:9_000])


def test_vectors_are_of_unit_length_and_single_precision() -> None:
    dataset = clustered(1_000, 48, queries=50)

    assert dataset.base.dtype == dataset.queries.dtype == np.float32
    assert np.allclose(np.linalg.norm(dataset.base, axis=1), 1, atol=1e-6)
    assert np.allclose(np.linalg.norm(dataset.queries, axis=1), 1, atol=1e-6)


def test_most_of_the_variance_lies_in_twenty_four_directions() -> None:
    spectrum = np.linalg.svd(clustered(4_000, 128).base, compute_uv=False) ** 2

    assert spectrum[:24].sum() / spectrum.sum() > 0.9


def test_no_query_is_stored() -> None:
    dataset = clustered(1_000, 32, queries=100)

    assert float((dataset.queries @ dataset.base.T).max()) < 0.9999


def test_shares_leave_the_share_they_name() -> None:
    dataset = clustered(20_000, 8)

    assert abs((dataset.share < 0.33).mean() - 0.33) < 0.02
    assert (dataset.cluster_share < 0.01).sum() == 200


def test_a_cluster_share_leaves_rows_that_lie_close_together() -> None:
    dataset = clustered(20_000, 64)
    together = dataset.base[dataset.cluster_share < 0.01]
    anywhere = dataset.base[dataset.share < 0.01]

    assert (together @ together.T).mean() > (anywhere @ anywhere.T).mean() + 0.1


@pytest.mark.parametrize(("n", "dim", "queries"), [(0, 8, 1), (1, 1, 1), (1, 8, 0)])
def test_a_data_set_of_nothing_is_refused(n: int, dim: int, queries: int) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        clustered(n, dim, queries=queries)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 400),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["float", "few values"]),
    st.booleans(),
)
def test_exact_answers_equal_a_full_sort_even_with_ties(n: int, k: int, seed: int, kind: str, filtered: bool) -> None:
    rng = np.random.default_rng(seed)
    if kind == "float":
        base = rng.standard_normal((n, 4)).astype(np.float32)
    else:
        base = rng.integers(0, 2, (n, 4)).astype(np.float32)
    queries = rng.integers(0, 3, (5, 4)).astype(np.float32)
    allowed = rng.random(n) < 0.5 if filtered else None

    rows, scores = exact_topk(base, queries, k, allowed=allowed)

    kept = np.arange(n) if allowed is None else np.flatnonzero(allowed)
    for query, found, found_scores in zip(queries, rows, scores, strict=True):
        truth = query @ base[kept].T
        order = np.lexsort((kept, -truth))[:k]
        missing = k - len(order)
        assert found.tolist() == kept[order].tolist() + [-1] * missing
        assert np.allclose(found_scores[: len(order)], truth[order])
        assert np.isneginf(found_scores[len(order) :]).all()


def test_exact_answers_are_merged_over_blocks() -> None:
    dataset = clustered(20_000, 8, queries=3)

    rows, _ = exact_topk(dataset.base, dataset.queries, 7)

    expected = np.argsort(-(dataset.queries @ dataset.base.T), axis=1, kind="stable")[:, :7]
    assert rows.tolist() == expected.tolist()


def test_ids_sort_as_rows_do_and_empty_places_have_none() -> None:
    assert item_id(9) < item_id(10) < item_id(1_000_000)
    assert as_ids(np.array([[2, -1], [-1, -1]])) == [[item_id(2)], []]
