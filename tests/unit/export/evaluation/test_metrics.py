import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likewise.export.evaluation.metrics import (
    average_precision,
    average_precision_of,
    chance_of_hit,
    chance_of_precision,
    global_average_precision,
    hit,
    precision_order,
    recognise,
)


def _gap(answers: list[tuple[str, int, float, bool]], positives: int) -> float:
    ids, classes, scores, correct = zip(*answers, strict=True)
    order = precision_order(ids, np.array(classes), np.array(scores))
    return global_average_precision(np.array(correct), order, positives)


def test_a_hit_needs_one_target_within_the_first_k() -> None:
    places = np.array([3, 7])

    assert [hit(places, k) for k in (1, 2, 3, 10)] == [0, 0, 1, 1]


def test_average_precision_divides_by_the_smaller_of_right_items_and_k() -> None:
    # Right items at places 1, 3 and 9: (1/1 + 2/3) / min(3, 5) and (1/1 + 2/3 + 3/9) / 3.
    places = np.array([1, 3, 9])

    assert average_precision(places, 5) == pytest.approx((1 + 2 / 3) / 3, abs=1e-12)
    assert average_precision(places, 10) == pytest.approx((1 + 2 / 3 + 1 / 3) / 3, abs=1e-12)
    assert average_precision(np.arange(1, 15), 5) == 1.0


def test_a_repeated_item_is_skipped_and_still_takes_a_place() -> None:
    assert average_precision_of(["x", "y", "x", "z"], {"x", "z"}, 100) == 0.75
    assert average_precision_of(["x", "z"], {"x", "z"}, 100) == 1.0
    assert average_precision_of([], {"x"}, 100) == 0.0


def test_average_precision_without_right_items_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        average_precision(np.array([], np.int64), 5)
    with pytest.raises(ValueError, match="at least one"):
        average_precision_of(["x"], set(), 5)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 30), st.data())
def test_both_forms_of_average_precision_agree(count: int, data: st.DataObject) -> None:
    right = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    k = data.draw(st.integers(1, 40))
    ranking = [str(number) for number in range(count)]

    places = np.array(sorted(right)) + 1

    expected = average_precision_of(ranking, {str(number) for number in right}, k)
    assert average_precision(places, k) == pytest.approx(expected, abs=1e-12)


def test_gap_of_a_hand_computed_case() -> None:
    a, b, c, d = ("a", 1, 0.9, True), ("b", 2, 0.8, False), ("c", 3, 0.7, False), ("d", 4, 0.6, True)

    # c shows no landmark: three positives. (1/1 + 2/4) / 3, and (1/1 + 2/3) / 3 without the answer to c.
    assert _gap([d, c, b, a], 3) == pytest.approx(0.5, abs=1e-12)
    assert _gap([a, b, d], 3) == pytest.approx(5 / 9, abs=1e-12)


def test_gap_breaks_ties_by_id_whatever_the_order_of_the_file() -> None:
    answers = [("b", 1, 0.5, True), ("a", 7, 0.5, False), ("c", 1, 0.5, True)]

    assert _gap(answers, 2) == _gap(answers[::-1], 2) == pytest.approx((1 / 2 + 2 / 3) / 2, abs=1e-12)


def test_gap_without_any_landmark_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        global_average_precision(np.array([False]), np.array([0]), 0)


def test_gap_with_every_weight_one_is_gap() -> None:
    rng = np.random.default_rng(0)
    correct, order = rng.random(40) < 0.4, rng.permutation(40)

    plain = global_average_precision(correct, order, 20)

    assert global_average_precision(correct, order, 20, np.ones(40)) == pytest.approx(plain, abs=1e-12)


def test_neighbours_vote_with_their_similarities() -> None:
    labels = {"a": 7, "b": 3, "c": 3, "d": 9}

    assert recognise(["a", "b", "c"], np.array([1.0, 0.75, 0.5]), labels) == (3, 1.25)
    assert recognise(["d", "a"], np.array([0.5, 0.5]), labels) == (7, 0.5)
    assert recognise([], np.array([]), labels) is None


@pytest.mark.parametrize(("candidates", "right", "k", "share"), [(10, 1, 1, 0.1), (15, 1, 3, 0.2), (5, 1, 2, 0.4)])
def test_chance_is_that_of_the_benchmarks(candidates: int, right: int, k: int, share: float) -> None:
    assert chance_of_hit(candidates, right, k) == pytest.approx(share, abs=1e-12)


def test_chance_at_the_size_of_a_million_is_a_number() -> None:
    assert chance_of_hit(1_000_000, 3, 100) == pytest.approx(3e-4, rel=1e-3)
    assert chance_of_hit(3, 1, 10) == 1.0
    assert math.isfinite(chance_of_precision(1_000_000, 40, 100))


@pytest.mark.parametrize(("candidates", "right", "k"), [(6, 2, 3), (5, 3, 2), (4, 1, 4), (3, 3, 5)])
def test_chance_is_the_mean_over_random_orders(candidates: int, right: int, k: int) -> None:
    from itertools import combinations

    orders = [np.array(places) + 1 for places in combinations(range(candidates), right)]

    hits = np.mean([hit(places, k) for places in orders])
    precision = np.mean([average_precision(places, k) for places in orders])

    assert chance_of_hit(candidates, right, k) == pytest.approx(hits, abs=1e-12)
    assert chance_of_precision(candidates, right, k) == pytest.approx(precision, abs=1e-12)
