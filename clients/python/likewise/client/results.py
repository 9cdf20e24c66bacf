"""What an answer tells beside its hits, in Python: frozen values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from likewise.v1 import common_pb2 as pb
from likewise.v1 import search_service_pb2 as search_pb
from likewise.wire import F32, AttributeValue, decode_column, decode_vectors

__all__ = [
    "Composition",
    "Coverage",
    "Degradation",
    "ModelRef",
    "Notice",
    "Plan",
    "ShardPlan",
    "Timing",
]

F64 = npt.NDArray[np.float64]
Attributes = dict[str, AttributeValue]


@dataclass(frozen=True, slots=True)
class Degradation:
    """Why some items were not searched."""

    reason: str
    items: int
    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Coverage:
    """The share of the gallery's live items that the answer really searched.

    Attributes:
        fraction: items_searched / items_total; 1 for an empty gallery.
        items_searched: Live items looked at, those a filter or an index ruled out included.
        items_total: Live items of the gallery, as last known.
        shards_ok: Shards that answered.
        shards_total: Shards asked.
        degradations: Why the rest is missing.
    """

    fraction: float
    items_searched: int
    items_total: int
    shards_ok: int
    shards_total: int
    degradations: tuple[Degradation, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds spent in the server; see the proto's Timing for each."""

    total_us: int = 0
    decode_us: int = 0
    encode_us: int = 0
    compose_us: int = 0
    fan_out_us: int = 0
    shard_max_us: int = 0
    shard_queue_max_us: int = 0
    gather_us: int = 0
    merge_us: int = 0


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """How one shard looked: kind is "exact", "exact_filtered", "ann", "ann_filtered" or "empty".

    `partial_index`: the filter has an index of its own, which was used.
    """

    shard: int
    kind: str
    live: int
    allowed: int
    compared: int
    fallback: bool
    ef: int
    nprobe: int
    partial_index: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """How the answer was found: in words, shard by shard, and how the query vector was made."""

    summary: str
    shards: tuple[ShardPlan, ...]
    composition: str


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model that took part."""

    name: str
    version: int
    kind: str
    space: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to know about an answer that is otherwise good; `code` is stable, `message` is for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Composition:
    """The query vector of a reference and its conditions.

    Attributes:
        vector: (d,) float32, unit length.
        composition: How it was made, as in `Plan.composition`.
        models: Models that took part.
        timing: Where the time went.
        warnings: What to know about it.
    """

    vector: F32
    composition: str
    models: tuple[ModelRef, ...]
    timing: Timing
    warnings: tuple[Notice, ...]


def composition(message: search_pb.ComposeResponse) -> Composition:
    """Read a Compose answer."""
    return Composition(
        decode_vectors(message.vector)[0],
        message.composition,
        models_of(message.models),
        timing_of(message.timing),
        notices(message.warnings),
    )


def rows_of(columns: Sequence[pb.AttributeColumn], rows: int) -> list[Attributes]:
    """Columns of the wire as one dict a row."""
    if not columns:
        return [{} for _ in range(rows)]
    names = [column.name for column in columns]
    decoded = [decode_column(column) for column in columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*decoded, strict=True)]


def notices(messages: Sequence[pb.Warning]) -> tuple[Notice, ...]:
    """Warnings of an answer."""
    return tuple(Notice(one.code, one.message) for one in messages)


class Enum(Protocol):
    """A protobuf enum."""

    def Name(self, number: Any) -> str:
        """The number's name; ValueError for one this release does not know."""


def enum_word(enum: Enum, number: int, prefix: str) -> str:
    """PLAN_KIND_ANN as "ann"; a number of a newer release as itself."""
    try:
        return enum.Name(number).removeprefix(prefix).lower()
    except ValueError:
        return str(number)


def coverage_of(message: search_pb.Coverage) -> Coverage:
    degradations = tuple(Degradation(one.reason, one.items, tuple(one.shards)) for one in message.degradations)
    return Coverage(
        message.fraction,
        message.items_searched,
        message.items_total,
        message.shards_ok,
        message.shards_total,
        degradations,
    )


def timing_of(message: search_pb.Timing) -> Timing:
    values: dict[str, Any] = {name: getattr(message, name) for name in Timing.__slots__}
    return Timing(**values)


def plan_of(message: search_pb.Plan) -> Plan:
    shards = tuple(
        ShardPlan(
            one.shard,
            enum_word(search_pb.PlanKind, one.kind, "PLAN_KIND_"),
            one.live,
            one.allowed,
            one.compared,
            one.fallback,
            one.ef,
            one.nprobe,
            one.partial_index,
        )
        for one in message.shards
    )
    return Plan(message.summary, shards, message.composition)


def models_of(messages: Sequence[pb.ModelRef]) -> tuple[ModelRef, ...]:
    return tuple(ModelRef(one.name, one.version, one.kind, one.space) for one in messages)
