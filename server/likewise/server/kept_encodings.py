"""What encoders made of the last query texts and pictures, kept, as people ask for the same again.

Conditions are few ("the same colour", "in red"), and one picture is asked about under several, with several filters and
page by page. What is stored is not looked up here: it is encoded once.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np

from likewise.server.content import OFF_LOOP_BYTES
from likewise.server.errors import InvalidRequest
from likewise.server.protocols import Encoded, ImageEncoder, TextEncoder
from likewise.shards.protocols import F32

Encoder = ImageEncoder | TextEncoder
Inputs = Sequence[bytes] | Sequence[str]
Encode = Callable[[Encoder, Inputs], Awaitable[Encoded]]
"""Has an encoder encode what a query has for it."""

_LONGEST_TEXT: Final = 1_024
"""Characters; longer ones are not kept, so that what is kept is bounded."""

_Key = str | bytes


async def encode_anew(encoder: Encoder, inputs: Inputs) -> Encoded:
    """As the encoder does it; raises what it raises."""
    return await encoder.encode(inputs)  # type: ignore[arg-type]  # the caller pairs encoder and inputs


class KeptEncodings:
    """Keeps the last encodings of each encoder, and forgets those of encoders that are gone; for one event loop.

    An input that its encoder has something to warn of is not kept: its warnings are told each time.

    Args:
        entries: How many of each encoder; 0 for none.
        note: Told how many inputs were there and how many were not.
    """

    def __init__(self, entries: int, *, note: Callable[[Encoder, int, int], None] = lambda *_: None) -> None:
        self._entries = entries
        self._note = note
        self._kept: WeakKeyDictionary[Encoder, OrderedDict[_Key, F32]] = WeakKeyDictionary()

    async def encode(self, encoder: Encoder, inputs: Inputs) -> Encoded:
        """The inputs' encodings, those that are not kept by one call of the encoder; raises what it raises."""
        if not self._entries or not inputs:
            return await encode_anew(encoder, inputs)
        kept = self._kept.setdefault(encoder, OrderedDict())
        keys = [await _key(one) for one in inputs]
        rows = [None if key is None else kept.get(key) for key in keys]
        missing = [i for i, row in enumerate(rows) if row is None]
        self._note(encoder, len(inputs) - len(missing), len(missing))
        for key, row in zip(keys, rows, strict=True):
            if key is not None and row is not None:
                kept.move_to_end(key)
        if not missing:
            return Encoded(np.stack([row for row in rows if row is not None]))
        if len(missing) == len(inputs):
            encoded = await encode_anew(encoder, inputs)
        else:
            encoded = await _encode_some(encoder, inputs, missing)
        for i, vector in zip(missing, encoded.vectors, strict=True):
            rows[i] = vector
            if not encoded.warnings and (key := keys[i]) is not None:
                kept[key] = vector.copy()  # not a view, which would keep all of its call
        while len(kept) > self._entries:
            kept.popitem(last=False)
        vectors = np.stack([row for row in rows if row is not None])
        return Encoded(vectors, encoded.decode_us, encoded.encode_us, encoded.warnings)


async def _encode_some(encoder: Encoder, inputs: Inputs, which: Sequence[int]) -> Encoded:
    """Some of the inputs; a refused one is named by its place among all of them."""
    try:
        return await encode_anew(encoder, [inputs[i] for i in which])  # type: ignore[arg-type]  # all of one type
    except InvalidRequest as error:
        place = error.field.removeprefix("[").partition("]")[0]
        if not place.isdecimal():
            raise
        field = f"[{which[int(place)]}]"
        raise InvalidRequest(str(error), reason=error.reason, field=field, metadata=error.metadata) from error


async def _key(one: bytes | str) -> _Key | None:
    """What an input is looked up by; None for one that is not kept."""
    if isinstance(one, str):
        return one if len(one) <= _LONGEST_TEXT else None
    if len(one) < OFF_LOOP_BYTES:
        return hashlib.sha256(one).digest()
    return await asyncio.get_running_loop().run_in_executor(None, lambda: hashlib.sha256(one).digest())
