"""Running quantiles are those of the recent durations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likewise.server.replicas.latency import FADE_SAMPLES, GROWTH, MIN_SAMPLES, Latencies, kind_of


@given(
    st.lists(st.floats(1e-4, 30.0), min_size=MIN_SAMPLES, max_size=FADE_SAMPLES - 1),
    st.sampled_from([0.9, 0.95, 0.99]),
)
def test_quantiles_are_never_below_the_true_ones_and_at_most_a_bucket_above(
    durations_s: list[float], quantile: float
) -> None:
    whole = durations_s[: len(durations_s) - (len(durations_s) - MIN_SAMPLES) % 16]
    latencies = Latencies(quantile)
    for duration_s in whole:
        latencies.observe(duration_s)

    typical_s, late_s = np.quantile(whole, [0.5, quantile], method="inverted_cdf")

    assert latencies.typical_s is not None
    assert latencies.late_s is not None
    assert 1 - 1e-9 <= latencies.typical_s / typical_s <= GROWTH + 1e-9
    assert 1 - 1e-9 <= latencies.late_s / late_s <= GROWTH + 1e-9


def test_too_few_durations_have_no_quantile() -> None:
    latencies = Latencies(0.95)
    for _ in range(MIN_SAMPLES - 1):
        latencies.observe(1.0)

    assert latencies.late_s is None
    latencies.observe(1.0)
    assert latencies.late_s is not None


def test_old_durations_fade() -> None:
    latencies = Latencies(0.95)
    for _ in range(10_000):
        latencies.observe(0.001)
    for _ in range(4 * FADE_SAMPLES):
        latencies.observe(1.0)

    assert latencies.typical_s == pytest.approx(1.0, rel=0.06)


def test_what_is_out_of_range_counts_as_its_end() -> None:
    latencies = Latencies(0.95)
    for duration_s in [0.0, -1.0, 1e-9] * MIN_SAMPLES + [1e6] * 10 * MIN_SAMPLES:
        latencies.observe(duration_s)

    assert latencies.late_s == pytest.approx(60.0, rel=0.1)


@pytest.mark.parametrize(("rows", "magnitude"), [(0, 0), (1, 0), (2, 1), (4, 1), (5, 2), (16, 2), (17, 3), (10**9, 8)])
def test_calls_of_a_kind_ask_for_about_as_many_rows(rows: int, magnitude: int) -> None:
    assert kind_of("search", rows).magnitude == magnitude
