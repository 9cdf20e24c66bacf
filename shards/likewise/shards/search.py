"""One batch of searches over one snapshot: plan, candidates, exact scores, exclusions, columns."""

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from likewise.shards import attributes, candidates, planner
from likewise.shards.candidates import Table, Wanted
from likewise.shards.distance import Ranked, rank, rank_table
from likewise.shards.exact import ExactSearch
from likewise.shards.masks import Allowed, FilterCache
from likewise.shards.planner import Choice, Demand
from likewise.shards.protocols import F32, I64, NOTHING, Exclusion, SearchOptions, ShardHits
from likewise.shards.rows import Mask, Snapshot
from likewise.shards.scan import MAX_BATCH_HITS, Abandoned
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


class _Outcome(NamedTuple):
    ranked: Ranked
    plan: pb.ShardPlan


class _Query(NamedTuple):
    """One query of a request that leaves something out: (1, d), the ids and the slots that its answer is without."""

    vector: F32
    ids: tuple[str, ...]
    copies: I64

    @property
    def extra(self) -> int:
        """How many more hits are asked for, so that k are left."""
        return len(self.ids) + len(self.copies)


class _Left(NamedTuple):
    """What is left for one query."""

    slots: I64
    scores: F32
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
    if not any(request.options.exclusions for request in requests):
        outcome = searcher.search(_joined_queries([request.queries for request in requests]), key.k, allowed)
        return _as_they_are(snapshot, requests, outcome)
    queries = [query for request in requests for query in _each(snapshot, allowed, request)]
    # By how many more are asked for, so that no answer depends on what others leave out.
    alike: dict[int, list[int]] = defaultdict(list)
    for i, query in enumerate(queries):
        alike[query.extra].append(i)
    found: dict[int, _Left] = {}
    for extra, members in alike.items():
        if extra <= MAX_EXTRA:
            outcome = searcher.search(_joined_queries([queries[i].vector for i in members]), key.k + extra, allowed)
            found |= {i: _left(snapshot, queries[i], outcome, nth, key.k) for nth, i in enumerate(members)}
            continue
        for i in members:
            narrowed = _without(snapshot, allowed, queries[i].copies)
            outcome = searcher.search(queries[i].vector, key.k + len(queries[i].ids), narrowed)
            found[i] = _left(snapshot, queries[i], outcome, 0, key.k)
    answers, first = [], 0
    for request in requests:
        last = first + len(request.queries)
        answers.append(
            _joined_hits(snapshot, request.options, queries[first:last], [found[i] for i in range(first, last)])
        )
        first = last
    return answers


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

    @property
    def _comparison(self) -> ExactSearch:
        return ExactSearch(self._snapshot, self._key.space, self._masks, self._stop)

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
                loosely = functools.partial(self._loosely, k=k, allowed=allowed, demand=demand, plan=plan)
                pieces.append(self._exact(piece, k, allowed, loosely))
            else:
                pieces.append(self._approximate(piece, k, allowed, choice, plan))
        return _Outcome(_joined(pieces), plan)

    def _exact(self, queries: F32, k: int, allowed: Allowed, loosely: Callable[[F32], Ranked]) -> Ranked:
        """All allowed rows compared; queries of which reduced ones tell too little are left to `loosely`."""
        scanned = self._comparison.by_bounds(queries, k, allowed)
        if scanned is None:
            return self._comparison.whole(queries, k, allowed)
        ranked, loose = scanned
        if not loose.any():
            return ranked
        return _interleaved(ranked, loosely(np.ascontiguousarray(queries[loose])), loose)

    def _loosely(self, queries: F32, k: int, allowed: Allowed, demand: Demand, plan: pb.ShardPlan) -> Ranked:
        """As `_exact` for queries of which reduced rows tell too little; through the index where that is faster."""
        index = self._space.index
        demand = demand._replace(loose=True, scattered=demand.filtered)
        choice = planner.choose(demand, index.traits if index else None, self._exact_rows)
        if choice.kind in _EXACT:
            return self._comparison.whole(queries, k, allowed)
        plan.kind, plan.ef = choice.kind, choice.ef
        return self._approximate(queries, k, allowed, choice, plan)

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
        if (
            allowed.count == allowed.sealed == index.traits.rows
            and min(positions[:, choice.candidates - 1].tolist()) >= 0
        ):
            # The common case: every row of the index may be a hit, there are no others, and no place is empty; those
            # are the last ones.
            return self._rank_table(queries, candidates.of_all(found, wanted), k, plan)
        which = candidates.passed(found, allowed.mask)
        if allowed.count == allowed.sealed and min(which.counts.tolist()) >= k:
            return self._rank_table(queries, candidates.as_table(found, which, wanted), k, plan)
        wanted = wanted._replace(k=min(k, allowed.sealed))
        short = which.counts < wanted.k
        owners, columns = np.nonzero(candidates.one_by_one(found, which, wanted) & ~short[:, np.newaxis])
        slots = positions[owners, columns]
        if allowed.count > allowed.sealed and not short.all():
            fresh = self._comparison.fresh(queries, k, allowed)
            fresh_owners = np.repeat(np.arange(len(queries)), np.diff(fresh.offsets))
            useful = ~short[fresh_owners]
            owners = np.concatenate((owners, fresh_owners[useful]))
            slots = np.concatenate((slots, fresh.slots[useful]))
        if len(owners):
            plan.compared = max(plan.compared, int(np.bincount(owners).max()))
        ranked = rank(queries, owners, slots, k, ids=self._snapshot.ids, gather=self._space.copy)
        if not short.any():
            return ranked
        plan.fallback = True
        plan.compared = allowed.count
        whole = functools.partial(self._comparison.whole, k=k, allowed=allowed)
        exact = self._exact(np.ascontiguousarray(queries[short]), k, allowed, whole)
        return _interleaved(ranked, exact, short)

    def _rank_table(self, queries: F32, table: Table, k: int, plan: pb.ShardPlan) -> Ranked:
        plan.compared = max(plan.compared, table.positions.shape[1])
        slots, counts = table
        return rank_table(queries, slots, k, counts=counts, ids=self._snapshot.ids, gather=self._space.copy)


def _joined_queries(queries: Sequence[F32]) -> F32:
    return np.concatenate(queries) if len(queries) > 1 else queries[0]


def _as_they_are(snapshot: Snapshot, requests: Sequence[Request], outcome: _Outcome) -> list[ShardHits]:
    """The answers of requests that leave nothing out: slices of the outcome, whose plan they share."""
    ranked, found, first = outcome.ranked, [], 0
    slots, bounds = ranked.slots.tolist(), ranked.offsets.tolist()
    for request in requests:
        options, last = request.options, first + len(request.queries)
        start, stop = bounds[first], bounds[last]
        rows = ranked.slots[start:stop]
        found.append(
            ShardHits(
                ids=list(map(snapshot.ids.__getitem__, slots[start:stop])),
                scores=ranked.scores[start:stop],
                offsets=ranked.offsets[first : last + 1] - start,
                attributes=attributes.take(snapshot.table, rows, options.attributes) if options.attributes else None,
                vectors=snapshot.spaces[options.space].vectors(rows) if options.vectors else None,
                plan=outcome.plan,
                version=snapshot.version,
            )
        )
        first = last
    return found


def _each(snapshot: Snapshot, allowed: Allowed, request: Request) -> list[_Query]:
    """The queries of a request, one by one."""
    exclusions = request.options.exclusions or (NOTHING,) * len(request.queries)
    return [
        _Query(request.queries[i : i + 1], exclusion.ids, _copies(snapshot, allowed, exclusion))
        for i, exclusion in enumerate(exclusions)
    ]


def _copies(snapshot: Snapshot, allowed: Allowed, exclusion: Exclusion) -> I64:
    """Slots of the allowed rows whose content is excluded."""
    if exclusion.content is None:
        return _NO_SLOTS
    slots = snapshot.by_content.equal(snapshot.content, exclusion.content)
    return slots[allowed.mask[slots]]


def _without(snapshot: Snapshot, allowed: Allowed, copies: I64) -> Allowed:
    mask = allowed.mask.copy()
    mask[copies] = False
    return Allowed(
        mask,
        count=int(np.count_nonzero(mask)),
        sealed=int(np.count_nonzero(mask[: snapshot.sealed])),
        filtered=allowed.filtered,
    )


def _left(snapshot: Snapshot, query: _Query, outcome: _Outcome, nth: int, k: int) -> _Left:
    """The first k hits of the n-th query of an outcome that are not left out."""
    ranked = outcome.ranked
    piece = slice(int(ranked.offsets[nth]), int(ranked.offsets[nth + 1]))
    slots, copies, names = ranked.slots[piece], frozenset(query.copies.tolist()), frozenset(query.ids)
    kept = [at for at, slot in enumerate(slots.tolist()) if slot not in copies and snapshot.ids[slot] not in names]
    return _Left(slots[kept[:k]], ranked.scores[piece][kept[:k]], outcome.plan)


def _joined_hits(
    snapshot: Snapshot, options: SearchOptions, queries: Sequence[_Query], found: Sequence[_Left]
) -> ShardHits:
    """The answer to one request, of what was found for each of its queries."""
    slots = np.concatenate([one.slots for one in found])
    return ShardHits(
        ids=[snapshot.ids[slot] for slot in slots.tolist()],
        scores=np.concatenate([one.scores for one in found]),
        offsets=np.cumsum([0, *(len(one.slots) for one in found)], dtype=np.int64),
        attributes=attributes.take(snapshot.table, slots, options.attributes) if options.attributes else None,
        vectors=snapshot.spaces[options.space].vectors(slots) if options.vectors else None,
        plan=found[-1].plan,
        version=snapshot.version,
        excluded=[len(query.copies) for query in queries],
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
