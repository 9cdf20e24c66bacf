"""Which of the rows that an index found are scored exactly. Pure functions over its answer.

An index that holds the rows as they are has their scores too, but for what float32 loses, and one of reduced rows knows
how much these may mislead it (`Found.margins`). A row whose score is further than that below the k-th best cannot be a
hit, and is not scored again. A compressed index knows less: of its candidates as many are scored as planned.
"""

import math
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
        counts: (n,) how many of each query's.
    """

    mask: Mask
    counts: I64


def passed(found: Found, allowed: Mask) -> Passed:
    """Which of the rows found a filter lets through; `allowed` says it of each row."""
    mask = (found.positions >= 0) & allowed[found.positions]
    return Passed(mask, np.add.reduce(mask, axis=1))


class Table(NamedTuple):
    """As many candidates for each query, best first; of each as many count as the query itself needs.

    Those beyond are there because another query needs as many. They are not looked at, so that no answer depends on
    whom it was found with; they may be another query's.

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


def as_table(found: Found, which: Passed, wanted: Wanted) -> Table:
    """What to score of those that may be hits, where each query has at least k of them."""
    places = which.mask.reshape(-1).nonzero()[0]
    scores: list[float] = found.scores.reshape(-1)[places].tolist()
    starts, counts, start = [], [], 0
    for there, margin in zip(which.counts.tolist(), _each(found.margins, len(which.mask)), strict=True):
        starts.append(start)
        counts.append(_count(scores, start, start + min(there, wanted.most), wanted.k, margin))
        start += there
    # Where a line ends sooner than the table, what follows is the next one's.
    filled = np.array(starts)[:, np.newaxis] + np.arange(max(counts))
    return Table(found.positions.reshape(-1)[places[np.minimum(filled, len(places) - 1)]], counts)


def one_by_one(found: Found, which: Passed, wanted: Wanted) -> Mask:
    """(n, depth) those to score, some for each query; of a query with fewer than k candidates any."""
    nth = np.add.accumulate(which.mask, axis=1, dtype=np.int64)
    mask = which.mask & (nth <= wanted.most)
    if found.margins is not None:
        last = np.argmax(nth >= wanted.k, axis=1)[:, np.newaxis]
        mask &= found.scores >= np.take_along_axis(found.scores, last, axis=1) - found.margins
    return mask


def _needed(scores: F32, margins: F32 | None, wanted: Wanted) -> list[int]:
    """How many of each query's candidates, best first, have to be scored to find its k best."""
    if margins is None:
        return [wanted.most] * len(scores)
    if len(scores) == 1:
        return [_count(scores[0, : wanted.most].tolist(), 0, wanted.most, wanted.k, margins.item())]
    # `np.count_nonzero` by rows takes a dozen calls of Python before it counts.
    counts: list[int] = np.add.reduce(scores >= scores[:, wanted.k - 1 : wanted.k] - margins, axis=1).tolist()
    return [min(count, wanted.most) for count in counts]


def _count(scores: Sequence[float], start: int, end: int, k: int, margin: float) -> int:
    """How many of the scores from `start` to `end`, best first, are needed for the k best; in Python, as it is few."""
    last, least = start + k, scores[start + k - 1] - margin
    while last < end and scores[last] >= least:
        last += 1
    return last - start


def _each(margins: F32 | None, queries: int) -> list[float]:
    """The margin of each query; of those of which none is known, one that no score is below."""
    known: list[float] = [math.inf] if margins is None else margins.reshape(-1).tolist()
    return known if len(known) == queries else known * queries
