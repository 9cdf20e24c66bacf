"""One query searched exactly and on every step of effort, over one snapshot; for the recall guard's own thread.

Nothing here calls BLAS: its threads take turns under one lock, and a call that the guard's thread is too unimportant to
finish would make searches wait. FAISS compares with as many threads as the calling one asks for, here one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from likewise.shards import candidates, effort, index, planner, raw_vectors
from likewise.shards.candidates import Wanted
from likewise.shards.distance import inner_products
from likewise.shards.effort import F64
from likewise.shards.index import Found
from likewise.shards.masks import Allowed
from likewise.shards.partial_index import PartialIndex
from likewise.shards.planner import Choice, Demand, IndexTraits
from likewise.shards.protocols import F32, I64
from likewise.shards.recall import local_dimension
from likewise.shards.rows import Snapshot, SpaceRows
from likewise.v1 import search_service_pb2 as pb

NEIGHBOURS: Final = 100
"""Rows that the local dimension is estimated from."""

_EXACT: Final = frozenset({pb.PLAN_KIND_EXACT, pb.PLAN_KIND_EXACT_FILTERED, pb.PLAN_KIND_EMPTY})


@dataclass(frozen=True, slots=True)
class Asked:
    """A search to check: (dim,) unit query, and how it was asked."""

    query: F32
    space: str
    k: int
    filter: bytes = b""
    ef: int | None = None
    nprobe: int | None = None
    over_fetch: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check found.

    Attributes:
        recalls: (effort.STEPS,) share of the true k best sealed rows found on each step.
        served: The same for the search as it was asked.
        dimension: Local dimension at the query, if it could be told.
        share: Share of the live rows that the filter leaves.
    """

    recalls: F64
    served: float
    dimension: float | None
    share: float


class Stopped(Exception):
    """The check was asked to stop."""


def check(
    snapshot: Snapshot,
    allowed: Allowed,
    asked: Asked,
    *,
    partial: PartialIndex | None = None,
    stop: Callable[[], bool],
) -> Outcome | None:
    """Search on every step; None if there is no index to check.

    Fresh rows are left out on both sides: they are always compared exactly.

    Args:
        snapshot: The rows.
        allowed: Which of them the filter leaves.
        asked: The search.
        partial: The index that the filter has of its own. A step's recall is then the lower one of both ways, because
            what is learned of one filter is held for others, that have none.
        stop: See below.

    Raises:
        Stopped: If `stop()` became true.
    """
    space = snapshot.spaces[asked.space]
    sealed = space.index
    if sealed is None or allowed.sealed == 0:
        return None
    traits = sealed.traits
    truth, dimension = _truth(space, snapshot, allowed, asked)
    known: dict[tuple[Choice, bool], float | None] = {}

    def found(choice: Choice, by: PartialIndex | None) -> Found:
        query = asked.query[np.newaxis]
        if by is not None:
            return by.search(query, choice.depth, ef=choice.ef)
        mask = allowed.mask[: snapshot.sealed] if sealed.filters else None
        return sealed.search(query, choice.depth, ef=choice.ef, nprobe=choice.nprobe, mask=mask)

    def recall(demand: Demand, by: PartialIndex | None = None) -> float | None:
        """None for a query that the index of its filter is not used for."""
        if stop():
            raise Stopped
        choice = planner.choose(demand, traits if by is None else by.traits)
        if choice.kind in _EXACT:
            return 1.0
        key = choice, by is not None
        if key not in known:
            here = found(choice, by)
            known[key] = None if by is not None and by.far(here)[0] else _recall(here, choice, allowed, truth)
        return known[key]

    def least(demand: Demand) -> float:
        ways = [recall(demand), *([] if partial is None else [recall(demand, partial)])]
        return min(way for way in ways if way is not None)

    plain = Demand(
        k=asked.k,
        live=snapshot.live,
        allowed=allowed.count,
        sealed_allowed=allowed.sealed,
        filtered=allowed.filtered,
        exact=False,
    )
    as_asked = plain._replace(ef=asked.ef, nprobe=asked.nprobe, over_fetch=asked.over_fetch)
    served = recall(as_asked, partial)
    if served is None:
        served = least(as_asked)
    recalls = np.array([least(on_step(plain, step, traits)) for step in range(effort.STEPS)])
    return Outcome(recalls, served, dimension, allowed.count / max(snapshot.live, 1))


def on_step(demand: Demand, step: int, traits: IndexTraits) -> Demand:
    """The demand with what a step sets for such an index."""
    if traits.kind == "hnsw":
        return demand._replace(ef=effort.ef(step, demand.k, traits))
    if traits.kind == "ivf":
        return demand._replace(nprobe=effort.nprobe(step, traits))
    return demand._replace(over_fetch=effort.over_fetch(step))


def stored(snapshot: Snapshot, space: str, *, count: int, k: int) -> list[Asked]:
    """Stored rows moved by their own length, as stand-ins for queries that nobody has asked yet; always the same ones.

    So far, because a query right beside a stored row is an easier one than callers will have.
    """
    rng = np.random.default_rng(snapshot.sealed)
    # A few draws, not a shuffle of all rows: this runs on the event loop.
    drawn = np.unique(rng.integers(0, snapshot.sealed, 4 * count))
    slots = rng.permutation(drawn[snapshot.alive[drawn]])[:count]
    vectors = snapshot.spaces[space].vectors(slots)
    moved = vectors + rng.standard_normal(vectors.shape, dtype=np.float32) / np.sqrt(vectors.shape[1])
    moved /= np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), np.float32(1e-12))
    return [Asked(np.ascontiguousarray(query, dtype=np.float32), space, k) for query in moved]


def _truth(space: SpaceRows, snapshot: Snapshot, allowed: Allowed, asked: Asked) -> tuple[I64, float | None]:
    """Positions of the true k best sealed rows, and the local dimension."""
    everything = allowed.sealed == snapshot.sealed
    mask = None if everything else allowed.mask[: snapshot.sealed]
    # Some more than needed: the float32 sums only choose, the exact scores decide.
    depth = min(max(asked.k + 16, NEIGHBOURS), allowed.sealed)
    positions = index.nearest(space.sealed, asked.query, depth, mask=mask)
    scores = inner_products(np.broadcast_to(asked.query, (len(positions), len(asked.query))), space.vectors(positions))
    raw_vectors.leave(space.sealed)
    order = np.argsort(-scores, kind="stable")
    return positions[order[: asked.k]], local_dimension(scores[order][:NEIGHBOURS])


def _recall(found: Found, choice: Choice, allowed: Allowed, truth: I64) -> float:
    """Share of the truth among the candidates that a search would re-score."""
    which = candidates.passed(found, allowed.mask)
    if which.counts[0] < min(len(truth), allowed.sealed):
        return 1.0  # came short: the search would compare all rows
    scored = candidates.one_by_one(found, which, Wanted(len(truth), choice.candidates))
    return float(np.isin(truth, found.positions[scored]).mean())
