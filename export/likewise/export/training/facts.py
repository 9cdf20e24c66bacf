"""Parsed captions as columns of numbered facts, so that mining and training compare images without Python objects."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from likewise.export.training.graph import CaptionGraph, Entity
from likewise.export.training.slots import Slots

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

HEAD: Final = -2  # stands for the noun where a slot number is asked for
NO_SLOT: Final = -1
MAX_FACTS: Final = 32
_NONE: Final = np.int32(-1)


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that may be true of an image, as its caption tells it.

    Attributes:
        kind: "subject" (its noun), "value" (an attribute of the subject), "has" (a noun, with or without an
            attribute), "relation" (to a noun).
        noun: Of the thing, or of a relation's object; for "value" "".
        word: The attribute or the relation's name; "" for a bare noun.
        slot: Position in ``Slots`` of ``word``, ``NO_SLOT`` if it has none, ``HEAD`` for a bare noun.
    """

    kind: str
    noun: str
    word: str = ""
    slot: int = HEAD


@dataclass(frozen=True, slots=True)
class Facts:
    """What the captions of n images say.

    Attributes:
        vocabulary: Every fact, at its number.
        rows: (n, ``MAX_FACTS``) int32 fact numbers, ascending, -1 as padding at the end.
        values: (n, s) int32, the fact "value" of the subject in each slot, -1 where the caption is silent.
        subjects: (n,) int32, the fact "subject", -1 for an empty graph.
        keys: (n,) int64, equal for images whose captions say the same.
        graphs: n parsed captions.
        slots: Attributes that ``values`` has columns for.
    """

    vocabulary: tuple[Fact, ...]
    rows: I32
    values: I32
    subjects: I32
    keys: I64
    graphs: Sequence[CaptionGraph]
    slots: Slots

    def __len__(self) -> int:
        return len(self.rows)

    def numbers(self) -> dict[Fact, int]:
        """Fact to its number."""
        return {fact: i for i, fact in enumerate(self.vocabulary)}

    def postings(self) -> Mapping[int, I64]:
        """Fact number to the ascending rows that state it."""
        rows, columns = np.nonzero(self.rows >= 0)
        facts = self.rows[rows, columns]
        order = np.argsort(facts, kind="stable")
        unique, starts = np.unique(facts[order], return_index=True)
        parts = np.split(rows[order], starts[1:])
        return {int(fact): part.astype(np.int64) for fact, part in zip(unique, parts, strict=True)}

    def hold(self, images: I64, wanted: I32) -> npt.NDArray[np.bool_]:
        """Which images state all of each query's facts.

        Args:
            images: (c,) rows.
            wanted: (q, w) fact numbers, -1 as padding.

        Returns:
            (q, c) bool.
        """
        return self._holds(self.rows[images], wanted)

    @staticmethod
    def _holds(rows: I32, wanted: I32) -> npt.NDArray[np.bool_]:
        result = np.ones((len(wanted), len(rows)), np.bool_)
        for column in wanted.T:
            # Queries ask for few distinct facts; each is looked up once.
            unique, inverse = np.unique(column, return_inverse=True)
            found = np.stack([(rows == fact).any(1) if fact >= 0 else np.ones(len(rows), np.bool_) for fact in unique])
            result &= found[inverse]
        return result

    def take(self, rows: I64) -> "Facts":
        """The images at the given rows; facts keep their numbers."""
        return Facts(
            self.vocabulary,
            self.rows[rows],
            self.values[rows],
            self.subjects[rows],
            self.keys[rows],
            [self.graphs[int(i)] for i in rows],
            self.slots,
        )


def collect(graphs: Sequence[CaptionGraph], slots: Slots, *, minimum: int = 2) -> Facts:
    """Number the facts of a corpus.

    Args:
        graphs: Parsed captions.
        slots: Their attributes.
        minimum: Facts that fewer captions state are left out: nothing can be learnt from them.
    """
    index = slots.index()
    stated = [tuple(dict.fromkeys(_facts(graph, index))) for graph in graphs]
    uses = Counter(fact for facts in stated for fact in facts)
    vocabulary = tuple(fact for fact, count in uses.items() if count >= minimum)
    number = {fact: i for i, fact in enumerate(vocabulary)}
    rows = np.full((len(graphs), MAX_FACTS), _NONE, np.int32)
    values = np.full((len(graphs), len(slots.slots)), _NONE, np.int32)
    subjects = np.full(len(graphs), _NONE, np.int32)
    keys = np.empty(len(graphs), np.int64)
    seen: dict[object, int] = defaultdict(lambda: len(seen))
    for i, (graph, facts) in enumerate(zip(graphs, stated, strict=True)):
        # A long caption keeps its first facts: those of the subject.
        kept = [number[fact] for fact in facts if fact in number][:MAX_FACTS]
        rows[i, : len(kept)] = sorted(kept)
        for fact in facts:
            if fact in number and fact.kind == "value" and fact.slot >= 0 and values[i, fact.slot] < 0:
                values[i, fact.slot] = number[fact]
            elif fact in number and fact.kind == "subject":
                subjects[i] = number[fact]
        keys[i] = seen[_content(graph)]
    return Facts(vocabulary, rows, values, subjects, keys, graphs, slots)


def _facts(graph: CaptionGraph, index: Mapping[str, int]) -> Iterator[Fact]:
    if not graph.entities:
        return
    subject = graph.entities[0]
    yield Fact("subject", subject.head)
    for word in subject.attributes:
        yield Fact("value", "", word, index.get(word, NO_SLOT))
    for entity in graph.entities:
        yield Fact("has", entity.head)
        for word in entity.attributes:
            yield Fact("has", entity.head, word, index.get(word, NO_SLOT))
    for relation in graph.relations:
        yield Fact("relation", graph.entities[relation.object].head, relation.name, NO_SLOT)


def _content(graph: CaptionGraph) -> object:
    def plain(entity: Entity) -> tuple[str, tuple[str, ...]]:
        return (entity.head, tuple(sorted(entity.attributes)))

    rest = sorted(plain(entity) for entity in graph.entities[1:])
    return (plain(graph.entities[0]) if graph.entities else None, tuple(rest))
