"""Captions of scenes, and their parse back into a scene graph (subject, attributes, relation, object).

Training knows scenes only through such text: triplets are mined from what ``parse`` reads in the full
captions, as GeneCIS does with CC3M (Vaze et al., GeneCIS, 2023, section 4). Short and rephrased variants
teach the text encoder what people type.
"""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from likewise.export.shapes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing

RELATIONS: Final = ("left of", "right of", "above", "below")
_INVERSE: Final = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# Further words for the same thing, most common first. The parser reads them all as the first.
SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "circle": ("disc", "disk", "dot"),
    "cross": ("plus",),
    "heart": ("love heart",),
    "ring": ("donut", "hoop"),
    "crescent": ("moon", "crescent moon"),
    "square": ("box",),
    "diamond": ("rhombus",),
    "bolt": ("lightning bolt",),
    "chevron": ("angle",),
    "cyan": ("turquoise",),
    "purple": ("violet",),
    "magenta": ("fuchsia",),
    "grey": ("gray",),
    "plain": ("solid",),
    "dotted": ("spotted", "dotty"),
    "striped": ("stripy",),
    "checked": ("chequered", "checkered"),
    "small": ("little", "tiny"),
    "large": ("big", "huge"),
    "grainy": ("noisy",),
    "sky": ("sky blue",),
    "background": ("backdrop",),
    "left of": ("to the left of",),
    "right of": ("to the right of",),
    "above": ("over", "on top of"),
    "below": ("under", "beneath"),
}
_CANONICAL: Final = {word: canon for canon, words in SYNONYMS.items() for word in words}
_CANONICAL_PATTERN: Final = re.compile(
    r"\b(" + "|".join(sorted(map(re.escape, _CANONICAL), key=len, reverse=True)) + r")\b"
)
_WITH_TEXTURE: Final = {"striped": "stripes", "dotted": "dots", "checked": "checks"}


@dataclass(frozen=True, slots=True)
class Node:
    """One object as a text names it; None where the text is silent."""

    shape: str | None = None
    colour: str | None = None
    texture: str | None = None
    size: str | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """A scene as a text describes it.

    ``relations`` are (subject, relation, object) over indices of ``nodes``.
    """

    nodes: tuple[Node, ...]
    relations: tuple[tuple[int, str, int], ...]
    background: str | None

    @property
    def main(self) -> int | None:
        """Index of the node that attribute conditions speak of: the only one, or the only large one; else None."""
        if len(self.nodes) == 1:
            return 0
        large = [i for i, node in enumerate(self.nodes) if node.size == "large"]
        return large[0] if len(large) == 1 else None


def relation(subject: Thing, other: Thing) -> str:
    """Where ``subject`` lies as seen from ``other``, along the axis on which they differ most."""
    dx, dy = subject.x - other.x, subject.y - other.y
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def full_caption(scene: Scene) -> str:
    """The caption that names everything; ``parse`` reads it back without loss.

    >>> from likewise.export.shapes.world import Scene, Thing
    >>> full_caption(Scene((Thing("star", "red", "plain", "large"),), "white"))
    'a large plain red star on a white background'
    """
    phrases = [f"a {t.size} {t.texture} {t.colour} {t.shape}" for t in scene.things]
    text = phrases[0]
    if len(phrases) > 1:
        text += f" {relation(scene.things[0], scene.things[1])} {phrases[1]}"
    if len(phrases) > 2:
        text += f" and {phrases[2]}"
    return f"{text} on a {scene.background} background"


def vary_caption(rng: np.random.Generator, scene: Scene) -> str:
    """A caption as people write them: 45 % full, the rest with words dropped, reordered or replaced.

    Whatever is said stays true, so a dropped word only makes the caption match more scenes.
    """
    style = rng.random()
    if style < 0.45:
        return full_caption(scene)
    order = rng.permutation(len(scene.things))
    keep = 0.55 if style < 0.75 else 0.85
    phrases = [_phrase(rng, scene.things[i], keep) for i in order]
    if len(phrases) > 1 and rng.random() < 0.2:
        phrases, order = phrases[: len(phrases) - 1], order[: len(phrases) - 1]
    if len(phrases) == 1:
        text = phrases[0]
        if len(scene.things) == 1 and rng.random() < 0.15:
            text += f" {_place(scene.things[0])}"
    else:
        link = "and"
        if rng.random() < 0.6:
            link = _reword(rng, relation(scene.things[order[0]], scene.things[order[1]]))
        text = f"{phrases[0]} {link} {phrases[1]}"
        if len(phrases) > 2:
            text += f" and {phrases[2]}"
    if rng.random() < keep - 0.1:
        ground = f"{_reword(rng, scene.background)} {_reword(rng, 'background')}"
        text += f" {('on a', 'on', 'in front of a', 'with a', 'against a')[rng.integers(5)]} {ground}"
    elif rng.random() < 0.1:
        return f"{_reword(rng, scene.background)} background"
    if rng.random() < 0.15:
        text = f"{('a picture of', 'an image of', 'there is', 'show me', 'find', 'photo of')[rng.integers(6)]} {text}"
    return text


def _phrase(rng: np.random.Generator, thing: Thing, keep: float) -> str:
    words: list[str] = []
    if rng.random() < keep - 0.15:
        words.append(_reword(rng, thing.size))
    tail = ""
    if rng.random() < keep - (0.35 if thing.texture == "plain" else 0.1):
        if thing.texture in _WITH_TEXTURE and rng.random() < 0.2:
            tail = f" with {_WITH_TEXTURE[thing.texture]}"
        else:
            words.append(_reword(rng, thing.texture))
    if rng.random() < keep + 0.1:
        words.append(_reword(rng, thing.colour))
    noun = "object" if words and rng.random() < 0.08 else _reword(rng, thing.shape)
    article = "" if rng.random() < 0.15 else "the " if rng.random() < 0.05 else "a "
    return f"{article}{' '.join([*words, noun])}{tail}"


def _place(thing: Thing) -> str:
    dx, dy = thing.x - 0.5, thing.y - 0.5
    if max(abs(dx), abs(dy)) < 0.1:
        return "in the middle"
    if abs(dx) >= abs(dy):
        return "on the left" if dx < 0 else "on the right"
    return "at the top" if dy < 0 else "at the bottom"


def _reword(rng: np.random.Generator, word: str) -> str:
    others = SYNONYMS.get(word)
    if others is None or rng.random() < 0.6:
        return word
    return others[rng.integers(len(others))]


def parse(text: str) -> Graph:
    """Read a caption into a graph; words it does not know are skipped.

    Reads what ``full_caption`` and ``vary_caption`` write: object phrases joined by relations or "and", then
    the background.
    """
    text = _CANONICAL_PATTERN.sub(lambda m: _CANONICAL[m.group(1)], text.lower())
    background = None
    match = re.search(r"\b(" + "|".join(BACKGROUNDS) + r") background\b", text)
    if match:
        background = match.group(1)
        text = text[: match.start()] + text[match.end() :]
    parts = re.split(r"\b(left of|right of|above|below|and)\b", text)
    nodes: list[Node] = []
    relations: list[tuple[int, str, int]] = []
    for i in range(0, len(parts), 2):
        node = _parse_node(parts[i])
        if node is None:
            continue
        if i and nodes and parts[i - 1] in RELATIONS:
            relations.append((len(nodes) - 1, parts[i - 1], len(nodes)))
        nodes.append(node)
    return Graph(tuple(nodes), tuple(relations), background)


def _parse_node(phrase: str) -> Node | None:
    words = set(phrase.split())
    for texture, plural in _WITH_TEXTURE.items():
        if plural in words:
            words.add(texture)

    def one(values: tuple[str, ...]) -> str | None:
        return next((value for value in values if value in words), None)

    node = Node(one(SHAPES), one(COLOURS), one(TEXTURES), one(SIZES))
    return None if node == Node() else node


def inverse(name: str) -> str:
    """The same relation as seen from the other object."""
    return _INVERSE[name]
