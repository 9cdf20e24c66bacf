"""What a run did and saw, to be summed over its parts and reported."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Tally:
    """Counts of one lane or caller.

    Attributes:
        operations: Operations done, by kind.
        acknowledged: Writes that the server said are durable, by kind.
        rows: Rows that those writes touched.
        in_doubt: Writes that a fault cut off, by what the store then had of them: "applied" or "not applied".
        lost: Acknowledged rows that were not there afterwards, or deleted ones that were.
        searches: Searches by how they compare with the oracle: "identical", "equal scores" (neighbours whose scores
            differ by less than float32 can tell), "approximate".
        recall: Sum of recall over the approximate ones.
        verified: Times that a whole gallery was compared with the oracle.
    """

    operations: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    in_doubt: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    searches: Counter[str] = field(default_factory=Counter)
    recall: float = 0.0
    verified: int = 0

    def mean_recall(self) -> float | None:
        """Of approximate searches; None if there were none."""
        approximate = self.searches["approximate"]
        return self.recall / approximate if approximate else None

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        recall = self.mean_recall()
        return {
            "operations": sum(self.operations.values()),
            "operations_by_kind": dict(sorted(self.operations.items())),
            "acknowledged_writes": sum(self.acknowledged.values()),
            "acknowledged_rows": self.rows,
            "writes_in_doubt": dict(sorted(self.in_doubt.items())),
            "lost": self.lost,
            "searches_against_the_oracle": dict(sorted(self.searches.items())),
            "mean_recall_of_approximate_searches": None if recall is None else round(recall, 4),
            "galleries_compared_whole": self.verified,
        }


def total(tallies: Iterable[Tally]) -> Tally:
    """Their sum."""
    made = Tally()
    for tally in tallies:
        made.operations += tally.operations
        made.acknowledged += tally.acknowledged
        made.rows += tally.rows
        made.in_doubt += tally.in_doubt
        made.lost += tally.lost
        made.searches += tally.searches
        made.recall += tally.recall
        made.verified += tally.verified
    return made
