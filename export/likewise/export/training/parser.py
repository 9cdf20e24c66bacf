"""The default caption parser: closed classes of function words, and what the corpus says about all others.

A noun phrase is a run of other words; its last word is the noun. Verbs between two phrases become relations. Which
words are nouns, modifiers or verbs is learnt from where they stand in all captions, so nothing is downloaded and new
words need no dictionary. Against a dependency parser it is coarse; it is meant for the short descriptive captions that
people keep with their pictures.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from likewise.export.training.graph import CaptionGraph, Entity, Relation
from likewise.export.training.words import (
    ADVERBS,
    CONJUNCTIONS,
    COPULAS,
    DETERMINERS,
    FRAME,
    LINKS,
    PHRASES,
    PRONOUNS,
    WORDS,
)

_PHRASE: Final = re.compile(r"\b(" + "|".join(sorted(map(re.escape, PHRASES), key=len, reverse=True)) + r")\b")
# Porter (1980): "-ing" and "-ed" are endings only where the stem before them has a vowel, so "ring" and "red" are not.
_VERB: Final = re.compile(r".*[aeiouy].*(ing|ed)$")
_THIRD_PERSON: Final = re.compile(r"[a-z]{2,}[^s]s$")
_RARELY: Final = 0.1
_MODIFIER: Final = 0.35  # a word that ends a noun phrase more rarely than this is no noun


@dataclass(slots=True)
class _Chunk:
    """A run of content words, with what stands before and after it."""

    words: list[str]
    link: str  # the preposition, conjunction, copula or "" before it
    determined: bool
    before: str = ""  # what follows it: "link", "determiner", "end"


@dataclass(slots=True)
class _Counts:
    """Where words stand over a whole corpus."""

    total: Counter[str] = field(default_factory=Counter)
    last: Counter[str] = field(default_factory=Counter)
    determined: Counter[str] = field(default_factory=Counter)

    def is_modifier(self, word: str) -> bool:
        """Whether the word rarely ends a noun phrase."""
        return self.last[word] < _MODIFIER * self.total[word]

    def is_participle(self, word: str) -> bool:
        """Whether the word is inflected as a verb and hardly ever follows a determiner, as "building" would."""
        return _VERB.match(word) is not None and self.determined[word] <= _RARELY * self.total[word]

    def verb_at(self, words: Sequence[str], *, at_end: bool) -> int | None:
        """Position of a verb in a run of words, None without one.

        Args:
            words: The run.
            at_end: Whether the caption ends with the run, so that its last word can have no object.
        """
        for i in range(1, len(words)):
            final = i == len(words) - 1
            if final and at_end:
                return None
            if self.is_participle(words[i]) and (final or not self.is_modifier(words[i - 1])):
                return i
            person = _THIRD_PERSON.match(words[i]) and self.determined[words[i]] <= _RARELY * self.total[words[i]]
            if final and person and not self.is_modifier(words[i - 1]):
                return i
        return None


class RuleParser:
    """A ``CaptionParser`` for English without any model. ``parse`` learns from the captions that it is given."""

    def parse(self, captions: Sequence[str]) -> list[CaptionGraph]:
        """One graph per caption; the same captions give the same graphs."""
        chunked = [_chunks(caption) for caption in captions]
        counts = _count(chunked)
        return [_graph(chunks, counts) for chunks in chunked]


def _chunks(caption: str) -> list[_Chunk]:
    text = FRAME.sub("", caption.lower().strip())
    text = _PHRASE.sub(lambda match: PHRASES[match.group(1)].replace(" ", "_"), text)
    chunks: list[_Chunk] = []
    words: list[str] = []
    link, determined = "", False

    def close(before: str) -> None:
        nonlocal words, link, determined
        if words:
            chunks.append(_Chunk(words, link, determined, before))
            words, link, determined = [], "", False

    for token in re.findall(r"[^\W_]+(?:_[^\W_]+)+|" + WORDS.pattern, text):
        plain = token.replace("_", " ")
        if plain in LINKS or plain in CONJUNCTIONS or plain in COPULAS:
            close("link")
            # "with a hat and a scarf": the conjunction repeats the link before it, if there was one.
            link = plain
            determined = False
        elif token in DETERMINERS:
            close("determiner")
            determined = True
        elif token in PRONOUNS or token in ADVERBS:
            continue
        else:
            words.append(token)
    close("end")
    return chunks


def _count(chunked: Sequence[Sequence[_Chunk]]) -> _Counts:
    counts = _Counts()
    for chunks in chunked:
        for chunk in chunks:
            counts.total.update(chunk.words)
            if chunk.determined:
                counts.determined[chunk.words[0]] += 1
    for chunks in chunked:
        for chunk in chunks:
            words = chunk.words
            if len(words) > 1 and chunk.before != "end" and counts.is_participle(words[-1]):
                words = words[:-1]
            # "is brown" and "in black" say nothing about whether the word is a noun.
            if chunk.determined or chunk.link not in COPULAS | {"in"}:
                counts.last[words[-1]] += 1
    return counts


def _graph(chunks: Sequence[_Chunk], counts: _Counts) -> CaptionGraph:
    entities: list[Entity] = []
    relations: list[Relation] = []
    verb, anchor, previous = "", 0, ""
    for run, link, determined, before in _phrases(chunks, counts):
        if not determined and entities and all(counts.is_modifier(word) for word in run):
            # "the star is red", "a woman in black": a description without a noun.
            if link in COPULAS or link in ("in", ""):
                last = entities[-1]
                entities[-1] = Entity(last.head, tuple(dict.fromkeys((*last.attributes, *run))))
                verb = before
                continue
            if len(run) == 1 and counts.is_participle(run[0]):
                verb = run[0]
                continue
        entity = Entity(_singular(run[-1], counts), tuple(dict.fromkeys(run[:-1])))
        name = " ".join(part for part in (verb, "" if link in COPULAS or link in CONJUNCTIONS else link) if part)
        if entities:
            if not name and link in CONJUNCTIONS and previous:
                name = previous  # "next to a cat and a dog"
            elif name:
                anchor = _anchor(link, verb, len(entities) - 1, entity)
            if name:
                relations.append(Relation(anchor, name, len(entities)))
        entities.append(entity)
        previous, verb = name, before
    return CaptionGraph(tuple(entities), tuple(relations))


def _phrases(chunks: Sequence[_Chunk], counts: _Counts) -> Iterator[tuple[list[str], str, bool, str]]:
    """Noun phrases: their words, the link before, whether a determiner stands there, and the verb after."""
    for chunk in chunks:
        words = chunk.words
        at = counts.verb_at(words, at_end=chunk.before == "end")
        if at is None:
            yield words, chunk.link, chunk.determined, ""
            continue
        yield words[:at], chunk.link, chunk.determined, words[at]
        if at + 1 < len(words):  # "man playing guitar"
            yield words[at + 1 :], "", True, ""


def _anchor(link: str, verb: str, last: int, entity: Entity) -> int:
    """Which thing a new relation belongs to: the one just before, but backgrounds and places belong to the subject."""
    if verb or link == "of":
        return last
    return 0 if entity.head in ("background", "backdrop", "setting") else last


def _singular(word: str, counts: _Counts) -> str:
    """The singular if the corpus uses it too; else the word as it is."""
    if not word.endswith("s") or word.endswith("ss"):
        return word
    for ending, replacement in (("ies", "y"), ("es", ""), ("s", "")):
        if word.endswith(ending) and counts.total[word[: -len(ending)] + replacement]:
            return word[: -len(ending)] + replacement
    return word
