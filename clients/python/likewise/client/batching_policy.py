"""When searches that may travel together do, and with whom. Pure functions of times and counts."""

import math
import operator
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

from likewise.client.vector_search import Kind, VectorSearch

MIN_TIMEOUT_S: Final = 0.05
"""Searches with less time than that do not wait for others."""

PATIENCE: Final = 2.0
"""How much longer than the last call took a search waits for the one under way, between the bounds below; twice as long
for each further one."""
MIN_PATIENCE_S: Final = 0.005
MAX_PATIENCE_S: Final = 0.05
PATIENT_SHARE: Final = 0.1
"""Of the time a search has: it waits no longer than that for a call under way, nor for callers to come back."""
_MOST_DOUBLINGS: Final = 10

FOLLOWING_S: Final = 0.0003
"""How closely callers that were answered together follow each other when they ask again."""
MAX_RETURNING_S: Final = 0.005
"""How long they are waited for at most, if the call before took as long."""
WARY_CALLS: Final = 8
"""Calls that do not wait for those who were answered, after one that did so in vain: searches that come by themselves
are not to pay for it."""

MARGIN: Final = 1.25
"""How much of the time of the last call a search must have left to be sent, while there are others that have."""

SAFE: Final = 2.0
"""The same for a search that goes before others, where not all can go."""

WORTH_WAITING: Final = 0.8
"""Share of its time that a search may have to wait behind others of its kind. One that would have to wait for longer is
refused when it comes: its time would be over before its answer, and holding it costs what serves others."""
MAX_WAITING: Final = 1 << 16
"""Searches of a kind that wait at most, whatever time they have."""

Key = tuple[Kind, int]
"""What searches that may go together have in common: what they ask for, and the octave of the time that they have."""

_NO_LIMIT: Final = 1 << 16
_DEADLINE: Final = operator.attrgetter("deadline")


class Entry(Protocol):
    """A search with the time at which its caller's is over, by the monotonic clock."""

    @property
    def search(self) -> VectorSearch:
        """It."""
        ...

    @property
    def deadline(self) -> float:
        """Seconds."""
        ...


E = TypeVar("E", bound=Entry)


class Returning(NamedTuple):
    """Who is waited for when no call is under way: those who were answered may ask again.

    Attributes:
        expected: Searches that the next call waits for a little; 0 where there is nobody to wait for.
        wary: Calls that wait for none, since one waited in vain.
    """

    expected: int = 0
    wary: int = 0

    def after(self, answered: int, waiting: int, most: int) -> "Returning":
        """After a call that answered so many and left others waiting, where `most` go together."""
        together = min(answered + waiting, most)
        return Returning(together if together > 1 else 0, max(self.wary - 1, 0))

    def in_vain(self) -> "Returning":
        """When not as many came as were expected."""
        return self._replace(wary=WARY_CALLS)

    def all_back(self, waiting: int) -> bool:
        """Whether so many are all that were expected."""
        return 0 < self.expected <= waiting

    def are_back(self, waiting: int) -> bool:
        """Whether so many need not wait for others."""
        return bool(self.wary) or waiting >= self.expected


NOBODY: Final = Returning()


def octave_of(timeout_s: float) -> int:
    """Of the time that a search has, as `math.frexp` numbers them."""
    return math.frexp(timeout_s)[1] if timeout_s < math.inf else _NO_LIMIT


def patience_s(took_s: float, under_way: int, timeout_s: float) -> float:
    """How long a search that has `timeout_s` waits for the calls under way, at least one."""
    doubled: float = 2.0 ** min(under_way - 1, _MOST_DOUBLINGS)
    return min(max(PATIENCE * took_s, MIN_PATIENCE_S), MAX_PATIENCE_S, PATIENT_SHARE * timeout_s) * doubled


def returning_s(took_s: float, timeout_s: float) -> float:
    """How long a search that has `timeout_s` waits at most for those whom a call that took so long answered."""
    return min(took_s, MAX_RETURNING_S, PATIENT_SHARE * timeout_s)


def shortest_s(key: Key) -> float:
    """The shortest timeout of an octave."""
    return math.ldexp(0.5, key[1]) if key[1] < _NO_LIMIT else math.inf


def time_of_each(search: VectorSearch, took_s: float, under_way: int) -> float:
    """What each search that waits costs those behind it, if a call, one of `under_way` side by side, takes so long."""
    return took_s / (search.form.most * under_way)


def is_full(waiting: int, each_s: float, search: VectorSearch, timeout_s: float) -> bool:
    """Whether so many wait already that another one is refused; never while all of them go in the next call."""
    if waiting * each_s > WORTH_WAITING * timeout_s:
        return waiting >= search.form.most
    return waiting >= MAX_WAITING


def latest(members: Sequence[E]) -> E:
    """The one with the most time left."""
    return max(members, key=_DEADLINE)


def next_together(waiting: Sequence[E], took_s: float, now: float) -> tuple[list[E], list[E]]:
    """Those that go together next, and those that go on waiting; each about in the order in which they came.

    Left out of both is who would be late even if it went now, as long as there are others: its time runs out by itself.
    Where more wait than go, whose time is nearly over goes last: a call that took a little longer would be late for all
    of these, and nobody be served. No more is looked at than that takes, as thousands may wait.
    """
    most = waiting[0].search.form.most if waiting else 0
    safe: list[E] = []
    risky: list[E] = []
    for i, entry in enumerate(waiting, start=1):
        left_s = entry.deadline - now
        if left_s > SAFE * took_s:
            safe.append(entry)
            if len(safe) == most:
                return safe, risky + list(waiting[i:])
        elif left_s > MARGIN * took_s:
            risky.append(entry)
    fit = safe + risky or list(waiting)
    return fit[:most], fit[most:]
