"""Searches of callers and shards that answer when they are let, to see what goes together and when."""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
from tests.unit.server.fakes import FakeWriter
from tests.unit.server.waiting import until

from likewise.server.answer import Answer
from likewise.server.compose import as_given
from likewise.server.prepared import Prepared
from likewise.server.protocols import GalleryHandle
from likewise.server.remote import deadlines
from likewise.server.search_forms import Form
from likewise.server.search_groups import SearchGroups
from likewise.server.validate_search import Cut, Looking, Partial, SearchForm
from likewise.shards.protocols import SearchOptions
from likewise.shards.spec import GallerySpec, SpaceSpec
from likewise.v1 import search_service_pb2 as pb

SPACE = SpaceSpec("default", 2, "vectors:2")


class Shards:
    """Answers a group when its gate is open; an answer carries the request id of its search.

    Attributes:
        groups: Request ids of every group, as they came.
        left_s: What each group had left of its time.
        gates: By the number of a group, what it waits for; without one it is answered at once.
        failure: Raised instead of an answer.
        cancelled: Groups that were withdrawn.
    """

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.left_s: list[float | None] = []
        self.gates: dict[int, asyncio.Event] = {}
        self.failure: BaseException | None = None
        self.cancelled = 0

    async def answer(self, searches: Sequence[Prepared], searched: Callable[[], None]) -> list[Answer]:
        self.groups.append([search.request_id for search in searches])
        self.left_s.append(deadlines.remaining_s())
        try:
            if gate := self.gates.get(len(self.groups) - 1):
                await gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure is not None:
            raise self.failure
        searched()
        return [
            Answer(pb.SearchResponse(request_id=search.request_id), np.zeros(search.size + 1, np.int64))
            for search in searches
        ]

    def hold(self, group: int) -> asyncio.Event:
        """Have a group wait for an event."""
        return self.gates.setdefault(group, asyncio.Event())


def handle_of(replicas: int = 1) -> GalleryHandle:
    """A gallery without shards."""
    spec = GallerySpec(name="shop", gallery_id="0" * 32, spaces=(SPACE,), replicas=replicas)
    return GalleryHandle(spec, (), FakeWriter(()))


HANDLE = handle_of()
WHOLE = Partial()


def search_of(
    name: str, *, handle: GalleryHandle = HANDLE, k: int = 10, partial: Partial = WHOLE, queries: int | None = None
) -> Prepared:
    """A prepared search whose request id is its name, by one vector or by a matrix of so many."""
    unit = np.array([1.0, 0.0], dtype=np.float32)
    asked = SearchForm(
        k=k,
        filter=b"",
        cut=Cut(),
        looking=Looking(),
        attributes=(),
        vectors=False,
        partial=partial,
        include_reference=False,
    )
    return Prepared(
        handle=handle,
        form=Form(asked, handle.spec),
        space=SPACE,
        composed=as_given(unit if queries is None else np.tile(unit, (queries, 1))),
        options=SearchOptions("default", k),
        request_id=name,
        started=0.0,
        ready=0.0,
    )


def ask(groups: SearchGroups, search: Prepared, timeout_s: float | None = None) -> "asyncio.Task[pb.SearchResponse]":
    """A caller with one search."""

    async def call() -> pb.SearchResponse:
        deadlines.set_deadline(timeout_s)
        return (await groups.answer([search]))[0].response

    return asyncio.create_task(call())


async def one_under_way(
    shards: Shards, groups: SearchGroups
) -> "tuple[asyncio.Event, list[asyncio.Task[pb.SearchResponse]]]":
    """The search "a" is with the shards; what has it come back, and its caller."""
    gate = shards.hold(0)
    tasks = [ask(groups, search_of("a"))]
    await until(lambda: len(shards.groups) == 1)
    return gate, tasks


async def answered(tasks: Sequence["asyncio.Task[pb.SearchResponse]"]) -> list[str]:
    """What each caller was answered."""
    async with asyncio.timeout(10):
        return [response.request_id for response in await asyncio.gather(*tasks)]
