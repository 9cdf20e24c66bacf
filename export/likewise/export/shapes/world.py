"""The shapes world: scenes of one to three objects over a background, sampled, edited and rendered at any resolution.

A scene holds positions and radii as fractions of the frame, so the same scene renders at 96 or at 1024
pixels. Objects never overlap and never touch the frame. Some (shape, colour) pairs are held out: no training
scene shows one (see ``Split``).
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SHAPES: Final = (
    "circle",
    "square",
    "triangle",
    "star",
    "cross",
    "heart",
    "ring",
    "crescent",
    "diamond",
    "hourglass",
    "bolt",
    "chevron",
)
COLOURS: Final = (
    "red",
    "orange",
    "yellow",
    "green",
    "cyan",
    "blue",
    "purple",
    "pink",
    "magenta",
    "maroon",
    "olive",
    "navy",
)
TEXTURES: Final = ("plain", "striped", "dotted", "checked")
SIZES: Final = ("small", "large")
BACKGROUNDS: Final = ("white", "grey", "black", "beige", "sky", "grainy")
MAX_THINGS: Final = 3

VALUES: Final[dict[str, tuple[str, ...]]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "size": SIZES,
    "background": BACKGROUNDS,
}
THING_ATTRIBUTES: Final = ("shape", "colour", "texture", "size")

Pair = tuple[str, str]

# One (shape, colour) pair per shape and per colour is kept for the test; six further ones for validation, so
# that nothing is ever tuned on a test pair. The strides only spread the pairs over the hues.
TEST_PAIRS: Final[frozenset[Pair]] = frozenset((s, COLOURS[(5 * i + 1) % 12]) for i, s in enumerate(SHAPES))
VALIDATION_PAIRS: Final[frozenset[Pair]] = frozenset(
    (SHAPES[i], COLOURS[(5 * i + 7) % 12]) for i in (0, 2, 5, 7, 8, 11)
)
TRAINING_PAIRS: Final[frozenset[Pair]] = (
    frozenset((s, c) for s in SHAPES for c in COLOURS) - TEST_PAIRS - VALIDATION_PAIRS
)

# Hue in degrees, saturation and value; hues are jittered by at most 7 degrees. Colours whose hues lie nearer than
# 20 degrees differ in value by a third or more, far above the tone's jitter.
_HSV: Final[dict[str, tuple[float, float, float]]] = {
    "red": (2, 0.88, 0.86),
    "orange": (28, 0.92, 0.97),
    "yellow": (54, 0.88, 0.97),
    "green": (122, 0.72, 0.66),
    "cyan": (180, 0.85, 0.86),
    "blue": (218, 0.80, 0.94),
    "purple": (276, 0.72, 0.70),
    "pink": (334, 0.45, 1.00),
    "magenta": (306, 0.88, 0.84),
    "maroon": (350, 0.86, 0.52),
    "olive": (64, 0.86, 0.54),
    "navy": (236, 0.80, 0.50),
}
_HUE_JITTER_DEGREES: Final = 7.0
_FLAT: Final[dict[str, tuple[int, int, int]]] = {
    "white": (247, 247, 247),
    "grey": (140, 140, 140),
    "black": (22, 22, 22),
    "beige": (226, 206, 168),
}
_SKY: Final = ((120, 176, 236), (226, 238, 250))  # from top to bottom
_RADIUS: Final[dict[str, tuple[float, float]]] = {"small": (0.14, 0.17), "large": (0.225, 0.27)}
_FRAME_GAP: Final = 0.015
_THING_GAP: Final = 0.02


@dataclass(frozen=True, slots=True)
class Thing:
    """One object; ``x``, ``y`` (centre) and ``radius`` are fractions of the frame, ``rotation`` is in radians."""

    shape: str
    colour: str
    texture: str
    size: str
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.2
    rotation: float = 0.0
    hue: float = 0.0
    tone: float = 1.0

    @property
    def pair(self) -> Pair:
        """Its (shape, colour): what is held out."""
        return (self.shape, self.colour)


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects over a background; ``grain`` seeds the background's noise and tone."""

    things: tuple[Thing, ...]
    background: str
    grain: int = 0

    @property
    def main(self) -> int | None:
        """Index of the object that attribute conditions speak of: the only one, or the only large one; else None."""
        if len(self.things) == 1:
            return 0
        large = [i for i, thing in enumerate(self.things) if thing.size == "large"]
        return large[0] if len(large) == 1 else None


def sample_thing(rng: np.random.Generator, pairs: Sequence[Pair], *, size: str | None = None) -> Thing:
    """Draw an object with its pair from ``pairs``, not yet placed."""
    shape, colour = pairs[int(rng.integers(len(pairs)))]
    size = size or SIZES[rng.integers(2)]
    return Thing(shape, colour, TEXTURES[rng.integers(4)], size)


def sample_scene(rng: np.random.Generator, pairs: Sequence[Pair], *, count: int | None = None) -> Scene:
    """Draw a scene of ``count`` (else one to three) objects whose pairs come from ``pairs``.

    Four in five scenes of several objects have one large object, so that "the same colour" has one meaning;
    no scene holds the same (shape, colour) twice.
    """
    count = count or int(rng.choice(3, p=(0.4, 0.4, 0.2))) + 1
    while True:
        if count == 1:
            sizes: list[str | None] = [None]
        elif count == 2 and rng.random() < 0.2:
            sizes = [SIZES[rng.integers(2)]] * 2
        else:
            sizes = ["large", *["small"] * (count - 1)]
        things = tuple(sample_thing(rng, pairs, size=size) for size in sizes)
        if len({thing.pair for thing in things}) < count:
            continue
        placed = place(rng, Scene(things, BACKGROUNDS[rng.integers(6)]))
        if placed is not None:
            return placed


def place(rng: np.random.Generator, scene: Scene) -> Scene | None:
    """Give every object a fresh position, radius, rotation and tint; None if they would not fit."""
    placed: list[Thing] = []
    for thing in scene.things:
        fitted = _fit(rng, thing, placed)
        if fitted is None:
            return None
        placed.append(fitted)
    return Scene(tuple(placed), scene.background, int(rng.integers(2**31)))


def redraw(rng: np.random.Generator, scene: Scene, *, drift: float = 0.05) -> Scene:
    """Render variation of the same content: objects drift by up to ``drift``, tints, radii and noise are drawn anew.

    An object that is not placed yet, or that no longer fits (its size changed), gets a free place.
    """
    for _ in range(20):
        placed: list[Thing] = []
        for thing in scene.things:
            fitted = _fit(rng, thing, placed, around=(thing.x, thing.y), drift=drift)
            fitted = fitted or _fit(rng, thing, placed)
            if fitted is None:
                break
            placed.append(fitted)
        else:
            return Scene(tuple(placed), scene.background, int(rng.integers(2**31)))
    fresh = None
    while fresh is None:
        fresh = place(rng, scene)
    return fresh


def _fit(
    rng: np.random.Generator,
    thing: Thing,
    others: Sequence[Thing],
    *,
    around: tuple[float, float] | None = None,
    drift: float = 0.0,
) -> Thing | None:
    for _ in range(12 if around else 40):
        radius = float(rng.uniform(*_RADIUS[thing.size]))
        low, high = radius + _FRAME_GAP, 1 - radius - _FRAME_GAP
        if around is None:
            x, y = rng.uniform(low, high, 2)
        else:
            x, y = np.clip(np.asarray(around) + rng.uniform(-drift, drift, 2), low, high)
        if all(math.hypot(x - o.x, y - o.y) >= radius + o.radius + _THING_GAP for o in others):
            rotation = 0.0 if thing.shape in ("circle", "ring") else float(rng.uniform(-0.3, 0.3))
            hue = float(rng.uniform(-_HUE_JITTER_DEGREES, _HUE_JITTER_DEGREES))
            tone = float(rng.uniform(0.86, 1.0))
            return replace(thing, x=float(x), y=float(y), radius=radius, rotation=rotation, hue=hue, tone=tone)
    return None


def edit_thing(scene: Scene, index: int, **changes: str) -> Scene:
    """The scene with attributes of one object replaced; positions stay (``redraw`` before rendering)."""
    things = list(scene.things)
    things[index] = replace(things[index], **changes)  # type: ignore[arg-type]
    return replace(scene, things=tuple(things))


def add_thing(rng: np.random.Generator, scene: Scene, thing: Thing) -> Scene | None:
    """The scene with one more object in a free place; None if there is none."""
    fitted = _fit(rng, thing, scene.things)
    return None if fitted is None else replace(scene, things=(*scene.things, fitted))


def render(scene: Scene, size: int = 192) -> Image.Image:
    """Draw a scene as an RGB image of ``size`` by ``size`` pixels."""
    canvas = _background(scene, size)
    for thing in scene.things:
        _paint(canvas, thing, size)
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def _background(scene: Scene, size: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(scene.grain)
    canvas = np.empty((size, size, 3), np.float32)
    if scene.background == "sky":
        t = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
        canvas[:] = (1 - t) * np.array(_SKY[0], np.float32) + t * np.array(_SKY[1], np.float32)
    elif scene.background == "grainy":
        cells = rng.integers(92, 172, (24, 24), dtype=np.uint8)
        canvas[:] = np.asarray(Image.fromarray(cells).resize((size, size), Image.Resampling.NEAREST))[..., None]
    else:
        canvas[:] = _FLAT[scene.background]
    canvas += rng.uniform(-7, 7, 3).astype(np.float32)
    return canvas


def _paint(canvas: npt.NDArray[np.float32], thing: Thing, size: int) -> None:
    half = thing.radius * size
    x0, y0 = int(thing.x * size - half) - 1, int(thing.y * size - half) - 1
    side = int(2 * half) + 3
    x0, y0 = max(0, min(x0, size - side)), max(0, min(y0, size - side))
    centre = (thing.x * size - x0, thing.y * size - y0)
    mask = _mask(thing, centre, half, side)
    tones = _tones(thing)
    light = _pattern(thing, centre, size, side)[..., None]
    colour = tones[1] + (tones[0] - tones[1]) * light
    region = canvas[y0 : y0 + side, x0 : x0 + side]
    region += (colour - region) * mask[..., None]


def _mask(thing: Thing, centre: tuple[float, float], half: float, side: int) -> npt.NDArray[np.float32]:
    scale = 3  # supersampling for smooth edges
    image = Image.new("L", (side * scale, side * scale), 0)
    draw = ImageDraw.Draw(image)
    cos, sin = math.cos(thing.rotation), math.sin(thing.rotation)
    outline = _OUTLINES[thing.shape] * half
    points = outline @ np.array([[cos, sin], [-sin, cos]]) + np.asarray(centre)
    draw.polygon([tuple(p) for p in (points * scale).tolist()], fill=255)
    if thing.shape == "ring":
        hole = (_OUTLINES["circle"] * half * 0.5 + np.asarray(centre)) * scale
        draw.polygon([tuple(p) for p in hole.tolist()], fill=0)
    return np.asarray(image.reduce(scale), np.float32) / np.float32(255)


def _tones(thing: Thing) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    hue, saturation, value = _HSV[thing.colour]
    rgb = colorsys.hsv_to_rgb(((hue + thing.hue) % 360) / 360, saturation, value * thing.tone)
    bright = np.asarray(rgb, np.float32) * 255
    # The second tone is a darker shade of the same hue: a lighter one would turn red into pink.
    return bright, bright * np.float32(0.45)


def _pattern(thing: Thing, centre: tuple[float, float], size: int, side: int) -> npt.NDArray[np.float32]:
    if thing.texture == "plain":
        return np.ones((side, side), np.float32)
    axis = np.arange(side, dtype=np.float32) + 0.5
    x, y = (axis - centre[0])[None, :] / size, (axis - centre[1])[:, None] / size
    cos, sin = np.float32(math.cos(thing.rotation)), np.float32(math.sin(thing.rotation))
    u, v = cos * x + sin * y, cos * y - sin * x
    if thing.texture == "striped":
        return np.asarray(np.floor((u + v) / 0.058) % 2 == 0, np.float32)
    if thing.texture == "checked":
        return np.asarray((np.floor(u / 0.075) + np.floor(v / 0.075)) % 2 == 0, np.float32)
    period = 0.095
    du, dv = (u + 10.03) % period - period / 2, (v + 10.03) % period - period / 2
    return np.asarray(du * du + dv * dv > 0.031**2, np.float32)


def _circle(radius: float = 1.0, points: int = 48) -> npt.NDArray[np.float64]:
    t = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.asarray(radius * np.stack([np.cos(t), np.sin(t)], 1), np.float64)


def _star() -> npt.NDArray[np.float64]:
    t = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return np.asarray(np.stack([radius * np.cos(t), radius * np.sin(t)], 1), np.float64)


def _heart() -> npt.NDArray[np.float64]:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    outline = np.stack([x, y - 2.5], 1)
    return np.asarray(outline / np.hypot(*outline.T).max(), np.float64)


def _crescent() -> npt.NDArray[np.float64]:
    # Outer arc from 50 to 310 degrees, closed by the arc of a circle that is moved to the right.
    outer = np.radians(np.linspace(50, 310, 36))
    tip_x, tip_y = math.cos(math.radians(50)), math.sin(math.radians(50))
    centre = 0.62
    radius = math.hypot(tip_x - centre, tip_y)
    start = math.atan2(-tip_y, tip_x - centre) % (2 * math.pi)
    end = math.atan2(tip_y, tip_x - centre) % (2 * math.pi)
    inner = np.linspace(start, end, 24)
    a = np.stack([np.cos(outer), np.sin(outer)], 1)
    b = np.stack([centre + radius * np.cos(inner), radius * np.sin(inner)], 1)
    return np.asarray(np.concatenate([a, b[1:-1]]) + np.array([0.12, 0.0]), np.float64)


def _diamond() -> npt.NDArray[np.float64]:
    return np.array([(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)])


def _hourglass() -> npt.NDArray[np.float64]:
    a, b, waist = 0.74, 0.78, 0.2
    return np.array([(-a, -b), (a, -b), (waist, 0.0), (a, b), (-a, b), (-waist, 0.0)])


def _bolt() -> npt.NDArray[np.float64]:
    return np.array(
        [(-0.12, -0.96), (0.56, -0.96), (0.2, -0.28), (0.7, -0.28), (-0.36, 0.98), (-0.1, 0.16), (-0.62, 0.16)]
    )


def _chevron() -> npt.NDArray[np.float64]:
    # An upright angle: "^" with thick arms.
    return np.array([(0.0, -0.72), (0.84, 0.12), (0.84, 0.72), (0.0, -0.08), (-0.84, 0.72), (-0.84, 0.12)])


def _cross(arm: float = 0.34, reach: float = 0.92) -> npt.NDArray[np.float64]:
    a, r = arm, reach
    return np.array(
        [
            (-a, -r),
            (a, -r),
            (a, -a),
            (r, -a),
            (r, a),
            (a, a),
            (a, r),
            (-a, r),
            (-a, a),
            (-r, a),
            (-r, -a),
            (-a, -a),
        ]
    )


_OUTLINES: Final[dict[str, npt.NDArray[np.float64]]] = {
    "circle": _circle(0.92),
    "ring": _circle(0.96),
    "square": np.array([(-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)]),
    "triangle": np.array([(0.0, -1.0), (0.92, 0.68), (-0.92, 0.68)]),
    "star": _star(),
    "cross": _cross(),
    "heart": _heart(),
    "crescent": _crescent(),
    "diamond": _diamond(),
    "hourglass": _hourglass(),
    "bolt": _bolt(),
    "chevron": _chevron(),
}
