"""Fixtures of the cluster's tests; none of them runs on Ray."""

from collections.abc import AsyncIterator

import pytest
from tests.unit.server.remote.loopback import Loopback


@pytest.fixture
async def loopback() -> AsyncIterator[Loopback]:
    loop = Loopback()
    yield loop
    await loop.close()
