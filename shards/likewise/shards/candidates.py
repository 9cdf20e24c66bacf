"""Which of the rows that an index found are scored exactly. Pure functions over its answer.

An index that holds the rows as they are has their scores too, but for what float32 loses, and one of reduced rows knows
how much these may mislead it (`Found.margins`). A row whose score is further than that below the k-th best cannot be a
hit, and is not scored again. A compressed index knows less: of its candidates as many are scored as planned.
"""

from typing import Final, NamedTuple

import numpy as np

from likewise.shards.index import Found
from likewise.shards.protocols import F32, I64
from likewise.shards.rows import Mask

FEW: Final = 64
"""Rows that are scored sooner than it takes to find out that they cannot be hits: 60 us for a search by itself."""


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


def of_all(found: Found, wanted: Wanted) -> I64:
    """(n, candidates) positions to score where each of the first `most` rows found may be a hit."""
    if len(found.positions) * (wanted.most - wanted.k) <= FEW:
        return found.positions[:, : wanted.most]
    return found.positions[:, : max(_needed(found.scores, found.margins, wanted))]


def as_table(found: Found, which: Passed, wanted: Wanted) -> I64 | None:
    """(n, candidates) positions to score, as many for each query; None where they cannot be as many for all."""
    there = which.nth[:, -1]
    width = min(int(there.min()), wanted.most)
    if width < wanted.k or (found.margins is None and width < wanted.most):
        return None
    first = which.mask & (which.nth <= width)
    needed = _needed(found.scores[first].reshape(-1, width), found.margins, wanted)
    if width < wanted.most and any(a == width < b for a, b in zip(needed, there.tolist(), strict=True)):
        return None  # those beyond the first `width` may be needed too
    return found.positions[first].reshape(-1, width)[:, : max(needed)]


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
    # `np.count_nonzero` by rows takes a dozen calls of Python before it counts.
    counts: list[int] = np.add.reduce(scores >= low, axis=1).tolist()
    return [min(count, wanted.most) for count in counts]
