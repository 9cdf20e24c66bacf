"""Evaluation templates for the four GeneCIS tasks: reference, condition, target and wrong candidates.

In a *strict* gallery every wrong candidate shares all with the reference, or with the target, but what the
condition asks for; in a *soft* one it shares each part with probability one half. docs/model.md describes
both.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from likewise.export.shapes.conditions import Condition
from likewise.export.shapes.pool import other, recolour, reshape
from likewise.export.shapes.world import (
    BACKGROUNDS,
    TEST_PAIRS,
    TEXTURES,
    TRAINING_PAIRS,
    VALIDATION_PAIRS,
    VALUES,
    Pair,
    Scene,
    Thing,
    add_thing,
    edit_thing,
    place,
    redraw,
    sample_scene,
    sample_thing,
)

CANDIDATES: Final = {"focus_attribute": 10, "change_attribute": 15, "focus_object": 15, "change_object": 15}
DESIGNS: Final = ("strict", "soft")
ATTRIBUTES: Final = ("shape", "colour", "texture", "background")


@dataclass(frozen=True, slots=True)
class Split:
    """Which seeds and which (shape, colour) pairs an evaluation uses.

    Attributes:
        name: For reports.
        stream: First word of every random stream of the split; training uses none of these streams.
        key_pairs: Pairs of the object that the condition is about.
        pairs: Pairs of all objects; contains ``key_pairs``.
    """

    name: str
    stream: int
    key_pairs: frozenset[Pair]
    pairs: frozenset[Pair]


SPLITS: Final[dict[str, Split]] = {
    split.name: split
    for split in (
        Split("validation", 7001, VALIDATION_PAIRS, TRAINING_PAIRS | VALIDATION_PAIRS),
        Split("validation-seen", 7002, TRAINING_PAIRS, TRAINING_PAIRS),
        Split("held-out", 7003, TEST_PAIRS, TRAINING_PAIRS | TEST_PAIRS),
        Split("seen", 7004, TRAINING_PAIRS, TRAINING_PAIRS),
    )
}


@dataclass(frozen=True, slots=True)
class Template:
    """One query of the benchmark; ``candidates`` are shuffled and ``target`` is the right one's index."""

    condition: Condition
    reference: Scene
    candidates: tuple[Scene, ...]
    target: int


def build_templates(task: str, count: int, *, split: Split, design: str, seed: int = 0) -> list[Template]:
    """Build ``count`` templates of a task; the same arguments give the same templates.

    Args:
        task: One of ``CANDIDATES``.
        count: How many.
        split: Seeds and pairs.
        design: "strict" or "soft".
        seed: Another seed, another set of templates within the split.
    """
    if design not in DESIGNS:
        raise ValueError(f"design must be one of {DESIGNS}, got {design!r}")
    number, builder = list(CANDIDATES).index(task), _BUILDERS[task]
    templates = []
    for i in range(count):
        rng = np.random.default_rng((split.stream, seed, number, DESIGNS.index(design), i))
        condition, reference, target, wrong = builder(rng, split, design == "strict")
        scenes = [target, *wrong]
        order = rng.permutation(len(scenes))
        candidates = tuple(scenes[j] for j in order)
        templates.append(Template(condition, reference, candidates, int(np.flatnonzero(order == 0)[0])))
    return templates


_Built = tuple[Condition, Scene, Scene, list[Scene]]


def _focus_attribute(rng: np.random.Generator, split: Split, strict: bool) -> _Built:
    attribute = ATTRIBUTES[rng.integers(4)]
    reference = _main_scene(rng, split)
    value = _value(reference, attribute)
    while True:
        target = _main_scene(rng, split, any_pair=True)
        changed = _change(rng, target, attribute, split, value)
        if changed is None:
            continue
        if all(_value(changed, a) != _value(reference, a) for a in ATTRIBUTES if a != attribute):
            break
    wrong: list[Scene] = []
    while len(wrong) < CANDIDATES["focus_attribute"] - 1:
        # Half from either side: a target that is the odd one out would be found by any query at all.
        scene = changed if len(wrong) % 2 else reference
        scene = scene if strict else _soften(rng, scene, split, keep=attribute)
        broken = _change(rng, scene, attribute, split)
        if broken is not None and _value(broken, attribute) != value:
            wrong.append(redraw(rng, broken))
    return Condition("focus_attribute", attribute), reference, redraw(rng, changed), wrong


def _change_attribute(rng: np.random.Generator, split: Split, strict: bool) -> _Built:
    attribute = ATTRIBUTES[rng.integers(4)]
    reference = None
    while reference is None:
        target = _main_scene(rng, split)
        reference = _change(rng, target, attribute, split)
    reference = redraw(rng, reference)
    value = _value(target, attribute)
    wrong = [redraw(rng, reference)] if strict else []
    others = [a for a in ATTRIBUTES if a != attribute]
    while len(wrong) < CANDIDATES["change_attribute"] - 1:
        if len(wrong) % 2:
            scene = reference if strict else _soften(rng, reference, split, keep=attribute)
            broken = _misplace(rng, scene, attribute, value, split) if len(wrong) % 4 == 1 else None
            broken = broken or _change(rng, scene, attribute, split)
            if broken is None or _value(broken, attribute) == value:
                continue
        else:
            broken = _change(rng, target, others[rng.integers(3)], split)
            if broken is None:
                continue
            if not strict:
                broken = _soften(rng, broken, split, keep=attribute)
        if _main_values(broken) != _main_values(target):
            wrong.append(redraw(rng, broken))
    return Condition("change_attribute", attribute, value), reference, redraw(rng, target), wrong


def _focus_object(rng: np.random.Generator, split: Split, strict: bool) -> _Built:
    count = 2 + int(rng.random() < 0.3)
    while True:
        scene = sample_scene(rng, sorted(split.pairs), count=count)
        index = int(rng.integers(count))
        scene = _with_key(rng, scene, index, split)
        shapes = [thing.shape for thing in scene.things]
        if _distinct(scene) and shapes.count(shapes[index]) == 1:
            break
    reference, named = redraw(rng, scene), scene.things[index]
    taken = {thing.pair for thing in reference.things}
    while True:
        around = sample_scene(rng, sorted(split.pairs - taken), count=2 + int(rng.random() < 0.3))
        position = int(rng.integers(len(around.things)))
        if around.background != reference.background:
            break
    size = around.things[position].size
    target = edit_thing(around, position, shape=named.shape, colour=named.colour, texture=named.texture, size=size)
    wrong: list[Scene] = []
    while len(wrong) < CANDIDATES["focus_object"] - 1:
        from_reference = len(wrong) % 2 == 0
        base, i = (reference, index) if from_reference else (target, position)
        if not strict:
            base = _soften_others(rng, base, i, split)
        broken = (recolour if (len(wrong) // 2) % 2 else reshape)(rng, base, i, split.pairs)
        if broken is not None and named.pair not in {thing.pair for thing in broken.things}:
            wrong.append(redraw(rng, broken))
    # Half name the shape only, so that the colour must come from the reference; text alone may find the others.
    noun = named.shape if rng.random() < 0.5 else f"{named.colour} {named.shape}"
    return Condition("focus_object", noun=noun), reference, redraw(rng, target), wrong


def _change_object(rng: np.random.Generator, split: Split, strict: bool) -> _Built:
    ordered = sorted(split.pairs)
    by_shape = rng.random() < 1 / 3
    while True:
        reference = sample_scene(rng, ordered, count=1 + int(rng.random() < 0.4))
        added = sample_thing(rng, sorted(split.key_pairs), size="small")
        if added.shape in {thing.shape for thing in reference.things}:
            continue
        target = add_thing(rng, reference, added)
        if target is not None:
            break
    last = len(target.things) - 1
    wrong = [redraw(rng, reference)] if strict else []
    while len(wrong) < CANDIDATES["change_object"] - 1:
        step = len(wrong) % 4
        if step in (0, 1):
            base = target if strict else _soften_others(rng, target, last, split)
            edit = reshape if by_shape or step else recolour
            broken = edit(rng, base, last, split.pairs)
        elif step == 2:
            broken = _break_rest(rng, target, last, split)
            if broken is not None and not strict:
                broken = _soften_others(rng, broken, last, split)
        else:
            broken = _elsewhere(rng, added, split)
        if broken is None or _matches(broken, target, added, by_shape=by_shape):
            continue
        wrong.append(redraw(rng, broken))
    noun = added.shape if by_shape else f"{added.colour} {added.shape}"
    return Condition("change_object", noun=noun), reference, redraw(rng, target), wrong


def _main_scene(rng: np.random.Generator, split: Split, *, any_pair: bool = False) -> Scene:
    """A scene of one or two objects with a main one, whose pair is a key pair unless ``any_pair``."""
    while True:
        scene = sample_scene(rng, sorted(split.pairs), count=1 + int(rng.random() < 0.4))
        if scene.main is None:
            continue
        if not any_pair:
            scene = _with_key(rng, scene, scene.main, split)
        if _distinct(scene):
            return scene


def _with_key(rng: np.random.Generator, scene: Scene, index: int, split: Split) -> Scene:
    keys = sorted(split.key_pairs)
    shape, colour = keys[rng.integers(len(keys))]
    return edit_thing(scene, index, shape=shape, colour=colour)


def _distinct(scene: Scene) -> bool:
    return len({thing.pair for thing in scene.things}) == len(scene.things)


def _valid(scene: Scene, index: int, split: Split) -> bool:
    return _distinct(scene) and scene.things[index].pair in split.pairs


def _value(scene: Scene, attribute: str) -> str:
    if attribute == "background":
        return scene.background
    if scene.main is None:
        raise ValueError("the scene has no main object. This is a bug.")
    return str(getattr(scene.things[scene.main], attribute))


def _main_values(scene: Scene) -> tuple[str, ...]:
    return tuple(_value(scene, attribute) for attribute in ATTRIBUTES)


def _change(
    rng: np.random.Generator, scene: Scene, attribute: str, split: Split, value: str | None = None
) -> Scene | None:
    """The scene with the main object's attribute (or the background) set to ``value``, else to any other one."""
    if attribute == "background":
        return replace(scene, background=value or other(rng, BACKGROUNDS, scene.background))
    if scene.main is None:
        raise ValueError("the scene has no main object. This is a bug.")
    if value is None:
        if attribute == "colour":
            return recolour(rng, scene, scene.main, split.pairs)
        if attribute == "shape":
            return reshape(rng, scene, scene.main, split.pairs)
        value = other(rng, VALUES[attribute], _value(scene, attribute))
    changed = edit_thing(scene, scene.main, **{attribute: value})
    return changed if _valid(changed, scene.main, split) else None


def _misplace(rng: np.random.Generator, scene: Scene, attribute: str, value: str, split: Split) -> Scene | None:
    """The wanted value given to another object than the main one; None if that is not possible."""
    rest = [i for i in range(len(scene.things)) if i != scene.main]
    if not rest or attribute == "background":
        return None
    chosen = rest[rng.integers(len(rest))]
    changed = edit_thing(scene, chosen, **{attribute: value})
    return changed if _valid(changed, chosen, split) else None


def _soften(rng: np.random.Generator, scene: Scene, split: Split, *, keep: str) -> Scene:
    """Each attribute but ``keep`` drawn anew with probability one half."""
    for attribute in ATTRIBUTES:
        if attribute != keep and rng.random() < 0.5:
            scene = _change(rng, scene, attribute, split) or scene
    return scene


def _soften_others(rng: np.random.Generator, scene: Scene, index: int, split: Split) -> Scene:
    """Background and each object but ``index`` drawn anew with probability one half."""
    for i in range(len(scene.things)):
        if i == index or rng.random() < 0.5:
            continue
        fresh = sample_thing(rng, sorted(split.pairs), size=scene.things[i].size)
        if fresh.pair not in {thing.pair for thing in scene.things}:
            scene = edit_thing(scene, i, shape=fresh.shape, colour=fresh.colour, texture=fresh.texture)
    if rng.random() < 0.5:
        scene = replace(scene, background=other(rng, BACKGROUNDS, scene.background))
    return scene


def _break_rest(rng: np.random.Generator, scene: Scene, index: int, split: Split) -> Scene | None:
    """One part but the object ``index`` changed: the background, or another object's colour, shape or texture.

    Colour and shape become those of the object ``index`` where possible: the condition's words then hold twice.
    """
    draw = int(rng.integers(4))
    if draw == 0:
        return replace(scene, background=other(rng, BACKGROUNDS, scene.background))
    rest = [i for i in range(len(scene.things)) if i != index]
    chosen = rest[rng.integers(len(rest))]
    model = scene.things[index]
    if draw == 1:
        likened = edit_thing(scene, chosen, colour=model.colour)
        return likened if _valid(likened, chosen, split) else recolour(rng, scene, chosen, split.pairs)
    if draw == 2:
        likened = edit_thing(scene, chosen, shape=model.shape)
        return likened if _valid(likened, chosen, split) else reshape(rng, scene, chosen, split.pairs)
    texture = other(rng, TEXTURES, scene.things[chosen].texture)
    return edit_thing(scene, chosen, texture=texture)


def _elsewhere(rng: np.random.Generator, added: Thing, split: Split) -> Scene | None:
    """Another scene that holds the added object."""
    scene = sample_scene(rng, sorted(split.pairs - {added.pair}), count=1 + int(rng.random() < 0.4))
    grown = add_thing(rng, scene, added)
    return None if grown is None else place(rng, grown)


def _matches(scene: Scene, target: Scene, added: Thing, *, by_shape: bool) -> bool:
    """Whether a candidate meets the condition as the target does: the reference's content plus a matching object."""

    def content(thing: Thing) -> tuple[str, str, str]:
        return (thing.shape, thing.colour, thing.texture)

    if scene.background != target.background or len(scene.things) != len(target.things):
        return False
    rest = {content(thing) for thing in target.things[:-1]}
    extra = [thing for thing in scene.things if content(thing) not in rest]
    return len(extra) == 1 and extra[0].shape == added.shape and (by_shape or extra[0].colour == added.colour)


_BUILDERS: Final[dict[str, Callable[[np.random.Generator, Split, bool], _Built]]] = {
    "focus_attribute": _focus_attribute,
    "change_attribute": _change_attribute,
    "focus_object": _focus_object,
    "change_object": _change_object,
}
