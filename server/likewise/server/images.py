"""Untrusted bytes to RGB pictures.

A file's dimensions are read and held against the limit before a pixel is decoded, so that a few kilobytes cannot ask
for gigabytes. Everything here blocks: call it from an executor.
"""

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from likewise.server.errors import InvalidRequest

UNDECODABLE: Final = "IMAGE_UNDECODABLE"
TOO_LARGE: Final = "IMAGE_TOO_LARGE"

_ORIENTATION_TAG: Final = 0x0112
_ORIENTATIONS: Final[dict[int, Image.Transpose]] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF 2.32, 4.6.4 A: what brings a picture of each orientation upright; 1 is upright already."""

_WHITE: Final = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may ask of the server.

    Attributes:
        max_bytes: Size of the file, bytes.
        max_pixels: Width times height.
    """

    max_bytes: int = 20 << 20
    max_pixels: int = 50_000_000


def decode(data: bytes, limits: ImageLimits, *, field: str = "") -> Image.Image:
    """Decode a JPEG, PNG or WebP file, told by its content, to a new upright RGB picture.

    EXIF orientation is applied, transparency is laid on white, an animation gives its first frame, 16-bit samples keep
    their high byte, CMYK is read with Adobe's polarity. Colour profiles are not applied: the models' public transforms
    do not either.

    Args:
        data: The file.
        limits: What is refused.
        field: Where the image stands in the request, for the error.

    Raises:
        InvalidRequest: IMAGE_TOO_LARGE over a limit; IMAGE_UNDECODABLE for anything that is no complete picture.
    """
    if not data:
        raise _undecodable("the image is empty (0 bytes)", field)
    if len(data) > limits.max_bytes:
        raise InvalidRequest(
            f"the image has {len(data):,} bytes, the limit is {limits.max_bytes:,}",
            reason=TOO_LARGE,
            field=field,
            metadata={"bytes": str(len(data)), "limit": str(limits.max_bytes)},
        )
    name, plugin = _sniff(data, field)
    if name == "WebP":
        # libwebp allocates its canvases when the file is opened.
        _check_size(_webp_size(data, field), limits, field)
    try:
        # The plugin itself rather than Image.open: that one has limits of its own, fixed for the process.
        with plugin(io.BytesIO(data)) as image:
            _check_size(image.size, limits, field)
            image.load()
            return _rgb(_upright(image))
    except (InvalidRequest, MemoryError):
        raise
    except Exception as error:
        # Pillow lets out whatever a damaged file leads its parsers to: OSError, SyntaxError, struct.error, ...
        raise _undecodable(f"the {name} image of {len(data):,} bytes is truncated or damaged", field) from error


def _sniff(data: bytes, field: str) -> tuple[str, type[ImageFile.ImageFile]]:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG", JpegImagePlugin.JpegImageFile
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG", PngImagePlugin.PngImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP", WebPImagePlugin.WebPImageFile
    raise _undecodable(f"the image is no JPEG, PNG or WebP file: it begins with {data[:8]!r}", field)


def _webp_size(data: bytes, field: str) -> tuple[int, int]:
    """Canvas of a WebP file from its first chunk (RFC 9649, 2.5 to 2.7)."""
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8 " and len(data) >= 30:
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    if kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise _undecodable(f"the WebP image of {len(data):,} bytes is truncated or damaged", field)


def _check_size(size: tuple[int, int], limits: ImageLimits, field: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise _undecodable(f"the image has no pixels ({width} x {height})", field)
    if width * height > limits.max_pixels:
        raise InvalidRequest(
            f"the image has {width:,} x {height:,} = {width * height:,} pixels, the limit is {limits.max_pixels:,}",
            reason=TOO_LARGE,
            field=field,
            metadata={"width": str(width), "height": str(height), "limit": str(limits.max_pixels)},
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        # Damaged metadata raises or warns at Pillow's leisure; the picture is still one, taken as it lies.
        return image
    operation = _ORIENTATIONS.get(orientation)
    return image if operation is None else image.transpose(operation)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        # Pasting needs one picture less in memory than Image.alpha_composite does.
        flat = Image.new("RGB", rgba.size, _WHITE)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    # A copy where it is RGB already: the caller's picture has neither the file nor its metadata behind it.
    rgb = image.convert("RGB")
    rgb.info = {}
    return rgb


def _from_16_bit(image: Image.Image) -> Image.Image:
    """The high byte of each sample, as Pillow itself reads 16-bit colour; convert() would clip at 255 instead."""
    samples = np.asarray(image).astype(np.uint16, copy=False)
    grey = (samples >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[samples == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _undecodable(message: str, field: str) -> InvalidRequest:
    return InvalidRequest(message, reason=UNDECODABLE, field=field)
