"""Searches a corpus for triplets of one reference at a time, by comparing captions as sets of facts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from likewise.export.training.facts import HEAD, NO_SLOT, Fact, Facts
from likewise.export.training.graph import Entity
from likewise.export.training.wording import Condition

Bool = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

WANTED: Final = 6  # facts that a condition can ask for at once: a noun and what it is like
_SAMPLE: Final = 256  # images looked at for one decision; more would change little and cost much
_ALIKE: Final = 0.5  # least overlap of the rest for "change"
_UNLIKE: Final = 0.4  # largest overlap of the rest for "focus"
_COMMON: Final = 0.5  # a noun in more captions than this is there even where it is not named
_WORSE: Final = 0.15  # by how much less a negative that meets the condition must keep of the rest
_ACTIVITY: Final = ("ing", "ed")


@dataclass(frozen=True, slots=True)
class Found:
    """One triplet of a reference: the target and the negatives are rows, the facts are what the condition asks for."""

    condition: Condition
    target: int
    wanted: tuple[int, ...]
    negatives: list[int]


class Miner:
    """Searches for triplets of one reference at a time, in numpy over a few hundred candidates."""

    def __init__(self, facts: Facts, rows: I64, negatives: int) -> None:
        self._facts = facts
        self._negatives = negatives
        self._number = facts.numbers()
        self._count = len(rows)
        inside = np.zeros(len(facts), np.bool_)
        inside[rows] = True
        self._postings = {fact: held[inside[held]] for fact, held in facts.postings().items()}
        nouns = {noun: i for i, noun in enumerate(dict.fromkeys(fact.noun for fact in facts.vocabulary))}
        self._nouns = nouns
        self._noun = np.asarray([nouns[fact.noun] for fact in facts.vocabulary])
        self._slot = np.asarray([fact.slot for fact in facts.vocabulary])
        self._is_value = np.asarray([fact.kind == "value" for fact in facts.vocabulary], np.bool_)
        self._drops: dict[tuple[str, int, bool], Bool] = {}
        self._slots = facts.slots.index()
        self._heads = [
            (facts.vocabulary[fact].noun, held)
            for fact, held in self._postings.items()
            if facts.vocabulary[fact].kind == "subject" and len(held) > 1
        ]
        self.searches = (self._keep_attribute, self._change_attribute, self._keep_object, self._change_object)

    def _keep_attribute(self, rng: np.random.Generator, row: int) -> Iterator[Found]:
        facts, subject = self._facts, self._subject(row)
        if subject is None:
            return
        for slot in rng.permutation(facts.values.shape[1]).tolist():
            fact = int(facts.values[row, slot])
            name = facts.slots.slots[slot].name
            if fact < 0:
                continue
            word = facts.vocabulary[fact].word
            condition = Condition("focus_attribute", attribute=name, value="" if name else word)
            yield from self._focus(rng, row, condition, (fact,), self._drop(subject.head, slot, subject=True))
        if facts.subjects[row] >= 0:
            condition = Condition("focus_attribute", attribute="kind")
            yield from self._focus(rng, row, condition, (int(facts.subjects[row]),), self._drop_nouns(subject.head))

    def _keep_object(self, rng: np.random.Generator, row: int) -> Iterator[Found]:
        entities = self._facts.graphs[row].entities
        for i in rng.permutation(len(entities)).tolist():
            entity = entities[i]
            named = [w for w in entity.attributes if Fact("has", entity.head, w, self._slot_of(w)) in self._number]
            wanted = [Fact("has", entity.head), *(Fact("has", entity.head, w, self._slot_of(w)) for w in named)]
            if wanted[0] not in self._number:
                continue
            # Half name the noun only; then what the noun is like has to come from the reference.
            said = entity.head if rng.random() < 0.5 or not named else f"{named[-1]} {entity.head}"
            numbers = tuple(self._number[fact] for fact in wanted[:WANTED])
            drop = self._drop_nouns(entity.head)
            yield from self._focus(rng, row, Condition("focus_object", noun=said), numbers, drop)

    def _focus(
        self, rng: np.random.Generator, row: int, condition: Condition, wanted: tuple[int, ...], drop: Bool
    ) -> Iterator[Found]:
        held = self._sample(rng, self._holding(wanted), row)
        likeness = self._likeness(row, held, drop)
        target = _pick(rng, held, -likeness, likeness <= _UNLIKE)
        if target is None:
            return
        near_row, near_target = (self._breaking(rng, base, wanted) for base in (row, target))
        yield Found(condition, target, wanted, _alternate(near_row, near_target, self._negatives))

    def _change_attribute(self, rng: np.random.Generator, row: int) -> Iterator[Found]:
        facts, subject = self._facts, self._subject(row)
        if subject is None:
            return
        same = self._sample(rng, self._postings.get(int(facts.subjects[row]), _EMPTY), row)
        edits = [(i, word) for i, e in enumerate(facts.graphs[row].entities) for word in e.attributes]
        edits.append((0, ""))
        for i in rng.permutation(len(edits)).tolist():
            position, word = edits[i]
            entity = facts.graphs[row].entities[position]
            if not word:
                yield from self._change_noun(rng, row, subject)
                continue
            slot = self._slot_of(word)
            if slot == NO_SLOT:
                continue
            drop = self._drop(entity.head, slot, subject=position == 0)
            likeness = self._likeness(row, same, drop)
            values = self._values(same, entity.head, slot, subject=position == 0)
            own = self._number.get(
                Fact("value", "", word, slot) if position == 0 else Fact("has", entity.head, word, slot), -1
            )
            target = _pick(rng, same, likeness, (values >= 0) & (values != own) & (likeness >= _ALIKE))
            if target is None:
                continue
            wanted = int(values[np.flatnonzero(same == target)[0]])
            name = facts.slots.slots[slot].name
            value, noun = facts.vocabulary[wanted].word, "" if position == 0 else entity.head
            condition = Condition("change_attribute", noun=noun, attribute=name, value=value)
            yield self._changed(rng, row, target, condition, (wanted,), drop)

    def _change_noun(self, rng: np.random.Generator, row: int, subject: Entity) -> Iterator[Found]:
        for i in rng.permutation(len(self._heads))[:6].tolist():
            noun, held = self._heads[i]
            if noun == subject.head:
                continue
            drop = self._drop_nouns(subject.head, noun)
            held = self._sample(rng, held, row)
            likeness = self._likeness(row, held, drop)
            target = _pick(rng, held, likeness, likeness >= _ALIKE)
            if target is not None:
                condition = Condition("change_attribute", attribute="kind", value=noun)
                wanted = (self._number[Fact("subject", noun)],)
                yield self._changed(rng, row, target, condition, wanted, drop)
                return

    def _change_object(self, rng: np.random.Generator, row: int) -> Iterator[Found]:
        facts, subject = self._facts, self._subject(row)
        if subject is None:
            return
        own = {entity.head for entity in facts.graphs[row].entities}
        same = self._sample(rng, self._postings.get(int(facts.subjects[row]), _EMPTY), row)
        for candidate in rng.permutation(same)[:24].tolist():
            graph = facts.graphs[candidate]
            fresh = [(i, e) for i, e in enumerate(graph.entities) if e.head not in own and self._telling(e.head)]
            if not fresh:
                continue
            position, entity = fresh[rng.integers(len(fresh))]
            drop = self._drop_nouns(entity.head)
            if not self._likeness(row, np.asarray([candidate]), drop)[0] >= _ALIKE:
                continue
            named = [w for w in entity.attributes if Fact("has", entity.head, w, self._slot_of(w)) in self._number]
            wanted = [Fact("has", entity.head)]
            said = entity.head
            if named and rng.random() < 2 / 3:
                said = f"{named[-1]} {entity.head}"
                wanted.append(Fact("has", entity.head, named[-1], self._slot_of(named[-1])))
            numbers = tuple(self._number[fact] for fact in wanted)
            relation = next((r.name for r in graph.relations if r.object == position), "")
            activity = relation if relation.split(" ")[0].endswith(_ACTIVITY) else ""
            condition = Condition("change_object", noun=said, relation=activity)
            yield self._changed(rng, row, candidate, condition, numbers, drop)

    def _changed(
        self, rng: np.random.Generator, row: int, target: int, condition: Condition, wanted: tuple[int, ...], drop: Bool
    ) -> Found:
        # The wanted value on something else than the target's rest, and the rest without the wanted value.
        kept = self._likeness(row, np.asarray([target]), drop)[0]
        held = self._sample(rng, self._holding(wanted), row)
        likeness = self._likeness(row, held, drop)
        elsewhere = _best(rng, held, likeness, likeness <= kept - _WORSE, self._negatives)
        return Found(
            condition, target, wanted, _alternate(self._breaking(rng, row, wanted), elsewhere, self._negatives)
        )

    def _breaking(self, rng: np.random.Generator, base: int, wanted: tuple[int, ...]) -> list[int]:
        """Images most like ``base`` whose captions contradict what is wanted."""
        pool = self._sample(rng, self._postings.get(int(self._facts.subjects[base]), _EMPTY), base)
        others = [held for _, held in self._heads] or [_EMPTY]
        pool = np.unique(np.concatenate([pool, self._sample(rng, others[rng.integers(len(others))], base)]))
        likeness = self._likeness(base, pool, None)
        return _best(rng, pool, likeness, self._contradict(pool, wanted), self._negatives)

    def _contradict(self, images: I64, wanted: tuple[int, ...]) -> Bool:
        """Whether captions rule out a wanted fact: they say otherwise, and are not just silent."""
        result = np.zeros(len(images), np.bool_)
        for number in wanted:
            fact = self._facts.vocabulary[number]
            lacks = ~(self._facts.rows[images] == number).any(1)
            if fact.kind == "value":
                lacks &= self._facts.values[images, fact.slot] >= 0 if fact.slot >= 0 else True
            elif fact.kind == "has" and not fact.word:
                lacks &= self._telling(fact.noun)
            elif fact.kind == "has" and fact.slot >= 0:
                bare = self._number.get(Fact("has", fact.noun), -1)
                absent = ~(self._facts.rows[images] == bare).any(1)
                otherwise = self._values(images, fact.noun, fact.slot, subject=False) >= 0
                lacks &= (absent & self._telling(fact.noun)) | otherwise
            result |= lacks
        return result

    def _holding(self, wanted: tuple[int, ...]) -> I64:
        held = self._postings.get(wanted[0], _EMPTY)
        for number in wanted[1:]:
            held = np.intersect1d(held, self._postings.get(number, _EMPTY), assume_unique=True)
        return held

    def _values(self, images: I64, noun: str, slot: int, *, subject: bool) -> I32:
        """The fact by which each image gives ``noun`` a value in a slot, -1 where it does not."""
        if subject:
            return np.asarray(self._facts.values[images, slot], np.int32)
        rows = self._facts.rows[images]
        fits = (rows >= 0) & (self._noun[rows] == self._nouns.get(noun, -1)) & (self._slot[rows] == slot)
        found = rows[np.arange(len(rows)), fits.argmax(1)]
        values: I32 = np.where(fits.any(1), found, np.int32(-1)).astype(np.int32)
        return values

    def _likeness(self, row: int, images: I64, drop: Bool | None) -> F32:
        """Jaccard overlap of facts, without the dropped ones; 0 where the reference has no others."""
        rows = self._facts.rows
        count = len(self._facts.vocabulary)
        kept = np.ones(count + 1, np.bool_)
        kept[-1] = False  # padding
        if drop is not None:
            kept[:-1] = ~drop
        mine = np.zeros(count + 1, np.bool_)
        mine[rows[row]] = True
        mine &= kept
        candidates = rows[images]
        shared = mine[candidates].sum(1)
        union = kept[candidates].sum(1) + mine.sum() - shared
        return np.asarray(shared / np.maximum(union, 1), np.float32)

    def _drop(self, noun: str, slot: int, *, subject: bool) -> Bool:
        key = (noun, slot, subject)
        if key not in self._drops:
            about = (self._noun == self._nouns.get(noun, -1)) | (self._is_value & subject)
            self._drops[key] = about & (self._slot == slot)
        return self._drops[key]

    def _drop_nouns(self, *nouns: str) -> Bool:
        return np.isin(self._noun, [self._nouns[noun] for noun in nouns if noun in self._nouns])

    def _sample(self, rng: np.random.Generator, images: I64, without: int) -> I64:
        images = images[images != without]
        return images if len(images) <= _SAMPLE else np.sort(rng.choice(images, _SAMPLE, replace=False))

    def _subject(self, row: int) -> Entity | None:
        entities = self._facts.graphs[row].entities
        return entities[0] if entities and self._facts.subjects[row] >= 0 else None

    def _slot_of(self, word: str) -> int:
        return self._slots.get(word, NO_SLOT)

    def _telling(self, noun: str) -> bool:
        """Whether a caption without the noun means an image without the thing.

        Not for a noun that most captions name ("background"): those few that do not have just left it unsaid.
        """
        number = self._number.get(Fact("has", noun, "", HEAD), -1)
        return number >= 0 and len(self._postings.get(number, _EMPTY)) <= _COMMON * self._count


_EMPTY: Final = np.empty(0, np.int64)


def _pick(rng: np.random.Generator, images: I64, score: F32, allowed: Bool) -> int | None:
    """The allowed image with the highest score, ties by lot."""
    found = _best(rng, images, score, allowed, 1)
    return found[0] if found else None


def _best(rng: np.random.Generator, images: I64, score: F32, allowed: Bool, count: int) -> list[int]:
    found = np.flatnonzero(allowed)
    order = np.lexsort((rng.random(len(found)), -score[found]))
    return [int(i) for i in images[found[order[:count]]]]


def _alternate(first: Sequence[int], second: Sequence[int], count: int) -> list[int]:
    """Items of both in turns, each once."""
    merged: dict[int, None] = {}
    for i in range(max(len(first), len(second))):
        for items in (first, second):
            if i < len(items):
                merged.setdefault(items[i])
    return list(merged)[:count]
