"""Images in whatever form a caller has them, as the bytes of an image file."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from likewise.client.errors import InvalidArgument, InvalidType


class PilImage(Protocol):
    """What is used of a PIL.Image.Image."""

    mode: str

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Write the image."""

    def convert(self, mode: str) -> "PilImage":
        """The image in another mode."""


Image = str | os.PathLike[str] | bytes | bytearray | memoryview | npt.NDArray[np.uint8] | PilImage
"""A path, the bytes of an image file, a PIL image, or an (h, w, 3), (h, w, 4) or (h, w) uint8 array, RGB order."""

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_COLOURS: Final = {1: 0, 3: 2, 4: 6}  # channels to PNG colour type
_PNG_MODES: Final = frozenset({"1", "L", "LA", "I", "P", "RGB", "RGBA", "I;16"})
_ORIENTATION: Final = 0x0112


def image_bytes(image: Image, *, field: str = "image") -> bytes:
    """The bytes of an image file: as they are where there are some, else losslessly packed as PNG.

    Args:
        image: See `Image`.
        field: What errors call it ("images[3]").

    Raises:
        InvalidArgument: If the file cannot be read, is empty, or the array is no image.
        InvalidType: If it is none of the known forms.
    """
    data: bytes
    if isinstance(image, bytes | bytearray | memoryview):
        data = bytes(image)
    elif isinstance(image, str | os.PathLike):
        data = _read(Path(image), field)
    elif isinstance(image, np.ndarray):
        return encode_png(image, field=field)
    elif hasattr(image, "save") and hasattr(image, "mode"):
        return _from_pil(image, field)
    else:
        raise InvalidType(
            f"{field} must be a path, bytes, a PIL image or a uint8 array, got a {type(image).__name__}", field=field
        )
    if not data:
        raise InvalidArgument(f"{field} is empty: 0 bytes", field=field)
    return data


def encode_png(pixels: npt.NDArray[Any], *, field: str = "image") -> bytes:
    """Pack (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) uint8 pixels, RGB order, as a PNG file.

    Raises:
        InvalidArgument: If the array is no image of that kind.
    """
    shaped = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or shaped.ndim != 3 or shaped.shape[2] not in _PNG_COLOURS or not shaped.size:
        raise InvalidArgument(
            f"{field} must be an (h, w, 3) array of uint8, got {pixels.dtype} of shape {pixels.shape}", field=field
        )
    height, width, channels = shaped.shape
    rows = np.zeros((height, 1 + width * channels), dtype=np.uint8)  # each row begins with its filter, 0 = none
    rows[:, 1:] = shaped.reshape(height, width * channels)
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOURS[channels], 0, 0, 0)
    # Level 1: the image goes over the wire once, time matters more than size.
    body = zlib.compress(rows.tobytes(), level=1)
    return _PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{field}: cannot read {str(path)!r}: {error.strerror or error}", field=field) from error


def _from_pil(image: Any, field: str) -> bytes:
    params: dict[str, Any] = {}
    # PIL leaves the orientation of a photograph in its EXIF and would drop it here.
    exif = image.getexif() if hasattr(image, "getexif") else {}
    if exif.get(_ORIENTATION, 1) != 1:
        params["exif"] = exif
    buffer = io.BytesIO()
    try:
        (image if image.mode in _PNG_MODES else image.convert("RGB")).save(buffer, format="PNG", **params)
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{field}: the PIL image cannot be read: {error}", field=field) from error
    return buffer.getvalue()
