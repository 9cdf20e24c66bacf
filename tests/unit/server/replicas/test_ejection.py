"""Replicas that fail or hang get no calls for a while, their calls go elsewhere, and they come back by themselves."""

import asyncio

import pytest
from tests.unit.server.replicas.scripted import ScriptedReplica, replicas, search, seen, settle, shard_of, state, warmed
from tests.unit.server.replicas.virtual_time import clock, in_virtual_time

from likewise.server import errors
from likewise.server.replicas.health import EjectionReason
from likewise.server.replicas.policy import EjectionPolicy, HedgePolicy, ReplicaPolicy
from likewise.server.replicas.replica_set import ReplicaSet
from likewise.server.replicas.report import ReplicaState
from likewise.shards import protocols

GONE = protocols.Unavailable("restarting")
POLICY = EjectionPolicy()
NO_HEDGES = ReplicaPolicy(hedge=HedgePolicy(share=0.0, burst=0))


async def ejected(shard: ReplicaSet, replica: ScriptedReplica, *, pause_s: float = 0.0) -> None:
    """Make calls, with pauses, until the replica is ejected."""
    for _ in range(200):
        await search(shard)
        await asyncio.sleep(pause_s)
        if state(shard, replica.name) is not ReplicaState.SERVING:
            return
    raise AssertionError(f"{replica.name} still serves")


@pytest.mark.parametrize("frozen", [False, True], ids=["failing", "frozen"])
@in_virtual_time
async def test_a_replica_that_recovers_gets_traffic_again(frozen: bool) -> None:
    sick, _ = two = replicas(2)
    shard = shard_of(two)
    await warmed(shard)
    sick.frozen, sick.failure = frozen, None if frozen else GONE
    # A slow replica is avoided anyway; with time it is given another chance.
    await ejected(shard, sick, pause_s=5.0 if frozen else 0.0)
    reason = EjectionReason.LATE if frozen else EjectionReason.FAILING
    assert shard.report().ejections == {reason: 1}
    assert sick.name not in {await search(shard) for _ in range(50)}

    sick.frozen, sick.failure = False, None
    await asyncio.sleep(seen(shard, sick.name).ejected_for_s)
    names = [await search(shard) for _ in range(100)]

    assert names[0] == sick.name  # it is tried at once
    assert names.count(sick.name) > 20
    assert state(shard, sick.name) is ReplicaState.SERVING
    assert shard.report().returns == 1


@in_virtual_time
async def test_each_ejection_in_a_row_is_twice_as_long_up_to_a_limit() -> None:
    sick, _ = two = replicas(2)
    shard = shard_of(two, ReplicaPolicy(ejection=EjectionPolicy(first_s=0.25, longest_s=1.5)))
    sick.failure = GONE
    await ejected(shard, sick)
    lengths = []
    for _ in range(5):
        lengths.append(seen(shard, sick.name).ejected_for_s)
        await asyncio.sleep(lengths[-1])
        before = sick.calls
        await search(shard)
        assert sick.calls == before + 1

    assert lengths == pytest.approx([0.25, 0.5, 1.0, 1.5, 1.5], abs=0.01)


@in_virtual_time
async def test_a_good_time_forgets_earlier_ejections() -> None:
    sick, _ = two = replicas(2)
    shard = shard_of(two, ReplicaPolicy(ejection=EjectionPolicy(first_s=0.25)))
    for _ in range(3):
        sick.failure = GONE
        await ejected(shard, sick)
        assert seen(shard, sick.name).ejected_for_s == pytest.approx(0.25, abs=0.01)
        sick.failure = None
        await asyncio.sleep(0.3)
        await search(shard)
        await asyncio.sleep(1.0)
        await warmed(shard, 20)


@in_virtual_time
async def test_one_call_at_a_time_tries_an_ejected_replica() -> None:
    sick, _ = two = replicas(2)
    shard = shard_of(two)
    await warmed(shard)
    sick.failure = GONE
    await ejected(shard, sick)
    await asyncio.sleep(1.0)
    sick.frozen = True
    before = sick.calls

    calls = [asyncio.create_task(search(shard)) for _ in range(50)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert state(shard, sick.name) is ReplicaState.PROBING
    await asyncio.gather(*calls)

    assert sick.calls == before + 1


@in_virtual_time
async def test_the_call_that_tries_a_replica_is_hedged_whatever_the_budget() -> None:
    sick, other = two = replicas(2)
    shard = shard_of(two, NO_HEDGES)
    await warmed(shard)
    sick.failure = GONE
    await ejected(shard, sick)
    sick.failure, sick.frozen = None, True
    await asyncio.sleep(1.0)
    before, began_s = sick.calls, clock()

    assert await search(shard) == other.name
    await settle()

    assert sick.calls == before + 1
    assert clock() - began_s < 0.01
    assert state(shard, sick.name) is ReplicaState.EJECTED


@in_virtual_time
async def test_calls_that_hang_at_a_replica_are_made_anew_as_soon_as_it_is_ejected() -> None:
    hung, _ = two = replicas(2)
    shard = shard_of(two, NO_HEDGES)
    await warmed(shard)
    shard.move([hung.name])
    began_s = clock()
    hung.frozen = True
    calls = [asyncio.create_task(search(shard)) for _ in range(20)]
    await asyncio.sleep(0.001)
    hung.frozen, hung.failure, hung.delay_s = False, GONE, 0.005
    calls += [asyncio.create_task(search(shard)) for _ in range(POLICY.failures)]
    await asyncio.sleep(0.001)
    shard.move(["a", "b"])

    assert set(await asyncio.gather(*calls)) == {"b"}

    assert clock() - began_s < 0.01
    assert shard.report().rescues == 20


@in_virtual_time
async def test_a_call_that_is_hedged_already_is_not_made_a_third_time() -> None:
    hung, other, _ = three = replicas(3)
    shard = shard_of(three, ReplicaPolicy(hedge=HedgePolicy(share=0.0, burst=1)))
    await warmed(shard)
    shard.move(["a"])
    hung.frozen = True
    call = asyncio.create_task(search(shard))
    await asyncio.sleep(0.001)
    hung.frozen, hung.failure, hung.delay_s = False, GONE, 0.005
    failing = [asyncio.create_task(search(shard)) for _ in range(POLICY.failures)]
    await asyncio.sleep(0.0005)
    other.delay_s = 0.02
    shard.move(["a", "b"])
    await asyncio.sleep(0.002)
    assert shard.report().hedges == 1
    shard.move(["a", "b", "c"])

    assert await call == "b"
    await asyncio.gather(*failing)

    assert shard.report().ejections == {EjectionReason.FAILING: 1}
    assert shard.report().rescues == 0


@in_virtual_time
async def test_the_last_replica_is_never_ejected() -> None:
    three = replicas(3)
    shard = shard_of(three)
    for replica in three:
        replica.failure = GONE

    for _ in range(100):
        with pytest.raises(protocols.Unavailable):
            await search(shard)
        states = [replica.state for replica in shard.report().replicas]
        assert ReplicaState.SERVING in states

    three[2].failure = None
    assert await search(shard) == "c"


@in_virtual_time
async def test_a_failed_try_does_not_eject_a_replica_that_came_back_meanwhile() -> None:
    first, second = two = replicas(2)
    shard = shard_of(two, NO_HEDGES)
    first.failure = GONE
    await ejected(shard, first)
    await asyncio.sleep(1.0)
    first.delay_s = 0.5
    trying = asyncio.create_task(search(shard, timeout_s=None))
    await asyncio.sleep(0.001)
    assert state(shard, first.name) is ReplicaState.PROBING
    first.failure, first.delay_s, second.failure = None, 0.002, GONE
    while state(shard, second.name) is ReplicaState.SERVING:
        assert await search(shard) == first.name  # the last resort, and so it comes back
    first.failure, second.failure = GONE, None  # what the try ends with

    await trying

    assert state(shard, first.name) is ReplicaState.SERVING


@in_virtual_time
async def test_an_ejected_replica_answers_when_the_others_cannot() -> None:
    first, second = two = replicas(2)
    shard = shard_of(two, ReplicaPolicy(ejection=EjectionPolicy(first_s=10.0)))
    first.failure = GONE
    await ejected(shard, first)
    first.failure, second.failure = None, GONE

    assert await search(shard) == first.name
    assert state(shard, first.name) is ReplicaState.SERVING


@in_virtual_time
async def test_ejected_replicas_are_all_there_is_when_the_others_leave() -> None:
    first, _ = two = replicas(2)
    shard = shard_of(two, ReplicaPolicy(ejection=EjectionPolicy(first_s=10.0)))
    first.failure = GONE
    await ejected(shard, first)
    first.failure = None

    shard.move(["a"])

    assert state(shard, "a") is ReplicaState.SERVING
    assert await search(shard) == "a"


@in_virtual_time
async def test_calls_to_a_frozen_last_replica_are_made_anew_at_an_ejected_one() -> None:
    first, last = two = replicas(2)
    shard = shard_of(two, ReplicaPolicy(ejection=EjectionPolicy(first_s=1_000.0, longest_s=1_000.0)))
    await warmed(shard)
    first.failure = GONE
    await ejected(shard, first)
    first.failure, last.frozen = None, True

    assert await search(shard, timeout_s=0.2) == first.name

    assert state(shard, first.name) is ReplicaState.SERVING


@in_virtual_time
async def test_replicas_are_not_ejected_when_all_of_them_become_slow() -> None:
    three = replicas(3)
    shard = shard_of(three)
    await warmed(shard, 400)
    for replica in three:
        replica.delay_s = 0.2

    await asyncio.gather(*(search(shard, timeout_s=10.0) for _ in range(200)))

    assert shard.report().ejections == {}


@in_virtual_time
async def test_replicas_are_not_ejected_when_all_of_them_pass_the_deadline() -> None:
    three = replicas(3)
    shard = shard_of(three)
    await warmed(shard, 400)
    for replica in three:
        replica.delay_s = 0.5

    for _ in range(20):
        calls = (search(shard, timeout_s=0.2) for _ in range(20))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {errors.DeadlinePassed}

    assert shard.report().ejections == {}


@in_virtual_time
async def test_callers_that_leave_early_say_nothing_about_a_shard() -> None:
    two = replicas(2)
    shard = shard_of(two)
    await warmed(shard)
    before = shard.report()
    for replica in two:
        replica.delay_s = 0.5

    for _ in range(1_500):
        with pytest.raises(errors.DeadlinePassed):
            await search(shard, timeout_s=0.001)
    await settle()

    after = shard.report()
    assert after.late_s == before.late_s
    assert [replica.late for replica in after.replicas] == [replica.late for replica in before.replicas]
    assert after.ejections == {}


@in_virtual_time
async def test_failures_of_calls_from_before_its_return_are_not_held_against_a_replica() -> None:
    sick, _ = two = replicas(2)
    shard = shard_of(two, ReplicaPolicy(max_attempts=1))
    shard.move([sick.name])
    sick.failure, sick.delay_s = GONE, 2.0
    old = [asyncio.create_task(search(shard, timeout_s=5.0)) for _ in range(10)]
    await asyncio.sleep(0.001)
    sick.delay_s = 0.005
    old += [asyncio.create_task(search(shard)) for _ in range(POLICY.failures)]
    await asyncio.sleep(0.001)
    shard.move(["a", "b"])
    await asyncio.sleep(0.01)
    assert state(shard, sick.name) is ReplicaState.EJECTED
    sick.failure, sick.delay_s = None, 0.002
    await asyncio.sleep(seen(shard, sick.name).ejected_for_s)
    assert await search(shard) == sick.name
    sick.failure = GONE  # what the old calls end with

    outcomes = await asyncio.gather(*old, return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {protocols.Unavailable}
    assert state(shard, sick.name) is ReplicaState.SERVING
