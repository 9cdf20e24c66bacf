"""The same through real channels: a process that dies or hangs is one more replica that others stand in for."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest
from tests.unit.server.remote.loopback import SPEC, Loopback, NumpyShard
from tests.unit.server.waiting import until

from likewise.internal.v1 import shard_service_pb2_grpc
from likewise.server.errors import DeadlinePassed
from likewise.server.remote import deadlines
from likewise.server.remote.channels import Endpoint
from likewise.server.remote.shard_servicer import ShardServicer
from likewise.server.remote.shard_stub import ShardRoute, ShardStub
from likewise.server.replicas.replica_set import ReplicaSet
from likewise.shards.protocols import SearchOptions

QUERY = np.eye(4, dtype=np.float32)[:1]
OPTIONS = SearchOptions(space="default", k=1)
WHAT = "shard 1 of gallery 'shoes'"
NOBODY = "127.0.0.1:1"


class Processes:
    """Shards behind endpoints of their own, as one."""

    def __init__(self, loopback: Loopback) -> None:
        self._loopback = loopback
        self._endpoints: list[Endpoint] = []
        self._addresses: list[str] = []

    async def start(self, *shards: NumpyShard) -> ReplicaSet:
        """The replicas; number i answers from version i + 1."""
        for number, shard in enumerate(shards):
            shard.version = number + 1

            def register(endpoint: Endpoint, shard: NumpyShard = shard) -> None:
                self._endpoints.append(endpoint)
                servicer = ShardServicer(shard, shard, spec=SPEC, number=1)
                shard_service_pb2_grpc.add_ShardServiceServicer_to_server(servicer, endpoint.server)

            self._addresses.append(await self._loopback.endpoint(register))
        return self.replicas(self._addresses)

    def replicas(self, addresses: Sequence[str]) -> ReplicaSet:
        """The replicas at those addresses, as a router has them."""

        def connect(address: str) -> ShardStub:
            route = ShardRoute(WHAT, self._loopback.channels, shard_service_pb2_grpc.ShardServiceStub)
            route.move([address])
            return ShardStub(route, gallery_id=SPEC.gallery_id, shard=1)

        return ReplicaSet(WHAT, connect, addresses)

    async def kill(self, number: int) -> None:
        """End a process with its running calls."""
        await self._endpoints[number].stop(grace_s=0)


@pytest.fixture
async def loopback() -> AsyncIterator[Loopback]:
    loopback = Loopback()
    yield loopback
    await loopback.close()


@pytest.fixture
def processes(loopback: Loopback) -> Processes:
    return Processes(loopback)


async def test_an_address_where_nobody_is_fails_no_call(processes: Processes) -> None:
    alone = await processes.start(NumpyShard())
    shard = processes.replicas([NOBODY, *alone.names])

    hits = await asyncio.gather(*(shard.search(QUERY, OPTIONS) for _ in range(50)))

    assert {each.version for each in hits} == {1}


async def test_a_process_that_dies_under_fifty_callers_fails_none(processes: Processes) -> None:
    dies, stays = NumpyShard(), NumpyShard()
    dies.gate = asyncio.Event()
    stays.gate = asyncio.Event()
    shard = await processes.start(dies, stays)
    calls = [asyncio.create_task(shard.search(QUERY, OPTIONS)) for _ in range(50)]
    await until(lambda: dies.running > 10 and dies.running + stays.running >= 50)

    await processes.kill(0)
    stays.gate.set()

    assert {hits.version for hits in await asyncio.gather(*calls)} == {2}


async def test_the_loser_is_cancelled_in_the_other_process(processes: Processes) -> None:
    hangs, answers = NumpyShard(), NumpyShard()
    hangs.gate = asyncio.Event()
    shard = await processes.start(hangs, answers)

    hits = await asyncio.gather(*(shard.search(QUERY, OPTIONS) for _ in range(8)))

    assert {each.version for each in hits} == {2}
    await until(lambda: hangs.cancelled > 0 and hangs.running == 0)


async def test_a_deadline_is_told_to_the_replica_and_kept(processes: Processes) -> None:
    hangs = NumpyShard()
    hangs.gate = asyncio.Event()
    shard = await processes.start(hangs)

    async def call() -> None:
        deadlines.set_deadline(0.2)
        await shard.search(QUERY, OPTIONS)

    with pytest.raises(DeadlinePassed):
        await asyncio.create_task(call())
    await until(lambda: hangs.running == 0)
