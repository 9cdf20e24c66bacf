"""One batch of searches over one snapshot: plan, candidates, exact scores, exclusions, columns."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from likewise.shards import attributes, candidates, planner
from likewise.shards.candidates import Table, Wanted
from likewise.shards.distance import MAX_BATCH_HITS, Abandoned, Part, Ranked, rank, rank_table, scan
from likewise.shards.masks import Allowed, FilterCache
from likewise.shards.planner import Choice, Demand
from likewise.shards.protocols import F32, I64, SearchOptions, ShardHits
from likewise.shards.rows import Mask, Snapshot
from likewise.v1 import search_service_pb2 as pb

MAX_EXTRA: Final = 64
"""Rows to leave out of an answer that are met by asking for as many more; beyond, they are taken out of the bitmap."""

_NO_SLOTS: Final[I64] = np.zeros(0, dtype=np.int64)
_EXACT: Final = frozenset({pb.PLAN_KIND_EXACT, pb.PLAN_KIND_EXACT_FILTERED})


class BatchKey(NamedTuple):
    """What the searches of one batch have in common; see `SearchOptions`."""

    space: str
    k: int
    filter: bytes
    exact: bool | None
    ef: int | None
    nprobe: int | None
    over_fetch: float | None


class Request(NamedTuple):
    """One search of a batch: (n, d) queries, and what is its own among the options."""

    queries: F32
    options: SearchOptions


@dataclass(frozen=True, slots=True)
class _Outcome:
    ranked: Ranked
    plan: pb.ShardPlan


@functools.lru_cache(maxsize=1_024)
def batch_key(options: SearchOptions) -> BatchKey:
    """The part of the options that decides which searches may share a batch.

    Exclusions are not in it: searches from different stored references still run together.
    """
    return BatchKey(
        space=options.space,
        k=options.k,
        filter=options.filter,
        exact=options.exact,
        ef=options.ef,
        nprobe=options.nprobe,
        over_fetch=options.over_fetch,
    )


def answer(
    snapshot: Snapshot,
    key: BatchKey,
    requests: Sequence[Request],
    *,
    shard: int,
    masks: FilterCache,
    exact_rows: int | None,
    stop: Callable[[], bool] = lambda: False,
) -> list[ShardHits]:
    """Answer the requests of one batch, in order.

    Raises:
        InvalidFilter: If the filter does not fit the schema.
        Abandoned: If `stop()` became true.
    """
    allowed = masks.allowed(snapshot, key.filter)
    searcher = _Searcher(snapshot, key, shard, masks, exact_rows, stop)
    copies = [_copies(snapshot, allowed, request.options) for request in requests]
    extra = [len(c) + len(r.options.excluded_ids) for c, r in zip(copies, requests, strict=True)]
    if not any(extra):
        outcome = searcher.search(_joined_queries([request.queries for request in requests]), key.k, allowed)
        return _as_they_are(snapshot, requests, outcome)
    together = [i for i, count in enumerate(extra) if count <= MAX_EXTRA]
    found: list[ShardHits | None] = [None] * len(requests)
    if together:
        queries = [requests[i].queries for i in together]
        more = max(extra[i] for i in together)
        outcome = searcher.search(_joined_queries(queries), key.k + more, allowed)
        start = 0
        for i in together:
            stop_at = start + len(requests[i].queries)
            found[i] = _compose(snapshot, requests[i].options, outcome, start, stop_at, copies[i])
            start = stop_at
    for i, request in enumerate(requests):
        if found[i] is None:
            narrowed = _without(snapshot, allowed, copies[i], request.options.excluded_ids)
            outcome = searcher.search(request.queries, key.k, narrowed)
            found[i] = _compose(snapshot, request.options, outcome, 0, len(request.queries), copies[i])
    return [one for one in found if one is not None]


class _Searcher:
    def __init__(
        self,
        snapshot: Snapshot,
        key: BatchKey,
        shard: int,
        masks: FilterCache,
        exact_rows: int | None,
        stop: Callable[[], bool],
    ) -> None:
        self._snapshot = snapshot
        self._space = snapshot.spaces[key.space]
        self._key = key
        self._shard = shard
        self._masks = masks
        self._exact_rows = exact_rows
        self._stop = stop

    def search(self, queries: F32, k: int, allowed: Allowed) -> _Outcome:
        """The k best allowed rows of each query."""
        demand = Demand(
            k=k,
            live=self._snapshot.live,
            allowed=allowed.count,
            sealed_allowed=allowed.sealed,
            filtered=allowed.filtered,
            scattered=allowed.filtered and not self._masks.gathers(self._snapshot, allowed, self._key.space),
            exact=self._key.exact,
            ef=self._key.ef,
            nprobe=self._key.nprobe,
            over_fetch=self._key.over_fetch,
        )
        index = self._space.index
        choice = planner.choose(demand, index.traits if index else None, self._exact_rows)
        plan = pb.ShardPlan(
            shard=self._shard,
            kind=choice.kind,
            live=self._snapshot.live,
            allowed=allowed.count,
            ef=choice.ef,
            nprobe=choice.nprobe,
        )
        k = min(k, allowed.count)
        pieces: list[Ranked] = []
        step = max(1, MAX_BATCH_HITS // max(k, choice.depth, 1))
        for start in range(0, len(queries), step):
            piece = queries[start : start + step]
            if choice.kind == pb.PLAN_KIND_EMPTY:
                pieces.append(_nothing(len(piece)))
            elif choice.kind in _EXACT:
                plan.compared = allowed.count
                pieces.append(self._scan(piece, k, self._parts(allowed)))
            else:
                pieces.append(self._approximate(piece, k, allowed, choice, plan))
        return _Outcome(_joined(pieces), plan)

    def _parts(self, allowed: Allowed, *, fresh_only: bool = False) -> list[Part]:
        if allowed.filtered and not fresh_only:
            gathered = self._masks.gathered(self._snapshot, allowed, self._key.space)
            if gathered is not None:
                return [Part(gathered.vectors, 0, slots=gathered.slots)]
        sealed, parts = self._snapshot.sealed, []
        if allowed.sealed and not fresh_only:
            rows = None if allowed.sealed == sealed else np.flatnonzero(allowed.mask[:sealed])
            parts.append(Part(self._space.sealed, 0, rows))
        if fresh := allowed.count - allowed.sealed:
            rows = None if fresh == self._snapshot.fresh else np.flatnonzero(allowed.mask[sealed:])
            parts.append(Part(self._space.fresh, sealed, rows))
        return parts

    def _scan(self, queries: F32, k: int, parts: Sequence[Part]) -> Ranked:
        return scan(queries, parts, k, ids=self._snapshot.ids, gather=self._space.vectors, stop=self._stop)

    def _approximate(self, queries: F32, k: int, allowed: Allowed, choice: Choice, plan: pb.ShardPlan) -> Ranked:
        index = self._space.index
        if index is None:
            raise AssertionError("an approximate plan without an index. This is a bug.")
        if self._stop():
            raise Abandoned
        mask = allowed.mask[: self._snapshot.sealed] if index.filters else None
        found = index.search(queries, choice.depth, ef=choice.ef, nprobe=choice.nprobe, mask=mask)
        wanted = Wanted(k, choice.candidates)
        positions = found.positions
        if allowed.count == allowed.sealed == index.rows and min(positions[:, choice.candidates - 1].tolist()) >= 0:
            # The common case: every row of the index may be a hit, there are no others, and no place is empty; those
            # are the last ones.
            return self._rank_table(queries, candidates.of_all(found, wanted), k, plan)
        which = candidates.passed(found, allowed.mask)
        if allowed.count == allowed.sealed and (table := candidates.as_table(found, which, wanted)) is not None:
            return self._rank_table(queries, table, k, plan)
        wanted = wanted._replace(k=min(k, allowed.sealed))
        short = which.nth[:, -1] < wanted.k
        owners, columns = np.nonzero(candidates.one_by_one(found, which, wanted) & ~short[:, np.newaxis])
        slots = positions[owners, columns]
        if allowed.count > allowed.sealed and not short.all():
            fresh = self._scan(queries, k, self._parts(allowed, fresh_only=True))
            fresh_owners = np.repeat(np.arange(len(queries)), np.diff(fresh.offsets))
            useful = ~short[fresh_owners]
            owners = np.concatenate((owners, fresh_owners[useful]))
            slots = np.concatenate((slots, fresh.slots[useful]))
        if len(owners):
            plan.compared = max(plan.compared, int(np.bincount(owners).max()))
        ranked = rank(queries, owners, slots, k, ids=self._snapshot.ids, gather=self._space.vectors)
        if not short.any():
            return ranked
        plan.fallback = True
        plan.compared = allowed.count
        exact = self._scan(np.ascontiguousarray(queries[short]), k, self._parts(allowed))
        return _interleaved(ranked, exact, short)

    def _rank_table(self, queries: F32, table: Table, k: int, plan: pb.ShardPlan) -> Ranked:
        plan.compared = max(plan.compared, table.positions.shape[1])
        slots, counts = table
        return rank_table(queries, slots, k, counts=counts, ids=self._snapshot.ids, gather=self._space.vectors)


def _joined_queries(queries: Sequence[F32]) -> F32:
    return np.concatenate(queries) if len(queries) > 1 else queries[0]


def _as_they_are(snapshot: Snapshot, requests: Sequence[Request], outcome: _Outcome) -> list[ShardHits]:
    """The answers of requests that leave nothing out: slices of the outcome, whose plan they share."""
    ranked, found, first = outcome.ranked, [], 0
    all_ids, names = snapshot.ids, ranked.slots.tolist()
    for request in requests:
        options, last = request.options, first + len(request.queries)
        start, stop = int(ranked.offsets[first]), int(ranked.offsets[last])
        slots = ranked.slots[start:stop]
        found.append(
            ShardHits(
                ids=list(map(all_ids.__getitem__, names[start:stop])),
                scores=ranked.scores[start:stop],
                offsets=ranked.offsets[first : last + 1] - start,
                attributes=attributes.take(snapshot.table, slots, options.attributes) if options.attributes else None,
                vectors=snapshot.spaces[options.space].vectors(slots) if options.vectors else None,
                plan=outcome.plan,
                version=snapshot.version,
                excluded=0,
            )
        )
        first = last
    return found


def _copies(snapshot: Snapshot, allowed: Allowed, options: SearchOptions) -> I64:
    """Slots of the allowed rows whose content is excluded."""
    if options.excluded_content is None:
        return _NO_SLOTS
    slots = snapshot.by_content.equal(snapshot.content, options.excluded_content)
    return slots[allowed.mask[slots]]


def _without(snapshot: Snapshot, allowed: Allowed, copies: I64, ids: Sequence[str]) -> Allowed:
    mask = allowed.mask.copy()
    mask[copies] = False
    if ids:
        excluded = frozenset(ids)
        mask[[slot for slot in np.flatnonzero(mask).tolist() if snapshot.ids[slot] in excluded]] = False
    return Allowed(
        mask,
        count=int(np.count_nonzero(mask)),
        sealed=int(np.count_nonzero(mask[: snapshot.sealed])),
        filtered=allowed.filtered,
    )


def _compose(
    snapshot: Snapshot, options: SearchOptions, outcome: _Outcome, first: int, last: int, copies: I64
) -> ShardHits:
    """The answer for queries `first` to `last` of an outcome."""
    bounds = outcome.ranked.offsets[first : last + 1]
    slots, scores = outcome.ranked.slots[bounds[0] : bounds[-1]], outcome.ranked.scores[bounds[0] : bounds[-1]]
    offsets = bounds - bounds[0]
    ids = [snapshot.ids[slot] for slot in slots.tolist()]
    if len(copies) or options.excluded_ids or bool((np.diff(offsets) > options.k).any()):
        keep = ~np.isin(slots, copies)
        if options.excluded_ids:
            excluded = frozenset(options.excluded_ids)
            keep &= np.fromiter((item_id not in excluded for item_id in ids), dtype=bool, count=len(ids))
        before = np.concatenate(([0], np.cumsum(keep)))
        keep &= before[1:] - np.repeat(before[offsets[:-1]], np.diff(offsets)) <= options.k
        before = np.concatenate(([0], np.cumsum(keep)))
        offsets = before[offsets]
        slots, scores = slots[keep], scores[keep]
        ids = [item_id for item_id, kept in zip(ids, keep.tolist(), strict=True) if kept]
    plan = pb.ShardPlan()
    plan.CopyFrom(outcome.plan)
    return ShardHits(
        ids=ids,
        scores=scores,
        offsets=offsets.astype(np.int64, copy=False),
        attributes=attributes.take(snapshot.table, slots, options.attributes) if options.attributes else None,
        vectors=snapshot.spaces[options.space].vectors(slots) if options.vectors else None,
        plan=plan,
        version=snapshot.version,
        excluded=len(copies),
    )


def _nothing(n: int) -> Ranked:
    return Ranked(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32), np.zeros(n + 1, dtype=np.int64))


def _joined(pieces: Sequence[Ranked]) -> Ranked:
    if len(pieces) == 1:
        return pieces[0]
    counts = np.concatenate([np.diff(piece.offsets) for piece in pieces])
    return Ranked(
        np.concatenate([piece.slots for piece in pieces]),
        np.concatenate([piece.scores for piece in pieces]),
        np.concatenate(([0], np.cumsum(counts))),
    )


def _interleaved(ranked: Ranked, exact: Ranked, short: Mask) -> Ranked:
    """`ranked` with the queries marked in `short` replaced, in turn, by those of `exact`."""
    pieces, at = [], 0
    for query, replaced in enumerate(short.tolist()):
        source, row = (exact, at) if replaced else (ranked, query)
        at += int(replaced)
        low, high = source.offsets[row], source.offsets[row + 1]
        pieces.append(Ranked(source.slots[low:high], source.scores[low:high], np.array([0, high - low])))
    return _joined(pieces)
