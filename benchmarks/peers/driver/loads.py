"""Run the callers of a pace against a peer, on threads or on an event loop, and keep what they saw."""

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers.driver.pace import Pace, Tickets
from benchmarks.peers.driver.protocol import Call, Ids, OnLoop, Threaded

_clock = time.perf_counter


@dataclass(slots=True)
class Seen:
    """What the callers of a run saw; all of them add to it.

    Attributes:
        answers: Last answer to each call; None for one that was not made.
        latencies_s: Of the calls that count.
        in_time: How many of those were answered before the measured time ended.
        wall_s: The measured time; for "once", how long it took.
        offered: Arrivals in the measured time of an open loop.
    """

    answers: list[Ids | None]
    latencies_s: list[float] = field(default_factory=list)
    in_time: int = 0
    wall_s: float = 0.0
    offered: int = 0


def run(searches: Threaded | OnLoop, pace: Pace, calls: int) -> Seen:
    """Make calls at a pace.

    Args:
        searches: What gives the callers something to call.
        pace: When.
        calls: Numbers of calls there are; they are made in turn, over and over.

    Raises:
        Exception: Whatever the first failing call raised; the run is over then.
    """
    seen = Seen([None] * calls)
    started = _clock()
    tickets = _on_threads(searches, pace, seen) if isinstance(searches, Threaded) else _on_loop(searches, pace, seen)
    seen.wall_s = _clock() - started if pace.kind == "once" else pace.measure_s
    seen.offered = tickets.offered()
    return seen


def _note(seen: Seen, tickets: Tickets, ticket: Any, woke: float, answer: Ids) -> None:
    came = _clock()
    seen.answers[ticket.which] = answer
    began = tickets.began(ticket, woke)
    if tickets.counts(ticket, began, came):
        seen.latencies_s.append(came - began)
        seen.in_time += came <= tickets.end


def _on_threads(searches: Threaded, pace: Pace, seen: Seen) -> Tickets:
    failures: list[BaseException] = []
    made: list[Tickets] = []
    # The clock of the run starts when every caller is connected.
    ready = threading.Barrier(pace.callers, action=lambda: made.append(Tickets(pace, len(seen.answers), _clock)))

    def caller() -> None:
        try:
            with searches.connect() as call:
                ready.wait()
                _calls(call, made[0])
        except threading.BrokenBarrierError:
            return  # another caller could not connect, and said so
        except BaseException as error:
            failures.append(error)
            ready.abort()

    def _calls(call: Call, tickets: Tickets) -> None:
        while not failures and (ticket := tickets.take()) is not None:
            if ticket.due is not None and (wait := ticket.due - _clock()) > 0:
                time.sleep(wait)
            woke = _clock()
            _note(seen, tickets, ticket, woke, call(ticket.which))

    threads = [threading.Thread(target=caller, daemon=True) for _ in range(pace.callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return made[0]


def _on_loop(searches: OnLoop, pace: Pace, seen: Seen) -> Tickets:
    async def everything() -> Tickets:
        async with searches.connect() as call:
            tickets = Tickets(pace, len(seen.answers), _clock)

            async def caller() -> None:
                while (ticket := tickets.take()) is not None:
                    if ticket.due is not None and (wait := ticket.due - _clock()) > 0:
                        await asyncio.sleep(wait)
                    woke = _clock()
                    _note(seen, tickets, ticket, woke, await call(ticket.which))

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(pace.callers):
                        group.create_task(caller())
            except BaseExceptionGroup as errors:
                raise _first(errors.exceptions) from errors
            return tickets

    try:
        import uvloop
    except ImportError:
        return asyncio.run(everything())
    return uvloop.run(everything())


def _first(errors: Sequence[BaseException]) -> BaseException:
    error = errors[0]
    return _first(error.exceptions) if isinstance(error, BaseExceptionGroup) else error
