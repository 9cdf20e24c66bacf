"""A decoded image to an encoder's input tensor, with PIL's filters outside the graph.

Resizing inside an ONNX graph differs between runtimes and from PIL by enough to move features; so the graph
starts at pixels.
"""

from dataclasses import asdict, dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from likewise.export.manifest import ManifestError
from likewise.export.model_repository import Model

RESIZES: Final = ("shortest", "squash")
CROPS: Final = ("center", "none")
ROUNDINGS: Final = ("nearest", "torchvision", "transformers")

_STRIP: Final = 8
"""Ratio of sides beyond which an image is not resized whole: a strip of one pixel would become millions wide."""

_FILTERS: Final = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes (3, size, size) numbers; part of the identity of the space.

    Attributes:
        size: Height and width of the result.
        resize: "shortest" scales the shorter side to ``resize_to``; "squash" scales both sides.
        crop: "center" cuts the middle square; "none" asks that the resized image is square already.
        interpolation: "bicubic" or "bilinear", PIL's, with antialiasing.
        mean: Per channel, subtracted from values in [0, 1].
        std: Per channel, divided by afterwards.
        targetpad: If given, an image whose sides' ratio exceeds this is padded to it with zeros first
            (CLIP4Cir uses 1.25).
        rounding: What becomes of fractions of a pixel. "nearest" rounds the longer side half up and the crop's offset
            down; "torchvision" cuts the longer side off and rounds the offset half to even; "transformers" cuts off
            both. Models are fed as they were trained: a pixel more or less moves every patch.
        resize_to: Length to resize to before the crop; ``size`` if not given. DINOv2 resizes to 256 and keeps 224.
    """

    size: int
    resize: Literal["shortest", "squash"] = "shortest"
    crop: Literal["center", "none"] = "center"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    targetpad: float | None = None
    rounding: Literal["nearest", "torchvision", "transformers"] = "nearest"
    resize_to: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")
        if self.resize not in RESIZES:
            raise ValueError(f"resize must be one of {RESIZES}, got {self.resize!r}")
        if self.crop not in CROPS:
            raise ValueError(f"crop must be one of {CROPS}, got {self.crop!r}")
        if self.interpolation not in _FILTERS:
            raise ValueError(f"interpolation must be one of {tuple(_FILTERS)}, got {self.interpolation!r}")
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"rounding must be one of {ROUNDINGS}, got {self.rounding!r}")
        if self.crop == "none" and self.resize == "shortest":
            raise ValueError("crop 'none' needs resize 'squash': the result would not be square")
        if self.resize_to is not None and self.resize_to < self.size:
            raise ValueError(f"resize_to must be at least size {self.size}: nothing to crop, got {self.resize_to}")
        if self.resize_to not in (None, self.size) and self.crop == "none":
            raise ValueError(f"resize_to {self.resize_to} needs crop 'center': the result must have size {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ValueError(f"mean and std must have 3 values, std above 0; got {self.mean} and {self.std}")
        if self.targetpad is not None and self.targetpad < 1:
            raise ValueError(f"targetpad must be at least 1, got {self.targetpad}")


def preprocessing_of(model: Model) -> Preprocessing:
    """An image encoder's preprocessing.

    Raises:
        ManifestError: The model has none, or it asks for what this version does not do.
    """
    if model.manifest.preprocessing is None:
        raise ManifestError(f"model {model.manifest.name!r} has no preprocessing")
    try:
        return Preprocessing(**asdict(model.manifest.preprocessing))
    except ValueError as error:
        raise ManifestError(f"model {model.manifest.name!r}: {error}") from error


def to_tensor(image: Image.Image, spec: Preprocessing) -> npt.NDArray[np.float32]:
    """Resize, crop and normalise an RGB image.

    Args:
        image: In mode "RGB", upright; not changed.
        spec: What to do.

    Returns:
        (3, size, size) float32, C-contiguous.

    Raises:
        ValueError: The mode is not "RGB".
    """
    if image.mode != "RGB":
        raise ValueError(f"image mode must be RGB, got {image.mode}")
    if spec.targetpad is not None:
        image = _target_pad(image, spec.targetpad)
    width, height = image.size
    new = _resized(width, height, spec)
    kernel = _FILTERS[spec.interpolation]
    if spec.crop == "none":
        resized = image.resize(new, kernel)
    else:
        left, top = (_offset(side - spec.size, spec) for side in new)
        if spec.rounding == "nearest" or max(new) > _STRIP * min(new):
            # Only the part of the source that the crop keeps is resized, so that a very long image costs no more
            # than a square.
            box = (
                left * width / new[0],
                top * height / new[1],
                (left + spec.size) * width / new[0],
                (top + spec.size) * height / new[1],
            )
            resized = image.resize((spec.size, spec.size), kernel, box=box)
        else:
            # As the two libraries do it: Pillow rounds a few pixels of a part otherwise than those of the whole.
            resized = image.resize(new, kernel).crop((left, top, left + spec.size, top + spec.size))
    return _normalised(resized, spec)


def _normalised(image: Image.Image, spec: Preprocessing) -> npt.NDArray[np.float32]:
    """(3, s, s) float32 of a square picture.

    Plane by plane: the same arithmetic on (s, s, 3), with the planes taken apart at the end, takes ten times as long.
    """
    pixels = np.asarray(image)
    planes = np.empty((3, *pixels.shape[:2]), np.float32)
    for channel, (mean, std) in enumerate(zip(spec.mean, spec.std, strict=True)):
        plane = planes[channel]
        np.divide(pixels[..., channel], np.float32(255), out=plane, dtype=np.float32)
        plane -= np.float32(mean)
        plane /= np.float32(std)
    return planes


def _resized(width: int, height: int, spec: Preprocessing) -> tuple[int, int]:
    target = spec.size if spec.resize_to is None else spec.resize_to
    if spec.resize == "squash":
        return target, target
    shorter = min(width, height)
    if spec.rounding == "nearest":
        scale = target / shorter
        return max(target, int(width * scale + 0.5)), max(target, int(height * scale + 0.5))
    # In this order, as both libraries multiply first: the other order can end a pixel short.
    return int(target * width / shorter), int(target * height / shorter)


def _offset(excess: int, spec: Preprocessing) -> int:
    return round(excess / 2) if spec.rounding == "torchvision" else excess // 2


def _target_pad(image: Image.Image, ratio: float) -> Image.Image:
    width, height = image.size
    if max(width, height) / min(width, height) < ratio:
        return image
    side = max(width, height) / ratio
    horizontal, vertical = int(max(side - width, 0) / 2), int(max(side - height, 0) / 2)
    padded = Image.new("RGB", (width + 2 * horizontal, height + 2 * vertical))
    padded.paste(image, (horizontal, vertical))
    return padded
