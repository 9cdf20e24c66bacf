"""What a peer has to be able to do, and the messages in which it is asked to.

A driver process reads one JSON object a line from stdin and writes one a line to what was its stdout:

    {"do": "load"}                                      -> {"ok": true, "seconds": 12.3}
    {"do": "ask", "question": {...}, "pace": {...},
     "out": "/path/run.npz"}                            -> {"ok": true, "wall_s": 5.0, "in_time": 99,
                                                            "offered": 0}
    {"do": "stop"}                                      -> {"ok": true}
    anything that went wrong                            -> {"ok": false, "error": "ValueError: ..."}

Its first line, unasked, is {"ok": true, "versions": {...}} once the peer is up. Arrays travel as files: a run's .npz
has `latencies_s` (calls,) float64 of the calls that count and `answers` (queries, k) int64, the row numbers of the last
answer to each query, best first, -1 for none and -2 throughout for a query that was never asked.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

NO_HIT: Final = -1
NOT_ASKED: Final = -2

Ids = Sequence[int] | Sequence[str]
"""Ids of an answer, best first: row numbers, or strings that end in "-" and the row number."""
Call = Callable[[int], Ids]
"""Make the call with this number, wait for the answer; unless calls are batches, that is the number of the query."""
AsyncCall = Callable[[int], Any]
"""The same, to be awaited."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What is to be stored.

    Attributes:
        base: (n, d) float32 unit vectors, to be compared by inner product or cosine.
        share: (n,) float64 in [0, 1), the attribute that filters ask for.
        cluster_share: (n,) float64 in [0, 1), a second attribute.
    """

    base: F32
    share: F64
    cluster_share: F64


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, over and over.

    Attributes:
        queries: (m, d) float32 unit vectors.
        k: Hits a query.
        below: Only rows with `share` below this may be answers; None for all.
        params: The peer's own search parameters.
        batch: Queries a call. Call number c asks the queries c * batch, c * batch + 1, ... (from the start again after
            the last) and gives k ids for each in a row, -1 for none. Peers that take one query a call get 1.
    """

    queries: F32
    k: int
    below: float | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 1

    @property
    def calls(self) -> int:
        """Calls that ask every query at least once."""
        return -(-len(self.queries) // self.batch)

    def asked_by(self, call: int) -> list[int]:
        """The numbers of the queries of a call."""
        return [(call * self.batch + place) % len(self.queries) for place in range(self.batch)]


@dataclass(frozen=True, slots=True)
class Threaded:
    """A peer that is called from threads: `connect` is entered once by each caller, in its thread."""

    connect: Callable[[], AbstractContextManager[Call]]


@dataclass(frozen=True, slots=True)
class OnLoop:
    """A peer that is called on an event loop: `connect` is entered once, all callers share what it gives."""

    connect: Callable[[], AbstractAsyncContextManager[AsyncCall]]


class Adapter(Protocol):
    """A peer that is up, with no rows yet."""

    def versions(self) -> dict[str, str]:
        """Versions of the peer and of what it is called through."""
        ...

    def load(self, rows: Rows) -> None:
        """Store the rows in place of any earlier ones; return when they are searchable with their index."""
        ...

    def prepare(self, question: Question) -> Threaded | OnLoop:
        """Make ready whatever need not be done in a call, such as encoding requests."""
        ...

    def close(self) -> None:
        """Stop whatever was started."""
        ...


@dataclass(frozen=True, slots=True)
class Setting:
    """What an adapter is made with.

    Attributes:
        folder: An empty folder of its own.
        threads: Processors it may count on.
        options: Its own, from the registry.
    """

    folder: Path
    threads: int
    options: Mapping[str, Any]


def row_of(item: int | str) -> int:
    """The row of an id: itself, or the number after the last "-"."""
    return int(item.rpartition("-")[2]) if isinstance(item, str) else int(item)


def as_rows(answers: Sequence[Ids | None], question: Question) -> I64:
    """The answers of a question's calls as (m, k) rows, one for each query; see the module's text for -1 and -2."""
    k = question.k
    rows = np.full((len(question.queries), k), NOT_ASKED, np.int64)
    for call, answer in enumerate(answers):
        if answer is None:
            continue
        for place, which in enumerate(question.asked_by(call)):
            # Of a single query the answer may be shorter than k; of several, each has its k places.
            found = [row_of(item) for item in answer[place * k : (place + 1) * k]]
            rows[which] = NO_HIT
            rows[which, : len(found)] = found
    return rows
