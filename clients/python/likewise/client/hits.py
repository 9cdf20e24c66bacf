"""What a search found, in Python: sequences of hits over numpy columns."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from likewise.client.results import (
    Attributes,
    Coverage,
    ModelRef,
    Notice,
    Plan,
    Timing,
    coverage_of,
    enum_word,
    models_of,
    notices,
    plan_of,
    rows_of,
    timing_of,
)
from likewise.v1 import search_service_pb2 as search_pb
from likewise.wire import F32, AttributeValue, decode_column, decode_vectors, unpack

__all__ = ["Explanation", "Hit", "Hits", "ItemExplanation"]

F64 = npt.NDArray[np.float64]


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


class _Answer:
    """A message and what its hits have in common, read from it when somebody looks: few callers do.

    All of it together takes longer to read than the hits themselves.
    """

    def __init__(self, message: search_pb.SearchResponse) -> None:
        hits = message.hits
        self.message = message
        self.ids: list[str] = list(hits.ids)
        self.scores: F32 = unpack(hits.scores, "<f4").astype(np.float32)
        self.relevances: F64 | None = unpack(hits.relevances, "<f8").astype(np.float64) if hits.relevances else None
        self.vectors: F32 | None = decode_vectors(hits.vectors) if hits.HasField("vectors") else None
        self._columns: dict[str, list[AttributeValue]] = {}

    @functools.cached_property
    def attributes(self) -> list[Attributes]:
        return rows_of(self.message.hits.attributes, len(self.ids))

    def column(self, name: str) -> list[AttributeValue]:
        if name not in self._columns:
            found = [one for one in self.message.hits.attributes if one.name == name]
            if not found:
                raise KeyError(name)
            self._columns[name] = decode_column(found[0])
        return self._columns[name]

    @functools.cached_property
    def coverage(self) -> Coverage:
        return coverage_of(self.message.coverage)

    @functools.cached_property
    def timing(self) -> Timing:
        return timing_of(self.message.timing)

    @functools.cached_property
    def plan(self) -> Plan:
        return plan_of(self.message.plan)

    @functools.cached_property
    def models(self) -> tuple[ModelRef, ...]:
        return models_of(self.message.models)

    @functools.cached_property
    def warnings(self) -> tuple[Notice, ...]:
        return notices(self.message.warnings)


class Hits(Sequence[Hit]):
    """An answer: a sequence of `Hit`, best first, and the same as columns."""

    # Of `ids` and `scores`, which every caller looks at: `cached_property` of Python 3.11 takes a lock of its own.
    _ids: list[str] | None = None
    _scores: F32 | None = None

    def __init__(self, message: search_pb.SearchResponse) -> None:
        self._answer = _Answer(message)
        self._rows = slice(None)

    @property
    def ids(self) -> list[str]:
        """Ids, by (score descending, id ascending)."""
        ids = self._ids
        if ids is None:
            ids = self._ids = self._answer.ids[self._rows]
        return ids

    @property
    def scores(self) -> F32:
        """(n,) float32."""
        scores = self._scores
        if scores is None:
            scores = self._scores = self._answer.scores[self._rows]
        return scores

    @functools.cached_property
    def relevances(self) -> F64 | None:
        """(n,) float64, or None when the model has no calibration."""
        return None if self._answer.relevances is None else self._answer.relevances[self._rows]

    @functools.cached_property
    def vectors(self) -> F32 | None:
        """(n, d) float32 of unit length, read-only; None unless asked for."""
        return None if self._answer.vectors is None else self._answer.vectors[self._rows]

    @property
    def version(self) -> int:
        """Oldest store version among the shards that answered."""
        return self._answer.message.version

    @property
    def request_id(self) -> str:
        """The call's id, as the server's log has it."""
        return self._answer.message.request_id

    @functools.cached_property
    def condition_scores(self) -> dict[int, F32]:
        """Condition index to (n,) float32, when asked for; the number of conditions itself stands for the reference."""
        return {
            one.condition: unpack(one.scores, "<f4").astype(np.float32)[self._rows]
            for one in self._answer.message.hits.condition_scores
        }

    @property
    def score_kind(self) -> str:
        """What a score is: "cosine", "gated_cosine" or "chamfer"."""
        return enum_word(search_pb.ScoreKind, self._answer.message.hits.score_kind, "SCORE_KIND_")

    @property
    def coverage(self) -> Coverage:
        """What was really searched."""
        return self._answer.coverage

    @property
    def timing(self) -> Timing:
        """Where the time went; of searches that travelled together it is that of all of them."""
        return self._answer.timing

    @property
    def plan(self) -> Plan:
        """How it was found."""
        return self._answer.plan

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """Models that took part."""
        return self._answer.models

    @property
    def warnings(self) -> tuple[Notice, ...]:
        """What to know about the answer."""
        return self._answer.warnings

    @functools.cached_property
    def attributes(self) -> list[Attributes]:
        """One dict a hit with the attributes asked for; built when first looked at."""
        return self._answer.attributes[self._rows]

    def column(self, name: str) -> list[AttributeValue]:
        """One attribute of all hits.

        Raises:
            KeyError: If it was not asked for.
        """
        return self._answer.column(name)[self._rows]

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


def hits_of_rows(message: search_pb.SearchResponse, bounds: Sequence[int]) -> list[Hits]:
    """The hits of several queries, which a message has one query after the other.

    Args:
        message: It.
        bounds: One more than queries; query i has the rows bounds[i] to bounds[i + 1].
    """
    answer, found, start = _Answer(message), [], bounds[0]
    for end in bounds[1:]:
        hits = Hits.__new__(Hits)
        hits._answer, hits._rows = answer, slice(start, end)
        found.append(hits)
        start = end
    return found


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
