"""What becomes of searches that travel together: their call, their answers and their errors. Pure functions."""

import copy
import math
from collections.abc import Sequence
from typing import Any, Final

from likewise.client.batching_policy import octave_of
from likewise.client.channel import ChannelConfig
from likewise.client.errors import AnswerTooLarge, InvalidArgument, LikewiseError, ResourceExhausted
from likewise.client.hits import Hits
from likewise.client.rpc import Call
from likewise.client.vector_search import VectorSearch, together

Outcome = Hits | Exception | None
"""What became of a search in company; None: it is to be asked again alone."""

LONGEST_S: Final = 365 * 86_400.0
"""More time than this is no limit."""


def time_of(config: ChannelConfig, timeout: float | None) -> tuple[float, int]:
    """The seconds of a search, infinity without a limit and for what no timer can hold, and their octave."""
    given = config.deadline_s(timeout)
    seconds = math.inf if given is None or given > LONGEST_S else given
    return seconds, octave_of(seconds)


def left_s(deadline: float, now: float) -> float:
    """What a call is given; never nothing, so that gRPC and not an argument check says that the time is over."""
    return max(deadline - now, 0.001)


def queue_full(waiting: int, timeout_s: float, took_s: float) -> ResourceExhausted:
    """Of a caller whose time would be over before those that wait already are answered."""
    limit = f"are answered within the {timeout_s:g} s that it has" if timeout_s < math.inf else "a client keeps"
    message = f"{waiting:,} searches like this one wait for their turn in this client, as many as {limit}"
    return ResourceExhausted(message, reason="CLIENT_QUEUE_FULL", retry_after_s=took_s)


def call_of(searches: Sequence[VectorSearch]) -> Call[Any]:
    """Searches that go together as one call."""
    return searches[0].call() if len(searches) == 1 else together(searches)


def answered(answer: Hits | Sequence[Hits | LikewiseError]) -> list[Outcome]:
    """The outcomes of a call that was answered: what failed is to be asked again."""
    if isinstance(answer, Hits):
        return [answer]
    # An error names the row of a call that its caller knows nothing of; alone it is told as a search's own.
    return [None if isinstance(one, LikewiseError) else one for one in answer]


def failed(error: Exception, count: int) -> list[Outcome]:
    """The outcomes of a call that failed as a whole: an error for each, as each caller adds its own traceback."""
    if count > 1 and isinstance(error, AnswerTooLarge | InvalidArgument):
        return [None] * count  # alone each may be answered, or is told as a search's own
    outcomes: list[Outcome] = [error]
    for _ in range(count - 1):
        twin = copy.copy(error) if isinstance(error, LikewiseError) else error
        twin.__cause__ = error.__cause__
        outcomes.append(twin)
    return outcomes


def returned(outcome: Hits | Exception) -> Hits:
    """The answer, or its error raised."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
