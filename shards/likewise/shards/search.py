"""One batch of searches over one snapshot: plan, candidates, exact scores, exclusions, columns."""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from likewise.shards import attributes, candidates, exclusions, planner
from likewise.shards.candidates import Table, Wanted
from likewise.shards.distance import Ranked, rank, rank_table
from likewise.shards.exact import ExactSearch
from likewise.shards.exclusions import Left
from likewise.shards.index import Found
from likewise.shards.masks import Allowed, FilterCache
from likewise.shards.partial_index import PartialIndex
from likewise.shards.partial_indexes import PartialIndexes
from likewise.shards.planner import Choice, Demand
from likewise.shards.protocols import F32, SearchOptions, ShardHits
from likewise.shards.rows import Mask, Snapshot
from likewise.shards.scan import MAX_BATCH_HITS, Abandoned
from likewise.v1 import search_service_pb2 as pb

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


class _Task(NamedTuple):
    """What is wanted of queries that are searched together, and the plan that tells how it was done."""

    k: int
    allowed: Allowed
    demand: Demand
    plan: pb.ShardPlan


class _Outcome(NamedTuple):
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
    partials: PartialIndexes,
    exact_rows: int | None,
    stop: Callable[[], bool] = lambda: False,
) -> list[ShardHits]:
    """Answer the requests of one batch, in order.

    Raises:
        InvalidFilter: If the filter does not fit the schema.
        Abandoned: If `stop()` became true.
    """
    allowed = masks.allowed(snapshot, key.filter)
    searcher = _Searcher(snapshot, key, shard, masks, partials, exact_rows, stop)
    if not any(request.options.exclusions for request in requests):
        outcome = searcher.search(_joined_queries([request.queries for request in requests]), key.k, allowed)
        return _as_they_are(snapshot, requests, outcome)
    queries = [one for request in requests for one in exclusions.each(snapshot, allowed, *request)]
    # By how many more are asked for, so that no answer depends on what others leave out.
    alike: dict[int, list[int]] = defaultdict(list)
    for i, query in enumerate(queries):
        alike[query.extra].append(i)
    found: dict[int, Left] = {}
    for extra, members in alike.items():
        if extra <= exclusions.MAX_EXTRA:
            outcome = searcher.search(_joined_queries([queries[i].vector for i in members]), key.k + extra, allowed)
            found |= {i: exclusions.left(snapshot, queries[i], *outcome, nth, key.k) for nth, i in enumerate(members)}
            continue
        for i in members:
            narrowed = exclusions.without(snapshot, allowed, queries[i].copies)
            outcome = searcher.search(queries[i].vector, key.k + len(queries[i].ids), narrowed)
            found[i] = exclusions.left(snapshot, queries[i], *outcome, 0, key.k)
    answers, first = [], 0
    for request in requests:
        last = first + len(request.queries)
        left = [found[i] for i in range(first, last)]
        answers.append(exclusions.hits(snapshot, request.options, queries[first:last], left))
        first = last
    return answers


class _Searcher:
    def __init__(
        self,
        snapshot: Snapshot,
        key: BatchKey,
        shard: int,
        masks: FilterCache,
        partials: PartialIndexes,
        exact_rows: int | None,
        stop: Callable[[], bool],
    ) -> None:
        self._snapshot = snapshot
        self._space = snapshot.spaces[key.space]
        self._key = key
        self._shard = shard
        self._masks = masks
        self._partials = partials
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
        partial = self._partials.of(self._snapshot, allowed, self._key.space)
        choice = self._choice(demand, partial)
        plan = pb.ShardPlan(
            shard=self._shard,
            kind=choice.kind,
            live=self._snapshot.live,
            allowed=allowed.count,
            ef=choice.ef,
            nprobe=choice.nprobe,
        )
        task = _Task(min(k, allowed.count), allowed, demand, plan)
        step = max(1, MAX_BATCH_HITS // max(task.k, choice.depth, 1))
        started = time.perf_counter()
        pieces = [
            self._found(queries[start : start + step], task, choice, partial) for start in range(0, len(queries), step)
        ]
        if allowed.filtered and partial is None:
            self._earn(task, time.perf_counter() - started)
        return _Outcome(_joined(pieces), plan)

    def _choice(self, demand: Demand, partial: PartialIndex | None = None) -> Choice:
        index = self._space.index
        traits = partial.traits if partial is not None else index.traits if index is not None else None
        return planner.choose(demand, traits, self._exact_rows)

    def _earn(self, task: _Task, seconds: float) -> None:
        """Note what an index of the filter's own would have made shorter."""
        index = self._space.index
        if index is not None and planner.partial_pays(task.demand, index.traits, self._exact_rows):
            self._partials.earn(self._snapshot, task.allowed, self._key.space, seconds)

    def _found(self, queries: F32, task: _Task, choice: Choice, partial: PartialIndex | None) -> Ranked:
        if choice.kind == pb.PLAN_KIND_EMPTY:
            return _nothing(len(queries))
        if choice.kind in _EXACT:
            task.plan.compared = task.allowed.count
            return self._exact(queries, task, functools.partial(self._loosely, task=task))
        if partial is not None:
            return self._by_partial(queries, task, choice, partial)
        return self._approximate(queries, task, choice)

    def _exact(self, queries: F32, task: _Task, loosely: Callable[[F32], Ranked]) -> Ranked:
        """All allowed rows compared; queries of which reduced ones tell too little are left to `loosely`."""
        scanned = self._comparison.by_bounds(queries, task.k, task.allowed)
        if scanned is None:
            return self._whole(queries, task)
        ranked, loose = scanned
        if not loose.any():
            return ranked
        return _interleaved(ranked, loosely(np.ascontiguousarray(queries[loose])), loose)

    def _loosely(self, queries: F32, task: _Task) -> Ranked:
        """As `_exact` for queries of which reduced rows tell too little; through the index where that is faster."""
        demand = task.demand
        choice = self._choice(demand._replace(loose=True, scattered=demand.filtered))
        if choice.kind in _EXACT:
            return self._whole(queries, task)
        task.plan.kind, task.plan.ef = choice.kind, choice.ef
        return self._approximate(queries, task, choice)

    def _whole(self, queries: F32, task: _Task) -> Ranked:
        return self._comparison.whole(queries, task.k, task.allowed)

    def _by_partial(self, queries: F32, task: _Task, choice: Choice, partial: PartialIndex) -> Ranked:
        """Through the index of the filter's own; queries that are far from its rows are answered as without it."""
        if self._stop():
            raise Abandoned
        found = partial.search(queries, choice.depth, ef=choice.ef)
        far = partial.far(found)
        count = int(np.count_nonzero(far))
        self._partials.note(task.allowed, self._key.space, queries=len(queries), far=count)
        without = self._choice(task.demand) if count else choice
        if count == len(queries):
            task.plan.kind, task.plan.ef = without.kind, without.ef
            return self._found(queries, task, without, None)
        task.plan.partial_index = True
        ranked = self._ranked(queries, task, choice, found, partial.traits.rows)
        if count == 0:
            return ranked
        return _interleaved(ranked, self._found(np.ascontiguousarray(queries[far]), task, without, None), far)

    def _approximate(self, queries: F32, task: _Task, choice: Choice) -> Ranked:
        index = self._space.index
        if index is None:
            raise AssertionError("an approximate plan without an index. This is a bug.")
        if self._stop():
            raise Abandoned
        mask = task.allowed.mask[: self._snapshot.sealed] if index.filters else None
        found = index.search(queries, choice.depth, ef=choice.ef, nprobe=choice.nprobe, mask=mask)
        return self._ranked(queries, task, choice, found, index.traits.rows)

    def _ranked(self, queries: F32, task: _Task, choice: Choice, found: Found, rows: int) -> Ranked:
        """The k best of what an index of so many rows has found and of the fresh rows, by the rows as they are."""
        k, allowed, plan = task.k, task.allowed, task.plan
        wanted = Wanted(k, choice.candidates)
        positions = found.positions
        if allowed.count == allowed.sealed == rows and min(positions[:, choice.candidates - 1].tolist()) >= 0:
            # The common case: every row of the index may be a hit, there are no others, and no place is empty; those
            # are the last ones.
            return self._rank_table(queries, candidates.of_all(found, wanted), task)
        which = candidates.passed(found, allowed.mask)
        if allowed.count == allowed.sealed and min(which.counts.tolist()) >= k:
            return self._rank_table(queries, candidates.as_table(found, which, wanted), task)
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
        whole = functools.partial(self._whole, task=task)
        return _interleaved(ranked, self._exact(np.ascontiguousarray(queries[short]), task, whole), short)

    def _rank_table(self, queries: F32, table: Table, task: _Task) -> Ranked:
        task.plan.compared = max(task.plan.compared, table.positions.shape[1])
        slots, counts = table
        return rank_table(queries, slots, task.k, counts=counts, ids=self._snapshot.ids, gather=self._space.copy)


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
