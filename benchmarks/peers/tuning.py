"""Search parameters for a recall target, chosen on queries that are not the measured ones."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from benchmarks.peers.driver.protocol import F64, I64, NO_HIT, NOT_ASKED
from benchmarks.peers.registry import Ladder, Params

_ONE_SIDED_95: Final = 1.645
_CURVE_STEPS: Final = (-1, 0, 1, 2, 4, 6, 8)


@dataclass(frozen=True, slots=True)
class Tried:
    """One try: the recall of each query (nan where it has no truth or was not asked), and seconds for all of them."""

    recalls: F64
    wall_s: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was chosen.

    Attributes:
        params: Search parameters.
        ladder: Those they were chosen from, in order.
        recall: Mean on the tuning queries.
        reached: Whether the target is likely met; if not, these are the parameters of the best recall there was.
    """

    params: Params
    ladder: Ladder
    recall: float
    reached: bool


def recalls(answers: I64, truth: I64) -> F64:
    """Share of each query's true rows that were found.

    Args:
        answers: (m, k) rows, -1 for none, -2 throughout for a query not asked.
        truth: (m, k) rows, -1 where fewer exist.

    Returns:
        (m,) in [0, 1]; nan for a query that was not asked or has no true rows.
    """
    exist = truth != NO_HIT
    found = ((truth[:, :, None] == answers[:, None, :]).any(axis=2) & exist).sum(axis=1)
    wanted = exist.sum(axis=1)
    known = (wanted > 0) & (answers[:, 0] != NOT_ASKED)
    return np.where(known, found / np.maximum(wanted, 1), np.nan)


def mean_recall(values: F64) -> float | None:
    """Mean over the queries that have one; None if none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def lower_bound(values: F64) -> float:
    """One-sided 95 % lower bound of the mean by the normal approximation; -inf without values.

    With it, parameters that reach the target on the tuning queries by luck alone are passed over.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return -math.inf
    return float(known.mean() - _ONE_SIDED_95 * known.std() / math.sqrt(len(known)))


def tune(ladders: Sequence[Ladder], target: float, attempt: Callable[[Params], Tried]) -> Tuned:
    """The cheapest parameters of each ladder whose recall is at least the target, and of these the fastest.

    Args:
        ladders: Tried from the start, each until the target is reached.
        target: Mean recall wanted.
        attempt: Asks the tuning queries.

    Raises:
        ValueError: If there are no parameters to try.
    """
    if not any(ladders):
        raise ValueError("no search parameters to try")
    reached: list[tuple[float, Tuned]] = []
    missed: list[tuple[float, Tuned]] = []
    for ladder in ladders:
        for params in ladder:
            tried = attempt(params)
            recall = mean_recall(tried.recalls) or 0.0
            if lower_bound(tried.recalls) >= target:
                reached.append((tried.wall_s, Tuned(params, ladder, recall, reached=True)))
                break
            missed.append((-recall, Tuned(params, ladder, recall, reached=False)))
    return min(reached or missed, key=lambda entry: entry[0])[1]


def around(tuned: Tuned, count: int) -> list[Params]:
    """Up to `count` parameters for a curve: one step below the chosen ones, these, and ever further steps above."""
    place = tuned.ladder.index(tuned.params)
    places = [place + step for step in _CURVE_STEPS if 0 <= place + step < len(tuned.ladder)]
    return [tuned.ladder[index] for index in places[:count]]
