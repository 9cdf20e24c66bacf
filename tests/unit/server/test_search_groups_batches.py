"""Callers with several searches of one kind: they go together, with others, and by as many calls as it takes."""

import asyncio
from collections.abc import Sequence

import pytest
from tests.unit.server.group_fixtures import Shards, answered, ask, one_under_way, search_of
from tests.unit.server.waiting import until

from likewise.server.answer import Answer
from likewise.server.search_groups import SearchGroups


def _ask_all(groups: SearchGroups, names: str, *, k: int = 10) -> "asyncio.Task[list[Answer]]":
    """A caller with a search of each letter."""
    return asyncio.create_task(groups.answer([search_of(name, k=k) for name in names]))


async def _names(tasks: "Sequence[asyncio.Task[list[Answer]]]") -> list[str]:
    """What each caller was answered."""
    async with asyncio.timeout(10):
        return ["".join([one.response.request_id for one in await task]) for task in tasks]


async def test_a_lone_batch_goes_at_once_and_a_smaller_one_after_it_too() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer, clock=lambda: 0.0)  # what is waited for is waited for until time goes on

    for names in ("abcd", "e", "fg"):
        task = _ask_all(groups, names)
        await asyncio.sleep(0)
        assert shards.groups[-1] == list(names)
        await task
    assert groups.lanes == 0


async def test_batches_that_come_meanwhile_go_together_and_each_gets_its_own_answers() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate, first = await one_under_way(shards, groups)

    batches = [_ask_all(groups, "bcd"), _ask_all(groups, "e"), _ask_all(groups, "fg")]
    await asyncio.sleep(0)
    gate.set()

    assert await _names(batches) == ["bcd", "e", "fg"]
    assert await answered(first) == ["a"]
    assert shards.groups == [["a"], list("bcdefg")]


async def test_batches_that_do_not_fit_into_one_call_are_not_divided() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    shards.hold(0)
    frozen = _ask_all(groups, "a", k=20_000)
    await until(lambda: len(shards.groups) == 1)

    batches = [_ask_all(groups, names, k=20_000) for names in ("bc", "de", "f", "g")]

    assert await _names(batches) == ["bc", "de", "f", "g"]
    assert shards.groups[1:] == [["b", "c"], ["d", "e", "f"], ["g"]]
    frozen.cancel()


@pytest.mark.parametrize("waiting", [False, True])
async def test_a_batch_of_many_hits_goes_by_several_calls_one_after_the_other(waiting: bool) -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gates = [shards.hold(0)] if waiting else []
    first = [_ask_all(groups, "a", k=20_000)] if waiting else []
    await until(lambda: len(shards.groups) == len(first))
    second = shards.hold(len(first))

    batch = _ask_all(groups, "bcdefgh", k=20_000)
    await asyncio.sleep(0)
    for gate in gates:
        gate.set()
    await until(lambda: len(shards.groups) == len(first) + 1)
    second.set()

    assert await _names([batch]) == ["bcdefgh"]
    assert shards.groups[len(first) :] == [list("bcd"), list("efg"), ["h"]]


async def test_the_next_waits_until_all_calls_of_a_large_batch_are_done() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    last = shards.hold(1)

    batch = _ask_all(groups, "bcde", k=20_000)
    await until(lambda: len(shards.groups) == 2)
    next_one = _ask_all(groups, "f", k=20_000)
    await asyncio.sleep(0)
    assert len(shards.groups) == 2
    last.set()

    assert await _names([batch, next_one]) == ["bcde", "f"]


async def test_a_failure_is_that_of_every_batch_in_its_group() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate, first = await one_under_way(shards, groups)

    batches = [_ask_all(groups, "bc"), _ask_all(groups, "d")]
    await asyncio.sleep(0)
    shards.failure = RuntimeError("a defect")
    gate.set()

    for task in (*batches, *first):
        with pytest.raises(RuntimeError, match="a defect"):
            await task


async def test_the_last_batch_to_leave_takes_the_group_along() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    shards.hold(1)
    gate, first = await one_under_way(shards, groups)
    batches = [_ask_all(groups, "bc"), _ask_all(groups, "def")]
    await asyncio.sleep(0)
    gate.set()
    await until(lambda: len(shards.groups) == 2)

    batches[0].cancel()
    await asyncio.sleep(0)
    assert shards.cancelled == 0
    batches[1].cancel()
    await until(lambda: shards.cancelled == 1)
    await until(lambda: groups.lanes == 0)
    assert await answered(first) == ["a"]


async def test_searches_of_many_vectors_share_a_call_as_far_as_it_holds_them() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    gate, tasks = await one_under_way(shards, groups)
    tasks += [ask(groups, search_of(name, queries=queries)) for name, queries in (("b", 100), ("c", 156), ("d", 1))]
    tasks.append(ask(groups, search_of("e")))
    gate.set()

    assert await answered(tasks) == list("abcde")
    assert shards.groups == [["a"], ["b", "c"], ["d", "e"]]


async def test_searches_of_one_caller_are_divided_by_their_vectors_and_none_of_them_is() -> None:
    shards = Shards()
    groups = SearchGroups(shards.answer)
    sizes = {"a": 200, "b": 56, "c": 1, "d": 300, "e": 256}

    found = await groups.answer([search_of(name, queries=queries) for name, queries in sizes.items()])

    assert [one.response.request_id for one in found] == list(sizes)
    assert shards.groups == [["a", "b"], ["c"], ["d"], ["e"]]
