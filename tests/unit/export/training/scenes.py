"""A second small world, with shapes, colours, textures and backgrounds that the built-in model was never shown.

Scenes of one large object, often with a small second one, are drawn at 64 pixels and described in free wording. It is
the ground truth of the training tests: what mining reads in the captions can be compared with what was drawn.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SHAPES: Final = ("hexagon", "arrow", "drop", "bolt", "house", "leaf")
COLOURS: Final = ("brown", "teal", "lime", "navy", "magenta", "lavender")
TEXTURES: Final = ("wavy", "speckled", "hollow")
BACKGROUNDS: Final = ("cream", "charcoal", "mint", "peach")
VALUES: Final = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "background": BACKGROUNDS}

_HSV: Final = {
    "brown": (24, 0.75, 0.52),
    "teal": (178, 0.95, 0.52),
    "lime": (82, 0.85, 0.95),
    "navy": (232, 0.85, 0.45),
    "magenta": (312, 0.90, 0.85),
    "lavender": (262, 0.38, 0.97),
}
_GROUND: Final = {"cream": (250, 240, 205), "charcoal": (52, 54, 60), "mint": (176, 236, 200), "peach": (255, 190, 150)}
_FRAMES: Final = ("{}", "{}", "{}", "a photo of {}", "there is {}", "an image of {}", "this is {}")
_GROUNDS: Final = ("on a {} background", "on a {} background", "with a {} background", "against a {} background")
_LINKS: Final = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
}


@dataclass(frozen=True, slots=True)
class Thing:
    """One object; place and radius are fractions of the frame."""

    shape: str
    colour: str
    texture: str
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.25
    turn: float = 0.0
    tint: float = 0.0


@dataclass(frozen=True, slots=True)
class Scene:
    """The large object first, over a background whose tone is off by ``tone``."""

    things: tuple[Thing, ...]
    background: str
    tone: int = 0

    def value(self, attribute: str) -> str:
        """Of the large object, or the background."""
        return self.background if attribute == "background" else str(getattr(self.things[0], attribute))

    @property
    def content(self) -> tuple[object, ...]:
        """What a full caption says."""
        return (*((t.shape, t.colour, t.texture) for t in self.things), self.background)


def sample_thing(rng: np.random.Generator) -> Thing:
    """An object of any kind, not yet placed."""
    return Thing(_pick(rng, SHAPES), _pick(rng, COLOURS), _pick(rng, TEXTURES))


def sample_scene(rng: np.random.Generator, *, second: bool | None = None) -> Scene:
    """One large object, and a small one of another shape in two scenes of five (or as asked)."""
    things = [sample_thing(rng)]
    if second if second is not None else rng.random() < 0.4:
        other = sample_thing(rng)
        while other.shape == things[0].shape:
            other = sample_thing(rng)
        things.append(other)
    return place(rng, Scene(tuple(things), _pick(rng, BACKGROUNDS)))


def place(rng: np.random.Generator, scene: Scene) -> Scene:
    """The same content, with places, radii, turns and tints drawn anew."""
    while True:
        things = []
        for i, thing in enumerate(scene.things):
            radius = float(rng.uniform(0.22, 0.27) if i == 0 else rng.uniform(0.13, 0.16))
            x, y = rng.uniform(radius + 0.02, 0.98 - radius, 2)
            turn, tint = rng.uniform(-0.25, 0.25), rng.uniform(-1, 1)
            things.append(replace(thing, x=float(x), y=float(y), radius=radius, turn=float(turn), tint=float(tint)))
        if len(things) == 1 or _apart(things[0], things[1]):
            return Scene(tuple(things), scene.background, int(rng.integers(-6, 7)))


def edit(scene: Scene, attribute: str, value: str, *, index: int = 0) -> Scene:
    """The scene with one attribute of an object, or the background, set to ``value``; place it again afterwards."""
    if attribute == "background":
        return replace(scene, background=value)
    things = list(scene.things)
    things[index] = replace(things[index], **{attribute: value})  # type: ignore[arg-type]
    return replace(scene, things=tuple(things))


def another(rng: np.random.Generator, attribute: str, current: str) -> str:
    """A value of an attribute that is not ``current``."""
    return _pick(rng, [value for value in VALUES[attribute] if value != current])


def caption(rng: np.random.Generator, scene: Scene, *, silence: float = 0.1) -> str:
    """A description in free wording; each attribute is left unsaid with probability ``silence``."""
    phrases = []
    for i, thing in enumerate(scene.things):
        words = [w for w in (thing.texture, thing.colour) if rng.random() >= silence]
        if rng.random() < 0.3:
            words.reverse()
        if rng.random() < 0.4:
            words.insert(0, "large" if i == 0 else "small")
        phrases.append(_article(" ".join([*words, thing.shape])))
    text = phrases[0]
    if len(phrases) > 1:
        link = _pick(rng, _LINKS[_relation(scene)]) if rng.random() < 0.6 else _pick(rng, ("and", "with", "next to"))
        text += f" {link} {phrases[1]}"
    if rng.random() >= silence:
        text += " " + _pick(rng, _GROUNDS).format(scene.background)
    text = _pick(rng, _FRAMES).format(text)
    return text.capitalize() + "." if rng.random() < 0.2 else text


def draw(scene: Scene, size: int = 64) -> Image.Image:
    """A scene as an RGB image of ``size`` by ``size`` pixels."""
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = np.asarray(_GROUND[scene.background], np.float32) + scene.tone
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
    for thing in scene.things:
        mask = _mask(thing, size)
        hue, saturation, value = _HSV[thing.colour]
        rgb = colorsys.hsv_to_rgb(((hue + 5 * thing.tint) % 360) / 360, saturation, value * (1 - 0.06 * thing.tint**2))
        colour = np.asarray(rgb, np.float32) * 255
        u, v = (x - thing.x * size) / size, (y - thing.y * size) / size
        light = np.ones((size, size), np.float32)
        if thing.texture == "wavy":
            light = np.asarray(np.sin((v + 0.02 * np.sin(u * 60)) * 2 * np.pi / 0.11) > 0, np.float32)
        elif thing.texture == "speckled":
            cells = np.random.default_rng(int(1000 * thing.radius)).random((size // 4 + 1, size // 4 + 1)) > 0.35
            light = np.kron(cells, np.ones((4, 4)))[:size, :size].astype(np.float32)
        else:
            mask = mask * (1 - _mask(replace(thing, radius=thing.radius * 0.6), size))
        second = colour * 0.35 + 160 * (thing.colour == "navy")
        paint = second + (colour - second) * light[..., None]
        canvas += (paint - canvas) * mask[..., None]
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def write_folder(folder: Path, scenes: Sequence[Scene], rng: np.random.Generator, *, silence: float = 0.1) -> list[str]:
    """Write scenes as ``0000.png`` beside ``0000.txt``; returns the captions."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = []
    for i, scene in enumerate(scenes):
        draw(scene).save(folder / f"{i:04}.png", compress_level=1)
        texts.append(caption(rng, scene, silence=silence))
        (folder / f"{i:04}.txt").write_text(texts[-1] + "\n", encoding="utf-8")
    return texts


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _apart(first: Thing, second: Thing) -> bool:
    return math.hypot(first.x - second.x, first.y - second.y) >= first.radius + second.radius + 0.02


def _relation(scene: Scene) -> str:
    dx, dy = scene.things[0].x - scene.things[1].x, scene.things[0].y - scene.things[1].y
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _mask(thing: Thing, size: int) -> npt.NDArray[np.float32]:
    scale = 3
    image = Image.new("L", (size * scale, size * scale), 0)
    cos, sin = math.cos(thing.turn), math.sin(thing.turn)
    points = _OUTLINES[thing.shape] @ np.array([[cos, sin], [-sin, cos]]) * thing.radius
    points = (points + np.array([thing.x, thing.y])) * size * scale
    ImageDraw.Draw(image).polygon([tuple(p) for p in points.tolist()], fill=255)
    return np.asarray(image.reduce(scale), np.float32) / np.float32(255)


def _polar(radii: Sequence[float]) -> npt.NDArray[np.float64]:
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False) - np.pi / 2
    return np.asarray(np.stack([np.cos(angles), np.sin(angles)], 1) * np.asarray(radii)[:, None], np.float64)


def _leaf() -> npt.NDArray[np.float64]:
    t = np.linspace(-1, 1, 24)
    width = 0.42 * np.cos(t * np.pi / 2)
    return np.concatenate([np.stack([width, t], 1), np.stack([-width, t], 1)[::-1]])


def _drop() -> npt.NDArray[np.float64]:
    t = np.linspace(-np.pi / 5, np.pi + np.pi / 5, 30)
    return np.concatenate([[(0.0, -1.0)], np.stack([0.62 * np.cos(t), 0.32 + 0.62 * np.sin(t)], 1)])


_OUTLINES: Final[dict[str, npt.NDArray[np.float64]]] = {
    "hexagon": _polar([0.95] * 6),
    "arrow": np.array([(1, 0), (0.2, -0.8), (0.2, -0.3), (-1, -0.3), (-1, 0.3), (0.2, 0.3), (0.2, 0.8)]),
    "drop": _drop(),
    "bolt": np.array([(0.25, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1), (0.6, -0.25), (0.05, -0.25)]),
    "house": np.array([(0, -0.95), (0.85, -0.2), (0.6, -0.2), (0.6, 0.8), (-0.6, 0.8), (-0.6, -0.2), (-0.85, -0.2)]),
    "leaf": _leaf(),
}
