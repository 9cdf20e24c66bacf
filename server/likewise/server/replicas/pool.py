"""The replicas of one shard as a router knows them: who there is, who is asked, and what follows from each outcome.

Nothing here waits. All of it belongs to one event loop, except `report`.
"""

import logging
import math
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from likewise.server.replicas import health as healths
from likewise.server.replicas.choice import Load, less_loaded
from likewise.server.replicas.health import EjectionReason, Health
from likewise.server.replicas.hedging import HedgeBudget, patience_s
from likewise.server.replicas.latency import CallKind, Latencies
from likewise.server.replicas.policy import ReplicaPolicy
from likewise.server.replicas.report import Counts, ReplicaReport, ReplicaSetReport, ReplicaState
from likewise.shards.protocols import ShardSearch

LATE_FACTOR: Final = 4.0
"""An answer is late past so many times the shard's high quantile, which a twentieth of sound answers exceeds."""

LATE_FLOOR_S: Final = 0.02
"""No answer sooner than this is late: pauses of a process, this one included, are as long."""

OUTDONE: Final = 0.5
"""A late call counts against a replica if meanwhile another answered such a call in less than this share of its time.

When all are late it is the load, or this process: fewer replicas would make it worse.
"""

FRESH_SLACK: Final = 8
"""Calls that a replica known to be at the wanted version may have more than another and still be preferred."""

BUSY_LONGEST_S: Final = 5.0

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Replica:
    """One replica and what is known of it.

    Attributes:
        name: Its address.
        shard: What to call.
        load: How busy and how slow it is.
        health: Whether it gets calls.
        version: Newest store version that an answer of it showed.
        busy_until_s: Until when it asked to be spared.
        spoke_s: When it last answered anything.
        recent: By kind of call, when it last answered one and how long that took.
        probe: The call that tries it while it is ejected.
    """

    name: str
    shard: ShardSearch
    load: "Load[Ticket]" = field(default_factory=Load)
    health: Health = field(default_factory=Health)
    version: int = 0
    busy_until_s: float = float("-inf")
    spoke_s: float = float("-inf")
    recent: dict[CallKind, tuple[float, float]] = field(default_factory=dict)
    probe: "Ticket | None" = None
    chosen: int = 0
    answered: int = 0
    late: int = 0
    failed: int = 0


@dataclass(slots=True, eq=False)
class Ticket:
    """One request to one replica, from its choice to its end.

    Attributes:
        replica: Who is asked.
        kind: Of the call.
        began_s: When.
        typical_s: Median of such calls then, seconds, if it was known.
        waits: Whether the replica may have to catch up with the store first, which says nothing about its speed.
        was_serving: Whether the replica was not ejected then.
        probe: Whether the request tries an ejected replica.
        on_eject: Told when the replica is ejected while the request runs.
    """

    replica: Replica
    kind: CallKind
    began_s: float
    typical_s: float | None
    waits: bool
    was_serving: bool
    probe: bool
    on_eject: Callable[[], None]


class Pool:
    """Choice and bookkeeping.

    Args:
        what: The shard's name for people.
        policy: Bounds.
        clock: Seconds, monotonic.
        draw: Source of random choices.

    Attributes:
        what: As given.
        policy: As given.
        replicas: The snapshot of the moment; never changed, only replaced.
        counts: Counters.
        budget: Hedges allowed.
    """

    def __init__(self, what: str, policy: ReplicaPolicy, *, clock: Callable[[], float], draw: random.Random) -> None:
        self.what = what
        self.policy = policy
        self.clock = clock
        self.replicas: tuple[Replica, ...] = ()
        self.counts = Counts()
        self.budget = HedgeBudget(policy.hedge)
        self._draw = draw
        self._latencies: dict[CallKind, Latencies] = {}

    def move(self, names: Sequence[str], connect: Callable[[str], ShardSearch]) -> None:
        """Have exactly these replicas from now on; those there already keep what is known of them."""
        known = {replica.name: replica for replica in self.replicas}
        self.replicas = tuple(known.get(name) or Replica(name, connect(name)) for name in dict.fromkeys(names))
        self._keep_one_serving()

    def late_s(self, kind: CallKind) -> float | None:
        """The shard's high quantile for such calls, seconds, None while unknown."""
        latencies = self._latencies.get(kind)
        return None if latencies is None else latencies.late_s

    def first(self, min_version: int) -> Replica | None:
        """Whom to ask first: one that is due to be tried, else one that serves; None if there are no replicas."""
        now_s = self.clock()
        for replica in self.replicas:
            if replica.health.due(now_s) and replica.probe is None:
                return replica
        return self.another((), min_version=min_version)

    def another(
        self,
        tried: Collection[Replica],
        *,
        min_version: int,
        last_resort: bool = False,
        answered_since_s: float = math.inf,
    ) -> Replica | None:
        """Whom to ask besides those tried.

        Args:
            tried: Not these.
            min_version: Better one that has it.
            last_resort: An ejected one rather than none.
            answered_since_s: Better one that has answered anything since.
        """
        now_s = self.clock()
        left = [replica for replica in self.replicas if replica not in tried]
        serving = [replica for replica in left if replica.health.serving]
        if not serving:
            return min(left, key=_due_s) if left and last_resort else None
        spare = [replica for replica in serving if replica.busy_until_s <= now_s] or serving
        spare = [replica for replica in spare if replica.spoke_s > answered_since_s] or spare
        return less_loaded(_fresh(spare, min_version) or spare, now_s, self._draw)

    def begin(self, replica: Replica, kind: CallKind, min_version: int, on_eject: Callable[[], None]) -> Ticket:
        """Take note of a request that is made; `end` has to follow, after at most one outcome."""
        latencies, now_s = self._latencies.get(kind), self.clock()
        ticket = Ticket(
            replica=replica,
            kind=kind,
            began_s=now_s,
            typical_s=None if latencies is None else latencies.typical_s,
            waits=min_version > replica.version,
            was_serving=replica.health.serving,
            probe=replica.probe is None and replica.health.due(now_s),
            on_eject=on_eject,
        )
        if ticket.probe:
            replica.probe = ticket
        replica.load.outstanding[ticket] = None
        replica.chosen += 1
        return ticket

    def end(self, ticket: Ticket) -> None:
        """The request no longer occupies the replica, however it came out."""
        replica = ticket.replica
        replica.load.outstanding.pop(ticket, None)
        if replica.probe is ticket:
            replica.probe = None

    def answered(self, ticket: Ticket, version: int) -> None:
        """The replica answered from that store version."""
        replica, now_s = ticket.replica, self.clock()
        replica.spoke_s = now_s
        replica.answered += 1
        replica.version = max(replica.version, version)
        if ticket.waits:
            self._sound(replica, now_s)
            return
        elapsed_s = now_s - ticket.began_s
        late_s = self.late_s(ticket.kind)
        replica.recent[ticket.kind] = (now_s, elapsed_s)
        self._observe(ticket, elapsed_s, now_s)
        late = late_s is not None and elapsed_s > max(LATE_FACTOR * late_s, LATE_FLOOR_S)
        if late and self._outdone(ticket, elapsed_s):
            self._late(ticket, now_s)
        else:
            self._sound(replica, now_s)

    def refused(self, ticket: Ticket) -> None:
        """The replica answered that the caller is wrong."""
        ticket.replica.answered += 1
        ticket.replica.spoke_s = self.clock()
        self._sound(ticket.replica, self.clock())

    def overloaded(self, ticket: Ticket, retry_after_s: float) -> None:
        """The replica has no room; it is alive, and is spared for as long as it asks, where others serve."""
        now_s = self.clock()
        ticket.replica.spoke_s = now_s
        ticket.replica.busy_until_s = now_s + min(retry_after_s, BUSY_LONGEST_S)
        self._sound(ticket.replica, now_s)

    def failed(self, ticket: Ticket) -> None:
        """The replica cannot be reached, timed out by itself or broke."""
        replica, now_s = ticket.replica, self.clock()
        replica.failed += 1
        if ticket.probe and not replica.health.serving:
            self._eject(replica, EjectionReason.FAILING, now_s)
        elif ticket.began_s >= replica.health.changed_s:
            replica.health = healths.failed(replica.health)
            self._judge(replica, now_s)

    def abandoned(self, ticket: Ticket) -> None:
        """Nobody waits for the request any more: another was faster, the deadline came or the caller went.

        Before the request was late that says nothing. After it, it counts as a call that took at least so long: left
        out, the quantiles would only know the calls that were quick enough.
        """
        now_s = self.clock()
        elapsed_s = now_s - ticket.began_s
        if elapsed_s < patience_s(self.late_s(ticket.kind)):
            return
        if not ticket.waits:
            self._observe(ticket, elapsed_s, now_s)
        if self._outdone(ticket, elapsed_s):
            self._late(ticket, now_s)

    def report(self) -> ReplicaSetReport:
        """What there is to see now; safe from any thread."""
        counts, now_s = self.counts, self.clock()
        late_s: dict[str, float] = {}
        for kind, latencies in sorted(dict(self._latencies).items()):
            if latencies.late_s is not None:
                late_s.setdefault(kind.method, latencies.late_s)
        return ReplicaSetReport(
            what=self.what,
            calls=counts.calls,
            hedges=counts.hedges,
            hedges_won=counts.hedges_won,
            hedges_refused=counts.hedges_refused,
            rescues=counts.rescues,
            retries=dict(counts.retries),
            ejections=dict(counts.ejections),
            returns=counts.returns,
            hedge_tokens=self.budget.tokens,
            late_s=late_s,
            replicas=tuple(_reported(replica, now_s) for replica in sorted(self.replicas, key=lambda r: r.name)),
        )

    def _observe(self, ticket: Ticket, elapsed_s: float, now_s: float) -> None:
        latencies = self._latencies.get(ticket.kind)
        if latencies is None:
            latencies = self._latencies[ticket.kind] = Latencies(self.policy.hedge.quantile)
        ticket.replica.load.observe(elapsed_s, latencies.typical_s, now_s)
        latencies.observe(elapsed_s)

    def _sound(self, replica: Replica, now_s: float) -> None:
        back = not replica.health.serving
        replica.health = healths.answered(replica.health, now_s, self.policy.ejection)
        if back:
            self.counts.returns += 1
            _log.info("%s: the replica at %s serves again", self.what, replica.name)

    def _outdone(self, ticket: Ticket, elapsed_s: float) -> bool:
        """Whether another replica has answered such a call much sooner since this one began."""
        for other in self.replicas:
            if other is not ticket.replica and ticket.kind in other.recent:
                answered_s, took_s = other.recent[ticket.kind]
                if answered_s > ticket.began_s and took_s < OUTDONE * elapsed_s:
                    return True
        return False

    def _late(self, ticket: Ticket, now_s: float) -> None:
        replica = ticket.replica
        replica.late += 1
        if ticket.probe and not replica.health.serving:
            self._eject(replica, EjectionReason.LATE, now_s)
        elif ticket.began_s >= replica.health.changed_s:
            replica.health = healths.late(replica.health)
            self._judge(replica, now_s)

    def _judge(self, replica: Replica, now_s: float) -> None:
        """Eject the replica if it deserves that and others can take its calls."""
        reason = healths.deserved(replica.health, self.policy.ejection)
        if reason is None or replica not in self.replicas:
            return
        if any(other.health.serving for other in self.replicas if other is not replica):
            self._eject(replica, reason, now_s)

    def _eject(self, replica: Replica, reason: EjectionReason, now_s: float) -> None:
        replica.health = healths.ejected(replica.health, now_s, self.policy.ejection)
        self.counts.ejections[reason] += 1
        seconds = (replica.health.ejected_until_s or now_s) - now_s
        _log.warning(
            "%s: the replica at %s is %s, it gets no calls for %.2f s", self.what, replica.name, reason.value, seconds
        )
        for ticket in list(replica.load.outstanding):
            ticket.on_eject()

    def _keep_one_serving(self) -> None:
        """Nobody is the last and ejected: without the others it is all there is."""
        if not any(replica.health.serving for replica in self.replicas):
            for replica in self.replicas:
                replica.health = Health()


def _fresh(candidates: Sequence[Replica], min_version: int) -> list[Replica]:
    """Those known to be at the version, unless they have much more to do than the others."""
    fresh = [replica for replica in candidates if replica.version >= min_version]
    if not fresh or len(fresh) == len(candidates):
        return fresh
    least = min(len(replica.load.outstanding) for replica in candidates)
    return [replica for replica in fresh if len(replica.load.outstanding) <= least + FRESH_SLACK]


def _due_s(replica: Replica) -> float:
    return replica.health.ejected_until_s or 0.0


def _reported(replica: Replica, now_s: float) -> ReplicaReport:
    until_s = replica.health.ejected_until_s
    state = ReplicaState.SERVING
    if until_s is not None:
        state = ReplicaState.EJECTED if replica.probe is None else ReplicaState.PROBING
    return ReplicaReport(
        name=replica.name,
        state=state,
        outstanding=len(replica.load.outstanding),
        chosen=replica.chosen,
        answered=replica.answered,
        late=replica.late,
        failed=replica.failed,
        slowness=replica.load.slowness(now_s),
        version=replica.version,
        ejected_for_s=0.0 if until_s is None else max(0.0, until_s - now_s),
    )
