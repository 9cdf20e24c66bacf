"""A graph that sums, and where encoders run it."""

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.unit.server.encoders.summing_graph import FakeGraph

from likewise.server.batched_graph import Serving
from likewise.server.batcher import BatchLimits, BatchReport


@pytest.fixture
def graph() -> FakeGraph:
    return FakeGraph()


@pytest.fixture
def reports() -> list[BatchReport]:
    return []


@pytest.fixture
async def serving(reports: list[BatchReport]) -> AsyncIterator[Serving]:
    with ThreadPoolExecutor(2) as pool:
        yield Serving(pool, 2, BatchLimits(max_batch=4, max_items=16), reports.append)
