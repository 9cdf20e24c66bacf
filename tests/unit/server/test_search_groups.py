"""Which searches go to the shards together, and when."""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from tests.unit.panic import Panic
from tests.unit.server.fakes import FakeWriter
from tests.unit.server.waiting import until

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

    async def answer(self, searches: Sequence[Prepared], searched: Callable[[], None]) -> list[pb.SearchResponse]:
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
        return [pb.SearchResponse(request_id=search.request_id) for search in searches]

    def hold(self, group: int) -> asyncio.Event:
        """Have a group wait for an event."""
        return self.gates.setdefault(group, asyncio.Event())


def _handle(replicas: int = 1) -> GalleryHandle:
    spec = GallerySpec(name="shop", gallery_id="0" * 32, spaces=(SPACE,), replicas=replicas)
    return GalleryHandle(spec, (), FakeWriter(()))


HANDLE = _handle()
WHOLE = Partial()


def _search(name: str, *, handle: GalleryHandle = HANDLE, k: int = 10, partial: Partial = WHOLE) -> Prepared:
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
        composed=as_given(np.array([1.0, 0.0], dtype=np.float32)),
        options=SearchOptions("default", k),
        request_id=name,
        started=0.0,
        ready=0.0,
    )


def _ask(groups: SearchGroups, search: Prepared, timeout_s: float | None = None) -> "asyncio.Task[pb.SearchResponse]":
    async def call() -> pb.SearchResponse:
        deadlines.set_deadline(timeout_s)
        return await groups.answer(search)

    return asyncio.create_task(call())


async def _one_under_way(
    shards: Shards, groups: SearchGroups
) -> "tuple[asyncio.Event, list[asyncio.Task[pb.SearchResponse]]]":
    """The search "a" is with the shards; what has it come back, and its caller."""
    gate = shards.hold(0)
    tasks = [_ask(groups, _search("a"))]
    await until(lambda: len(shards.groups) == 1)
    return gate, tasks


async def _all(tasks: Sequence["asyncio.Task[pb.SearchResponse]"]) -> list[str]:
    async with asyncio.timeout(10):
        return [response.request_id for response in await asyncio.gather(*tasks)]


async def test_a_lone_search_goes_at_once() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)

    first = _ask(groups, _search("a"))
    await asyncio.sleep(0)

    assert shards.groups == [["a"]]
    assert await _all([first]) == ["a"]


async def test_one_caller_who_asks_again_and_again_never_waits() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)

    for name in "abc":
        task = _ask(groups, _search(name))
        await asyncio.sleep(0)
        assert shards.groups[-1] == [name]
        await task


async def test_searches_that_come_meanwhile_go_together_and_each_gets_its_own_answer() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate, tasks = await _one_under_way(shards, groups)

    tasks += [_ask(groups, _search(name)) for name in "bcd"]
    await asyncio.sleep(0)
    gate.set()

    assert await _all(tasks) == ["a", "b", "c", "d"]
    assert shards.groups == [["a"], ["b", "c", "d"]]


async def test_searches_for_different_things_do_not_mix() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate = shards.hold(0)
    other = _handle()

    tasks = [_ask(groups, _search("a"))]
    await until(lambda: len(shards.groups) == 1)
    tasks += [
        _ask(groups, _search("b")),
        _ask(groups, _search("k", k=3)),
        _ask(groups, _search("partial", partial=Partial(allowed=True))),
        _ask(groups, _search("gallery", handle=other)),
    ]
    await asyncio.sleep(0)
    gate.set()

    await _all(tasks)
    assert sorted(shards.groups) == [["a"], ["b"], ["gallery"], ["k"], ["partial"]]


async def test_a_frozen_group_does_not_hold_the_next_one_for_long() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    shards.hold(0)

    frozen = _ask(groups, _search("frozen"))
    await until(lambda: len(shards.groups) == 1)

    assert await _all([_ask(groups, _search("b")), _ask(groups, _search("c"))]) == ["b", "c"]
    assert not frozen.done()
    frozen.cancel()


async def test_each_replica_may_have_a_group() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    shards.hold(0), shards.hold(1)
    handle = _handle(replicas=2)

    tasks = [_ask(groups, _search(name, handle=handle)) for name in "ab"]
    await asyncio.sleep(0)

    assert shards.groups == [["a"], ["b"]]
    for task in tasks:
        task.cancel()


async def test_callers_who_were_answered_together_are_waited_for() -> None:
    shards, now_s = Shards(), 0.0
    groups = SearchGroups(shards.answer, clock=lambda: now_s)
    first, second = shards.hold(0), shards.hold(1)
    tasks = [_ask(groups, _search("a"))]
    await until(lambda: len(shards.groups) == 1)
    tasks += [_ask(groups, _search(name)) for name in "bcd"]
    await asyncio.sleep(0)
    first.set()
    await until(lambda: len(shards.groups) == 2)
    now_s = 1.0  # so long did the group take
    second.set()
    await _all(tasks)

    # All of them in one turn of the event loop, in which no timer can end.
    again = [_ask(groups, _search(name)) for name in "efg"]

    assert await _all(again) == ["e", "f", "g"]
    assert shards.groups[2:] == [["e", "f", "g"]]


async def test_searches_that_ask_for_many_hits_go_in_smaller_groups() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate = shards.hold(0)

    tasks = [_ask(groups, _search("a", k=20_000))]
    await until(lambda: len(shards.groups) == 1)
    tasks += [_ask(groups, _search(name, k=20_000)) for name in "bcdef"]
    await asyncio.sleep(0)
    gate.set()

    await _all(tasks)
    assert shards.groups == [["a"], ["b", "c", "d"], ["e", "f"]]


async def test_fewer_than_before_go_without_the_others() -> None:
    shards, now_s = Shards(), 0.0
    groups = SearchGroups(shards.answer, clock=lambda: now_s)
    first = shards.hold(0)
    tasks = [_ask(groups, _search("a"))]
    await until(lambda: len(shards.groups) == 1)
    tasks += [_ask(groups, _search(name)) for name in "bcd"]
    await asyncio.sleep(0)
    now_s = 1.0  # so that four are waited for next
    first.set()
    await _all(tasks)

    assert await _all([_ask(groups, _search("e"))]) == ["e"]


async def test_nothing_is_kept_of_searches_that_ended() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate, tasks = await _one_under_way(shards, groups)

    tasks += [_ask(groups, _search(name, k=k)) for k, name in enumerate("bbcd", start=9)]
    leaving = _ask(groups, _search("leaving"))
    await asyncio.sleep(0)
    leaving.cancel()
    gate.set()
    await _all(tasks)

    await until(lambda: groups.lanes == 0)


@pytest.mark.parametrize("failure", [RuntimeError("a defect"), Panic("a defect")])
async def test_a_failure_is_every_callers(failure: BaseException) -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate = shards.hold(0)
    shards.failure = failure

    tasks = [_ask(groups, _search("a"))]
    await until(lambda: len(shards.groups) == 1)
    tasks += [_ask(groups, _search(name)) for name in "bc"]
    await asyncio.sleep(0)
    gate.set()

    async with asyncio.timeout(10):
        for task in tasks:
            with pytest.raises(type(failure), match="a defect"):
                await task


async def test_who_leaves_before_is_not_searched_for() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate, tasks = await _one_under_way(shards, groups)

    leaving, staying = _ask(groups, _search("leaving")), _ask(groups, _search("staying"))
    await asyncio.sleep(0)
    leaving.cancel()
    gate.set()

    assert await _all([*tasks, staying]) == ["a", "staying"]
    assert shards.groups == [["a"], ["staying"]]


async def test_the_last_to_leave_takes_the_group_along() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    shards.hold(0), shards.hold(1)
    frozen = _ask(groups, _search("frozen"))
    await until(lambda: len(shards.groups) == 1)
    tasks = [_ask(groups, _search(name)) for name in "ab"]
    await until(lambda: len(shards.groups) == 2)

    tasks[0].cancel()
    await asyncio.sleep(0)
    assert shards.cancelled == 0
    tasks[1].cancel()
    await until(lambda: shards.cancelled == 1)
    frozen.cancel()


async def test_a_group_that_everybody_leaves_before_it_began_holds_up_nobody() -> None:
    shards, now_s = Shards(), 0.0
    groups = SearchGroups(shards.answer, clock=lambda: now_s)
    gate = shards.hold(0)
    first = _ask(groups, _search("a"))
    await until(lambda: len(shards.groups) == 1)
    both = [groups.answer(_search("b")), groups.answer(_search("c"))]
    both[0].send(None)
    now_s = 1.0  # so that two are waited for next
    gate.set()
    await first
    both[1].send(None)  # with which the group is complete

    for leaving in both:
        with pytest.raises(asyncio.CancelledError):
            leaving.throw(asyncio.CancelledError())

    await until(lambda: groups.lanes == 0)
    assert shards.groups == [["a"]]
    assert await _all([_ask(groups, _search("d"))]) == ["d"]


MIXED = (("patient", 100.0), ("nearly", 95.0), ("hurried", 20.0), ("ever", None))
PARTS = Partial(allowed=True)


async def test_a_partial_group_ends_with_the_first_of_its_deadlines_and_nobody_is_hurried_by_much() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate = shards.hold(0)

    tasks = [_ask(groups, _search("a", partial=PARTS), 100)]
    await until(lambda: len(shards.groups) == 1)
    tasks += [_ask(groups, _search(name, partial=PARTS), timeout_s) for name, timeout_s in MIXED]
    await asyncio.sleep(0)
    gate.set()

    await _all(tasks)
    assert sorted(shards.groups) == [["a"], ["ever"], ["hurried"], ["patient", "nearly"]]
    left_s = dict(zip(map(tuple, shards.groups), shards.left_s, strict=True))
    assert left_s["ever",] is None
    assert (left_s["patient", "nearly"] or 0) <= 95
    assert (left_s["hurried",] or 0) <= 20


async def test_whole_answers_go_together_for_as_long_as_the_most_patient_caller_waits() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate = shards.hold(0)

    tasks = [_ask(groups, _search("a"), 100)]
    await until(lambda: len(shards.groups) == 1)
    tasks += [_ask(groups, _search(name), timeout_s) for name, timeout_s in MIXED]
    await asyncio.sleep(0)
    gate.set()

    await _all(tasks)
    assert shards.groups == [["a"], ["patient", "nearly", "hurried", "ever"]]
    assert shards.left_s[1] is None


async def test_deadlines_that_have_passed_are_no_endless_loop() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate = shards.hold(0)

    tasks = [_ask(groups, _search("a", partial=PARTS), 0)]
    await until(lambda: len(shards.groups) == 1)
    tasks += [_ask(groups, _search(name, partial=PARTS), 0) for name in "bc"]
    await asyncio.sleep(0)
    gate.set()

    assert await _all(tasks) == ["a", "b", "c"]
