"""Many items as messages of a sane size: checked whole before the first is sent, then cut into chunks.

A chunk is stored all or not at all; chunks are independent of each other. What became of each is kept in a `Tally`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from likewise.client import rpc
from likewise.client.attributes import Columns, Schema, encode_columns
from likewise.client.errors import InvalidArgument, InvalidType, LikewiseError, MessageTooLarge, UpsertFailure
from likewise.client.images import image_bytes
from likewise.client.items import checked_ids
from likewise.client.references import float_array
from likewise.client.results import Notice, notices
from likewise.client.rpc import Call, make_call, new_request_id
from likewise.client.versions import VersionToken, token_of
from likewise.v1 import item_service_pb2 as item_pb
from likewise.wire import WireError, encode_vectors

CHUNK_BYTES: Final = 4 << 20  # a message: enough to amortise a commit, little enough to flow beside searches
CHUNK_ROWS: Final = 10_000
_CHECK_ROWS: Final = 65_536  # rows of numbers looked at together
_ENVELOPE_BYTES: Final = 64  # what a stream adds to a message
_ROW_OVERHEAD: Final = 16  # bytes of tags and lengths a row costs
# How the server and this package name a row: items.images.data[3], vectors[3]; not attributes[3], which is a column.
_ROW: Final = re.compile(r"\b(?:ids|vectors|images|data|texts|values|items)\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class UpsertResult:
    """An upsert that went through.

    Attributes:
        upserted: Distinct ids written.
        version: The version from which they are visible; None when there was nothing to write.
        warnings: What to know about it.
    """

    upserted: int
    version: VersionToken | None
    warnings: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows, as one call."""

    ids: tuple[str, ...]
    call: Call[UpsertResult]


@dataclass(frozen=True, slots=True)
class Content:
    """What items are made of: one of vectors, images and texts.

    Attributes:
        size: Bytes of a row, once it is sent.
        take: Puts rows [start, stop) into a message.
        select: The same for some rows only.
    """

    size: Callable[[int], int]
    take: Callable[[item_pb.Items, int, int], None]
    select: Callable[[Sequence[int]], "Content"]


@dataclass(frozen=True, slots=True)
class Upsert:
    """A checked upsert: distinct ids, and everything else in their order."""

    gallery: str
    ids: list[str]
    content: Content
    columns: Columns
    schema: Schema
    thumbnails: list[bytes]
    column_bytes: int


def prepare(
    gallery: str,
    ids: Any,
    *,
    images: Any,
    vectors: Any,
    texts: Any,
    columns: Columns,
    schema: Schema,
    thumbnails: Sequence[bytes] | None,
) -> Upsert:
    """Check an upsert whole, images apart, which are read when their turn comes; of a repeated id the last row stays.

    Args:
        gallery: Its name.
        ids: (n) strings.
        images: n images, see `likewise.client.images.Image`; or
        vectors: (n, d) floats, any length but zero; or
        texts: n descriptions.
        columns: Attributes, n values each.
        schema: Their types.
        thumbnails: n small images, or None.

    Raises:
        InvalidArgument: If a length, an id, a number or an attribute is wrong; the message names row and field.
    """
    taken = checked_ids(ids)
    given = {"images": images, "vectors": vectors, "texts": texts}
    present = [name for name, value in given.items() if value is not None]
    if len(present) != 1:
        raise InvalidArgument(f"give one of images, vectors and texts, got {' and '.join(present) or 'none'}")
    content = _CONTENTS[present[0]](given[present[0]], len(taken))
    column_bytes = sum(
        column.ByteSize()
        for start in range(0, len(taken), _CHECK_ROWS)
        for column in encode_columns(columns, schema, slice(start, start + _CHECK_ROWS))
    )
    small = list(thumbnails or ())
    if small and len(small) != len(taken):
        raise InvalidArgument(f"{len(small)} thumbnails for {len(taken)} ids", field="thumbnails")
    last = {one: row for row, one in enumerate(taken)}
    if len(last) < len(taken):
        keep = sorted(last.values())
        taken = [taken[row] for row in keep]
        content = content.select(keep)
        columns = {name: [values[row] for row in keep] for name, values in columns.items()}
        small = [small[row] for row in keep] if small else small
    return Upsert(gallery, taken, content, columns, schema, small, column_bytes)


def chunks(upsert: Upsert, *, max_bytes: int, request_id: str | None = None) -> Iterator[Chunk]:
    """Cut an upsert into calls of about 4 MiB, and never over the message limit.

    Args:
        upsert: What to send.
        max_bytes: The message limit.
        request_id: Base of the chunks' ids; default a fresh one each.

    Raises:
        MessageTooLarge: If one row alone is over the limit.
        InvalidArgument: If an image cannot be read.
    """
    budget = min(CHUNK_BYTES, max_bytes // 2)
    rows = len(upsert.ids)
    fixed = _ROW_OVERHEAD + upsert.column_bytes // max(rows, 1)
    start = 0
    while start < rows:
        stop, size = start, 0
        while stop < rows and stop - start < CHUNK_ROWS:
            row_size = fixed + len(upsert.ids[stop]) + upsert.content.size(stop)
            row_size += len(upsert.thumbnails[stop]) if upsert.thumbnails else 0
            if stop > start and size + row_size > budget:
                break
            size, stop = size + row_size, stop + 1
        yield from _fitting(upsert, start, stop, max_bytes, request_id)
        start = stop


class Tally:
    """Counts what became of each chunk of one upsert; stops handing out chunks after the first failure."""

    def __init__(self, upsert: Upsert, *, max_bytes: int, request_id: str | None = None) -> None:
        self.total = len(upsert.ids)
        self.stored = 0
        self._upsert = upsert
        self._source = chunks(upsert, max_bytes=max_bytes, request_id=request_id)
        self._done: set[str] = set()
        self._version: VersionToken | None = None
        self._warnings: dict[Notice, None] = {}
        self._failure: tuple[LikewiseError, tuple[str, ...]] | None = None
        self._peeked = [chunk for chunk in (self.next_chunk(), self.next_chunk()) if chunk]

    @property
    def alone(self) -> bool:
        """Whether one call is enough."""
        return len(self._peeked) < 2

    def left(self) -> Iterator[Chunk]:
        """The chunks to send, once each, as they are asked for; none after a failure."""
        yield from self._peeked
        self._peeked.clear()
        yield from iter(self.next_chunk, None)

    def next_chunk(self) -> Chunk | None:
        """The next rows to send; None when there are no more or one was refused."""
        if self._failure:
            return None
        try:
            return next(self._source, None)
        except LikewiseError as error:  # an image that cannot be read, a row over the limit
            self._failure = (error, ())
            return None

    def add(self, chunk: Chunk, outcome: UpsertResult | LikewiseError) -> VersionToken | None:
        """Note a chunk's outcome; gives the version it was stored as."""
        if isinstance(outcome, LikewiseError):
            self._failure = self._failure or (outcome, chunk.ids)
            return None
        self.stored += len(chunk.ids)
        self._done.update(chunk.ids)
        self._warnings.update(dict.fromkeys(outcome.warnings))
        if outcome.version and (self._version is None or self._version.version < outcome.version.version):
            self._version = outcome.version
        return outcome.version

    def result(self) -> UpsertResult:
        """The sum.

        Raises:
            LikewiseError: The first failure; `upsert` says what is stored all the same.
        """
        if self._failure is None:
            return UpsertResult(self.stored, self._version, tuple(self._warnings))
        error, refused = self._failure
        behind = set(refused)
        rest = tuple(one for one in self._upsert.ids if one not in self._done and one not in behind)
        indexes = _ROW.findall(error.field)
        row = int(indexes[-1]) if indexes else -1
        if refused:
            item = refused[row] if 0 <= row < len(refused) else ""
        else:
            item = self._upsert.ids[row] if 0 <= row < self.total else ""
            refused, rest = ((item,), tuple(one for one in rest if one != item)) if item else ((), rest)
        error.upsert = UpsertFailure(self.stored, refused, refused + rest, item)
        error.add_note(
            f"{self.stored} of {self.total} items are stored, chunk by chunk"
            + (f"; the cause is item {item!r}" if item else "")
        )
        raise error


def _fitting(upsert: Upsert, start: int, stop: int, max_bytes: int, request_id: str | None) -> Iterator[Chunk]:
    items = item_pb.Items(ids=upsert.ids[start:stop], thumbnails=upsert.thumbnails[start:stop])
    upsert.content.take(items, start, stop)
    items.attributes.extend(encode_columns(upsert.columns, upsert.schema, slice(start, stop)))
    own_id = f"{request_id}.{start}" if request_id and stop - start < len(upsert.ids) else request_id
    own_id = own_id or new_request_id()
    request = item_pb.UpsertRequest(gallery=upsert.gallery, items=items, request_id=own_id)
    size = request.ByteSize()
    if size + _ENVELOPE_BYTES <= max_bytes:
        call = make_call(rpc.UPSERT, request, _result, request_id=own_id)
        yield Chunk(tuple(upsert.ids[start:stop]), call)
    elif stop - start == 1:
        raise MessageTooLarge(
            f"item {upsert.ids[start]!r} alone makes a message of {size} bytes, the limit is {max_bytes}",
            reason="MESSAGE_TOO_LARGE",
            details={"size": str(size), "limit": str(max_bytes)},
            field=f"items[{start}]",
        )
    else:  # attributes or texts of very different lengths
        middle = (start + stop) // 2
        yield from _fitting(upsert, start, middle, max_bytes, request_id)
        yield from _fitting(upsert, middle, stop, max_bytes, request_id)


def _result(message: item_pb.UpsertResponse) -> UpsertResult:
    return UpsertResult(message.upserted, token_of(message.version), notices(message.warnings))


def _sequence(name: str, given: Any, rows: int) -> Any:
    if isinstance(given, str | bytes) or not hasattr(given, "__iter__"):
        raise InvalidType(f"{name} must be a list, one an item, got a {type(given).__name__}", field=name)
    taken = given if isinstance(given, list | tuple | np.ndarray) else list(given)
    if len(taken) != rows:
        raise InvalidArgument(f"{len(taken)} {name} for {rows} ids", field=name)
    return taken


def _images(given: Any, rows: int) -> Content:
    images = _sequence("images", given, rows)
    read: dict[int, bytes] = {}  # rows sized but not yet taken: one chunk and a row

    def size(row: int) -> int:
        if row not in read:
            read[row] = image_bytes(images[row], field=f"images[{row}]")
        return len(read[row])

    def take(items: item_pb.Items, start: int, stop: int) -> None:
        # Rows behind these are no longer needed; those of a chunk that is divided come again.
        for row in [row for row in read if row < start]:
            del read[row]
        for row in range(start, stop):
            size(row)
        items.images.data.extend(read[row] for row in range(start, stop))

    return Content(size, take, lambda keep: _images([images[row] for row in keep], len(keep)))


def _texts(given: Any, rows: int) -> Content:
    texts = _sequence("texts", given, rows)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidType(f"texts[{row}] must be a string, got a {type(text).__name__}", field=f"texts[{row}]")

    def take(items: item_pb.Items, start: int, stop: int) -> None:
        items.texts.values.extend(texts[start:stop])

    return Content(lambda row: len(texts[row]), take, lambda keep: _texts([texts[row] for row in keep], len(keep)))


def _vectors(given: Any, rows: int) -> Content:
    matrix = float_array(given, "vectors")
    if matrix.ndim != 2 or matrix.shape[0] != rows or (rows and matrix.shape[1] == 0):
        raise InvalidArgument(f"vectors must have the shape ({rows}, d), got {matrix.shape}", field="vectors")
    _require_directions(matrix)
    row_bytes = matrix.shape[1] * (2 if matrix.dtype == np.float16 else 4)

    def take(items: item_pb.Items, start: int, stop: int) -> None:
        try:
            items.vectors.CopyFrom(encode_vectors(matrix[start:stop]))
        except WireError as error:
            raise InvalidArgument(f"vectors: {error}", field="vectors") from error

    return Content(lambda row: row_bytes, take, lambda keep: _vectors(matrix[list(keep)], len(keep)))


def _require_directions(matrix: npt.NDArray[Any]) -> None:
    for start in range(0, len(matrix), _CHECK_ROWS):
        with np.errstate(over="ignore"):  # what does not fit float32 becomes inf and is reported
            block = matrix[start : start + _CHECK_ROWS].astype(np.float32, copy=False)
        finite = np.isfinite(block)
        good = np.asarray(finite.all(axis=1) & block.any(axis=1))
        if not good.all():
            row = int(good.argmin())
            field = f"vectors[{start + row}]"
            if finite[row].all():
                raise InvalidArgument(f"{field} is zero: it has no direction", reason="ZERO_VECTOR", field=field)
            at = int(finite[row].argmin())
            shown = "NaN" if np.isnan(block[row, at]) else f"{block[row, at]} as a float32"
            raise InvalidArgument(f"{field}: number {at} is {shown}", reason="NOT_FINITE", field=field)


_CONTENTS: Final[dict[str, Callable[[Any, int], Content]]] = {"images": _images, "texts": _texts, "vectors": _vectors}
