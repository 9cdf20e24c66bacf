"""What goes into a batch and what comes out of it: large calls, heavy items, and items that fail by themselves."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.server.doubler import Doubler, call

from likewise.server.batcher import Batcher, BatchLimits


def weighing(doubler: Doubler, max_weight: int) -> Batcher[int, int]:
    """A batcher of items that weigh what they are."""
    limits = BatchLimits(max_batch=4, max_items=100, max_weight=max_weight)
    return Batcher(doubler, name="doubler", limits=limits, weigh=lambda item: item)


@pytest.mark.parametrize("count", [0, 3, 8, 9, 1_000])
async def test_any_number_of_items_runs_within_the_window(
    batcher: Batcher[int, int], doubler: Doubler, count: int
) -> None:
    with batcher.admit(count) as lane:
        results = await lane.run_all(range(count))
        assert batcher.admitted == min(count, 8)

    assert results == [2 * i for i in range(count)]
    assert all(len(batch) <= 4 for batch in doubler.batches)
    assert batcher.admitted == batcher.waiting == 0


async def test_a_large_call_that_is_cancelled_leaves_nothing_waiting(
    batcher: Batcher[int, int], doubler: Doubler
) -> None:
    doubler.gate.clear()
    with batcher.admit(1_000) as lane:
        large = asyncio.create_task(lane.run_all(range(1_000)))
        await doubler.running()
        large.cancel()
        with pytest.raises(asyncio.CancelledError):
            await large
    doubler.gate.set()

    assert batcher.waiting == 0
    assert await call(batcher, 5) == [10]
    assert sum(map(len, doubler.batches)) <= 4 + 4 + 1


async def test_an_exception_among_the_results_is_its_items_alone() -> None:
    def run(items: Sequence[int]) -> list[int | Exception]:
        return [ValueError(f"{item} is odd") if item % 2 else item for item in items]

    batcher: Batcher[int, int] = Batcher(run, name="even", limits=BatchLimits(max_batch=4, max_items=8))

    outcomes = await asyncio.gather(call(batcher, 2), call(batcher, 3, 4), call(batcher, 6), return_exceptions=True)

    assert outcomes[0] == [2]
    assert isinstance(outcomes[1], ValueError)
    assert str(outcomes[1]) == "3 is odd"
    assert outcomes[2] == [6]
    await batcher.close()


async def test_no_batch_weighs_more_than_allowed_but_for_an_item_that_does_so_by_itself(doubler: Doubler) -> None:
    batcher = weighing(doubler, 10)

    assert await call(batcher, 3, 3, 3, 3, 25, 1) == [6, 6, 6, 6, 50, 2]

    assert doubler.batches == [[3, 3, 3], [3], [25], [1]]
    await batcher.close()


async def test_a_light_item_does_not_wait_for_all_heavy_ones_of_another_call(doubler: Doubler) -> None:
    batcher = weighing(doubler, 10)
    doubler.gate.clear()
    heavy = asyncio.create_task(call(batcher, 8, 8, 8, 8))
    await doubler.running()
    light = asyncio.create_task(call(batcher, 1))
    await asyncio.sleep(0)
    doubler.gate.set()

    await asyncio.gather(heavy, light)

    assert [1 in batch for batch in doubler.batches].index(True) <= 2
    await batcher.close()


async def test_a_call_whose_item_did_not_fit_is_first_in_the_next_batch(doubler: Doubler) -> None:
    batcher = weighing(doubler, 10)
    doubler.gate.clear()
    first = asyncio.create_task(call(batcher, 0))
    await doubler.running()
    others = [asyncio.create_task(call(batcher, *items)) for items in ([4, 4, 4], [7], [4, 4])]
    await asyncio.sleep(0)
    doubler.gate.set()

    await asyncio.gather(first, *others)

    assert doubler.batches[1:3] == [[4], [7]]
    await batcher.close()


@given(st.lists(st.lists(st.integers(0, 20), max_size=8), max_size=8), st.integers(1, 20))
def test_every_item_runs_once_within_the_weight(calls: list[list[int]], max_weight: int) -> None:
    doubler = Doubler()

    async def scenario() -> list[list[int]]:
        batcher = weighing(doubler, max_weight)
        try:
            return await asyncio.gather(*(call(batcher, *items) for items in calls))
        finally:
            await batcher.close()

    assert asyncio.run(scenario()) == [[2 * item for item in items] for items in calls]
    assert all(sum(batch) <= max_weight or len(batch) == 1 for batch in doubler.batches)
    assert sorted(item for batch in doubler.batches for item in batch) == sorted(item for one in calls for item in one)
