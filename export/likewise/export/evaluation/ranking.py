"""Places of right candidates, each tie counted against them; so slot order, file order and luck play no part."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from likewise.export.evaluation.problems import EvaluationError, first_repeated
from likewise.export.evaluation.task import Task

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

TIE: Final = 1e-12
"""Cosines nearer than this are a tie: equal vectors get scores that differ in the last bits, by where BLAS put them."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best candidates of one query, (score descending, key ascending), and their scores."""

    keys: tuple[str, ...]
    scores: F64


class Ranker(Protocol):
    """Ranks the candidates of tasks: from features, or through a server."""

    name: str

    def check(self, task: Task) -> None:
        """Refuse a task before anything is computed.

        Raises:
            EvaluationError: Something that the task needs is not there.
        """
        ...

    def positions(self, task: Task) -> list[I64]:
        """For each query the ascending places (from 1) of its targets; beyond `task.depth` any number above it."""
        ...

    def top(self, task: Task, k: int) -> list[Ranking]:
        """The k best candidates of each query, all where there are fewer."""
        ...

    def facts(self) -> dict[str, object]:
        """How it was ranked, for the report."""
        ...


def worst_positions(scores: F64, targets: Sequence[int] | I64, *, tie: float = TIE) -> I64:
    """Places of the targets in the worst order that the scores allow.

    Args:
        scores: (c,), larger is better.
        targets: (m,) indices of the targets; every other candidate is wrong.
        tie: Scores nearer than this count as equal. A wrong candidate whose score is no number counts as ahead, a
            target whose score is none as last.

    Returns:
        (m,) ascending places from 1. Among targets of equal score one is as good as the other.
    """
    own = np.asarray(scores, np.float64)[targets]
    own = -np.sort(-own)
    wrong = np.delete(np.asarray(scores, np.float64), targets)
    ahead = (~(wrong[None, :] < (own - tie)[:, None])).sum(1)
    return np.asarray(ahead + np.arange(1, len(own) + 1), np.int64)


def best_first(scores: F64, k: int) -> I64:
    """Indices of the k largest of (c,) scores by (score descending, index ascending)."""
    if k < len(scores):
        # All that tie with the k-th, so that among them the index decides and not the partition.
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = np.flatnonzero(scores >= threshold)
    else:
        kept = np.arange(len(scores))
    return np.asarray(kept[np.lexsort((kept, -scores[kept]))][:k], np.int64)


def check_ranking(keys: Sequence[str], *, where: str) -> None:
    """Refuse a ranking that names an item twice: a repeat would be counted twice, or hide a miss.

    Raises:
        EvaluationError: It does.
    """
    if repeated := first_repeated(keys):
        raise EvaluationError(f"{where}: {repeated!r} is ranked twice; a ranking names each item once")
