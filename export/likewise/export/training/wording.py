"""Conditions in words: the plain text that a benchmark asks with, and the ways in which people say the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

KINDS: Final = ("focus_attribute", "change_attribute", "focus_object", "change_object")

# How a server joins (mode, text); "{}" is the text. Goes into the composer's manifest.
FRAMES: Final[Mapping[str, str]] = {"unspecified": "{}", "focus": "same {}", "change": "now {}"}

_SPELLINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "colour": ("colour", "color"),
    "pattern": ("pattern", "texture"),
    "kind": ("kind", "type", "object", "shape"),
    "material": ("material",),
}
_KEEP_ATTRIBUTE: Final = (
    "{}",
    "same {}",
    "the same {}",
    "with the same {}",
    "in the same {}",
    "keep the {}",
    "similar {}",
)
_CHANGE_VALUE: Final = ("{}", "but {}", "make it {}", "{} instead", "the same but {}", "change to {}", "now {}")
_CHANGE_COLOUR: Final = ("in {}", "but in {}", "the same but in {}")
_CHANGE_NOUN: Final = ("{a}", "as {a}", "{a} instead", "make it {a}", "the same but {a}", "but {a}")
_CHANGE_PLACE: Final = ("{}", "{} instead", "but {}", "with {a}", "but with {a}", "on {a}", "the same with {a}")
_KEEP_OBJECT: Final = ("{}", "the {}", "same {}", "the same {}", "with the same {}", "with the {}", "keep the {}")
_ADD_OBJECT: Final = ("{a}", "with {a}", "and {a}", "add {a}", "but with {a}", "plus {a}", "the same with {a}")


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition before it is put into words.

    Attributes:
        kind: One of ``KINDS``.
        noun: What it is about: "" for the subject itself, "background", "star"; may hold attributes ("teal star").
        attribute: Name of the attribute, "kind" for the noun itself, "" where it has no name.
        value: For the change kinds, the wanted value; for a nameless attribute to keep, the value kept.
        relation: For ``change_object``, how the new thing stands to the subject where that is an activity ("riding").
    """

    kind: str
    noun: str = ""
    attribute: str = ""
    value: str = ""
    relation: str = ""

    @property
    def mode(self) -> str:
        """The key of ``FRAMES`` that this kind goes with."""
        return "focus" if self.kind.startswith("focus") else "change"

    @property
    def bare(self) -> str:
        """The plain text: "colour", "teal", "mint background", "star", "a teal star", "riding a horse"."""
        if self.kind == "focus_attribute":
            return self.attribute or self.value
        if self.kind == "change_attribute":
            if self.attribute == "kind":
                return _with_article(self.value)
            return f"{self.value} {self.noun}" if self.noun else self.value
        if self.kind == "focus_object":
            return self.noun
        return f"{self.relation} {_with_article(self.noun)}" if self.relation else _with_article(self.noun)


def framed(mode: str, text: str) -> str:
    """The text that a composer is given for a condition ``text`` under ``mode``."""
    return FRAMES[mode].replace("{}", text)


def phrase(rng: np.random.Generator, condition: Condition) -> str:
    """Put a condition into words, ready for a text encoder: half of them plain in their frame, half in free words."""
    return framed(condition.mode, condition.bare) if rng.random() < 0.5 else _free(rng, condition)


def _free(rng: np.random.Generator, condition: Condition) -> str:
    if condition.kind == "focus_attribute":
        name = condition.attribute or condition.value
        return _say(rng, _KEEP_ATTRIBUTE, _pick(rng, _SPELLINGS.get(name, (name,))))
    if condition.kind == "focus_object":
        return _say(rng, _KEEP_OBJECT, condition.noun)
    if condition.kind == "change_object":
        return condition.bare if condition.relation else _say(rng, _ADD_OBJECT, condition.noun)
    if condition.attribute == "kind":
        return _say(rng, _CHANGE_NOUN, condition.value)
    if condition.noun:
        return _say(rng, _CHANGE_PLACE, f"{condition.value} {condition.noun}")
    ways = (*_CHANGE_VALUE, *_CHANGE_COLOUR) if condition.attribute == "colour" else _CHANGE_VALUE
    return _say(rng, ways, condition.value)


def _say(rng: np.random.Generator, ways: tuple[str, ...], words: str) -> str:
    return _pick(rng, ways).replace("{a}", _with_article(words)).replace("{}", words)


def _with_article(words: str) -> str:
    if words.endswith("s") and not words.endswith(("ss", "us")):
        return words  # "long sleeves"
    return ("an " if words[:1] in "aeiou" else "a ") + words


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[rng.integers(len(choices))]


def vocabulary_texts() -> list[str]:
    """Every word that a condition may add to those of the captions, for a tokenizer's vocabulary."""
    ways = (
        *_KEEP_ATTRIBUTE, *_CHANGE_VALUE, *_CHANGE_COLOUR, *_CHANGE_NOUN, *_CHANGE_PLACE, *_KEEP_OBJECT, *_ADD_OBJECT,
        *FRAMES.values(),
    )  # fmt: skip
    texts = [way.replace("{a}", "a an").replace("{}", " ") for way in ways]
    return texts + [word for words in _SPELLINGS.values() for word in words] + ["a", "an", "size", "age"]
