"""The ladder of efforts, and the step that is chosen for a recall."""

import math

import numpy as np
import pytest

from likewise.shards import effort
from likewise.shards.effort import ENOUGH, EXACT, STEPS, WINDOW, Curve
from likewise.shards.planner import IndexTraits
from likewise.shards.recall import local_dimension, wilson

RNG = np.random.default_rng(5)
HNSW = IndexTraits(kind="hnsw", rows=100_000)
IVF = IndexTraits(kind="ivf", rows=100_000, nlist=1_000, nprobe=63)


def curve(queries: int, recalls: list[float]) -> Curve:
    """A curve on which each step finds that share of 100 true rows."""
    made = Curve()
    chance = np.array(recalls + [1.0] * (STEPS - len(recalls)))
    for _ in range(queries):
        made.add(RNG.binomial(100, chance) / 100, float(chance[3]), 12.0)
    return made


def test_efforts_grow_from_the_depth_itself_to_all_lists() -> None:
    efs = [effort.ef(step, 10, HNSW) for step in range(STEPS)]
    lists = [effort.nprobe(step, IVF) for step in range(STEPS)]

    assert efs[0] == 15
    assert efs == sorted(set(efs))
    assert (lists[0], lists[-1]) == (1, 1_000)
    assert lists == sorted(lists)
    assert effort.over_fetch(0) == 1.0


def test_the_cheapest_step_that_surely_reaches_the_target_is_taken() -> None:
    known = curve(WINDOW, [0.2, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])

    assert known.step(0.95) == 5
    assert known.step(0.72) == 3


def test_few_queries_earn_one_step_more() -> None:
    assert curve(ENOUGH, [0.2, 0.5, 0.7, 0.8, 0.9, 0.97]).step(0.95) == 6


def test_a_lucky_low_step_does_not_count() -> None:
    assert curve(WINDOW, [0.99, 0.5, 0.99]).step(0.95) >= 2


def test_where_no_step_reaches_the_target_all_rows_are_compared() -> None:
    assert curve(WINDOW, [0.5] * STEPS).step(0.9) == EXACT


def test_old_queries_are_forgotten() -> None:
    known = curve(WINDOW, [0.0] * STEPS)
    for _ in range(WINDOW):
        known.add(np.ones(STEPS), 1.0, None)

    assert known.queries == WINDOW
    assert known.on(0).mean == 1.0
    assert known.dimension() is None


def test_what_is_expected_without_measurements_grows_with_the_target() -> None:
    steps = [effort.expected(target) for target in (0.5, 0.9, 0.95, 0.99, 0.999, 1.0)]

    assert steps == sorted(steps)
    assert steps[-1] == EXACT


@pytest.mark.parametrize("mean", [0.0, 0.5, 0.93, 1.0])
@pytest.mark.parametrize("n", [5, 50, 500])
def test_wilson_holds_the_mean_and_stays_within_bounds(mean: float, n: int) -> None:
    found = wilson(mean, n)

    assert 0.0 <= found.low <= mean <= found.high <= 1.0


def test_wilson_is_the_textbook_interval() -> None:
    found = wilson(0.9, 100)

    assert found.low == pytest.approx(0.8256, abs=1e-4)
    assert found.high == pytest.approx(0.9448, abs=1e-4)
    assert (wilson(1.0, 0).low, wilson(1.0, 0).high) == (0.0, 1.0)


@pytest.mark.parametrize("dimension", [4, 16])
def test_the_local_dimension_of_a_ball_is_its_own(dimension: int) -> None:
    # The i-th nearest of points uniform in a ball of d dimensions lies at about (i / n) ** (1 / d).
    estimates = []
    for _ in range(50):
        distances = np.sort(0.5 * RNG.random(100) ** (1 / dimension))
        estimates.append(local_dimension((1 - distances**2 / 2).astype(np.float32)))

    assert np.mean([one for one in estimates if one is not None]) == pytest.approx(dimension, rel=0.1)


def test_equal_rows_tell_no_dimension() -> None:
    assert local_dimension(np.ones(100, dtype=np.float32)) is None
    assert local_dimension(np.zeros(0, dtype=np.float32)) is None
    assert math.isclose(wilson(0.5, 10).mean, 0.5)
