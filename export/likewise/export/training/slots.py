"""Classes of attributes ("colour": red, blue, teal...), learnt from which words stand in for each other.

Two modifiers are values of one attribute if they describe the same nouns and almost never the same thing at once:
"red star" and "teal star" are common, "red teal star" is not, while "striped red star" is.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from likewise.export.training.graph import CaptionGraph
from likewise.export.training.words import NAMES

F64 = npt.NDArray[np.float64]

# Of the pairs that independent attributes would give, the share that values of one attribute give ("black and white").
_LEAK: Final = 0.05
_MIN_EVIDENCE: Final = 3.0  # log odds, some three times as many expected pairs as were seen
_NAMED_TOGETHER: Final = 6.0
_NAMED_APART: Final = -60.0
_MAX_WORDS: Final = 400


@dataclass(frozen=True, slots=True)
class Slot:
    """One attribute and its values.

    Attributes:
        name: What a condition calls it ("colour"); empty where no word for it is known.
        values: Its words, most frequent first.
    """

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Slots:
    """All attributes of a corpus, each word in at most one."""

    slots: tuple[Slot, ...]

    def index(self) -> dict[str, int]:
        """Word to the position of its slot."""
        return {value: i for i, slot in enumerate(self.slots) for value in slot.values}


def learn_slots(
    graphs: Sequence[CaptionGraph], *, minimum: int = 3, names: Mapping[str, frozenset[str]] | None = None
) -> Slots:
    """Group the modifiers of a corpus.

    Args:
        graphs: Parsed captions.
        minimum: Words seen less often belong to no slot, unless ``names`` knows them.
        names: Words that are surely values of an attribute, by its name; they add to those everyone uses.

    Returns:
        Slots of at least two values, those with most uses first.
    """
    given = {word: name for name, words in (names or {}).items() for word in words}
    common = {word: name for name, words in NAMES.items() for word in words if word not in given}
    uses = Counter(word for graph in graphs for entity in graph.entities for word in entity.attributes)
    words = [w for w, n in uses.most_common(_MAX_WORDS) if n >= minimum or (n > 1 and (w in given or w in common))]
    if len(words) < 2:
        return Slots(())
    evidence = _evidence(graphs, words)
    for i, first in enumerate(words):
        for j in range(i):
            # A word that the user named may well join words that everyone calls something else.
            for known in (given, common):
                a, b = known.get(first), known.get(words[j])
                if a is not None and b is not None:
                    evidence[i, j] = evidence[j, i] = evidence[i, j] + (_NAMED_TOGETHER if a == b else _NAMED_APART)
    groups = [group for group in _merge(evidence) if len(group) > 1]
    groups.sort(key=lambda group: -sum(uses[words[i]] for i in group))
    slots, taken = [], set[str]()
    for group in groups:
        values = tuple(sorted((words[i] for i in group), key=lambda w: (-uses[w], w)))
        name = _name(values, given, uses) or _name(values, common, uses)
        if name in taken:
            name = ""
        taken.add(name)
        slots.append(Slot(name, values))
    return Slots(tuple(slots))


def _evidence(graphs: Sequence[CaptionGraph], words: Sequence[str]) -> F64:
    """Log odds (w, w) that two words exclude each other, against being independent given the noun.

    Pairs on one thing are taken as Poisson: the rate is what independence gives, times ``_LEAK`` if they exclude
    each other.
    """
    position = {word: i for i, word in enumerate(words)}
    per_head: dict[str, F64] = defaultdict(lambda: np.zeros(len(words)))
    heads: Counter[str] = Counter()
    together = np.zeros((len(words), len(words)))
    for graph in graphs:
        for entity in graph.entities:
            found = sorted({position[word] for word in entity.attributes if word in position})
            heads[entity.head] += 1
            per_head[entity.head][found] += 1
            for i, a in enumerate(found):
                for b in found[i + 1 :]:
                    together[a, b] += 1
                    together[b, a] += 1
    expected = np.zeros_like(together)
    for head, counts in per_head.items():
        if heads[head] >= 2:
            expected += np.outer(counts, counts) / heads[head]
    return np.asarray((1 - _LEAK) * expected + math.log(_LEAK) * together, np.float64)


def _merge(evidence: F64) -> list[list[int]]:
    """Average-linkage clustering: the pair of groups with the most evidence per pair of words is joined first."""
    groups = [[i] for i in range(len(evidence))]
    total = evidence.copy()
    np.fill_diagonal(total, -np.inf)
    sizes = np.ones(len(evidence))
    while len(groups) > 1:
        ready = np.where(total >= _MIN_EVIDENCE * np.maximum.outer(sizes, sizes), total, -np.inf)
        mean = ready / np.outer(sizes, sizes)
        i, j = sorted(divmod(int(mean.argmax()), len(groups)))
        if not np.isfinite(mean[i, j]):
            break
        groups[i] += groups.pop(j)
        total[i] += total[j]
        total[:, i] = total[i]
        total[i, i] = -np.inf
        sizes[i] += sizes[j]
        total = np.delete(np.delete(total, j, 0), j, 1)
        sizes = np.delete(sizes, j)
    return groups


def _name(values: Sequence[str], known: Mapping[str, str], uses: Counter[str]) -> str:
    votes: Counter[str] = Counter()
    for value in values:
        if value in known:
            votes[known[value]] += uses[value]
    if not votes:
        return ""
    name, count = votes.most_common(1)[0]
    return name if 2 * count > sum(votes.values()) else ""
