"""The replica that has least to do is asked, and one that is known to have the version."""

import asyncio
from collections import Counter

import pytest
from tests.unit.server.replicas.scripted import ScriptedReplica, replicas, search, seen, shard_of, warmed
from tests.unit.server.replicas.virtual_time import in_virtual_time

from likewise.server.replicas.choice import HALF_LIFE_S
from likewise.server.replicas.policy import EjectionPolicy, HedgePolicy, ReplicaPolicy
from likewise.shards import protocols

CHOICE_ALONE = ReplicaPolicy(hedge=HedgePolicy(share=0.0, burst=0), ejection=EjectionPolicy(late=1_000_000))


@in_virtual_time
async def test_replicas_that_are_alike_share_the_calls() -> None:
    three = replicas(3)
    shard = shard_of(three)

    names = Counter([await search(shard) for _ in range(300)])

    assert min(names.values()) > 60


@pytest.mark.parametrize("seed", range(5))
@in_virtual_time
async def test_concurrent_calls_go_to_who_has_fewest(seed: int) -> None:
    two = replicas(2)
    shard = shard_of(two, seed=seed)

    await asyncio.gather(*(search(shard) for _ in range(51)))

    assert sorted(replica.most_running for replica in two) == [25, 26]


@in_virtual_time
async def test_a_slow_replica_gets_less() -> None:
    fast, slow = two = replicas(2)
    shard = shard_of(two, CHOICE_ALONE)
    await warmed(shard)
    slow.delay_s = 3 * fast.delay_s
    await warmed(shard)
    before = slow.calls

    for _ in range(100):
        await search(shard)

    assert slow.calls - before < 20
    assert seen(shard, slow.name).slowness > 1.2


@in_virtual_time
async def test_a_replica_that_is_stuck_is_avoided_before_it_answers() -> None:
    stuck, _ = two = replicas(2)
    shard = shard_of(two, CHOICE_ALONE)
    await warmed(shard)
    stuck.frozen = True
    calls = [asyncio.create_task(search(shard)) for _ in range(2)]
    await asyncio.sleep(0.03)
    before = stuck.calls

    await asyncio.gather(*(search(shard) for _ in range(8)))

    assert stuck.calls == before
    assert stuck.running == 1
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


@in_virtual_time
async def test_a_replica_that_was_slow_gets_another_chance() -> None:
    _, slow = two = replicas(2)
    shard = shard_of(two, CHOICE_ALONE)
    await warmed(shard)
    slow.delay_s *= 3
    await warmed(shard)
    slow.delay_s /= 3
    await asyncio.sleep(5 * HALF_LIFE_S)
    before = slow.calls

    for _ in range(100):
        await search(shard)

    assert slow.calls - before > 25


@in_virtual_time
async def test_a_shard_that_becomes_faster_keeps_sharing_its_calls() -> None:
    two = replicas(2)
    for replica in two:
        replica.delay_s = 0.1
    shard = shard_of(two)
    await warmed(shard, 200)
    for replica in two:
        replica.delay_s = 0.002
    before = two[0].calls

    for _ in range(100):
        await search(shard)

    assert 25 < two[0].calls - before < 75


@in_virtual_time
async def test_a_replica_known_to_be_at_the_version_is_preferred() -> None:
    fresh, behind = two = replicas(2)
    shard = shard_of(two)
    await warmed(shard)
    fresh.version = 7
    behind.caught_up.set()
    while seen(shard, "a").version < 7:
        await search(shard)
    before = behind.calls

    names = {await search(shard, min_version=7) for _ in range(50)}

    assert names == {"a"}
    assert behind.calls == before


@in_virtual_time
async def test_a_preferred_replica_is_not_buried_in_calls() -> None:
    fresh, behind = two = replicas(2)
    shard = shard_of(two)
    await warmed(shard)
    fresh.version = 7
    behind.caught_up.set()
    while seen(shard, "a").version < 7:
        await search(shard)

    await asyncio.gather(*(search(shard, min_version=7) for _ in range(60)))

    assert fresh.most_running < 40


@in_virtual_time
async def test_waiting_for_a_version_does_not_make_a_replica_slow() -> None:
    (behind,) = one = replicas(1)
    shard = shard_of(one)
    await warmed(shard)
    late_s = shard.report().late_s["search"]

    for version in range(2, 30):
        waiting = asyncio.create_task(search(shard, min_version=version))
        await asyncio.sleep(0.5)
        behind.version = version
        behind.caught_up.set()
        await waiting
        behind.caught_up.clear()

    assert shard.report().late_s["search"] == late_s
    assert seen(shard, "a").slowness < 1.2


@in_virtual_time
async def test_a_replica_that_asks_to_be_spared_is_spared() -> None:
    full, free = two = replicas(2)
    shard = shard_of(two)
    full.failure = protocols.Overloaded("64 wait, the limit is 64", retry_after_s=2.0)
    while full.calls == 0:
        await search(shard)
    full.failure = None

    assert {await search(shard) for _ in range(50)} == {free.name}
    await asyncio.sleep(2.0)
    assert {await search(shard) for _ in range(50)} == {full.name, free.name}


def test_a_replica_that_is_asked_for_nothing_costs_nothing() -> None:
    assert shard_of([ScriptedReplica("a")]).names == ("a",)
