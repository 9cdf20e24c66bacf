"""The crops of GeneCIS's attribute tasks and their keys (facebookresearch/genecis, datasets/vaw_dataset.py)."""

import io
from pathlib import Path
from typing import Final

from PIL import Image

from likewise.export.evaluation.problems import EvaluationError

DILATION: Final = 0.7

Box = tuple[float, float, float, float]
"""x, y, width, height in pixels, from the top left corner."""


def crop_key(image_id: int | str, box: Box) -> str:
    """The key of a crop, "id:x,y,w,h", numbers without needless zeros: one image yields many crops."""
    return f"{image_id}:{','.join(_number(value) for value in box)}"


def canonical_key(key: str) -> str:
    """A key as `crop_key` writes it, so that "7:1.0,2.50,3,4" is found as "7:1,2.5,3,4"; others as they are."""
    image, colon, rest = key.partition(":")
    parts = rest.split(",")
    if not colon or len(parts) != 4:
        return key
    try:
        x, y, width, height = (float(part) for part in parts)
        return crop_key(image.strip(), (x, y, width, height))
    except (ValueError, OverflowError):
        return key


def split_key(key: str) -> tuple[str, Box | None]:
    """Image id and box of a key; None for a whole image."""
    image, colon, rest = canonical_key(key).partition(":")
    parts = rest.split(",")
    if not colon or len(parts) != 4:
        return key, None
    x, y, width, height = (float(part) for part in parts)
    return image, (x, y, width, height)


def dilated(box: Box, width: int, height: int) -> Box:
    """The box that is cut out: left, top, right, bottom.

    Left and top move out by 0.7 of the box's size and are clamped at 0; right and bottom are 1.7 of it from the
    clamped left and top. So the box grows to the left and up only, unless it was clamped; that is the official rule.

    Args:
        box: As annotated.
        width: Of the image.
        height: Of the image.
    """
    x, y, w, h = box
    left, top = max(0.0, x - DILATION * w), max(0.0, y - DILATION * h)
    return left, top, min(width, left + (1 + DILATION) * w), min(height, top + (1 + DILATION) * h)


def crop(image: Image.Image, box: Box) -> Image.Image:
    """The dilated box, centred on a black square of its longer side; greyscale stays greyscale.

    Raises:
        ValueError: The box lies outside the image.
    """
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    left, top, right, bottom = dilated(box, *image.size)
    if not (right > left and bottom > top):
        raise ValueError(f"box {box} lies outside the image of {image.size[0]} x {image.size[1]} pixels")
    cut = image.crop((left, top, right, bottom))  # PIL rounds, as in the official code
    width, height = cut.size
    if width == height:
        return cut
    side = max(width, height)
    square = Image.new(cut.mode, (side, side))
    square.paste(cut, ((side - width) // 2, (side - height) // 2))
    return square


def crop_bytes(path: Path, box: Box) -> bytes:
    """The crop of an image file as PNG, pixel by pixel.

    Raises:
        EvaluationError: The file is no image, or the box lies outside it.
    """
    try:
        with Image.open(path) as image:
            cut = crop(image, box)
    except (OSError, ValueError, SyntaxError) as error:
        raise EvaluationError(f"{path}: no crop {box} can be cut: {error}") from error
    buffer = io.BytesIO()
    cut.save(buffer, "PNG")
    return buffer.getvalue()


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
