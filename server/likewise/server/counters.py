"""Counters that cost a call no more than an addition; prometheus_client's take a lock and three checks for each.

They are counted up in one thread, the event loop's, and read in another when somebody scrapes.
"""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, Metric


class Count:
    """The count under one set of labels."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Count on; not thread safe."""
        self.value += amount


class Counter:
    """A Prometheus counter.

    Args:
        name: Of the family, without "_total".
        documentation: What is counted, for people.
        labels: Names of its labels.
        registry: Where it is shown.
    """

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str] = (), *, registry: CollectorRegistry
    ) -> None:
        self._name, self._documentation, self._labels = name, documentation, tuple(labels)
        self._counts: dict[tuple[str, ...], Count] = {} if labels else {(): Count()}
        registry.register(self)

    def labels(self, *values: str) -> Count:
        """The count under these values of the labels, in order.

        Raises:
            ValueError: If there are more or fewer than labels.
        """
        count = self._counts.get(values)
        if count is None:
            if len(values) != len(self._labels):
                raise ValueError(f"{self._name} has the labels {self._labels}, got {values}")
            count = self._counts.setdefault(values, Count())
        return count

    def inc(self, amount: int = 1) -> None:
        """Count on, for a counter without labels."""
        self.labels().inc(amount)

    def describe(self) -> Iterable[Metric]:
        """The family without numbers: the registry looks for names that are taken."""
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        """The family as of now."""
        family = self._family()
        # A copy: the event loop may meet new labels meanwhile.
        for values, count in sorted(self._counts.copy().items()):
            family.add_metric(values, count.value)
        return [family]

    def _family(self) -> CounterMetricFamily:
        return CounterMetricFamily(self._name, self._documentation, labels=self._labels)
