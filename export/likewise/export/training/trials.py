"""Held-out templates out of mined triplets: a reference, a condition, and a small gallery that holds one right image.

The four tasks and the gallery sizes are GeneCIS's. Wrong candidates are the mined hard negatives first, then other
images of the split whose captions do not meet the condition.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from likewise.export.evaluate import Features, unit
from likewise.export.training.facts import Facts
from likewise.export.training.mining import Triplets, excused
from likewise.export.training.wording import KINDS, framed

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

CANDIDATES: Final[Mapping[str, int]] = {
    "focus_attribute": 10,
    "change_attribute": 15,
    "focus_object": 15,
    "change_object": 15,
}
HARD: Final = max(CANDIDATES.values()) - 1


@dataclass(frozen=True, slots=True)
class Trials:
    """The templates of one task.

    Attributes:
        reference: (t,) rows.
        candidates: (t, c) rows, shuffled.
        target: (t,) column of the right one.
        bare: t plain texts of the conditions.
        composed: t texts as the composer is given them, in the frame of their mode.
    """

    reference: I64
    candidates: I64
    target: I64
    bare: Sequence[str]
    composed: Sequence[str]

    def __len__(self) -> int:
        return len(self.reference)


def build_trials(triplets: Triplets, facts: Facts, rows: I64, *, seed: int, most: int = 400) -> dict[str, Trials]:
    """Make templates of one split.

    Args:
        triplets: Mined from ``rows``, with up to ``HARD`` negatives each.
        facts: Of all images.
        rows: The split's images.
        seed: Of draws and order.
        most: Templates of a task, at most; they are spread over the references.

    Returns:
        By task; a task that was mined nothing for is left out.
    """
    rng = np.random.default_rng((seed, 21))
    made = {}
    for number, task in enumerate(KINDS):
        order = rng.permutation(np.flatnonzero(triplets.kind == number))
        # Each reference's first triplet before any reference's second.
        turn = np.zeros(len(order), np.int64)
        seen: dict[int, int] = {}
        for i, query in enumerate(order.tolist()):
            reference = int(triplets.reference[query])
            turn[i] = seen[reference] = seen.get(reference, -1) + 1
        order = order[np.argsort(turn, kind="stable")]
        trials = _fill(rng, triplets, facts, rows, order, CANDIDATES[task], most)
        if trials is not None:
            made[task] = trials
    return made


def _fill(
    rng: np.random.Generator, triplets: Triplets, facts: Facts, rows: I64, order: I64, size: int, most: int
) -> Trials | None:
    queries: list[int] = []
    galleries: list[I64] = []
    targets: list[int] = []
    for query in order.tolist():
        if len(queries) == most:
            break
        target, hard = triplets.target[query], triplets.negatives[query]
        wrong = hard[hard >= 0][: size - 1]
        if len(wrong) < size - 1:
            allowed = rows[~excused(triplets, np.asarray([query]), facts, rows)[0]]
            taken = [*wrong.tolist(), int(target), int(triplets.reference[query])]
            rest = rng.permutation(allowed[~np.isin(allowed, taken)])[: size - 1 - len(wrong)]
            wrong = np.concatenate([wrong, rest])
        if len(wrong) < size - 1:
            continue
        shuffled = rng.permutation(size)
        galleries.append(np.concatenate([[target], wrong])[shuffled])
        targets.append(int(np.flatnonzero(shuffled == 0)[0]))
        queries.append(query)
    if not queries:
        return None
    conditions = [triplets.conditions[query] for query in queries]
    return Trials(
        triplets.reference[queries],
        np.stack(galleries),
        np.asarray(targets, np.int64),
        [condition.bare for condition in conditions],
        [framed(condition.mode, condition.bare) for condition in conditions],
    )


def features_of(trials: Trials, images: F32, encode: Callable[[Sequence[str]], F32]) -> Features:
    """Features of templates, as ``evaluate`` takes them; templates with one reference are one cluster.

    Args:
        trials: Their rows are those of ``images``.
        images: (n, d) raw image features.
        encode: Texts to raw features.
    """
    return Features(
        references=images[trials.reference],
        candidates=unit(images[trials.candidates]),
        targets=trials.target,
        bare=_each_once(encode, trials.bare),
        composed=_each_once(encode, trials.composed),
        clusters=trials.reference,
    )


def _each_once(encode: Callable[[Sequence[str]], F32], texts: Sequence[str]) -> F32:
    unique, inverse = np.unique(np.asarray(texts), return_inverse=True)
    return np.asarray(encode(unique.tolist())[inverse], np.float32)
