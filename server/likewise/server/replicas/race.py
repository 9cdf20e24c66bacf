"""One read of one shard: asked of a replica, then of others as far as that is needed, the first answer wins.

A second replica is asked when the first

- cannot be reached, gives up or breaks: at once, instead of it;
- is late: beside it, out of the hedge budget;
- is ejected meanwhile, is only being tried, or has gone silent while others have time: beside it, on credit.

The losers are cancelled and not waited for, so that a replica that does not even end holds nobody up. Whatever happens,
the read is over at the caller's deadline.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from likewise.server.errors import DeadlinePassed
from likewise.server.remote import deadlines
from likewise.server.replicas import hedging
from likewise.server.replicas.latency import CallKind
from likewise.server.replicas.pool import Pool, Replica, Ticket
from likewise.server.replicas.verdicts import Verdict, told, verdict
from likewise.shards.protocols import ShardSearch, Unavailable

T = TypeVar("T")

REACHED_S: Final = 0.0005
"""A moment that is nearer than this has come: event loops keep time in milliseconds."""

SHARD_TIMEOUT: Final = "SHARD_TIMEOUT"

_NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Read(Generic[T]):
    """What is asked of the shard; safe to ask twice.

    Attributes:
        kind: Calls that take about as long.
        run: Asks one replica.
        version: Store version of an answer.
        min_version: Oldest store version to answer from.
    """

    kind: CallKind
    run: Callable[[ShardSearch], Coroutine[Any, Any, T]]
    version: Callable[[T], int]
    min_version: int = 0


@dataclass(slots=True, eq=False)
class _Attempt(Generic[T]):
    ticket: Ticket
    task: asyncio.Task[T]
    hedge: bool
    replaced: bool = False


class Race(Generic[T]):
    """One read; `run` once.

    Args:
        pool: The replicas.
        read: What is asked.
        losers: Keeps cancelled requests until they have ended.
    """

    def __init__(self, pool: Pool, read: Read[T], losers: set[asyncio.Task[Any]]) -> None:
        self._pool = pool
        self._read = read
        self._losers = losers
        self._running: list[_Attempt[T]] = []
        self._tried: list[Replica] = []
        self._failures: list[Exception] = []
        self._verdicts: list[Verdict] = []
        self._news: asyncio.Future[None] | None = None
        self._end_s = _NEVER
        self._hedge_s = _NEVER
        self._overdue_s = _NEVER
        self._began_s = 0.0
        self._called_s = 0.0
        self._hedged = False
        self._refused = False

    async def run(self) -> T:
        """The first answer.

        Raises:
            DeadlinePassed: If no replica answered within the deadline of the current call.
            Exception: What the replicas failed with, see `verdicts.told`; the caller's own fault at once.
        """
        pool = self._pool
        pool.counts.calls += 1
        pool.budget.earn()
        remaining_s = deadlines.remaining_s()
        now_s = self._called_s = pool.clock()
        if remaining_s is not None:
            self._end_s = now_s + remaining_s
            if remaining_s <= 0:
                raise self._too_late()
        first = pool.first(self._read.min_version)
        if first is None:
            raise Unavailable(f"{pool.what} is not up: it starts, restarts or is gone")
        try:
            self._ask(first)
            while True:
                winner = self._settle()
                if winner is not None:
                    return winner.task.result()
                self._rescue()
                if not self._running:
                    raise told(self._failures, replicas=max(len(pool.replicas), len(self._tried)))
                now_s = pool.clock()
                if now_s + REACHED_S >= self._end_s:
                    raise self._too_late()
                if now_s + REACHED_S >= self._hedge_s:
                    self._hedge(now_s)
                await self._wait(min(self._end_s, self._hedge_s) - now_s)
        finally:
            self._abandon()

    def _ask(self, replica: Replica, *, hedge: bool = False) -> None:
        pool, read = self._pool, self._read
        ticket = pool.begin(replica, read.kind, read.min_version, self._wake)
        task = asyncio.get_running_loop().create_task(read.run(replica.shard))
        attempt = _Attempt(ticket, task, hedge)

        def ended(done: asyncio.Task[T]) -> None:
            pool.end(ticket)
            self._wake()

        task.add_done_callback(ended)
        self._tried.append(replica)
        self._running.append(attempt)
        remaining_s = None if self._end_s == _NEVER else self._end_s - ticket.began_s
        late_s = pool.late_s(read.kind)
        self._began_s = ticket.began_s
        self._overdue_s = ticket.began_s + hedging.overdue_s(late_s, remaining_s)
        delay_s = hedging.delay_s(late_s, remaining_s)
        self._hedge_s = self._overdue_s if self._hedged else ticket.began_s + delay_s

    def _settle(self) -> _Attempt[T] | None:
        """Take note of the requests that have ended; the one that answered, if any."""
        ended = [(attempt, _error(attempt.task, self._pool.what)) for attempt in self._running if attempt.task.done()]
        for attempt, error in ended:
            if error is None:
                self._running.remove(attempt)
                self._pool.answered(attempt.ticket, self._read.version(attempt.task.result()))
                self._pool.counts.hedges_won += attempt.hedge
                return attempt
        for attempt, error in ended:
            if error is not None:
                self._running.remove(attempt)
                self._fail(attempt, error)
        return None

    def _fail(self, attempt: _Attempt[T], error: Exception) -> None:
        """Take note of a failure, raise the caller's own fault, and ask another replica where that may help."""
        pool, what = self._pool, verdict(error)
        if what is Verdict.ANSWERED:
            pool.refused(attempt.ticket)
            raise error
        time_left = pool.clock() + REACHED_S < self._end_s
        if what is Verdict.OVERLOADED:
            pool.overloaded(attempt.ticket, getattr(error, "retry_after_s", None) or 0.0)
        elif what is Verdict.TIMED_OUT and not time_left:
            pool.abandoned(attempt.ticket)  # the caller's deadline, not the replica's
        else:
            pool.failed(attempt.ticket)
        self._failures.append(error)
        self._verdicts.append(what)
        gone = what in (Verdict.UNAVAILABLE, Verdict.TIMED_OUT)
        once = self._verdicts.count(what) == 1 and not self._running
        if time_left and (gone or once):
            another = self._another(last_resort=gone)
            if another is not None:
                pool.counts.retries[what] += 1
                self._ask(another)

    def _rescue(self) -> None:
        """Ask another replica beside one that was ejected meanwhile."""
        for attempt in list(self._running):
            if attempt.replaced or attempt.ticket.replica.health.serving or not attempt.ticket.was_serving:
                continue
            attempt.replaced = True
            if any(other.ticket.replica.health.serving for other in self._running):
                continue
            another = self._another()
            if another is not None:
                self._pool.counts.rescues += 1
                self._pool.budget.owe()
                self._ask(another)

    def _hedge(self, now_s: float) -> None:
        """Ask a second replica beside a late one, a third if both are stuck, or look again later."""
        pool, overdue = self._pool, now_s + REACHED_S >= self._overdue_s
        # Half of the time is gone: no more trials of replicas of which nothing is known where one is known to answer.
        answered_since_s = self._called_s if overdue else _NEVER
        another = self._another(last_resort=overdue, answered_since_s=answered_since_s)
        if overdue and another is not None and self._hangs(another):
            # Those that serve may all hang, while one that is ejected has come back: nobody else would find that out.
            hanging = [replica for replica in pool.replicas if self._hangs(replica)]
            another = self._another(last_resort=True, answered_since_s=answered_since_s, besides=hanging) or another
        if another is not None and self._stuck(another, overdue=overdue):
            pool.counts.rescues += 1
            pool.budget.owe()
            self._hedged = True
            self._ask(another)
        elif another is not None and another.health.serving and not self._hedged and pool.budget.take():
            pool.counts.hedges += 1
            self._hedged = True
            self._ask(another, hedge=True)
        else:
            refused = another is not None and not self._hedged and not self._refused
            pool.counts.hedges_refused += refused
            self._refused = self._refused or refused
            again_s = max(now_s - self._began_s, hedging.SOONEST_S)
            latest_s = (self._end_s - now_s) / 2 if overdue else self._overdue_s - now_s
            self._hedge_s = now_s + min(again_s, latest_s)

    def _stuck(self, another: Replica, *, overdue: bool) -> bool:
        """Whether the call would be lost without another replica, at no cost to those that wait for a budget.

        So it is for a call that tries an ejected replica: it took a risk for all others. And for one whose replica has
        answered nothing at all since the call began, which can not be said of the other one: in a fleet that is merely
        slow, there are answers from all, or from none.
        """
        if not self._hedged and any(not attempt.ticket.was_serving for attempt in self._running):
            return True
        if not overdue or any(attempt.ticket.replica.spoke_s > attempt.ticket.began_s for attempt in self._running):
            return False
        return not self._hangs(another)

    def _hangs(self, replica: Replica) -> bool:
        """Whether a replica was asked when this call was, or before, and has answered nothing since."""
        oldest = replica.load.oldest
        return oldest is not None and oldest.began_s <= self._began_s and replica.spoke_s <= oldest.began_s

    def _another(
        self, *, last_resort: bool = False, answered_since_s: float = _NEVER, besides: Sequence[Replica] = ()
    ) -> Replica | None:
        """Whom to ask of those not tried, and not among `besides`."""
        if len(self._tried) >= self._pool.policy.max_attempts:
            return None
        return self._pool.another(
            [*self._tried, *besides],
            min_version=self._read.min_version,
            last_resort=last_resort,
            answered_since_s=answered_since_s,
        )

    def _abandon(self) -> None:
        """Cancel what still runs; it ends by itself."""
        for attempt in self._running:
            if attempt.task.done():
                _error(attempt.task, self._pool.what)  # its outcome is nobody's any more, and not to be logged as such
                continue
            self._pool.abandoned(attempt.ticket)
            attempt.task.cancel()
            self._losers.add(attempt.task)
            attempt.task.add_done_callback(self._losers.discard)
            attempt.task.add_done_callback(_look)
        self._running.clear()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def _wait(self, seconds: float) -> None:
        """Return when a request has ended, a replica was ejected, or after so many seconds."""
        loop = asyncio.get_running_loop()
        self._news = loop.create_future()
        timer = loop.call_later(seconds, self._wake) if seconds < _NEVER else None
        try:
            await self._news
        finally:
            self._news = None
            if timer is not None:
                timer.cancel()

    def _too_late(self) -> DeadlinePassed:
        asked = f", {len(self._tried)} of {len(self._pool.replicas)} replicas were asked" if self._tried else ""
        return DeadlinePassed(f"{self._pool.what} did not answer before the deadline{asked}", reason=SHARD_TIMEOUT)


def _error(task: asyncio.Task[Any], what: str) -> Exception | None:
    """What an ended request failed with; a cancellation that is not ours is a replica that went away."""
    if task.cancelled():
        return Unavailable(f"{what} went away while a call ran")
    error = task.exception()
    if error is None or isinstance(error, Exception):
        return error
    raise error


def _look(task: asyncio.Task[Any]) -> None:
    """Take the outcome of a request that nobody waits for, so that it is not reported as forgotten."""
    if not task.cancelled():
        task.exception()
