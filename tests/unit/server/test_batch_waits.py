"""When a batch starts and when it waits for more callers."""

import asyncio

import pytest
from tests.unit.server.doubler import Doubler, call

from likewise.server.batcher import Batcher, BatchLimits


@pytest.fixture
def doubler() -> Doubler:
    return Doubler()


async def test_an_idle_runner_may_wait_for_a_full_batch(doubler: Doubler) -> None:
    limits = BatchLimits(max_batch=2, max_items=8, max_delay_s=3600.0)
    batcher = Batcher(doubler, name="patient", limits=limits)
    first = asyncio.create_task(call(batcher, 1))
    for _ in range(5):
        await asyncio.sleep(0)
    assert doubler.batches == []

    assert await call(batcher, 2) == [4]

    assert await first == [2]
    assert doubler.batches == [[1, 2]]
    await batcher.close()


async def test_the_wait_for_a_full_batch_ends(doubler: Doubler) -> None:
    batcher = Batcher(doubler, name="patient", limits=BatchLimits(max_batch=2, max_items=8, max_delay_s=0.001))

    assert await call(batcher, 1) == [2]

    await batcher.close()


async def test_after_a_batch_the_next_one_waits_for_its_callers_to_come_back(doubler: Doubler) -> None:
    batcher = Batcher(doubler, name="doubler", limits=BatchLimits(max_batch=4, max_items=8, regather=1e9))
    await asyncio.gather(call(batcher, 1), call(batcher, 2))

    early = asyncio.create_task(call(batcher, 3))
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(doubler.batches) == 1
    await asyncio.gather(early, call(batcher, 4))

    assert doubler.batches == [[1, 2], [3, 4]]
    await batcher.close()


async def test_after_a_batch_the_next_one_waits_for_those_who_waited_too(doubler: Doubler) -> None:
    batcher = Batcher(doubler, name="doubler", limits=BatchLimits(max_batch=4, max_items=8, regather=1e9))
    doubler.gate.clear()
    first = [asyncio.create_task(call(batcher, i)) for i in (1, 2)]
    await doubler.running()
    waiting = asyncio.create_task(call(batcher, 3))
    await asyncio.sleep(0)
    doubler.gate.set()
    await asyncio.gather(*first)

    again = asyncio.gather(call(batcher, 4), call(batcher, 5))

    assert await waiting == [6]
    assert list(await again) == [[8], [10]]
    assert doubler.batches == [[1, 2], [3, 4, 5]]
    await batcher.close()


async def test_callers_that_do_not_come_back_are_not_waited_for_long(doubler: Doubler) -> None:
    batcher = Batcher(doubler, name="doubler", limits=BatchLimits(max_batch=4, max_items=8, regather=0.5))
    await asyncio.gather(call(batcher, 1), call(batcher, 2))

    assert await call(batcher, 3) == [6]

    await batcher.close()


async def test_nobody_is_waited_for_after_a_batch_of_one(doubler: Doubler) -> None:
    batcher = Batcher(doubler, name="doubler", limits=BatchLimits(max_batch=4, max_items=8, regather=1e9))
    await call(batcher, 1)

    assert await call(batcher, 2) == [4]

    assert doubler.batches == [[1], [2]]
    await batcher.close()
