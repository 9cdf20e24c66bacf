"""Decodes pictures in worker threads, a bounded number ahead, as encoder inputs."""

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from likewise.export.preprocess import Preprocessing, to_tensor
from likewise.export.training.source import Captioned

F32 = npt.NDArray[np.float32]
Decoder: TypeAlias = Callable[[bytes], Image.Image]
"""An image file's bytes to an upright RGB picture; raises where they are none."""

WORKERS: Final = 4
BATCH: Final = 64
_HEAD: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Decoded:
    """Some pictures in order.

    Attributes:
        start: Position of the first.
        pixels: (b, 3, s, s) float32, normalised; zeros where a picture could not be decoded.
        problems: By position, why it could not.
    """

    start: int
    pixels: F32
    problems: dict[int, str]


def decode_plainly(data: bytes) -> Image.Image:
    """Any format that Pillow reads, upright, transparency on white.

    Raises:
        OSError: The bytes are no picture, or not all of one. Pillow lets out other exceptions of damaged files too.
    """
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            rgba = upright.convert("RGBA")
            flat = Image.new("RGB", rgba.size, (255, 255, 255))
            flat.paste(rgba, mask=rgba.getchannel("A"))
            return flat
        return upright.convert("RGB")


def decode(
    items: Sequence[Captioned], spec: Preprocessing, decoder: Decoder = decode_plainly, *, workers: int = WORKERS
) -> Iterator[Decoded]:
    """Decode pictures in batches of ``BATCH``; two batches a worker are held at most.

    Args:
        items: In order.
        spec: What makes them encoder inputs.
        decoder: The server's own, so that a picture is seen in training as it will be when served.
        workers: Threads; Pillow lets go of the interpreter's lock while it decodes and resizes.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="likewise-decode") as pool:
        ahead: deque[tuple[int, list[Future[F32 | str]]]] = deque()
        for start in range(0, len(items), BATCH):
            ahead.append((start, [pool.submit(_one, one, spec, decoder) for one in items[start : start + BATCH]]))
            if len(ahead) > 2:
                yield _collect(*ahead.popleft(), spec.size)
        while ahead:
            yield _collect(*ahead.popleft(), spec.size)


def fingerprint(path: Path) -> bytes:
    """Digest of a file's length and first 64 KiB: copies of one image have the same one."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    return hashlib.blake2b(head, digest_size=16, salt=path.stat().st_size.to_bytes(16, "little")).digest()


def fingerprints(items: Sequence[Captioned], *, workers: int = WORKERS) -> list[bytes]:
    """``fingerprint`` of each image, in order."""
    with ThreadPoolExecutor(workers, thread_name_prefix="likewise-fingerprint") as pool:
        return list(pool.map(fingerprint, (one.path for one in items)))


def _one(item: Captioned, spec: Preprocessing, decoder: Decoder) -> F32 | str:
    try:
        return to_tensor(decoder(item.path.read_bytes()), spec)
    except MemoryError:
        raise
    except Exception as error:
        # Pillow lets out whatever a damaged file leads its parsers to: OSError, SyntaxError, struct.error, ...
        return f"the image cannot be read: {error}"


def _collect(start: int, futures: Sequence[Future[F32 | str]], size: int) -> Decoded:
    pixels = np.zeros((len(futures), 3, size, size), np.float32)
    problems = {}
    for i, future in enumerate(futures):
        result = future.result()
        if isinstance(result, str):
            problems[start + i] = result
        else:
            pixels[i] = result
    return Decoded(start, pixels, problems)
