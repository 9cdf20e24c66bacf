"""Which of the rows that an index found are scored exactly. Pure functions over its answer.

An index that holds the rows as they are has their scores too, but for what float32 loses, and one of reduced rows knows
how much these may mislead it (`Found.margins`). A row whose score is further than that below the k-th best cannot be a
hit, and is not scored again. A compressed index knows less: of its candidates as many are scored as planned.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from likewise.shards.index import Found
from likewise.shards.protocols import F32, I64
from likewise.shards.rows import Mask


class Wanted(NamedTuple):
    """What is wanted of each query's candidates.

    Attributes:
        k: Hits.
        most: Candidates, as planned; at least k.
    """

    k: int
    most: int


class Passed(NamedTuple):
    """Which of the rows found may be hits.

    Attributes:
        mask: (n, depth).
        nth: (n, depth) how many of a query's may, up to and with each.
    """

    mask: Mask
    nth: I64


def passed(found: Found, allowed: Mask) -> Passed:
    """Which of the rows found a filter lets through; `allowed` says it of each row."""
    mask = (found.positions >= 0) & allowed[found.positions]
    return Passed(mask, np.cumsum(mask, axis=1, dtype=np.int64))


class Table(NamedTuple):
    """As many candidates for each query, best first; of each as many count as the query itself needs.

    Those beyond are there because another query needs as many. They are not looked at, so that no answer depends on
    whom it was found with.

    Attributes:
        positions: (n, candidates).
        counts: (n,) of each query, at most as many as there are.
    """

    positions: I64
    counts: Sequence[int]


def of_all(found: Found, wanted: Wanted) -> Table:
    """What to score where each of the first `most` rows found may be a hit."""
    counts = _needed(found.scores, found.margins, wanted)
    return Table(found.positions[:, : max(counts)], counts)


def as_table(found: Found, which: Passed, wanted: Wanted) -> Table | None:
    """What to score of those that may be hits; None where it cannot be a table."""
    there = which.nth[:, -1]
    width = min(int(there.min()), wanted.most)
    if width < wanted.k or (found.margins is None and width < wanted.most):
        return None
    first = which.mask & (which.nth <= width)
    counts = _needed(found.scores[first].reshape(-1, width), found.margins, wanted)
    if width < wanted.most and any(a == width < b for a, b in zip(counts, there.tolist(), strict=True)):
        return None  # those beyond the first `width` may be needed too
    return Table(found.positions[first].reshape(-1, width)[:, : max(counts)], counts)


def one_by_one(found: Found, which: Passed, wanted: Wanted) -> Mask:
    """(n, depth) those to score, some for each query; of a query with fewer than k candidates any."""
    mask = which.mask & (which.nth <= wanted.most)
    if found.margins is not None:
        last = np.argmax(which.nth >= wanted.k, axis=1)[:, np.newaxis]
        mask &= found.scores >= np.take_along_axis(found.scores, last, axis=1) - found.margins
    return mask


def _needed(scores: F32, margins: F32 | None, wanted: Wanted) -> list[int]:
    """How many of each query's candidates, best first, have to be scored to find its k best."""
    if margins is None:
        return [wanted.most] * len(scores)
    low = scores[:, wanted.k - 1 : wanted.k] - margins
    if len(scores) == 1:  # in Python, as a search by itself has few: it counts no further than it has to
        least = low.item()
        return [next((i for i, score in enumerate(scores[0, : wanted.most].tolist()) if score < least), wanted.most)]
    # `np.count_nonzero` by rows takes a dozen calls of Python before it counts.
    counts: list[int] = np.add.reduce(scores >= low, axis=1).tolist()
    return [min(count, wanted.most) for count in counts]
