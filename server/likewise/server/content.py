"""Content digests: what tells an exact copy of an item, whatever its id.

The digest is the first 8 bytes of SHA-256 over the bytes that made the item (the encoded image, the text in UTF-8, or
the vector as little-endian float32), read as a signed little-endian int64. Two items of one gallery are copies when
theirs agree; at 10^9 items the chance that any two different ones collide is below 3 %, and a collision hides one hit.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from likewise.shards.protocols import F32, I64

OFF_LOOP_BYTES: Final = 1 << 18
"""Image size from which its digest leaves the event loop: SHA-256 takes about a millisecond for it."""


def of_bytes(data: bytes) -> int:
    """Digest of one item's bytes."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little", signed=True)


def of_images(images: Sequence[bytes]) -> I64:
    """(n,) digests of encoded images."""
    return np.fromiter(map(of_bytes, images), dtype=np.int64, count=len(images))


def of_texts(texts: Sequence[str]) -> I64:
    """(n,) digests of texts."""
    return np.fromiter((of_bytes(text.encode()) for text in texts), dtype=np.int64, count=len(texts))


def of_vectors(vectors: F32) -> I64:
    """(n,) digests of the rows of an (n, dim) matrix as it was given, before normalisation."""
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    width = rows.shape[1] * rows.itemsize
    # Views of one copy, and all heads read at once: half the time of a copy and a number a row.
    view = memoryview(rows.tobytes())
    heads = b"".join([hashlib.sha256(view[at : at + width]).digest()[:8] for at in range(0, len(view), width)])
    return np.frombuffer(heads, dtype="<i8").astype(np.int64, copy=False)
