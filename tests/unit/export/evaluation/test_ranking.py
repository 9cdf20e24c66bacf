import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from likewise.export.evaluation.problems import EvaluationError
from likewise.export.evaluation.ranking import TIE, best_first, check_ranking, worst_positions

SCORES = hnp.arrays(np.float64, st.integers(2, 12), elements=st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]))


def test_the_only_best_candidate_is_first_and_each_tie_costs_a_place() -> None:
    assert worst_positions(np.array([0.1, 0.9, 0.3]), [1]).tolist() == [1]
    assert worst_positions(np.array([0.9, 0.9, 0.9, 0.3]), [1]).tolist() == [3]


def test_targets_do_not_stand_in_each_others_way() -> None:
    # Best to worst: target .9, wrong .8, targets .5 behind the wrong .5 that ties with them.
    scores = np.array([0.5, 0.9, 0.8, 0.5, 0.5, 0.1])

    assert worst_positions(scores, [0, 1, 3]).tolist() == [1, 4, 5]


@settings(deadline=None)  # the machine may be busy
@given(st.integers(2, 20), st.floats(-1, 1))
def test_a_constant_scorer_puts_every_target_last(count: int, value: float) -> None:
    assert worst_positions(np.full(count, value), [0]).tolist() == [count]


def test_equal_vectors_tie_even_where_rounding_tells_them_apart() -> None:
    score = 0.7
    other = np.nextafter(score, -1)

    assert worst_positions(np.array([score, other]), [0]).tolist() == [2]
    assert worst_positions(np.array([score, score - 10 * TIE]), [0]).tolist() == [1]


@settings(deadline=None)  # the machine may be busy
@given(SCORES, st.data())
def test_places_do_not_depend_on_the_order_of_candidates(scores: np.ndarray, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(scores))))
    targets = data.draw(st.lists(st.integers(0, len(scores) - 1), min_size=1, unique=True))

    moved = [order.index(target) for target in targets]

    assert np.array_equal(worst_positions(scores, targets), worst_positions(scores[order], moved))


@settings(deadline=None)  # the machine may be busy
@given(SCORES, st.integers(0, 11))
def test_a_target_stands_behind_all_that_tie_with_it(scores: np.ndarray, target: int) -> None:
    target %= len(scores)
    worst = sorted(range(len(scores)), key=lambda index: (-scores[index], index == target)).index(target) + 1

    assert worst_positions(scores, [target]).tolist() == [worst]


def test_a_score_that_is_no_number_never_helps() -> None:
    assert worst_positions(np.array([np.nan, 0.0, -5.0]), [0]).tolist() == [3]
    assert worst_positions(np.array([0.5, np.nan, 0.0]), [0]).tolist() == [2]


@settings(deadline=None)  # the machine may be busy
@given(SCORES, st.integers(1, 15))
def test_the_best_are_by_score_then_index(scores: np.ndarray, k: int) -> None:
    expected = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:k]

    assert best_first(scores, k).tolist() == expected


def test_an_item_ranked_twice_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"query 4: 'b' is ranked twice"):
        check_ranking(["a", "b", "c", "b"], where="query 4")
