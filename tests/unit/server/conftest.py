"""A batcher that doubles numbers, for the tests of batches."""

from collections.abc import AsyncIterator

import pytest
from tests.unit.server.doubler import Doubler

from likewise.server.batcher import Batcher, BatchLimits


@pytest.fixture
def doubler() -> Doubler:
    return Doubler()


@pytest.fixture
async def batcher(doubler: Doubler) -> AsyncIterator[Batcher[int, int]]:
    made = Batcher(doubler, name="doubler", limits=BatchLimits(max_batch=4, max_items=8))
    yield made
    doubler.gate.set()
    await made.close()
