"""Histograms that count late show what histograms that count at once would."""

import threading

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as Reference

from likewise.server.histograms import Histogram

BUCKETS = (0.001, 0.01, 0.1, 1.0)


@given(st.lists(st.sampled_from((0.0, 0.0005, 0.001, 0.0011, 0.05, 0.1, 1.0, 7.0)), max_size=50))
def test_a_scrape_shows_what_was_observed(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    late = Histogram("seconds", "Time.", "stage", buckets=BUCKETS, registry=ours)
    at_once = Reference("seconds", "Time.", ["stage"], buckets=BUCKETS, registry=theirs)
    for value in values:
        late.labels("a").observe(value)
        at_once.labels("a").observe(value)

    for bound in ("0.001", "0.01", "0.1", "1.0", "+Inf"):
        labels = {"stage": "a", "le": bound}
        assert ours.get_sample_value("seconds_bucket", labels) == (
            theirs.get_sample_value("seconds_bucket", labels) if values else None
        )
    assert ours.get_sample_value("seconds_count", {"stage": "a"}) == (len(values) if values else None)


def test_nothing_is_lost_when_threads_observe_while_somebody_scrapes() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("rows", "Rows.", buckets=BUCKETS, registry=registry)

    def observe() -> None:
        for _ in range(10_000):
            histogram.observe(0.05)

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        registry.get_sample_value("rows_count")
    for thread in threads:
        thread.join()

    assert registry.get_sample_value("rows_count") == 40_000
    assert registry.get_sample_value("rows_bucket", {"le": "0.1"}) == 40_000
