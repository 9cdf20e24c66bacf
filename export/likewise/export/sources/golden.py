"""Pictures and texts to check exports on: the same ones every time, and nothing to download.

Noise is no test: a model's outliers, and the ties between neighbours, come from pictures with surfaces and edges and
from sentences. The pictures here have both in many sizes and shapes; one's own (see `pictures_of`) are better still.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from likewise.export.sources.checkpoint import SourceError

_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")
_SIZES: Final = ((320, 240), (240, 320), (256, 256), (500, 333), (97, 131), (640, 200), (224, 224), (181, 400))

ODD_TEXTS: Final = (
    "",
    "   ",
    "a photo of a cat",
    "A PHOTO OF A CAT",
    "  two   dogs \t on\n\n the   beach ",
    "It's the dog's ball, they'll say we've lost; I'd go!",
    "naïve café, Ångström, straße, İstanbul, ΟΔΥΣΣΕΥΣ",
    "na\u0131\u0308ve cafe\u0301",
    "一只猫坐在垫子上",
    "кошка на окне",
    "قطة على السرير",
    "🐈 on a 🛋️, 👩‍👩‍👧 and 🇬🇧",
    "it\u2019s \u201cquoted\u201d \u2014 with dashes\u2026",
    "fish &amp; chips &lt;hot&gt; &eacute;",
    "schÃ¶n kaputt",
    "1234567890 12,5 % 3.14 №5 ½ ²",
    "C++ & C#; foo_bar-baz/qux @home #tag $9.99 (really?)",
    "\u200bzero\u200bwidth\ufeff and\u00a0no-break",
    "\ufb01ne \uff46\uff55\uff4c\uff4c \uff57\uff49\uff44\uff54\uff48",  # a ligature and full-width letters
    "x" * 300,
    " ".join(f"word{i}" for i in range(200)),
    "a red star above a blue ring " * 30,
)
"""What breaks tokenizers: nothing, capitals, other scripts, emoji, entities, mis-decoded text, and great length."""

_WHO: Final = ("a dog", "two cats", "an old woman", "a wooden chair", "the red car", "a child", "a bird", "my bicycle")
_WHAT: Final = ("standing", "sleeping", "painted blue", "half hidden", "in the rain", "seen from above", "close up")
_WHERE: Final = ("on the beach", "in a kitchen", "under a tree", "at night", "beside a wall", "in the snow", "downtown")


@lru_cache(maxsize=512)
def picture(number: int) -> Image.Image:
    """A picture of surfaces, edges, texture and noise, in one of several sizes; the same for the same number."""
    rng = np.random.default_rng(number)
    width, height = _SIZES[number % len(_SIZES)]
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    corners = rng.uniform(0, 1, (2, 2, 3))
    light = (corners[0, 0] * (1 - x) + corners[0, 1] * x) * (1 - y) + (corners[1, 0] * (1 - x) + corners[1, 1] * x) * y
    angle, period = rng.uniform(0, np.pi), rng.uniform(10, 80)
    texture = np.sin(2 * np.pi * period * (x * np.cos(angle) + y * np.sin(angle)))
    surface = light + rng.uniform(0, 0.15) * texture + rng.normal(0, rng.uniform(0, 0.08), (height, width, 1))
    image = Image.fromarray((np.clip(surface, 0, 1) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 7))):
        centre, radius = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.05, 0.35) * min(width, height)
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        box = (*(centre - radius), *(centre + radius * rng.uniform(0.5, 1.5, 2)))
        shape = int(rng.integers(3))
        if shape == 0:
            draw.ellipse(box, fill=colour)
        elif shape == 1:
            draw.rectangle(box, fill=colour)
        else:
            draw.regular_polygon((*centre, radius), int(rng.integers(3, 8)), int(rng.integers(360)), fill=colour)
    return image


def pictures(count: int) -> list[Image.Image]:
    """The first ``count`` pictures, RGB."""
    return [picture(number) for number in range(count)]


def pictures_of(folder: Path, count: int) -> list[Image.Image]:
    """Up to ``count`` pictures of a folder and those below it, in the order of their names.

    Raises:
        SourceError: It has none, or one cannot be read.
    """
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _SUFFIXES)[:count]
    if not files:
        raise SourceError(f"{folder} has no pictures ({', '.join(_SUFFIXES)})")
    found = []
    for file in files:
        try:
            with Image.open(file) as image:
                found.append(image.convert("RGB"))
        except OSError as error:
            raise SourceError(f"{file}: cannot be read as a picture: {error}") from error
    return found


def texts(count: int) -> list[str]:
    """The first ``count`` of some 390 different sentences; beyond that they repeat with a number."""
    sentences: Sequence[str] = [" ".join(words) for words in itertools.product(_WHO, _WHAT, _WHERE)]
    order = np.random.default_rng(0).permutation(len(sentences))
    return [
        sentences[order[i % len(sentences)]] + (f", number {i // len(sentences)}" if i >= len(sentences) else "")
        for i in range(count)
    ]
