import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likewise.shards.known_ids import KnownIds
from likewise.shards.layout import shard_hashes


@settings(deadline=None)
@given(start=st.sets(st.integers(0, 2**63 - 1)), added=st.lists(st.sets(st.integers(0, 2**63 - 1)), max_size=3))
def test_known_ids_never_deny_what_was_added(start: set[int], added: list[set[int]]) -> None:
    known = KnownIds(np.array(sorted(start), np.int64))
    for hashes in added:
        known.add(np.array(sorted(hashes), np.int64))
    everything = start.union(*added)

    assert known.may_contain(np.array(sorted(everything), np.int64)).all()
    others = np.array([value for value in range(20) if value not in everything], np.int64)
    assert not known.may_contain(others).any()


def test_known_ids_hold_after_the_recent_ones_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likewise.shards.known_ids.RECENT", 10)
    known = KnownIds(np.empty(0, np.int64))
    hashes = shard_hashes([f"{i}" for i in range(100)])

    for start in range(0, 100, 7):
        known.add(hashes[start : start + 7])

    assert known.may_contain(hashes).all()
    assert not known.may_contain(shard_hashes(["other"])).any()
