"""What a condition says, and the many ways in which people say it.

Four kinds, after GeneCIS: keep an attribute, change an attribute, keep an object, add an object. Each has
bare phrases (the text that goes with an explicit mode) and free ones (the text alone says whether to keep or
to change).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

KINDS: Final = ("focus_attribute", "change_attribute", "focus_object", "change_object")

# How a server joins (mode, text); "{}" is the text. Part of the composer's manifest, and what the Combiner is
# trained with.
CONDITION_TEMPLATES: Final[dict[str, str]] = {"unspecified": "{}", "focus": "same {}", "change": "now {}"}

_ATTRIBUTE_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "colour": ("colour", "color"),
    "shape": ("shape", "form"),
    "texture": ("texture", "pattern"),
    "background": ("background", "backdrop"),
    "size": ("size",),
}
_KEEP_ATTRIBUTE: Final = (
    "{}",
    "same {}",
    "the same {}",
    "with the same {}",
    "in the same {}",
    "of the same {}",
    "on the same {}",
    "keep the {}",
    "similar {}",
    "same {} as this",
    "the {}",
)
_CHANGE: Final[dict[str, tuple[str, ...]]] = {
    "colour": (
        "{}",
        "in {}",
        "but {}",
        "but in {}",
        "make it {}",
        "{} instead",
        "the same but {}",
        "the same but in {}",
        "{} colour",
        "change the colour to {}",
        "change the color to {}",
        "change to {}",
        "the same in {}",
    ),
    "shape": (
        "{} shape",
        "but {} shape",
        "{} shaped",
        "shape {}",
        "as a {}",
        "a {} instead",
        "the same but a {}",
        "change the shape to {}",
        "change the shape to a {}",
        "make it a {}",
        "but as a {}",
    ),
    "texture": (
        "{}",
        "but {}",
        "make it {}",
        "{} instead",
        "the same but {}",
        "{} texture",
        "{} pattern",
        "with a {} pattern",
        "change the texture to {}",
    ),
    "background": (
        "{} background",
        "on a {} background",
        "with a {} background",
        "but on a {} background",
        "in front of a {} background",
        "against a {} background",
        "on {}",
        "change the background to {}",
        "the same but on a {} background",
        "the same on a {} background",
        "on a {} backdrop",
    ),
    "size": (
        "{}",
        "but {}",
        "make it {}",
        "the same but {}",
        "{} size",
        "change the size to {}",
    ),
}
_CHANGE_SPECIAL: Final[dict[str, tuple[str, ...]]] = {
    "striped": ("with stripes", "but with stripes"),
    "dotted": ("with dots", "but with dots"),
    "checked": ("with checks", "but with checks"),
    "small": ("smaller", "but smaller"),
    "large": ("bigger", "larger", "but bigger"),
}
# A definite article keeps, an indefinite one adds: "the star" against "a star".
_KEEP_OBJECT: Final = (
    "the {}",
    "same {}",
    "the same {}",
    "with the same {}",
    "with the {}",
    "keep the {}",
    "also with the {}",
    "the same {} as here",
)
_ADD_OBJECT: Final = (
    "a {}",
    "with a {}",
    "but with a {}",
    "and a {}",
    "add a {}",
    "plus a {}",
    "also a {}",
    "with a {} added",
    "the same with a {}",
    "the same but with a {}",
)
_BARE_OBJECT: Final = ("a {}", "{}", "with a {}")
_SPOKEN: Final[dict[str, tuple[str, ...]]] = {
    "grey": ("gray",),
    "purple": ("violet",),
    "cyan": ("turquoise",),
    "magenta": ("fuchsia",),
    "diamond": ("rhombus",),
    "bolt": ("lightning bolt",),
    "large": ("big",),
    "dotted": ("spotted",),
    "checked": ("chequered", "checkered"),
    "plain": ("solid",),
    "circle": ("disc",),
    "crescent": ("moon", "crescent moon"),
    "grainy": ("noisy",),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition, before it is put into words.

    Attributes:
        kind: One of ``KINDS``.
        attribute: For the attribute kinds, a key of ``world.VALUES``; else "".
        value: For ``change_attribute``, the wanted value; else "".
        noun: For the object kinds, the words that name the object, such as "blue star"; else "".
    """

    kind: str
    attribute: str = ""
    value: str = ""
    noun: str = ""

    @property
    def mode(self) -> str:
        """The key of ``CONDITION_TEMPLATES`` that this kind goes with."""
        return "focus" if self.kind.startswith("focus") else "change"

    @property
    def bare(self) -> str:
        """The plain text of the benchmark, used with an explicit mode: "colour", "blue", "star", "a blue star"."""
        if self.kind == "focus_attribute":
            return self.attribute
        if self.kind == "change_attribute":
            return f"{self.value} {self.attribute}" if self.attribute in ("shape", "background") else self.value
        return self.noun if self.kind == "focus_object" else f"a {self.noun}"


def compose_text(mode: str, text: str) -> str:
    """The text that the composer is given for a condition ``text`` under ``mode``."""
    return CONDITION_TEMPLATES[mode].format(text)


def phrase(rng: np.random.Generator, condition: Condition) -> str:
    """Put a condition into words, ready for the text encoder: half through its mode's template, half in free words."""
    explicit = rng.random() < 0.5
    if explicit and rng.random() < 0.5:
        return compose_text(condition.mode, _respell(rng, condition.bare))
    text = _free(rng, condition)
    if explicit:
        if condition.kind in ("focus_object", "change_object") and rng.random() < 0.5:
            text = _pick(rng, _BARE_OBJECT).format(condition.noun)
        return compose_text(condition.mode, _respell(rng, text))
    return _respell(rng, text)


def _free(rng: np.random.Generator, condition: Condition) -> str:
    if condition.kind == "focus_attribute":
        return _pick(rng, _KEEP_ATTRIBUTE).format(_pick(rng, _ATTRIBUTE_WORDS[condition.attribute]))
    if condition.kind == "change_attribute":
        special = _CHANGE_SPECIAL.get(condition.value)
        if special and rng.random() < 0.25:
            return _pick(rng, special)
        return _pick(rng, _CHANGE[condition.attribute]).format(condition.value)
    return _pick(rng, _KEEP_OBJECT if condition.kind == "focus_object" else _ADD_OBJECT).format(condition.noun)


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[rng.integers(len(choices))]


def _respell(rng: np.random.Generator, text: str) -> str:
    if rng.random() < 0.8:
        return text
    words = [_pick(rng, _SPOKEN[w]) if w in _SPOKEN else w for w in text.split()]
    return " ".join(words)


def vocabulary_texts() -> list[str]:
    """Every word that conditions can hold, for the tokenizer's vocabulary."""
    groups = (_KEEP_ATTRIBUTE, _KEEP_OBJECT, _ADD_OBJECT, *_CHANGE.values(), *_CHANGE_SPECIAL.values())
    texts = [text.replace("{}", " ") for group in groups for text in group]
    texts += [word for words in (*_ATTRIBUTE_WORDS.values(), *_SPOKEN.values()) for word in words]
    return texts + [template.replace("{}", " ") for template in CONDITION_TEMPLATES.values()]
