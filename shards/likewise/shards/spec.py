"""What a gallery is: its spaces, attributes, shards and index, as immutable values.

The same description is stored with the data, sent to routers and checked on every write. Sizes and names are validated
where a description enters the system (`validate`), so everything further in may rely on them.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from likewise.v1 import common_pb2, gallery_service_pb2

FORMAT: Final = 1
"""Version of the store's layout; a store of a newer one is refused."""

GALLERY_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
SPACE_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
ATTRIBUTE_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")

MAX_DIM: Final = 32_768
MAX_SHARDS: Final = 1_024
MAX_ATTRIBUTES: Final = 256
AUTO_HNSW_ROWS: Final = 50_000
"""Rows a shard from which `auto` means HNSW: below, an exact scan costs about as much and never misses."""

RESERVED_COLUMNS: Final = frozenset({"id", "shard_hash", "stamp", "content", "thumbnail"})
RESERVED_PREFIXES: Final = ("vector_", "norm_", "_")


class SpecError(ValueError):
    """A gallery description that cannot be.

    Attributes:
        field: Path of the offending field, as in the message ("spec.attributes[2].name").
    """

    def __init__(self, field_path: str, message: str) -> None:
        super().__init__(f"{field_path}: {message}")
        self.field = field_path


@dataclass(frozen=True, slots=True)
class SpaceSpec:
    """One embedding space.

    Attributes:
        name: Column suffix in the store.
        dim: Numbers a vector.
        digest: Identity of the space; two spaces with different digests are never compared.
        encoder: Model family that encodes into it, or "" for vectors only.
    """

    name: str
    dim: int
    digest: str
    encoder: str = ""


@dataclass(frozen=True, slots=True)
class AttributeSpec:
    """One attribute; `type` is a `likewise.v1.AttributeType` number."""

    name: str
    type: int


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """How a shard searches; None means the default stated at `likewise.v1.IndexSpec`."""

    kind: str = "auto"
    m: int | None = None
    ef_construction: int | None = None
    ef: int | None = None
    nlist: int | None = None
    nprobe: int | None = None
    target_recall: float | None = None


@dataclass(frozen=True, slots=True)
class GallerySpec:
    """One gallery.

    Attributes:
        name: Unique within a store.
        gallery_id: Identity, 32 hex digits; a gallery deleted and made anew has another.
        spaces: At least one; the first is the default.
        attributes: In schema order.
        shards: Partitions; the row's shard is `shard_hash % shards`.
        replicas: Copies of each shard.
        index: Sealed index of every shard.
        created_micros: Creation time, microseconds since the epoch.
    """

    name: str
    gallery_id: str
    spaces: tuple[SpaceSpec, ...]
    attributes: tuple[AttributeSpec, ...] = ()
    shards: int = 1
    replicas: int = 1
    index: IndexSpec = field(default_factory=IndexSpec)
    created_micros: int = 0

    def space(self, name: str = "") -> SpaceSpec:
        """The space of that name, the default one for "".

        Raises:
            KeyError: If there is none.
        """
        if not name:
            return self.spaces[0]
        for space in self.spaces:
            if space.name == name:
                return space
        raise KeyError(name)

    def attribute(self, name: str) -> AttributeSpec:
        """The attribute of that name.

        Raises:
            KeyError: If there is none.
        """
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        raise KeyError(name)


def generation(spec: GallerySpec) -> str:
    """Name of the set of shards that serve a gallery so described: "2", or "2.1f0c33ab".

    Descriptions that differ only in what running shards take over (attributes, search parameters, replicas) have the
    same one; another number of shards, or an index built in another way, needs shards of its own.
    """
    index = spec.index
    built = (index.kind.lower(), index.m, index.ef_construction, index.nlist)
    if built == ("auto", None, None, None):
        return str(spec.shards)
    # A digest: a factory string has characters that no file name may have.
    return f"{spec.shards}.{hashlib.blake2b(repr(built).encode(), digest_size=4).hexdigest()}"


def shard_hash(item_id: str) -> int:
    """Stable 63-bit hash of an id: the same on every machine and in every release (BLAKE2b, first 8 bytes)."""
    digest = hashlib.blake2b(item_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def vector_space_digest(dim: int) -> str:
    """Identity of the space of vectors that no model of ours made: only their dimension is known."""
    return f"vectors:{dim}"


def to_json(spec: GallerySpec) -> str:
    """The description as stored beside the data."""
    return json.dumps({"format": FORMAT, **asdict(spec)}, sort_keys=True)


def from_json(text: str) -> GallerySpec:
    """Read a stored description.

    Raises:
        SpecError: If it was written by a newer release, or is not what any release writes.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        if (written := fields.pop("format")) > FORMAT:
            raise SpecError("format", f"the store has format {written}, this release reads up to {FORMAT}: upgrade")
        return GallerySpec(
            **{
                **fields,
                "spaces": tuple(SpaceSpec(**space) for space in fields["spaces"]),
                "attributes": tuple(AttributeSpec(**attribute) for attribute in fields["attributes"]),
                "index": IndexSpec(**fields["index"]),
            }
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError("format", f"the stored description of a gallery is damaged: {error}") from error


def to_message(spec: GallerySpec, *, version: int) -> gallery_service_pb2.Gallery:
    """The description as callers see it."""
    message = gallery_service_pb2.Gallery(gallery_id=spec.gallery_id, version=version)
    message.create_time.FromMicroseconds(spec.created_micros)
    message.spec.name = spec.name
    message.spec.shards = spec.shards
    message.spec.replicas = spec.replicas
    for space in spec.spaces:
        message.spec.spaces.add(name=space.name, dim=space.dim, digest=space.digest, encoder=space.encoder)
    for attribute in spec.attributes:
        message.spec.attributes.add(name=attribute.name, type=common_pb2.AttributeType.ValueType(attribute.type))
    for name, value in asdict(spec.index).items():
        if value is not None:
            setattr(message.spec.index, name, value)
    return message


def from_message(gallery: gallery_service_pb2.Gallery) -> GallerySpec:
    """The description of a gallery that another process of ours serves."""
    spec = gallery.spec
    return GallerySpec(
        name=spec.name,
        gallery_id=gallery.gallery_id,
        spaces=tuple(SpaceSpec(s.name, s.dim, s.digest, s.encoder) for s in spec.spaces),
        attributes=tuple(AttributeSpec(a.name, a.type) for a in spec.attributes),
        shards=spec.shards,
        replicas=spec.replicas,
        index=index_from_message(spec.index),
        created_micros=gallery.create_time.ToMicroseconds(),
    )


def index_from_message(message: gallery_service_pb2.IndexSpec) -> IndexSpec:
    """The index part of a description; unset fields become None."""
    given = {name: getattr(message, name) for name in _INDEX_NUMBERS if message.HasField(name)}
    return IndexSpec(kind=message.kind or "auto", **given)


_INDEX_NUMBERS: Final = ("m", "ef_construction", "ef", "nlist", "nprobe", "target_recall")

_INDEX_LIMITS: Final = {
    "m": (4, 128),
    "ef_construction": (8, 4_096),
    "ef": (1, 65_536),
    "nlist": (1, 1_048_576),
    "nprobe": (1, 65_536),
}


def validate(spec: GallerySpec) -> GallerySpec:
    """Return `spec` if every name and number is within its limits.

    Raises:
        SpecError: Naming the first field that is not, the value got and the limit.
    """
    _match("spec.name", spec.name, GALLERY_NAME)
    if not spec.spaces:
        raise SpecError("spec.spaces", "a gallery needs at least one space")
    for i, space in enumerate(spec.spaces):
        _match(f"spec.spaces[{i}].name", space.name, SPACE_NAME)
        _within(f"spec.spaces[{i}].dim", space.dim, 1, MAX_DIM)
    _distinct("spec.spaces", [space.name for space in spec.spaces])
    if len(spec.attributes) > MAX_ATTRIBUTES:
        raise SpecError("spec.attributes", f"at most {MAX_ATTRIBUTES} attributes, got {len(spec.attributes)}")
    for i, attribute in enumerate(spec.attributes):
        path = f"spec.attributes[{i}]"
        _match(f"{path}.name", attribute.name, ATTRIBUTE_NAME)
        if attribute.name in RESERVED_COLUMNS or attribute.name.startswith(RESERVED_PREFIXES):
            raise SpecError(f"{path}.name", f"{attribute.name!r} is a column of the store itself")
        known = common_pb2.AttributeType.values()
        if attribute.type == common_pb2.ATTRIBUTE_TYPE_UNSPECIFIED or attribute.type not in known:
            raise SpecError(f"{path}.type", f"attribute {attribute.name!r} needs a type")
    _distinct("spec.attributes", [attribute.name for attribute in spec.attributes])
    _within("spec.shards", spec.shards, 1, MAX_SHARDS)
    _within("spec.replicas", spec.replicas, 1, 16)
    for name, (low, high) in _INDEX_LIMITS.items():
        if (value := getattr(spec.index, name)) is not None:
            _within(f"spec.index.{name}", value, low, high)
    target = spec.index.target_recall
    if target is not None and not 0 < target <= 1:  # NaN neither
        raise SpecError("spec.index.target_recall", f"must be in (0, 1], got {target:g}")
    if target is not None and (spec.index.ef is not None or spec.index.nprobe is not None):
        raise SpecError("spec.index.target_recall", "takes the place of ef and nprobe: give one or the other")
    return spec


def _match(path: str, value: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(value):
        raise SpecError(path, f"{value!r} does not match {pattern.pattern}")


def _within(path: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise SpecError(path, f"must be in [{low}, {high}], got {value}")


def _distinct(path: str, names: list[str]) -> None:
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise SpecError(path, f"{doubles[0]!r} is given twice")
