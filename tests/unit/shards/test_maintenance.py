import pytest
from hypothesis import given
from hypothesis import strategies as st

from likewise.shards.gallery_store import Fragment
from likewise.shards.maintenance import MaintenancePolicy, plan_compaction


def fragments(*sizes: int | tuple[int, int]) -> list[Fragment]:
    pairs = [size if isinstance(size, tuple) else (size, 0) for size in sizes]
    return [Fragment(i, live, deleted) for i, (live, deleted) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("entries", "chosen"),
    [
        pytest.param(fragments(), [], id="nothing"),
        pytest.param(fragments(1, 1, 1), [], id="too-few"),
        pytest.param(fragments(1, 1, 1, 1), [0, 1, 2, 3], id="a-run"),
        pytest.param(fragments(900, 1, 1, 1, 1, 900), [1, 2, 3, 4], id="between-large-ones"),
        pytest.param(fragments(1, 1, 900, 1, 1), [], id="runs-do-not-cross-a-large-one"),
        pytest.param(fragments(50, 60, 50, 60), [0, 1, 2, 3], id="a-higher-tier"),
        pytest.param(fragments(400, 400, 400, 400), [], id="would-exceed-a-step"),
        pytest.param(fragments(900, (100, 26)), [1], id="many-deleted"),
        pytest.param(fragments(900, (100, 25)), [], id="few-deleted"),
    ],
)
def test_compaction_takes_neighbours_of_one_tier_within_a_step(entries: list[Fragment], chosen: list[int]) -> None:
    policy = MaintenancePolicy(fan_in=4, tier_rows=10, step_bytes=10_000)

    assert plan_compaction(entries, row_bytes=10, policy=policy) == chosen


@given(sizes=st.lists(st.tuples(st.integers(1, 2_000), st.integers(0, 1)), max_size=60))
def test_planned_steps_come_to_an_end_and_stay_within_their_bytes(sizes: list[tuple[int, int]]) -> None:
    policy = MaintenancePolicy(fan_in=4, tier_rows=10, step_bytes=10_000)
    entries = fragments(*sizes)

    for _ in range(200):
        chosen = plan_compaction(entries, row_bytes=10, policy=policy)
        if not chosen:
            break
        taken = [entry for entry in entries if entry.id in chosen]
        live = sum(entry.rows - entry.deleted for entry in taken)
        assert len(taken) == 1 or live <= 1_000
        at = entries.index(taken[0])
        assert entries[at : at + len(taken)] == taken
        entries[at : at + len(taken)] = [Fragment(max(e.id for e in entries) + 1, live, 0)]

    assert plan_compaction(entries, row_bytes=10, policy=policy) == []
