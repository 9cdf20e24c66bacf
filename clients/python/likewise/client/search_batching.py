# ruff: noqa: ASYNC109 - these timeouts are gRPC deadlines, which the server sees too; asyncio.timeout is local
"""Searches by a vector that come at the same time travel together, as one SearchVectors.

What a call costs beside the search itself, in the client, in gRPC and in the server, is then paid once for all of
them. An idle client adds no delay: a search that meets no other goes at once, as a Search of its own. Those that come
while it is under way wait for it and then go together, so that a batch is as large as the load makes it. How long they
wait for a call that does not come back is bounded, and doubles with each call under way, so that a server that has more
to do than it can is not sent ever more. Callers that were answered together are expected back, for as long as one
follows the other closely: without that, the first that asks again would go alone and all others after it. Each caller's
timeout is its own, whatever the others have; those that go together were given about the same, between a time and twice
that.

Only what costs the server the same goes together: searches that differ in nothing but their vector. Each has its own
answer or error: one that fails in company is asked again alone, and is told what a search of its own is told.
"""

import asyncio
import functools
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from likewise.client.batching_outcomes import (
    Outcome,
    answered,
    call_of,
    failed,
    left_s,
    queue_full,
    returned,
    time_of,
)
from likewise.client.batching_policy import (
    FOLLOWING_S,
    MIN_TIMEOUT_S,
    NOBODY,
    Key,
    Returning,
    is_full,
    latest,
    next_together,
    patience_s,
    returning_s,
    shortest_s,
    time_of_each,
)
from likewise.client.channel import ChannelConfig
from likewise.client.errors import too_late
from likewise.client.hits import Hits
from likewise.client.rpc import Call
from likewise.client.vector_search import VectorSearch

_TIMES_KEPT: Final = 64


@dataclass(slots=True, eq=False)
class _Waiting:
    """A search that waits for its turn and then for its answer, until `deadline` by the monotonic clock."""

    search: VectorSearch
    deadline: float
    future: asyncio.Future[Outcome]
    group: "_Group | None" = None

    def expire(self) -> None:
        """End the wait: the caller's time is over."""
        if not self.future.done():
            self.future.set_result(too_late(self.group.request_id if self.group else ""))
            if self.group is not None:
                self.group.leave()


@dataclass(slots=True, eq=False)
class _Lane:
    """Searches that may travel together.

    Attributes:
        under_way: Calls that are.
        waiting: Searches that go next.
        took_s: Time of the last call.
        each_s: What each that waits costs those behind it.
        due: What starts those that wait.
        gathering: Whether the first of them starts those that come in the same turn of the event loop.
        returning: Who is waited for.
    """

    under_way: int = 0
    waiting: list[_Waiting] = field(default_factory=list)
    took_s: float = 0.0
    each_s: float = 0.0
    due: asyncio.Handle | None = None
    gathering: bool = False
    returning: Returning = NOBODY


class _Group:
    """Searches under way together; the last of their callers to leave takes the call along."""

    def __init__(self, members: Sequence[_Waiting], request_id: str) -> None:
        self.request_id = request_id
        self.task: asyncio.Task[None] | None = None
        self._left = len(members)
        for member in members:
            member.group = self

    def leave(self) -> None:
        self._left -= 1
        if self._left == 0 and self.task is not None:
            self.task.cancel()


class AsyncSearchBatcher:
    """Puts searches together; for one event loop.

    Args:
        call: Carries a call, as `AsyncTransport.call`.
        config: Deadlines.
    """

    def __init__(
        self, call: Callable[[Call[Any], float | None], Coroutine[Any, Any, Any]], config: ChannelConfig
    ) -> None:
        self._call = call
        # Callers give the same few timeouts again and again.
        self._time_of = functools.lru_cache(maxsize=_TIMES_KEPT)(functools.partial(time_of, config))
        self._lanes: dict[Key, _Lane] = {}

    async def search(self, search: VectorSearch, timeout: float | None) -> Hits:
        """The answer to one search, alone or in company; raises what a call of its own raises."""
        timeout_s, octave = self._time_of(timeout)
        if timeout_s < MIN_TIMEOUT_S:
            alone: Hits = await self._call(search.call(), timeout)
            return alone
        loop = asyncio.get_running_loop()
        key = search.form.kind, octave
        lane = self._lanes.get(key)
        first = lane is None
        if lane is None:
            lane = self._lanes[key] = _Lane(gathering=True)
            await self._gather(key, lane)
            if not lane.waiting:
                return await self._alone(key, lane, search, timeout_s)
        elif is_full(len(lane.waiting), lane.each_s, search, timeout_s):
            raise queue_full(len(lane.waiting), timeout_s, lane.took_s)
        elif lane.due is None and not lane.gathering:
            self._wait(key, lane)
        entry = _Waiting(search, time.monotonic() + timeout_s, loop.create_future())
        if first:
            lane.waiting.insert(0, entry)
            self._start(key, lane)
        else:
            lane.waiting.append(entry)
        timer = loop.call_later(timeout_s, entry.expire) if timeout_s < math.inf else None
        try:
            outcome: Outcome = await entry.future
        except asyncio.CancelledError:
            if entry.group is not None:
                entry.group.leave()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if outcome is None:
            again: Hits = await self._call(search.call(), left_s(entry.deadline, time.monotonic()))
            return again
        return returned(outcome)

    @property
    def kinds(self) -> int:
        """Kinds of searches that are under way or wait."""
        return len(self._lanes)

    async def _gather(self, key: Key, lane: _Lane) -> None:
        """Let whoever is ready in this turn of the event loop come along."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            lane.due = asyncio.get_running_loop().call_soon(self._start, key, lane)
            raise
        finally:
            lane.gathering = False

    async def _alone(self, key: Key, lane: _Lane, search: VectorSearch, timeout_s: float) -> Hits:
        """A search that met no other: in its caller's own task, which is two turns of the event loop less."""
        lane.under_way += 1
        started = time.monotonic()
        try:
            hits: Hits = await self._call(search.call(), timeout_s)
            return hits
        finally:
            lane.returning = lane.returning.after(1, len(lane.waiting), search.form.most)
            self._ended(key, lane, search, time.monotonic() - started)

    def _wait(self, key: Key, lane: _Lane) -> None:
        """Start what waits when the calls under way have taken too long."""
        patient_s = patience_s(lane.took_s, lane.under_way, shortest_s(key))
        lane.due = asyncio.get_running_loop().call_later(patient_s, self._start, key, lane)

    def _start(self, key: Key, lane: _Lane) -> None:
        """Send off what waits, as much as goes together; forget the lane if there is nothing left of it."""
        lane.due = None
        started = time.monotonic()
        members: Sequence[_Waiting] = ()
        while lane.waiting and not members:
            chosen, lane.waiting = next_together(lane.waiting, lane.took_s, started)
            # A caller that was cancelled, or whose time was over, took its future along.
            members = [entry for entry in chosen if not entry.future.done()]
        if members:
            lane.under_way += 1
            call = call_of([entry.search for entry in members])
            group = _Group(members, call.request_id)
            group.task = asyncio.get_running_loop().create_task(self._go(call, lane, members))
            # Not in the task: one that is cancelled before its first step runs nothing of what it has.
            group.task.add_done_callback(lambda _: self._left(key, lane, members, time.monotonic() - started))
        if lane.waiting:
            self._wait(key, lane)
        elif not lane.under_way:
            del self._lanes[key]

    async def _go(self, call: Call[Any], lane: _Lane, members: Sequence[_Waiting]) -> None:
        try:
            answer = await self._call(call, left_s(latest(members).deadline, time.monotonic()))
        except asyncio.CancelledError:  # by the last of its callers, or with the event loop
            lane.returning = NOBODY
            raise
        except Exception as error:
            outcomes = failed(error, len(members))
        else:
            outcomes = answered(answer)
        # Before anybody is told: who asks again at once would be counted twice.
        lane.returning = lane.returning.after(len(members), len(lane.waiting), members[0].search.form.most)
        for member, outcome in zip(members, outcomes, strict=True):
            if not member.future.done():
                member.future.set_result(outcome)

    def _left(self, key: Key, lane: _Lane, members: Sequence[_Waiting], took_s: float) -> None:
        for member in members:
            if not member.future.done():
                member.future.cancel()
        self._ended(key, lane, members[0].search, took_s)

    def _ended(self, key: Key, lane: _Lane, search: VectorSearch, took_s: float) -> None:
        """A call has ended: what waits goes next, if no other is under way."""
        lane.each_s = time_of_each(search, took_s, lane.under_way)
        lane.under_way -= 1
        lane.took_s = took_s
        if lane.under_way:
            return
        if lane.due is not None:
            lane.due.cancel()
        if not lane.waiting and not lane.returning.expected:
            del self._lanes[key]
            return
        if lane.returning.all_back(len(lane.waiting)):
            self._start(key, lane)
            return
        now = time.perf_counter()
        # Not at once: those who have just been answered may ask again in this turn of the event loop, or soon.
        self._look_out(key, lane, len(lane.waiting), now, now + returning_s(took_s, shortest_s(key)))

    def _look_out(self, key: Key, lane: _Lane, count: int, since_s: float, until_s: float) -> None:
        """Look in the next turn of the event loop who waits, where `count` have done so since `since_s`."""
        lane.due = asyncio.get_running_loop().call_soon(self._next, key, lane, count, since_s, until_s)

    def _next(self, key: Key, lane: _Lane, count: int, since_s: float, until_s: float) -> None:
        """Start what waits, or look out for more as long as one follows the other closely."""
        now, waiting = time.perf_counter(), len(lane.waiting)
        if waiting > count:
            since_s = now
        if lane.returning.are_back(waiting):
            self._start(key, lane)
        elif now - since_s > FOLLOWING_S or now > until_s:
            lane.returning = lane.returning.in_vain()
            self._start(key, lane)
        else:
            self._look_out(key, lane, waiting, since_s, until_s)
