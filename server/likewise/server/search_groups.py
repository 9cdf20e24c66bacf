"""Searches that come at the same time and ask the shards for the same thing go to them together.

A search that meets no other goes at once, in its own task. Those that come while it is with the shards wait for it and
then go as one: one call to each shard, one batch there, one merge. What a call costs beside the search itself is then
paid once for all of them, and nothing is waited for on an idle server.

A caller may have several searches of one kind (a batch), and one search several query vectors; they come, wait, go and
leave together.

Callers who were answered together ask again at about the same time. So after a group the next one waits for as many
callers as there were, but no longer than that group was with the shards.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from likewise.server.answer import Answer
from likewise.server.prepared import Prepared
from likewise.server.remote import deadlines

MAX_GROUP: Final = 256
"""Query vectors of one call to the shards; a shard would not take more at a time."""

MAX_HITS: Final = 65_536
"""Hits that one call may ask for: many at a time, with vectors and attributes, would not fit a message from a shard."""

MAX_REGATHER_S: Final = 0.01
"""Longest wait for the callers of the group before, however long that took."""

PATIENCE: Final = 2.0
"""How much longer than the last group took a search waits for the one under way. A frozen shard keeps that one until
its deadline, and it need not be the replica that this search will be sent to."""
MIN_PATIENCE_S: Final = 0.005
MAX_PATIENCE_S: Final = 0.05

ALIKE: Final = 0.9
"""Least share of the longest time left in a group that each of its searches has, where parts of an answer will do: what
is there when that time is over is the answer of all. Of whole answers nothing is lost if their callers leave one by one
as their deadlines pass, so they go together whatever time they have."""

AnswerGroup = Callable[[Sequence[Prepared], Callable[[], None]], Awaitable[list[Answer]]]
"""Answers searches of equal `key`, in order; calls its second argument when the shards have done their part."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A caller with its searches, at least one."""

    searches: Sequence[Prepared]
    future: asyncio.Future[list[Answer]]
    deadline: float
    group: "_Group | None" = None


class _Group:
    """Searches under way together; the last of their callers to leave takes it along."""

    def __init__(self, members: Sequence[_Waiting]) -> None:
        self.task: asyncio.Task[None] | None = None
        self._left = len(members)
        for member in members:
            member.group = self

    def leave(self) -> None:
        self._left -= 1
        if self._left == 0 and self.task is not None:
            self.task.cancel()


class _Lane:
    """Searches that may go together.

    Attributes:
        width: Groups that may be with the shards at the same time: one for each replica, of which one does one at a
            time.
        under_way: Groups that are.
        waiting: Callers whose searches come next.
        took_s: Time of the last group with the shards.
        expected: Callers that the next group waits for, until `until`.
        timer: Of the wait.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.under_way = 0
        self.waiting: list[_Waiting] = []
        self.took_s = 0.0
        self.expected = 1
        self.until = 0.0
        self.timer: asyncio.TimerHandle | None = None


class SearchGroups:
    """Puts searches together; use it from one event loop.

    What waits is bounded by the calls that the server takes.

    Args:
        answer: Answers a group, or a part of one.
        clock: Seconds, growing.
    """

    def __init__(self, answer: AnswerGroup, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._answer = answer
        self._clock = clock
        self._lanes: dict[object, _Lane] = {}

    async def answer(self, searches: Sequence[Prepared]) -> list[Answer]:
        """The answers to one caller's searches of equal `key`, in order, alone or with others.

        What `answer` raises for the group is raised for all of them.

        Args:
            searches: At least one. More than go in one call go one call after the other.
        """
        key = searches[0].key
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(searches[0].handle.spec.replicas)
        now = self._clock()
        if lane.under_way < lane.width and not lane.waiting and (lane.expected <= 1 or now >= lane.until):
            turn = _Turn(self, key, lane, 1, now)
            try:
                return await self._answer_all(searches, turn.end)
            finally:
                turn.end()
        loop = asyncio.get_running_loop()
        entry = _Waiting(searches, loop.create_future(), deadlines.deadline())
        lane.waiting.append(entry)
        if lane.under_way < lane.width:
            if len(lane.waiting) >= lane.expected:
                self._start(key, lane)
            elif lane.timer is None:
                lane.timer = loop.call_later(max(0.0, lane.until - now), self._start, key, lane)
        elif lane.timer is None:
            patience_s = min(max(PATIENCE * lane.took_s, MIN_PATIENCE_S), MAX_PATIENCE_S)
            lane.timer = loop.call_later(patience_s, self._start, key, lane)
        try:
            return await entry.future
        except asyncio.CancelledError:
            entry.future.cancel()
            if entry.group is not None:
                entry.group.leave()
            raise

    @property
    def lanes(self) -> int:
        """Kinds of searches that are under way or expected."""
        return len(self._lanes)

    def _start(self, key: object, lane: _Lane) -> None:
        """Send off what waits; forget the lane if nothing does."""
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        loop = asyncio.get_running_loop()
        members: Sequence[_Waiting] = [entry for entry in lane.waiting if not entry.future.done()]
        lane.waiting.clear()
        while members:
            together, members = _alike(members)
            group = _Group(together)
            # A context of its own: it is nobody's call in particular.
            turn = _Turn(self, key, lane, len(together), self._clock())
            group.task = loop.create_task(self._go(together, turn.end), context=contextvars.Context())
            # Not in the task: one that is cancelled before its first step runs nothing of what it has.
            group.task.add_done_callback(turn.end)
        if not lane.under_way:
            self._lanes.pop(key, None)

    async def _go(self, members: Sequence[_Waiting], searched: Callable[[], None]) -> None:
        partial = members[0].searches[0].form.partial.allowed
        deadlines.set_at((min if partial else max)([member.deadline for member in members]))
        try:
            answers = await self._answer_all([one for member in members for one in member.searches], searched)
        except asyncio.CancelledError:
            raise  # by the last of its callers
        except BaseException as error:  # also what is no `Exception`: they wait for it
            for member in members:
                if not member.future.done():
                    member.future.set_exception(error)
        else:
            start = 0
            for member in members:
                end = start + len(member.searches)
                if not member.future.done():
                    member.future.set_result(answers[start:end])
                start = end

    async def _answer_all(self, searches: Sequence[Prepared], searched: Callable[[], None]) -> list[Answer]:
        """Answer searches of equal `key` by as many calls as it takes, so that none is too large for a shard."""
        most = _most(searches[0])
        if len(searches) == 1 or _queries(searches) <= most:
            return await self._answer(searches, searched)
        answers: list[Answer] = []
        for together in (calls := _calls(searches, most)):
            answers += await self._answer(together, searched if together is calls[-1] else _not_yet)
        return answers

    def ended(self, key: object, lane: _Lane, size: int, started: float) -> None:
        """A group has left the shards: the next one may go."""
        now = self._clock()
        lane.under_way -= 1
        lane.took_s = now - started
        lane.expected = size + len(lane.waiting)
        lane.until = now + min(lane.took_s, MAX_REGATHER_S)
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        if lane.waiting or lane.expected > 1:
            lane.timer = asyncio.get_running_loop().call_later(lane.until - now, self._start, key, lane)
        elif not lane.under_way:
            self._lanes.pop(key, None)


class _Turn:
    """A group's time with the shards, from when it is made until `end`, which may be called again."""

    __slots__ = ("_groups", "_key", "_lane", "_size", "_started")

    def __init__(self, groups: SearchGroups, key: object, lane: _Lane, size: int, started: float) -> None:
        self._groups, self._key, self._size, self._started = groups, key, size, started
        self._lane: _Lane | None = lane
        lane.under_way += 1

    def end(self, _: object = None) -> None:
        lane, self._lane = self._lane, None
        if lane is not None:
            self._groups.ended(self._key, lane, self._size, self._started)


def _alike(waiting: Sequence[_Waiting]) -> tuple[Sequence[_Waiting], Sequence[_Waiting]]:
    """Callers whose searches may go together, the most patient one among them, and the others.

    No caller is divided: one with more searches than go in one call is alone.
    """
    together = waiting
    if waiting[0].searches[0].form.partial.allowed:
        now = time.monotonic()
        most = max([entry.deadline for entry in waiting])
        least = min(most, now + ALIKE * (most - now))
        together = [entry for entry in waiting if entry.deadline >= least]
    room = _most(waiting[0].searches[0])
    for i, entry in enumerate(together):
        room -= _queries(entry.searches)
        if room < 0 and i:
            together = together[:i]
            break
    chosen = set(map(id, together))
    return together, [entry for entry in waiting if id(entry) not in chosen]


def most_queries(k: int) -> int:
    """How many query vectors go in one call to the shards."""
    return max(1, min(MAX_GROUP, MAX_HITS // k))


def _most(search: Prepared) -> int:
    return most_queries(search.options.k)


def _queries(searches: Sequence[Prepared]) -> int:
    return sum([search.size for search in searches])


def _calls(searches: Sequence[Prepared], most: int) -> list[Sequence[Prepared]]:
    """The searches in as few calls as hold them in order, each of at most so many query vectors or of one search."""
    calls: list[list[Prepared]] = [[]]
    room = most
    for search in searches:
        if calls[-1] and room < search.size:
            calls.append([])
            room = most
        calls[-1].append(search)
        room -= search.size
    return list(calls)


def _not_yet() -> None:
    """The shards have done a part of a group."""
