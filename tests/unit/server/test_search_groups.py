"""Which searches go to the shards together, and when."""

import asyncio

import pytest
from tests.unit.panic import Panic
from tests.unit.server.group_fixtures import Shards, answered, ask, handle_of, one_under_way, search_of
from tests.unit.server.waiting import until

from likewise.server.search_groups import SearchGroups
from likewise.server.validate_search import Partial


async def test_a_lone_search_goes_at_once() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)

    first = ask(groups, search_of("a"))
    await asyncio.sleep(0)

    assert shards.groups == [["a"]]
    assert await answered([first]) == ["a"]


async def test_one_caller_who_asks_again_and_again_never_waits() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)

    for name in "abc":
        task = ask(groups, search_of(name))
        await asyncio.sleep(0)
        assert shards.groups[-1] == [name]
        await task


async def test_searches_that_come_meanwhile_go_together_and_each_gets_its_own_answer() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate, tasks = await one_under_way(shards, groups)

    tasks += [ask(groups, search_of(name)) for name in "bcd"]
    await asyncio.sleep(0)
    gate.set()

    assert await answered(tasks) == ["a", "b", "c", "d"]
    assert shards.groups == [["a"], ["b", "c", "d"]]


async def test_searches_for_different_things_do_not_mix() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate = shards.hold(0)
    other = handle_of()

    tasks = [ask(groups, search_of("a"))]
    await until(lambda: len(shards.groups) == 1)
    tasks += [
        ask(groups, search_of("b")),
        ask(groups, search_of("k", k=3)),
        ask(groups, search_of("partial", partial=Partial(allowed=True))),
        ask(groups, search_of("gallery", handle=other)),
    ]
    await asyncio.sleep(0)
    gate.set()

    await answered(tasks)
    assert sorted(shards.groups) == [["a"], ["b"], ["gallery"], ["k"], ["partial"]]


async def test_a_frozen_group_does_not_hold_the_next_one_for_long() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    shards.hold(0)

    frozen = ask(groups, search_of("frozen"))
    await until(lambda: len(shards.groups) == 1)

    assert await answered([ask(groups, search_of("b")), ask(groups, search_of("c"))]) == ["b", "c"]
    assert not frozen.done()
    frozen.cancel()


async def test_each_replica_may_have_a_group() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    shards.hold(0), shards.hold(1)
    handle = handle_of(replicas=2)

    tasks = [ask(groups, search_of(name, handle=handle)) for name in "ab"]
    await asyncio.sleep(0)

    assert shards.groups == [["a"], ["b"]]
    for task in tasks:
        task.cancel()


async def test_callers_who_were_answered_together_are_waited_for() -> None:
    shards, now_s = Shards(), 0.0
    groups = SearchGroups(shards.answer, clock=lambda: now_s)
    first, second = shards.hold(0), shards.hold(1)
    tasks = [ask(groups, search_of("a"))]
    await until(lambda: len(shards.groups) == 1)
    tasks += [ask(groups, search_of(name)) for name in "bcd"]
    await asyncio.sleep(0)
    first.set()
    await until(lambda: len(shards.groups) == 2)
    now_s = 1.0  # so long did the group take
    second.set()
    await answered(tasks)

    # All of them in one turn of the event loop, in which no timer can end.
    again = [ask(groups, search_of(name)) for name in "efg"]

    assert await answered(again) == ["e", "f", "g"]
    assert shards.groups[2:] == [["e", "f", "g"]]


async def test_searches_that_ask_for_many_hits_go_in_smaller_groups() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate = shards.hold(0)

    tasks = [ask(groups, search_of("a", k=20_000))]
    await until(lambda: len(shards.groups) == 1)
    tasks += [ask(groups, search_of(name, k=20_000)) for name in "bcdef"]
    await asyncio.sleep(0)
    gate.set()

    await answered(tasks)
    assert shards.groups == [["a"], ["b", "c", "d"], ["e", "f"]]


async def test_fewer_than_before_go_without_the_others() -> None:
    shards, now_s = Shards(), 0.0
    groups = SearchGroups(shards.answer, clock=lambda: now_s)
    first = shards.hold(0)
    tasks = [ask(groups, search_of("a"))]
    await until(lambda: len(shards.groups) == 1)
    tasks += [ask(groups, search_of(name)) for name in "bcd"]
    await asyncio.sleep(0)
    now_s = 1.0  # so that four are waited for next
    first.set()
    await answered(tasks)

    assert await answered([ask(groups, search_of("e"))]) == ["e"]


async def test_nothing_is_kept_of_searches_that_ended() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate, tasks = await one_under_way(shards, groups)

    tasks += [ask(groups, search_of(name, k=k)) for k, name in enumerate("bbcd", start=9)]
    leaving = ask(groups, search_of("leaving"))
    await asyncio.sleep(0)
    leaving.cancel()
    gate.set()
    await answered(tasks)

    await until(lambda: groups.lanes == 0)


@pytest.mark.parametrize("failure", [RuntimeError("a defect"), Panic("a defect")])
async def test_a_failure_is_every_callers(failure: BaseException) -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate = shards.hold(0)
    shards.failure = failure

    tasks = [ask(groups, search_of("a"))]
    await until(lambda: len(shards.groups) == 1)
    tasks += [ask(groups, search_of(name)) for name in "bc"]
    await asyncio.sleep(0)
    gate.set()

    async with asyncio.timeout(10):
        for task in tasks:
            with pytest.raises(type(failure), match="a defect"):
                await task


async def test_who_leaves_before_is_not_searched_for() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate, tasks = await one_under_way(shards, groups)

    leaving, staying = ask(groups, search_of("leaving")), ask(groups, search_of("staying"))
    await asyncio.sleep(0)
    leaving.cancel()
    gate.set()

    assert await answered([*tasks, staying]) == ["a", "staying"]
    assert shards.groups == [["a"], ["staying"]]


async def test_the_last_to_leave_takes_the_group_along() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    shards.hold(0), shards.hold(1)
    frozen = ask(groups, search_of("frozen"))
    await until(lambda: len(shards.groups) == 1)
    tasks = [ask(groups, search_of(name)) for name in "ab"]
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
    first = ask(groups, search_of("a"))
    await until(lambda: len(shards.groups) == 1)
    both = [groups.answer([search_of("b")]), groups.answer([search_of("c")])]
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
    assert await answered([ask(groups, search_of("d"))]) == ["d"]


MIXED = (("patient", 100.0), ("nearly", 95.0), ("hurried", 20.0), ("ever", None))
PARTS = Partial(allowed=True)


async def test_a_partial_group_ends_with_the_first_of_its_deadlines_and_nobody_is_hurried_by_much() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate = shards.hold(0)

    tasks = [ask(groups, search_of("a", partial=PARTS), 100)]
    await until(lambda: len(shards.groups) == 1)
    tasks += [ask(groups, search_of(name, partial=PARTS), timeout_s) for name, timeout_s in MIXED]
    await asyncio.sleep(0)
    gate.set()

    await answered(tasks)
    assert sorted(shards.groups) == [["a"], ["ever"], ["hurried"], ["patient", "nearly"]]
    left_s = dict(zip(map(tuple, shards.groups), shards.left_s, strict=True))
    assert left_s["ever",] is None
    assert (left_s["patient", "nearly"] or 0) <= 95
    assert (left_s["hurried",] or 0) <= 20


async def test_whole_answers_go_together_for_as_long_as_the_most_patient_caller_waits() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate = shards.hold(0)

    tasks = [ask(groups, search_of("a"), 100)]
    await until(lambda: len(shards.groups) == 1)
    tasks += [ask(groups, search_of(name), timeout_s) for name, timeout_s in MIXED]
    await asyncio.sleep(0)
    gate.set()

    await answered(tasks)
    assert shards.groups == [["a"], ["patient", "nearly", "hurried", "ever"]]
    assert shards.left_s[1] is None


async def test_deadlines_that_have_passed_are_no_endless_loop() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate = shards.hold(0)

    tasks = [ask(groups, search_of("a", partial=PARTS), 0)]
    await until(lambda: len(shards.groups) == 1)
    tasks += [ask(groups, search_of(name, partial=PARTS), 0) for name in "bc"]
    await asyncio.sleep(0)
    gate.set()

    assert await answered(tasks) == ["a", "b", "c"]
