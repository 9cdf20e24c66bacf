"""Fixtures of the data plane's tests."""

from collections.abc import AsyncIterator

import pytest
from tests.unit.server.remote.loopback import Loopback, NumpyShard

from likewise.shards.protocols import Overloaded, Unavailable


@pytest.fixture
async def loopback() -> AsyncIterator[Loopback]:
    loop = Loopback()
    yield loop
    await loop.close()


@pytest.fixture
def numpy_shard() -> NumpyShard:
    return NumpyShard()


@pytest.fixture(
    params=[
        pytest.param(
            Overloaded("shard 1 has 64 queries waiting, the limit is 64", retry_after_s=0.25), id="overloaded"
        ),
        pytest.param(Unavailable("shard 1 loads"), id="unavailable"),
    ]
)
def shard_failure(request: pytest.FixtureRequest) -> Exception:
    failure: Exception = request.param
    return failure
