"""What a search answers, in Python: frozen values around numpy columns."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt

from likewise.v1 import common_pb2 as pb
from likewise.v1 import search_service_pb2 as search_pb
from likewise.wire import F32, AttributeValue, decode_column, decode_vectors, unpack

__all__ = [
    "Composition",
    "Coverage",
    "Degradation",
    "Explanation",
    "Hit",
    "Hits",
    "ItemExplanation",
    "ModelRef",
    "Notice",
    "Plan",
    "ShardPlan",
    "Timing",
]

F64 = npt.NDArray[np.float64]
Attributes = dict[str, AttributeValue]


@dataclass(frozen=True, slots=True)
class Hit:
    """One item of an answer.

    Attributes:
        id: The item's id.
        score: Similarity, larger is better; see `Hits.score_kind`.
        attributes: Those asked for; None for a missing value.
        vector: (d,) float32 of unit length, when asked for.
        relevance: Calibrated P(match) in [0, 1], when the model has a calibration.
    """

    id: str
    score: float
    attributes: Attributes
    vector: F32 | None = None
    relevance: float | None = None


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
    """How one shard looked: kind is "exact", "exact_filtered", "ann", "ann_filtered" or "empty"."""

    shard: int
    kind: str
    live: int
    allowed: int
    compared: int
    fallback: bool
    ef: int
    nprobe: int


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


class Hits(Sequence[Hit]):
    """An answer: a sequence of `Hit`, best first, and the same as columns.

    Attributes:
        ids: Ids, by (score descending, id ascending).
        scores: (n,) float32.
        relevances: (n,) float64, or None when the model has no calibration.
        vectors: (n, d) float32 of unit length, read-only; None unless asked for.
        version: Oldest store version among the shards that answered.
        request_id: The call's id, as the server's log has it.
    """

    def __init__(self, message: search_pb.SearchResponse) -> None:
        hits = message.hits
        self.ids: list[str] = list(hits.ids)
        self.scores: F32 = unpack(hits.scores, "<f4").astype(np.float32)
        self.relevances: F64 | None = unpack(hits.relevances, "<f8").astype(np.float64) if hits.relevances else None
        self.vectors: F32 | None = decode_vectors(hits.vectors) if hits.HasField("vectors") else None
        self.version: int = message.version
        self.request_id: str = message.request_id
        self._message = message
        self._attributes: list[Attributes] | None = None

    # What few callers look at is made when they do: all of it together takes longer than the hits themselves.

    @functools.cached_property
    def condition_scores(self) -> dict[int, F32]:
        """Condition index to (n,) float32, when asked for; the number of conditions itself stands for the reference."""
        return {
            one.condition: unpack(one.scores, "<f4").astype(np.float32) for one in self._message.hits.condition_scores
        }

    @functools.cached_property
    def score_kind(self) -> str:
        """What a score is: "cosine", "gated_cosine" or "chamfer"."""
        return enum_word(search_pb.ScoreKind, self._message.hits.score_kind, "SCORE_KIND_")

    @functools.cached_property
    def coverage(self) -> Coverage:
        """What was really searched."""
        return _coverage(self._message.coverage)

    @functools.cached_property
    def timing(self) -> Timing:
        """Where the time went."""
        return _timing(self._message.timing)

    @functools.cached_property
    def plan(self) -> Plan:
        """How it was found."""
        return _plan(self._message.plan)

    @functools.cached_property
    def models(self) -> tuple[ModelRef, ...]:
        """Models that took part."""
        return _models(self._message.models)

    @functools.cached_property
    def warnings(self) -> tuple[Notice, ...]:
        """What to know about the answer."""
        return notices(self._message.warnings)

    @property
    def attributes(self) -> list[Attributes]:
        """One dict a hit with the attributes asked for; built when first looked at."""
        if self._attributes is None:
            self._attributes = rows_of(self._message.hits.attributes, len(self.ids))
        return self._attributes

    def column(self, name: str) -> list[AttributeValue]:
        """One attribute of all hits.

        Raises:
            KeyError: If it was not asked for.
        """
        for column in self._message.hits.attributes:
            if column.name == name:
                return decode_column(column)
        raise KeyError(name)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> list[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | list[Hit]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self.ids)))]
        return Hit(
            self.ids[index],
            float(self.scores[index]),
            self.attributes[index],
            None if self.vectors is None else self.vectors[index],
            None if self.relevances is None else float(self.relevances[index]),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Hit]:
        return (self[row] for row in range(len(self.ids)))

    def __repr__(self) -> str:
        best = f", best {self.ids[0]!r} at {self.scores[0]:.4f}" if self.ids else ""
        return f"<Hits: {len(self.ids)}{best}; coverage {self.coverage.fraction:.3g}; {self.plan.summary}>"


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


@dataclass(frozen=True, slots=True)
class ItemExplanation:
    """Where one item stands.

    Attributes:
        id: The item.
        found: The gallery has it.
        passes_filter: The filter leaves it.
        score: Its score.
        rank: From 1 among the items the filter leaves; 0 when not found or filtered out.
        condition_scores: Condition index to the item's score under that condition alone.
    """

    id: str
    found: bool
    passes_filter: bool
    score: float
    rank: int
    condition_scores: dict[int, float]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A search with its reasons: the hits, and where the items asked for stand."""

    hits: Hits
    items: tuple[ItemExplanation, ...]


def composition(message: search_pb.ComposeResponse) -> Composition:
    """Read a Compose answer."""
    return Composition(
        decode_vectors(message.vector)[0],
        message.composition,
        _models(message.models),
        _timing(message.timing),
        notices(message.warnings),
    )


def explanation(message: search_pb.ExplainResponse) -> Explanation:
    """Read an Explain answer."""
    items = tuple(
        ItemExplanation(
            one.id,
            one.found,
            one.passes_filter,
            one.score,
            one.rank,
            {part.condition: float(unpack(part.scores, "<f4")[0]) for part in one.condition_scores if part.scores},
        )
        for one in message.items
    )
    return Explanation(Hits(message.response), items)


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


def _coverage(message: search_pb.Coverage) -> Coverage:
    degradations = tuple(Degradation(one.reason, one.items, tuple(one.shards)) for one in message.degradations)
    return Coverage(
        message.fraction,
        message.items_searched,
        message.items_total,
        message.shards_ok,
        message.shards_total,
        degradations,
    )


def _timing(message: search_pb.Timing) -> Timing:
    values: dict[str, Any] = {name: getattr(message, name) for name in Timing.__slots__}
    return Timing(**values)


def _plan(message: search_pb.Plan) -> Plan:
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
        )
        for one in message.shards
    )
    return Plan(message.summary, shards, message.composition)


def _models(messages: Sequence[pb.ModelRef]) -> tuple[ModelRef, ...]:
    return tuple(ModelRef(one.name, one.version, one.kind, one.space) for one in messages)
