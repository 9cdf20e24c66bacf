"""The demo's gallery: thousands of pictures of the shapes world as PNG files, with what is true of each.

It is what a shop's catalogue is: many unrelated items, and some product lines, each a scene with its variants (other
colours, shapes, textures, backgrounds, one object more), every variant photographed several times. The demo asks
about one of the lines with a picture that is not in the gallery.
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from likewise.export.shapes.captions import full_caption
from likewise.export.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    TEXTURES,
    Scene,
    Thing,
    add_thing,
    edit_thing,
    redraw,
    render,
    sample_scene,
)

FORMAT: Final = 1
"""Raised whenever the same numbers would give other pictures or attributes; older folders are then made anew."""

MIN_ITEMS: Final = 1_000
"""Fewer items would leave no room for two product lines."""

PIXELS: Final = 192
_MARKER: Final = "recipe.json"
_LINE_SHARE: Final = 0.4
_TAKES: Final = 6  # pictures of each variant of a product line
_DRIFT: Final = 0.2
_CHUNK: Final = 100
_ALL_PAIRS: Final = sorted((shape, colour) for shape in SHAPES for colour in COLOURS)
_SCENES, _LINES, _PRICES, _REFERENCE = range(4)  # streams of the generator


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that the pictures follow from."""

    items: int = 5_000
    seed: int = 2_024
    pixels: int = PIXELS
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Item:
    """One picture of the gallery: its id, its file and what it shows."""

    id: str
    path: Path
    scene: Scene
    price: float

    @property
    def caption(self) -> str:
        """The scene in words."""
        return full_caption(self.scene)

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes stored with it; those of the main object are None where none stands out."""
        main = None if self.scene.main is None else self.scene.things[self.scene.main]
        return {
            "caption": self.caption,
            "colour": main and main.colour,
            "shape": main and main.shape,
            "texture": main and main.texture,
            "background": self.scene.background,
            "objects": [f"{thing.colour} {thing.shape}" for thing in self.scene.things],
            "price": self.price,
        }


ATTRIBUTES: Final[dict[str, str]] = {
    "caption": "string",
    "colour": "string",
    "shape": "string",
    "texture": "string",
    "background": "string",
    "objects": "string_list",
    "price": "double",
}
"""Schema of `Item.attributes`."""


def reference_scene(recipe: Recipe) -> Scene:
    """The scene that the demo asks with: the base of the first product line, photographed once more."""
    rng = np.random.default_rng((recipe.seed, _REFERENCE))
    return redraw(rng, line_base(recipe, 0), drift=_DRIFT)


def line_base(recipe: Recipe, line: int) -> Scene:
    """The scene that a product line varies: one large object; the first is always a plain blue heart on beige."""
    rng = np.random.default_rng((recipe.seed, _LINES, line))
    thing = Thing("heart", "blue", "plain", "large")
    background = "beige"
    if line:
        shape, colour = _ALL_PAIRS[rng.integers(len(_ALL_PAIRS))]
        thing = Thing(shape, colour, TEXTURES[rng.integers(4)], "large")
        background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    return redraw(rng, Scene((thing,), background))


def stored_reference(recipe: Recipe, gallery: Sequence[Item]) -> Item:
    """The item that the demo uses as a stored reference: the first picture of the second line's base.

    Raises:
        ValueError: If the gallery is too small to hold one.
    """
    base = line_base(recipe, 1)
    for item in gallery:
        if len(item.scene.things) == 1 and item.scene.background == base.background:
            thing, wanted = item.scene.things[0], base.things[0]
            if (thing.pair, thing.texture) == (wanted.pair, wanted.texture):
                return item
    raise ValueError(f"a gallery of {len(gallery)} items holds no second product line; take at least {MIN_ITEMS}")


def _variants(rng: np.random.Generator, base: Scene) -> Iterator[Scene]:
    """The base, and every scene that differs from it in one thing; not yet placed anew."""
    main = base.things[0]
    yield base
    yield from (edit_thing(base, 0, colour=colour) for colour in COLOURS if colour != main.colour)
    yield from (edit_thing(base, 0, shape=shape) for shape in SHAPES if shape != main.shape)
    yield from (edit_thing(base, 0, texture=texture) for texture in TEXTURES if texture != main.texture)
    yield from (replace(base, background=ground) for ground in BACKGROUNDS if ground != base.background)
    for shape in SHAPES:
        colour = COLOURS[rng.integers(len(COLOURS))]
        texture = TEXTURES[rng.integers(len(TEXTURES))]
        grown = None
        while grown is None and (shape, colour) != main.pair:
            # A large object in the middle leaves no room beside it, so it may move first.
            grown = add_thing(rng, redraw(rng, base, drift=_DRIFT), Thing(shape, colour, texture, "small"))
        if grown is not None:
            yield grown


def scenes(recipe: Recipe) -> list[Scene]:
    """The scenes of the gallery in a mixed order, so that a line's pictures do not lie together."""
    made: list[Scene] = []
    line = 0
    while len(made) < recipe.items * _LINE_SHARE:
        rng = np.random.default_rng((recipe.seed, _LINES, line, 1))
        for variant in _variants(rng, line_base(recipe, line)):
            made += [redraw(rng, variant, drift=_DRIFT) for _ in range(_TAKES)]
        line += 1
    made = made[: recipe.items]
    rng = np.random.default_rng((recipe.seed, _SCENES))
    made += [sample_scene(rng, _ALL_PAIRS) for _ in range(recipe.items - len(made))]
    return [made[i] for i in rng.permutation(len(made))]


def items(recipe: Recipe, folder: Path) -> list[Item]:
    """The gallery's items, their files below `folder` (which need not exist yet)."""
    rng = np.random.default_rng((recipe.seed, _PRICES))
    made = scenes(recipe)
    prices = np.round(rng.gamma(3.0, 18.0, len(made)) + 2.99, 2).tolist()
    return [
        Item(f"shape-{i:05d}", folder / f"shape-{i:05d}.png", scene, price)
        for i, (scene, price) in enumerate(zip(made, prices, strict=True))
    ]


def is_complete(folder: Path, recipe: Recipe, wanted: Sequence[Item]) -> bool:
    """Whether `folder` holds just what the recipe makes: its marker, written last, says so and every file is there."""
    state = _read_marker(folder)
    return state == {"complete": True, "recipe": asdict(recipe)} and all(item.path.is_file() for item in wanted)


def render_all(
    folder: Path,
    recipe: Recipe,
    wanted: Sequence[Item],
    *,
    progress: Callable[[int, int], None],
    workers: int | None = None,
) -> None:
    """Empty `folder` and fill it with the items' files.

    Args:
        folder: New, empty, or filled by an earlier call.
        recipe: What to render; goes into the folder's marker.
        wanted: The recipe's items, below `folder`.
        progress: Called with (files done, files in all).
        workers: Rendering processes; by default one a processor.

    Raises:
        FileExistsError: If the folder holds something that is not ours; nothing is deleted then.
    """
    if folder.exists() and any(folder.iterdir()) and _read_marker(folder) is None:
        raise FileExistsError(f"{folder} is not empty and was not made by the demo: choose another --directory")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write_marker(folder, recipe, complete=False)
    chunks = [wanted[start : start + _CHUNK] for start in range(0, len(wanted), _CHUNK)]
    jobs = [[(item.scene, item.path) for item in chunk] for chunk in chunks]
    # Not fork: the parent may have threads (gRPC, progress bars), and a child that inherits their locks can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or _processors(), mp_context=context) as pool:
        running = [pool.submit(_render, job, recipe.pixels) for job in jobs]
        done = 0
        try:
            for future in as_completed(running):
                done += future.result()
                progress(done, len(wanted))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    _write_marker(folder, recipe, complete=True)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _render(job: Sequence[tuple[Scene, Path]], pixels: int) -> int:
    for scene, path in job:
        render(scene, pixels).save(path)
    return len(job)


def _write_marker(folder: Path, recipe: Recipe, *, complete: bool) -> None:
    (folder / _MARKER).write_text(json.dumps({"complete": complete, "recipe": asdict(recipe)}))


def _read_marker(folder: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((folder / _MARKER).read_text())
    except (OSError, ValueError):
        return None
    return state
