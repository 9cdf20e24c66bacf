"""The sample of live queries is bounded, recent, and by family."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likewise.server import recent_queries
from likewise.server.query import ConditionInput, ImageReference, StoredReference, TextReference
from likewise.server.recent_queries import KEPT_SHARE, MAX_QUERIES, LiveQuery, RecentQueries


def query(number: int, *, size: int = 10, family: str = "f") -> LiveQuery:
    return LiveQuery(family, "g", "", ImageReference(number.to_bytes(8, "big") + bytes(max(0, size - 8))), ())


def number_of(kept: LiveQuery) -> int:
    assert isinstance(kept.reference, ImageReference)
    return int.from_bytes(kept.reference.data[:8], "big")


@pytest.mark.parametrize(
    ("made", "size"),
    [
        (query(1, size=10), 10),
        (LiveQuery("f", "g", "", TextReference("four"), (ConditionInput("red"), ConditionInput("blue"))), 11),
        (LiveQuery("f", "g", "", StoredReference("i", np.zeros(4, np.float32)), ()), 16),
        (LiveQuery("f", "g", "", None, (ConditionInput("red"),)), 3),
    ],
)
def test_a_query_counts_by_what_it_was_made_of(made: LiveQuery, size: int) -> None:
    assert made.size == size


def test_the_first_queries_are_all_kept() -> None:
    recent = RecentQueries(seed=1)

    for number in range(MAX_QUERIES):
        recent.add(query(number))

    assert sorted(map(number_of, recent.of("f"))) == list(range(MAX_QUERIES))


def test_families_do_not_push_each_other_out() -> None:
    recent = RecentQueries(seed=1)
    recent.add(query(1, family="rare"))
    for number in range(10_000):
        recent.add(query(number, family="busy"))

    assert (len(recent.of("rare")), len(recent.of("busy"))) == (1, MAX_QUERIES)
    assert recent.of("none") == ()


def test_newer_queries_take_the_place_of_older_ones_evenly() -> None:
    recent = RecentQueries(seed=1)
    total = 20_000
    for number in range(total):
        recent.add(query(number))

    ages = total - np.array(sorted(map(number_of, recent.of("f"))))
    # A kept query stays for MAX_QUERIES / KEPT_SHARE arrivals on average: exponential, so its spread is as large.
    mean = MAX_QUERIES / KEPT_SHARE
    assert 0.6 * mean < ages.mean() < 1.6 * mean
    assert ages.min() < mean / 4
    assert ages.max() > mean


@given(st.lists(st.integers(1, 3_000), max_size=200), st.integers())
@settings(deadline=None)
def test_the_sample_never_has_more_queries_or_bytes_than_it_may(sizes: list[int], seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recent_queries, "MAX_BYTES", 5_000)
        patch.setattr(recent_queries, "MAX_QUERY_BYTES", 2_000)
        patch.setattr(recent_queries, "MAX_QUERIES", 20)
        recent = RecentQueries(seed=seed)
        for number, size in enumerate(sizes):
            recent.add(query(number, size=size))
            kept = recent.of("f")
            assert sum(one.size for one in kept) <= 5_000
            assert len(kept) <= 20
            assert all(one.size <= 2_000 for one in kept)
            assert len({number_of(one) for one in kept}) == len(kept)
