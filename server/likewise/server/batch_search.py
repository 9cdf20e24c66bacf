"""The searches of one call, each with its own answer or status.

Most bring their vector along and differ in nothing else: they are prepared without a task each and go to the shards as
one. Only those that something has to be awaited for (a model, a stored item, a version) are prepared side by side.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeAlias, TypeVar

from google.rpc import status_pb2

from likewise.server import failures
from likewise.server.prepare import Asked
from likewise.server.prepared import Prepared
from likewise.server.search import Searcher
from likewise.v1 import search_service_pb2 as pb

T = TypeVar("T")

STEP: Final = 32
"""Searches prepared before the event loop may turn to other calls: a fraction of a millisecond."""

Outcome: TypeAlias = pb.SearchResponse | status_pb2.Status


async def answer_batch(
    searcher: Searcher, requests: Sequence[pb.SearchRequest], *, concurrency: int
) -> Sequence[Outcome]:
    """The outcome of each search, in order: an error is that search's own, or its group's.

    Args:
        searcher: The pipeline.
        requests: Any number.
        concurrency: How many searches are prepared at the same time where that takes waiting, and how many groups are
            answered.
    """
    begun: list[Prepared | Asked | Exception] = []
    for start in range(0, len(requests), STEP):
        if start:
            await asyncio.sleep(0)
        begun += searcher.begin_all(requests[start : start + STEP])
    outcomes: dict[int, Outcome] = {}

    async def finish(waiting: tuple[int, Asked]) -> None:
        i, asked = waiting
        try:
            begun[i] = await searcher.prepare(asked)
        except Exception as error:
            begun[i] = error

    async def answer(group: tuple[Sequence[int], Sequence[Prepared]]) -> None:
        numbers, searches = group
        try:
            answers: Iterable[Outcome] = await searcher.answer_all(searches)
        except Exception as error:
            answers = [_status(error)] * len(numbers)
        outcomes.update(zip(numbers, answers, strict=True))

    waiting = [(i, asked) for i, asked in enumerate(begun) if isinstance(asked, Asked)]
    await _side_by_side(finish, waiting, concurrency)
    outcomes.update((i, _status(error)) for i, error in enumerate(begun) if isinstance(error, Exception))
    await _side_by_side(answer, _groups(begun), concurrency)
    return [outcomes[i] for i in range(len(begun))]


def _groups(begun: Sequence[Prepared | Asked | Exception]) -> Sequence[tuple[Sequence[int], Sequence[Prepared]]]:
    """The prepared searches by key, with their numbers."""
    groups: dict[object, tuple[list[int], list[Prepared]]] = {}
    last: Prepared | None = None
    for i, one in enumerate(begun):
        if not isinstance(one, Prepared):
            continue
        # Those of a run share all that makes the key, which is cheaper to see than to hash.
        if (
            last is None
            or one.options is not last.options
            or one.form is not last.form
            or one.handle is not last.handle
        ):
            numbers, searches = groups.setdefault(one.key, ([], []))
            last = one
        numbers.append(i)
        searches.append(one)
    return list(groups.values())


async def _side_by_side(do: Callable[[T], Awaitable[None]], what: Sequence[T], concurrency: int) -> None:
    """Do it with all, so many at a time; with one alone without a task of its own."""
    if len(what) == 1:
        await do(what[0])
        return
    slots = asyncio.Semaphore(concurrency)

    async def run(one: T) -> None:
        async with slots:
            await do(one)

    async with asyncio.TaskGroup() as tasks:
        for one in what:
            tasks.create_task(run(one))


def _status(error: Exception) -> status_pb2.Status:
    return failures.status_of(error, what="a search")
