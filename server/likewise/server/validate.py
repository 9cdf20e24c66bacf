"""Checks that several services share: names, ids, vectors, pages, version tokens.

Pure functions from what a message says to values the rest may rely on. Each refuses with the field, the value got and
the limit; none corrects anything in silence.
"""

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np

from likewise import wire
from likewise.server.errors import FailedPrecondition, InvalidRequest, Unimplemented
from likewise.shards.protocols import F32
from likewise.shards.spec import GallerySpec, SpaceSpec
from likewise.v1 import common_pb2

MAX_ID_BYTES: Final = 512
MAX_TEXT_BYTES: Final = 8 << 10
MAX_REQUEST_ID: Final = 128

_LARGEST_SQUARED: Final = float(np.finfo(np.float32).max) ** 2
_FLOAT32: Final = (common_pb2.DTYPE_UNSPECIFIED, common_pb2.DTYPE_FLOAT32)
_ROWS_A_STEP: Final = 8192
"""Rows normalised at a time: bounds the float64 copies at 8192 x dim numbers."""


def shown(value: str) -> str:
    """A caller's string in a message: quoted and cut to 80 characters."""
    return repr(value if len(value) <= 80 else value[:77] + "...")


def required(value: str, field: str) -> str:
    """A string that may not be empty."""
    if not value:
        raise InvalidRequest(f"{field} is required", field=field)
    return value


def within(value: int, low: int, high: int, field: str) -> int:
    """An integer in [low, high]."""
    if not low <= value <= high:
        raise InvalidRequest(f"{field} must be in [{low:,}, {high:,}], got {value:,}", field=field)
    return value


def between(value: float, low: float, high: float, field: str, *, open_low: bool = False) -> float:
    """A number in [low, high], or in (low, high] with `open_low`; never NaN."""
    if math.isnan(value) or not low <= value <= high or (open_low and value == low):
        raise InvalidRequest(
            f"{field} must be in {'(' if open_low else '['}{low:g}, {high:g}], got {value:g}", field=field
        )
    return value


def later(field: str, what: str) -> Unimplemented:
    """The error for a part of the contract that this release does not serve."""
    return Unimplemented(f"{field}: {what} not served by this release; leave the field unset", field=field)


def item_id(value: str, field: str) -> str:
    """An id of 1 to 512 bytes of UTF-8."""
    if not value:
        raise InvalidRequest(f"{field} must not be empty", field=field)
    # A character has at most four bytes, so most ids need no encoding to be known good.
    if len(value) * 4 > MAX_ID_BYTES and (size := len(value.encode())) > MAX_ID_BYTES:
        raise InvalidRequest(f"{field} has {size} bytes, the limit is {MAX_ID_BYTES}: {shown(value)}", field=field)
    return value


def item_ids(values: Sequence[str], field: str, *, most: int) -> tuple[str, ...]:
    """At most `most` ids, each of 1 to 512 bytes."""
    if len(values) > most:
        raise InvalidRequest(f"{field} takes at most {most:,} ids, got {len(values):,}", field=field)
    ids = tuple(values)
    if not all(ids) or max(map(len, ids), default=0) * 4 > MAX_ID_BYTES:
        for i, value in enumerate(ids):
            item_id(value, f"{field}[{i}]")
    return ids


def request_id(value: str, field: str = "request_id") -> str:
    """Return an id of the caller's choice that can travel in a header.

    Raises:
        InvalidRequest: If it is longer than 128 characters or not printable ASCII.
    """
    if not 1 <= len(value) <= MAX_REQUEST_ID or not (value.isascii() and value.isprintable()):
        raise InvalidRequest(
            f"{field} must be 1 to {MAX_REQUEST_ID} printable ASCII characters, got {len(value)}: {value[:64]!r}",
            field=field,
        )
    return value


def text(value: str, field: str) -> str:
    """A text of at most 8 KiB that is not blank."""
    if not value.strip():
        raise InvalidRequest(f"{field} must not be blank", field=field)
    if (size := len(value.encode())) > MAX_TEXT_BYTES:
        raise InvalidRequest(f"{field} has {size:,} bytes, the limit is {MAX_TEXT_BYTES:,}", field=field)
    return value


def space_of(spec: GallerySpec, name: str, *, field: str = "space") -> SpaceSpec:
    """The gallery's space of that name, its first one for ""."""
    try:
        return spec.space(name)
    except KeyError:
        known = [space.name for space in spec.spaces]
        raise InvalidRequest(
            f"{field}: gallery {spec.name!r} has no space {shown(name)}, it has {known}", field=field
        ) from None


def attribute_names(values: Sequence[str], spec: GallerySpec, field: str) -> tuple[str, ...]:
    """Attributes to bring: names of the schema, each once, in the order given; "*" anywhere is all of them."""
    known = [attribute.name for attribute in spec.attributes]
    for i, name in enumerate(values):
        if name != "*" and name not in known:
            raise InvalidRequest(
                f"{field}[{i}]: {shown(name)} is no attribute of gallery {spec.name!r}, which has {known}",
                reason="UNKNOWN_ATTRIBUTE",
                field=f"{field}[{i}]",
            )
    return tuple(known) if "*" in values else tuple(dict.fromkeys(values))


def vectors(message: common_pb2.Vectors | common_pb2.Vector, space: SpaceSpec, field: str) -> F32:
    """(n, dim) float32 of a message whose vectors live in `space`; float32 input is a read-only view of its bytes.

    Raises:
        InvalidRequest: MALFORMED_VECTORS or DIMENSION_MISMATCH.
        FailedPrecondition: SPACE_MISMATCH.
    """
    if message.space and message.space != space.digest:
        raise FailedPrecondition(
            f"{field}: the vectors live in the space {shown(message.space)}, "
            f"the gallery's space {space.name!r} is {space.digest!r}",
            reason="SPACE_MISMATCH",
            field=f"{field}.space",
            metadata={"got": message.space[:256], "expected": space.digest},
        )
    if message.dim != space.dim:
        raise InvalidRequest(
            f"{field}: the vectors have {message.dim} dimensions, the gallery's space {space.name!r} has {space.dim}",
            reason="DIMENSION_MISMATCH",
            field=f"{field}.dim",
            metadata={"got": str(message.dim), "expected": str(space.dim)},
        )
    try:
        return wire.decode_vectors(message)
    except wire.WireError as error:
        raise InvalidRequest(f"{field}: {error}", reason="MALFORMED_VECTORS", field=f"{field}.data") from error


def normalised(matrix: F32, row_field: Callable[[int], str]) -> tuple[F32, F32]:
    """Unit rows and raw norms of an (n, dim) float32 matrix.

    Squares are summed in float64, in which no float32 overflows or vanishes: only rows without direction are refused.

    Args:
        matrix: Rows as given.
        row_field: Path of row i, for errors.

    Returns:
        (n, dim) float32 rows of length 1 and their (n,) float32 norms before.

    Raises:
        InvalidRequest: For the first row with NaN or Inf, of zeros, or with a norm that float32 cannot hold.
    """
    unit = np.empty(matrix.shape, dtype=np.float32)
    norms = np.empty(len(matrix), dtype=np.float64)
    for start in range(0, len(matrix), _ROWS_A_STEP):
        rows = matrix[start : start + _ROWS_A_STEP].astype(np.float64)
        lengths = np.sqrt(np.vecdot(rows, rows))
        bad = ~np.isfinite(lengths) | (lengths == 0) | (lengths > np.finfo(np.float32).max)
        if bad.any():
            i = start + int(np.argmax(bad))
            raise no_direction(matrix[i], row_field(i))
        unit[start : start + len(rows)] = rows / lengths[:, np.newaxis]
        norms[start : start + len(rows)] = lengths
    return unit, norms.astype(np.float32)


def unit(vector: F32, field: str) -> F32:
    """A (dim,) float32 vector at length 1; the same as a row of `normalised`, without the cost of a matrix.

    Raises:
        InvalidRequest: As `normalised` does.
    """
    wide = vector.astype(np.float64)
    squared = float(np.vecdot(wide, wide))
    # NaN fails the comparison too.
    if not 0.0 < squared <= _LARGEST_SQUARED:
        raise no_direction(vector, field)
    wide /= math.sqrt(squared)
    result: F32 = wide.astype(np.float32)
    return result


def units(messages: Sequence[common_pb2.Vector], space: SpaceSpec) -> list[F32 | None]:
    """What `vectors` and then `unit` make of each message, in order and to the bit, with one pass over all of them.

    None for what they refuse, and for vectors that are not float32: `vectors` and `unit` say what to make of these.
    """
    datas = [message.data for message in messages]
    size = space.dim * 4
    plain = [
        i
        for i, (message, data) in enumerate(zip(messages, datas, strict=True))
        if len(data) == size
        and message.dim == space.dim
        and message.dtype in _FLOAT32
        and message.space in ("", space.digest)
    ]
    found: list[F32 | None] = [None] * len(datas)
    if plain:
        rows = wire.unpack(b"".join([datas[i] for i in plain]), "<f4").reshape(len(plain), space.dim)
        made, wrong = unit_rows(rows)
        for i, row in zip(plain, made, strict=True):
            found[i] = row
        for at in wrong:
            found[plain[at]] = None
    return found


def unit_rows(rows: F32) -> tuple[F32, list[int]]:
    """What `unit` makes of each row of an (n, dim) matrix, to the bit, and which rows it would refuse, ascending."""
    wide = rows.astype(np.float64)
    squared = np.vecdot(wide, wide)
    # In Python: of few rows, as most matrices have, each call of numpy takes longer than this.
    wrong = [row for row, one in enumerate(squared.tolist()) if not 0.0 < one <= _LARGEST_SQUARED]
    if wrong:
        squared[wrong] = 1.0  # so that numpy has nothing to warn of
    wide /= np.sqrt(squared)[:, np.newaxis]
    return wide.astype(np.float32), wrong


def no_direction(row: F32, field: str) -> InvalidRequest:
    """Why `unit` refuses a row."""
    return InvalidRequest(_what_is_wrong(row, field), reason="INVALID_VECTOR", field=field)


def _what_is_wrong(row: F32, field: str) -> str:
    finite = np.isfinite(row)
    if not finite.all():
        at = int(np.argmin(finite))
        return f"{field}: number {at} of the vector is {row[at]}, all must be finite"
    if not row.any():
        return f"{field}: the vector is all zeros, which has no direction"
    return f"{field}: the vector's length is over {np.finfo(np.float32).max:g}, the largest float32"


def min_version(token: common_pb2.VersionToken, spec: GallerySpec, committed: int) -> int:
    """The version to wait for.

    Args:
        token: What the caller sent as `at_least`.
        spec: The gallery it has to belong to.
        committed: Newest committed version.
    """
    if token.gallery_id != spec.gallery_id:
        raise FailedPrecondition(
            f"at_least is of the gallery {shown(token.gallery_id)}, {spec.name!r} is {spec.gallery_id!r}: "
            "it was deleted and made anew, or the token is of another one",
            reason="VERSION_TOKEN_FOREIGN",
            field="at_least.gallery_id",
        )
    if token.version > committed:
        raise InvalidRequest(
            f"at_least.version is {token.version}, the newest committed version is {committed}",
            field="at_least.version",
        )
    return int(token.version)


def page_token(after: str, arguments: Iterable[str | bytes]) -> str:
    """An opaque token for the page after `after`; it is good for the same `arguments` only."""
    content = json.dumps({"after": after, "of": _fingerprint(arguments)}, separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode()


def page_start(token: str, arguments: Iterable[str | bytes]) -> str:
    """What `page_token` was made from; "" for the first page.

    Raises:
        InvalidRequest: If the token is none of ours or belongs to a list with other arguments.
    """
    if not token:
        return ""
    try:
        content = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        after, of = content["after"], content["of"]
    except (binascii.Error, ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(f"page_token {shown(token)} is none of this server's", field="page_token") from error
    if of != _fingerprint(arguments) or not isinstance(after, str):
        raise InvalidRequest(
            "page_token belongs to a list with other arguments: keep them while paging", field="page_token"
        )
    return after


def _fingerprint(arguments: Iterable[str | bytes]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for argument in arguments:
        data = argument.encode() if isinstance(argument, str) else argument
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
