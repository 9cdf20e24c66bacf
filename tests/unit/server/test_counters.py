"""Counters show what prometheus_client's would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Counter as Reference

from likewise.server.counters import Counter


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(("OK", 'q"uote')), st.integers(0, 3)), max_size=20))
def test_a_scrape_shows_what_was_counted(counted: list[tuple[str, str, int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    light = Counter("calls", "Calls.", ["method", "code"], registry=ours)
    locked = Reference("calls", "Calls.", ["method", "code"], registry=theirs)
    for method, code, amount in counted:
        light.labels(method, code).inc(amount)
        locked.labels(method, code).inc(amount)

    assert _lines(ours) == _lines(theirs)


def test_a_counter_without_labels_is_there_before_anything_is_counted() -> None:
    registry = CollectorRegistry()
    counter = Counter("fallbacks", "Fallbacks.", registry=registry)

    before = registry.get_sample_value("fallbacks_total")
    counter.inc()
    counter.inc(2)

    assert (before, registry.get_sample_value("fallbacks_total")) == (0, 3)


def test_labels_that_do_not_fit_are_refused() -> None:
    counter = Counter("calls", "Calls.", ["method", "code"], registry=CollectorRegistry())

    with pytest.raises(ValueError, match="method"):
        counter.labels("Search")


def _lines(registry: CollectorRegistry) -> list[str]:
    # prometheus_client also tells when it met each set of labels.
    lines = generate_latest(registry).decode().splitlines()
    return sorted(line for line in lines if "_created" not in line)
