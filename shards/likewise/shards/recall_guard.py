"""The recall guard: what recall a shard's searches have, and how hard to look for the one that is asked for.

A few live queries are searched again, exactly and on every step of effort, in a thread of the lowest priority. What
that costs is bounded by a share of the time that searches took; a search only leaves a copy of its query behind and
never waits. What was found belongs to one sealed index: a new one begins anew, with stored rows as stand-ins, and goes
by what was known of the one before until it knows enough itself.
"""

import asyncio
import logging
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

from likewise.shards import effort, faiss_threads
from likewise.shards.effort import EXACT, Curve
from likewise.shards.masks import Allowed
from likewise.shards.partial_index import PartialIndex
from likewise.shards.protocols import F32, SearchOptions
from likewise.shards.recall_check import Asked, Outcome, Stopped, check, stored
from likewise.shards.rows import Snapshot
from likewise.v1 import gallery_service_pb2 as gallery_pb
from likewise.v1 import search_service_pb2 as pb

log = logging.getLogger(__name__)

SHARE: Final = 0.01
"""Time of the guard as a share of the time that searches took."""

CREDIT_S: Final = 2.0
"""Most time saved up while there was nothing to check."""

STAND_INS: Final = 24
"""Stored rows checked on a new index: a few seconds a million rows, some percent of what building it took."""

_STAND_IN_K: Final = 10
_GAP_S: Final = 0.02
_WAITING: Final = 32
_FILTERS: Final = 256
UNFILTERED: Final = 1.0
_BUCKETS: Final = (UNFILTERED, 0.9, 0.3, 0.03)
"""Largest share of the rows that the filters of a bucket leave; the first one is of no filter, or of one that leaves
nearly all."""

_APPROXIMATE: Final = frozenset({pb.PLAN_KIND_ANN, pb.PLAN_KIND_ANN_FILTERED})


def guard_executor() -> ThreadPoolExecutor:
    """One thread that runs when nobody else wants to; it may serve all shards of a process."""
    return ThreadPoolExecutor(1, thread_name_prefix="likewise-recall", initializer=faiss_threads.give_way_to_all)


@dataclass(slots=True)
class _Known:
    """What is known of one sealed index: from stand-ins, and by bucket from live queries."""

    index: "weakref.ref[Any]"
    stand_ins: Curve = field(default_factory=Curve)
    live: dict[float, Curve] = field(default_factory=dict)
    before: "_Known | None" = None

    def curve(self, bucket: float) -> Curve | None:
        """The best evidence for a bucket; None for none yet."""
        own = self.live.get(bucket)
        if own is not None and own.enough:
            return own
        if bucket != UNFILTERED:  # the planner widens the search for the filter; the rest is as without one
            return self.curve(UNFILTERED)
        if self.stand_ins.enough:
            return self.stand_ins
        return self.before.curve(UNFILTERED) if self.before is not None else None


class RecallGuard:
    """Checks and tunes one shard; use it from one event loop, but for `earn`.

    Args:
        newest: The rows to check on; None while there are none.
        allowed: Rows that a filter leaves; called from the guard's thread.
        partial: The index that a filter has of its own, if any; likewise.
        target: The gallery's own target, None for none.
        executor: See `guard_executor`.
        share: Of the searches' time; 0 for no checks at all.
        clock: Seconds, growing.
    """

    def __init__(
        self,
        newest: Callable[[], Snapshot | None],
        allowed: Callable[[Snapshot, bytes], Allowed],
        partial: Callable[[Snapshot, Allowed, str], PartialIndex | None],
        *,
        target: float | None,
        executor: Executor,
        share: float = SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.target = target
        self._newest = newest
        self._allowed = allowed
        self._partial = partial
        self._executor = executor
        self._share = share
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._filters: OrderedDict[bytes, float] = OrderedDict()
        self._waiting: deque[Asked] = deque(maxlen=_WAITING)
        self._stand_ins: deque[Asked] = deque()
        self._sampled_s = float("-inf")
        self._earned_s = 0.0  # written by the searches' thread only
        self._spent_s = 0.0  # written by the event loop only
        self._cost_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    # The searches' side

    def resolve(self, options: SearchOptions) -> SearchOptions:
        """The options with how hard to look in place of the recall wanted."""
        target = options.target_recall
        if target is None and self.target is not None:
            given = (options.exact, options.ef, options.nprobe, options.over_fetch)
            target = self.target if all(value is None for value in given) else None
        if target is None:
            return options
        plain = options._replace(target_recall=None)
        snapshot = self._newest()
        sealed = snapshot.spaces[options.space].index if snapshot is not None else None
        if sealed is None or sealed.exact:
            return plain
        traits = sealed.traits
        step = self._step(options, target)
        if step == EXACT:
            return plain._replace(exact=True)
        if traits.kind == "hnsw":
            return plain._replace(ef=effort.ef(step, options.k, traits))
        if traits.kind == "ivf":
            return plain._replace(nprobe=effort.nprobe(step, traits))
        return plain._replace(over_fetch=effort.over_fetch(step))

    def sample(self, query: F32, options: SearchOptions, plan: pb.ShardPlan) -> None:
        """Take an answered query for a check, if it was approximate and one is wanted."""
        if self._share <= 0 or plan.kind not in _APPROXIMATE:
            return
        now = self._clock()
        if now - self._sampled_s < _GAP_S:
            return
        self._sampled_s = now
        if options.filter:
            self._filters[options.filter] = bucket_of(plan.allowed / max(plan.live, 1), filtered=True)
            self._filters.move_to_end(options.filter)
            if len(self._filters) > _FILTERS:
                self._filters.popitem(last=False)
        self._waiting.append(
            Asked(
                query.copy(),
                options.space,
                options.k,
                options.filter,
                ef=options.ef,
                nprobe=options.nprobe,
                over_fetch=options.over_fetch,
            )
        )
        self._go()

    def earn(self, seconds: float) -> None:
        """Note time that searches took; from the searches' thread."""
        self._earned_s += seconds

    # The rows' side

    def moved(self, snapshot: Snapshot) -> None:
        """Begin anew where a space has another sealed index."""
        for name, space in snapshot.spaces.items():
            known = self._known.get(name)
            if space.index is None or space.index.exact:
                self._known.pop(name, None)
            elif known is None or known.index() is not space.index.faiss_index:
                if known is not None:
                    known.before = None
                self._known[name] = _Known(weakref.ref(space.index.faiss_index), before=known)
                if self._share > 0:
                    self._stand_ins = deque(one for one in self._stand_ins if one.space != name)
                    self._stand_ins.extend(stored(snapshot, name, count=STAND_INS, k=_STAND_IN_K))
        self._go()

    async def close(self) -> None:
        """Stop; a check that runs ends at its next step, which nobody waits for."""
        self._closed = True
        self._waiting.clear()
        self._stand_ins.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def settled(self) -> None:
        """Wait until what may be checked now has been."""
        while self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    # What it knows

    def report(self, spec_spaces: Sequence[str]) -> list[gallery_pb.RecallEstimate]:
        """Estimates by space and bucket, for `ShardStats`."""
        found: list[gallery_pb.RecallEstimate] = []
        for name in spec_spaces:
            known = self._known.get(name)
            if known is None:
                continue
            found.extend(
                self._estimate(name, bucket, known.live[bucket], live=True)
                for bucket in sorted(known.live, reverse=True)
            )
            if UNFILTERED not in known.live and known.stand_ins.queries:
                found.append(self._estimate(name, UNFILTERED, known.stand_ins, live=False))
        return found

    @property
    def spent_s(self) -> float:
        """Seconds that checks took in all."""
        return self._cost_s

    def _estimate(self, space: str, bucket: float, curve: Curve, *, live: bool) -> gallery_pb.RecallEstimate:
        served = curve.served()
        estimate = gallery_pb.RecallEstimate(
            space=space,
            max_share=bucket,
            queries=curve.queries,
            recall=served.mean,
            low=served.low,
            high=served.high,
            live=live,
        )
        if (dimension := curve.dimension()) is not None:
            estimate.local_dimension = dimension
        if self.target is not None:
            estimate.target = self.target
        return estimate

    def _step(self, options: SearchOptions, target: float) -> int:
        if target >= 1.0:
            return EXACT
        known = self._known.get(options.space)
        if known is None:
            return effort.expected(target)
        bucket = self._filters.get(options.filter) if options.filter else UNFILTERED
        # A filter that was not met yet may be of any bucket: the hardest one counts.
        buckets = list(_BUCKETS) if bucket is None else [bucket]
        curves = [curve for one in buckets if (curve := known.curve(one)) is not None]
        return max((curve.step(target) for curve in curves), default=effort.expected(target))

    def _go(self) -> None:
        if self._task is None and not self._closed and self._next() is not None:
            self._task = asyncio.create_task(self._work())

    def _next(self) -> deque[Asked] | None:
        """Where the next query to check comes from: stand-ins are owed, live queries have to be afforded."""
        if self._stand_ins:
            return self._stand_ins
        self._spent_s = max(self._spent_s, self._share * self._earned_s - CREDIT_S)
        return self._waiting if self._waiting and self._share * self._earned_s > self._spent_s else None

    async def _work(self) -> None:
        try:
            while not self._closed and (source := self._next()) is not None:
                await self._check(source.popleft(), live=source is self._waiting)
        except Exception:
            log.exception("a recall check failed; there are none before the next search")
        finally:
            self._task = None

    async def _check(self, asked: Asked, *, live: bool) -> None:
        snapshot = self._newest()
        if snapshot is None or asked.space not in snapshot.spaces:
            return
        sealed = snapshot.spaces[asked.space].index
        known = self._known.get(asked.space)
        if sealed is None or known is None or known.index() is not sealed.faiss_index:
            return  # `moved` has not been told yet, or there is nothing to check

        if not live:  # as a caller who says nothing is served
            options = self.resolve(SearchOptions(asked.space, asked.k))
            if options.exact:
                options = options._replace(exact=None)
            asked = replace(asked, ef=options.ef, nprobe=options.nprobe, over_fetch=options.over_fetch)

        def work() -> tuple[Outcome | None, float]:
            started = time.thread_time()
            try:
                allowed = self._allowed(snapshot, asked.filter)
                partial = self._partial(snapshot, allowed, asked.space)
                outcome = check(snapshot, allowed, asked, partial=partial, stop=lambda: self._closed)
                return outcome, time.thread_time() - started
            except Stopped:
                return None, 0.0

        outcome, seconds = await asyncio.get_running_loop().run_in_executor(self._executor, work)
        self._cost_s += seconds
        if live:
            self._spent_s += seconds
        if outcome is None:
            return
        if live:
            bucket = bucket_of(outcome.share, filtered=bool(asked.filter))
            curve = known.live.setdefault(bucket, Curve())
        else:
            curve = known.stand_ins
        curve.add(outcome.recalls, outcome.served, outcome.dimension)
        if known.stand_ins.enough:
            known.before = None


def bucket_of(share: float, *, filtered: bool) -> float:
    """The bucket of a filter that leaves a share of the rows; without one, the first."""
    return min(bound for bound in _BUCKETS if share <= bound) if filtered else UNFILTERED
