"""Mines (reference, condition, target, hard negatives) from parsed captions, after GeneCIS (Vaze et al., 2023).

GeneCIS pairs captions of one subject with different objects. Here all four of its tasks are mined: two images whose
captions share the subject and most else but for one attribute or object give "change"; two that share one attribute or
object and little else give "focus". Images that break just what the condition asks, or keep it and break the rest, are
the hard negatives. Where captions are silent nothing is concluded.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt

from likewise.export.training.facts import NO_SLOT, Facts
from likewise.export.training.search import WANTED, Found, Miner
from likewise.export.training.wording import KINDS, Condition, phrase

Bool = npt.NDArray[np.bool_]
I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

WORDINGS: Final = 3


@dataclass(frozen=True, slots=True)
class Triplets:
    """Mined triplets as columns, sorted by reference; rows are those of the ``Facts`` that they were mined from.

    Attributes:
        kind: (m,) int8, index into ``KINDS``.
        reference: (m,) int64.
        target: (m,) int64.
        negatives: (m, n) int64, -1 where fewer were found; images near the reference and near the target take turns.
        wanted: (m, ``WANTED``) int32 facts that the condition asks for, -1 as padding.
        conditions: m conditions.
        texts: m lists of ``WORDINGS`` wordings.
    """

    kind: I8
    reference: I64
    target: I64
    negatives: I64
    wanted: I32
    conditions: Sequence[Condition]
    texts: Sequence[Sequence[str]]

    def __len__(self) -> int:
        return len(self.kind)

    def counts(self) -> dict[str, int]:
        """Triplets of each kind."""
        found = Counter(self.kind.tolist())
        return {kind: found[i] for i, kind in enumerate(KINDS)}


def mine(
    facts: Facts,
    rows: I64,
    *,
    seed: int,
    negatives: int = 6,
    per_kind: int = 3,
    most: int = 200_000,
    progress: Callable[[float], None] | None = None,
) -> Triplets:
    """Mine triplets among some images; references, targets and negatives all come from them.

    Args:
        facts: Of all images.
        rows: Images to use, ascending: one split.
        seed: Of draws and wordings; the same arguments give the same triplets.
        negatives: Hard negatives per triplet, at most.
        per_kind: Triplets of a kind per reference, at most.
        most: Stop after so many; references are taken in random order then.
        progress: Called with the share done, in [0, 1].
    """
    miner = Miner(facts, rows, negatives)
    found: list[tuple[int, int, Found]] = []
    order = np.random.default_rng((seed, 0)).permutation(rows)
    for done, reference in enumerate(order.tolist()):
        if len(found) >= most:
            break
        rng = np.random.default_rng((seed, 1, reference))
        for kind, search in enumerate(miner.searches):
            found += [(reference, kind, triplet) for triplet in islice(search(rng, reference), per_kind)]
        if progress is not None and done % 50 == 0:
            progress(done / len(order))
    found.sort(key=lambda entry: entry[:2])
    wording = np.random.default_rng((seed, 2))
    return Triplets(
        np.asarray([kind for _, kind, _ in found], np.int8),
        np.asarray([reference for reference, _, _ in found], np.int64),
        np.asarray([one.target for _, _, one in found], np.int64),
        _padded([one.negatives for _, _, one in found], negatives),
        _padded([one.wanted for _, _, one in found], WANTED).astype(np.int32),
        [one.condition for _, _, one in found],
        [[phrase(wording, one.condition) for _ in range(WORDINGS)] for _, _, one in found],
    )


def excused(triplets: Triplets, query: I64, facts: Facts, images: I64) -> Bool:
    """Which of some images may not count as wrong for a query, because their captions meet its condition too.

    For "focus" that is every image with what is kept, the reference among them, or whose caption is silent about it;
    for "change" every image whose caption says what the target's says.

    Args:
        triplets: Mined from ``facts``.
        query: (q,) positions in ``triplets``.
        facts: Of all images.
        images: (c,) rows.

    Returns:
        (q, c) bool; the target itself is excused too.
    """
    wanted = triplets.wanted[query]
    held = facts.hold(images, wanted)
    slots = np.asarray([fact.slot if fact.kind == "value" else NO_SLOT for fact in facts.vocabulary] + [NO_SLOT])
    slot = slots[wanted[:, 0]]
    if facts.values.shape[1]:
        silent = (facts.values[images][:, np.maximum(slot, 0)] < 0).T & (slot >= 0)[:, None]
        held |= silent
    focus = np.asarray([kind.startswith("focus") for kind in KINDS])[triplets.kind[query]]
    same = facts.keys[triplets.target[query]][:, None] == facts.keys[images][None, :]
    return np.where(focus[:, None], held, same)


def _padded(rows: Sequence[Sequence[int]], width: int) -> I64:
    result = np.full((len(rows), width), -1, np.int64)
    for i, row in enumerate(rows):
        result[i, : min(len(row), width)] = list(row)[:width]
    return result
