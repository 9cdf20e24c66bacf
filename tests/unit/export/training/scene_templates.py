"""Templates of the four GeneCIS tasks over fresh scenes of the second world: from what is drawn, not from captions.

Every wrong candidate breaks the condition or the rest in one thing, as in the strict galleries of the built-in world.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from tests.unit.export.training.scenes import VALUES, Scene, another, edit, place, sample_scene, sample_thing

CANDIDATES: Final = {"focus_attribute": 10, "change_attribute": 15, "focus_object": 15, "change_object": 15}
ATTRIBUTES: Final = ("shape", "colour", "texture", "background")
_NAMES: Final = {"shape": "kind", "texture": "pattern"}  # what the captions' attributes are called there


@dataclass(frozen=True, slots=True)
class Template:
    """One query; ``candidates`` are shuffled and ``target`` is the right one's index."""

    mode: str
    text: str
    reference: Scene
    candidates: tuple[Scene, ...]
    target: int


_Built = tuple[str, str, Scene, Scene, list[Scene]]


def build(task: str, count: int, *, seed: int) -> list[Template]:
    """``count`` templates of a task; the same arguments give the same templates."""
    templates = []
    for i in range(count):
        rng = np.random.default_rng((8001, seed, list(CANDIDATES).index(task), i))
        mode, text, reference, target, wrong = _BUILDERS[task](rng)
        scenes = [place(rng, scene) for scene in (target, *wrong)]
        order = rng.permutation(len(scenes))
        candidates = tuple(scenes[j] for j in order)
        templates.append(Template(mode, text, reference, candidates, int(np.flatnonzero(order == 0)[0])))
    return templates


def _focus_attribute(rng: np.random.Generator) -> _Built:
    attribute = ATTRIBUTES[rng.integers(4)]
    reference = sample_scene(rng)
    value = reference.value(attribute)
    target = sample_scene(rng)
    for name in ATTRIBUTES:
        target = edit(target, name, value if name == attribute else another(rng, name, reference.value(name)))
    wrong = [
        edit(target if i % 2 else reference, attribute, another(rng, attribute, value))
        for i in range(CANDIDATES["focus_attribute"] - 1)
    ]
    return "focus", _NAMES.get(attribute, attribute), reference, target, wrong


def _change_attribute(rng: np.random.Generator) -> _Built:
    attribute = ATTRIBUTES[rng.integers(4)]
    reference = sample_scene(rng)
    value = another(rng, attribute, reference.value(attribute))
    target = edit(reference, attribute, value)
    wrong = [reference]
    while len(wrong) < CANDIDATES["change_attribute"] - 1:
        if len(wrong) % 2:
            broken = edit(reference, attribute, another(rng, attribute, value))
        else:
            name = [a for a in ATTRIBUTES if a != attribute][rng.integers(3)]
            broken = edit(target, name, another(rng, name, target.value(name)))
        wrong.append(broken)
    words = {"background": f"{value} background", "shape": _article(value)}
    return "change", words.get(attribute, value), reference, target, wrong


def _focus_object(rng: np.random.Generator) -> _Built:
    reference = sample_scene(rng, second=True)
    index = int(rng.integers(2))
    kept = reference.things[index]
    target = edit(sample_scene(rng, second=True), "background", another(rng, "background", reference.background))
    at = int(rng.integers(2))
    for name in ("shape", "colour", "texture"):
        target = edit(target, name, getattr(kept, name), index=at)
    free = [s for s in VALUES["shape"] if s not in {thing.shape for thing in reference.things}]
    target = edit(target, "shape", free[rng.integers(len(free))], index=1 - at)
    wrong = []
    for i in range(CANDIDATES["focus_object"] - 1):
        base, place_of = (reference, index) if i % 2 else (target, at)
        name = ("shape", "colour")[(i // 2) % 2]
        taken = {thing.shape for thing in base.things}
        choices = [v for v in VALUES[name] if v != getattr(kept, name) and not (name == "shape" and v in taken)]
        wrong.append(edit(base, name, choices[rng.integers(len(choices))], index=place_of))
    text = kept.shape if rng.random() < 0.5 else f"{kept.colour} {kept.shape}"
    return "focus", text, reference, target, wrong


def _change_object(rng: np.random.Generator) -> _Built:
    reference = sample_scene(rng, second=False)
    added = sample_thing(rng)
    while added.shape == reference.things[0].shape:
        added = sample_thing(rng)
    target = replace(reference, things=(*reference.things, added))
    wrong = [reference]
    while len(wrong) < CANDIDATES["change_object"] - 1:
        step = len(wrong) % 4
        if step in (0, 1):
            name = ("colour", "shape")[step]
            taken = {thing.shape for thing in target.things}
            choices = [v for v in VALUES[name] if v != getattr(added, name) and not (name == "shape" and v in taken)]
            broken = edit(target, name, choices[rng.integers(len(choices))], index=1)
        elif step == 2:
            name = ("colour", "texture", "background")[rng.integers(3)]
            broken = edit(target, name, another(rng, name, target.value(name)))
        else:
            broken = sample_scene(rng, second=False)
            if broken.things[0].shape == added.shape:
                continue
            broken = replace(broken, things=(*broken.things, added))
        if broken.content != target.content:
            wrong.append(broken)
    return "change", _article(f"{added.colour} {added.shape}"), reference, target, wrong


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


_BUILDERS: Final[dict[str, Callable[[np.random.Generator], _Built]]] = {
    "focus_attribute": _focus_attribute,
    "change_attribute": _change_attribute,
    "focus_object": _focus_object,
    "change_object": _change_object,
}
