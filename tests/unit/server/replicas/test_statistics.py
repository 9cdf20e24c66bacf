"""Statistics of a shard tell of every replica, those that do not answer included."""

import pytest
from tests.unit.server.replicas.scripted import replicas, shard_of
from tests.unit.server.replicas.virtual_time import in_virtual_time

from likewise.shards.protocols import Unavailable
from likewise.v1 import gallery_service_pb2 as pb


@in_virtual_time
async def test_each_replica_says_its_version_though_nobody_has_called_it_yet() -> None:
    one, other = two = replicas(2)
    one.version, other.version = 7, 4

    stats = await shard_of(two).stats()

    serving = pb.REPLICA_STATE_SERVING
    assert [(replica.address, replica.state, replica.version) for replica in stats.replicas] == [
        (one.name, serving, 7),
        (other.name, serving, 4),
    ]


@in_virtual_time
@pytest.mark.parametrize("how", ["frozen", "gone"])
async def test_a_replica_that_does_not_answer_is_silent_and_holds_nothing_up_for_long(how: str) -> None:
    good, bad = two = replicas(2)
    bad.frozen, bad.failure = how == "frozen", Unavailable("gone") if how == "gone" else None

    stats = await shard_of(two).stats()

    assert [replica.state for replica in stats.replicas] == [pb.REPLICA_STATE_SERVING, pb.REPLICA_STATE_SILENT]
    assert stats.message == good.name
    assert bad.running == 0
