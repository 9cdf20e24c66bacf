"""Copies of a reference are found by content, among rows that were sorted and among those that came since."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from likewise.shards.copies import ContentOrder

DIGESTS = st.one_of(st.integers(-3, 3), st.sampled_from([-(2**63), 2**63 - 1]))


@given(st.lists(DIGESTS, max_size=40), st.lists(DIGESTS, max_size=10), DIGESTS)
def test_the_rows_of_equal_content_are_those_that_looking_at_all_finds(
    sorted_ones: list[int], later: list[int], wanted: int
) -> None:
    content = np.array([*sorted_ones, *later], dtype=np.int64)
    order = ContentOrder.of(content[: len(sorted_ones)])

    found = order.equal(content, wanted)

    assert found.tolist() == [slot for slot, digest in enumerate(content.tolist()) if digest == wanted]
    assert found.dtype == np.int64
