import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from likewise.export.evaluate import (
    Features,
    best_sum,
    interval,
    mean_interval,
    query_scores,
    recall,
    unit,
    worst_ranks,
)


def _features(rng: np.random.Generator, templates: int = 40, candidates: int = 10, dim: int = 8) -> Features:
    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return Features(
        references=draw(templates, dim),
        candidates=unit(draw(templates, candidates, dim)),
        targets=rng.integers(candidates, size=templates),
        bare=draw(templates, dim),
        composed=draw(templates, dim),
        clusters=np.arange(templates),
    )


@given(st.integers(1, 20), st.integers(1, 15), st.floats(-1, 1, width=32))
def test_a_constant_scorer_ranks_every_target_last(templates: int, candidates: int, value: float) -> None:
    scores = np.full((templates, candidates), value, np.float32)

    ranks = worst_ranks(scores, np.zeros(templates, np.int64))

    assert (ranks == candidates).all()


def test_a_constant_scorer_does_not_exceed_chance() -> None:
    ranks = worst_ranks(np.zeros((100, 10), np.float32), np.zeros(100, np.int64))

    result = recall(ranks, np.arange(100))

    assert result.at[1].value == 0


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 8), st.just(10)), elements=st.sampled_from([-1, 0, 0.5, 1])),
    st.integers(0, 9),
    st.permutations(range(10)),
)
def test_ranks_do_not_depend_on_the_order_of_candidates(scores: np.ndarray, target: int, order: list[int]) -> None:
    targets = np.full(len(scores), target)

    shuffled = worst_ranks(scores[:, order], np.full(len(scores), order.index(target)))

    assert np.array_equal(worst_ranks(scores, targets), shuffled)


def test_the_only_best_candidate_has_rank_one_and_a_tie_costs_a_place() -> None:
    scores = np.array([[0.1, 0.9, 0.3], [0.9, 0.9, 0.3]], np.float32)

    assert worst_ranks(scores, np.array([1, 1])).tolist() == [1, 2]


def test_a_score_that_is_not_a_number_does_not_win() -> None:
    scores = np.array([[np.nan, 0.0, 0.0], [np.nan, 0.5, 0.0]], np.float32)

    assert worst_ranks(scores, np.array([0, 1])).tolist() == [3, 2]


def test_random_features_score_at_chance() -> None:
    features = _features(np.random.default_rng(0), templates=4000)

    ranks = worst_ranks(query_scores(unit(features.references), features.candidates), features.targets)
    result = recall(ranks, features.clusters)

    for k in (1, 2, 3):
        assert result.at[k].low - 1 <= 10 * k <= result.at[k].high + 1


def test_the_best_sum_is_never_worse_than_either_part() -> None:
    features = _features(np.random.default_rng(1), templates=200)

    ranks, setup = best_sum(features)

    hits = (ranks <= 1).mean()
    for part in (features.references, features.bare, features.composed):
        alone = worst_ranks(query_scores(unit(part), features.candidates), features.targets)
        assert hits >= (alone <= 1).mean()
    assert setup.startswith("text weight ")


def test_the_best_sum_finds_a_target_that_only_the_sum_finds() -> None:
    image, text = np.eye(3, dtype=np.float32)[:2]
    both = unit((image + text)[None])[0]
    features = Features(
        references=5 * image[None],
        candidates=np.stack([image, text, both])[None],
        targets=np.array([2]),
        bare=0.1 * text[None],
        composed=0.1 * text[None],
        clusters=np.array([0]),
    )

    ranks, _ = best_sum(features)

    assert ranks.tolist() == [1]


def test_an_interval_holds_its_value_and_narrows_with_more_clusters() -> None:
    rng = np.random.default_rng(2)
    few, many = (rng.random(n) < 0.4 for n in (50, 5000))

    wide = interval(few.astype(float), np.arange(50))
    narrow = interval(many.astype(float), np.arange(5000))

    assert wide.low <= wide.value <= wide.high
    assert narrow.high - narrow.low < (wide.high - wide.low) / 4


def test_templates_that_share_a_reference_count_as_one_observation() -> None:
    values = np.repeat([0.0, 1.0] * 20, 25)

    alone = interval(values, np.arange(1000))
    shared = interval(values, np.repeat(np.arange(40), 25))

    assert shared.high - shared.low > 3 * (alone.high - alone.low)


def test_a_paired_difference_of_equal_methods_is_exactly_zero() -> None:
    hits = (np.random.default_rng(3).random(100) < 0.5).astype(float)

    result = mean_interval([hits - hits] * 4, [np.arange(100)] * 4)

    assert (result.value, result.low, result.high) == (0, 0, 0)


def test_the_mean_weighs_tasks_equally_whatever_their_size() -> None:
    result = mean_interval([np.ones(10), np.zeros(1000)], [np.arange(10), np.arange(1000)])

    assert result.value == pytest.approx(50)
