"""A late call is asked of a second replica, the first answer wins, and a slow fleet is not made slower by it."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.server.replicas.scripted import ScriptedReplica, replicas, search, seen, settle, shard_of, warmed
from tests.unit.server.replicas.virtual_time import clock, in_virtual_time

from likewise.server.replicas.hedging import SILENT_FACTOR, UNKNOWN_S, HedgeBudget, delay_s
from likewise.server.replicas.policy import HedgePolicy, ReplicaPolicy
from likewise.server.replicas.replica_set import ReplicaSet


async def stuck(shard: ReplicaSet, frozen: ScriptedReplica, *, timeout_s: float | None = 1.0) -> float:
    """Time of the first call that began at the frozen replica and was answered by another."""
    while True:
        before, began_s = frozen.calls, clock()
        await search(shard, timeout_s=timeout_s)
        if frozen.calls > before:
            return clock() - began_s
        await asyncio.sleep(1.0)  # a replica that was slow is avoided for a while


@in_virtual_time
async def test_a_late_call_is_hedged_after_the_shards_95th_percentile() -> None:
    frozen, other = two = replicas(2)
    shard = shard_of(two)
    await warmed(shard, 200)
    late_s = shard.report().late_s["search"]
    assert late_s == pytest.approx(0.002, rel=0.06)
    frozen.frozen = True

    took_s = await stuck(shard, frozen)

    assert took_s == pytest.approx(late_s + other.delay_s, abs=0.001)
    assert (shard.report().hedges, shard.report().hedges_won) == (1, 1)


@in_virtual_time
async def test_the_loser_is_cancelled_down_to_the_replica() -> None:
    frozen, _ = two = replicas(2)
    shard = shard_of(two)
    await warmed(shard)
    frozen.frozen = True

    await stuck(shard, frozen)
    await settle()

    assert (frozen.cancelled, frozen.running) == (1, 0)
    assert seen(shard, frozen.name).outstanding == 0


@in_virtual_time
async def test_the_first_to_answer_wins_even_when_the_hedge_is_later() -> None:
    slow, slower = two = replicas(2)
    shard = shard_of(two)
    await warmed(shard)
    slow.delay_s = slower.delay_s = 0.2
    before = shard.report()

    name = await search(shard)
    await settle()

    loser = slower if name == slow.name else slow
    assert shard.report().hedges == before.hedges + 1
    assert shard.report().hedges_won == 0
    assert loser.cancelled == 1


@in_virtual_time
async def test_a_cancelled_caller_cancels_all_replicas_asked() -> None:
    two = replicas(2)
    shard = shard_of(two)
    await warmed(shard)
    for replica in two:
        replica.frozen = True
    call = asyncio.create_task(search(shard))
    await asyncio.sleep(0.1)
    assert [replica.running for replica in two] == [1, 1]

    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await settle()

    assert [replica.cancelled for replica in two] == [1, 1]
    assert [replica.outstanding for replica in shard.report().replicas] == [0, 0]


@in_virtual_time
async def test_a_single_replica_is_never_asked_twice() -> None:
    (one,) = only = replicas(1)
    shard = shard_of(only)
    await warmed(shard)
    one.delay_s = 0.4

    await search(shard)

    assert one.calls == 65


@in_virtual_time
async def test_before_the_quantile_is_known_half_of_the_deadline_or_a_fixed_time_is_late() -> None:
    for timeout_s, expected_s in ((0.05, 0.025), (5.0, UNKNOWN_S), (None, UNKNOWN_S)):
        frozen, other = two = replicas(2)
        shard = shard_of(two)
        frozen.frozen = True

        assert await stuck(shard, frozen, timeout_s=timeout_s) == pytest.approx(expected_s + other.delay_s, abs=0.001)


@in_virtual_time
async def test_a_slow_fleet_gets_no_more_hedges_than_the_budget() -> None:
    three = replicas(3)
    policy = ReplicaPolicy(hedge=HedgePolicy(share=0.05, burst=10))
    shard = shard_of(three, policy)
    await warmed(shard, 200)
    draw = random.Random(3)

    async def caller() -> None:
        for _ in range(40):
            for replica in three:  # each call much slower than all before, so that every one looks late
                replica.delay_s *= 1.001 + 0.001 * draw.random()
            await search(shard, timeout_s=None)

    for replica in three:
        replica.delay_s = 0.1
    await asyncio.gather(*(caller() for _ in range(50)))

    report = shard.report()
    extra = sum(replica.calls for replica in three) - report.calls
    assert report.calls == 2_200
    assert extra == report.hedges
    assert report.hedges <= 10 + 0.05 * report.calls
    assert report.hedges_refused > 0
    assert report.ejections == {}


@in_virtual_time
async def test_a_call_without_a_hedge_left_gets_one_as_soon_as_others_have_earned_it() -> None:
    stalled, other = two = replicas(2)
    shard = shard_of(two, ReplicaPolicy(hedge=HedgePolicy(share=0.5, burst=1)))
    await warmed(shard)
    stalled.frozen = True
    await stuck(shard, stalled)  # spends the one hedge there is
    shard.move([stalled.name])
    call = asyncio.create_task(search(shard, timeout_s=None))
    await asyncio.sleep(0.001)
    shard.move([stalled.name, other.name])
    await asyncio.sleep(0.002)
    assert (shard.report().hedges, shard.report().hedges_refused) == (1, 1)

    await search(shard)

    assert await call == other.name
    assert (shard.report().hedges, shard.report().hedges_won, shard.report().rescues) == (2, 2, 0)


@in_virtual_time
async def test_a_call_to_a_replica_gone_silent_is_made_anew_even_without_a_hedge_left() -> None:
    frozen, other = two = replicas(2)
    shard = shard_of(two, ReplicaPolicy(hedge=HedgePolicy(share=0.0, burst=0)))
    await warmed(shard)
    frozen.frozen = True

    took_s = await stuck(shard, frozen)

    assert took_s == pytest.approx(SILENT_FACTOR * 0.002 + other.delay_s, rel=0.1)
    assert (shard.report().hedges, shard.report().rescues) == (0, 1)
    assert await stuck(shard, frozen, timeout_s=0.02) == pytest.approx(0.01 + other.delay_s, rel=0.1)


@in_virtual_time
async def test_a_replica_that_answers_others_is_not_silent() -> None:
    slow, other = two = replicas(2)
    shard = shard_of(two, ReplicaPolicy(hedge=HedgePolicy(share=0.0, burst=0)))
    await warmed(shard)
    slow.delay_s = other.delay_s = 0.5
    slow_calls = [asyncio.create_task(search(shard, timeout_s=2.0)) for _ in range(4)]
    await asyncio.sleep(0.01)
    slow.delay_s = other.delay_s = 0.002

    for _ in range(100):
        await search(shard)
    await asyncio.gather(*slow_calls)

    assert shard.report().rescues == 0


@in_virtual_time
async def test_calls_of_other_sizes_do_not_make_a_call_late() -> None:
    two = replicas(2)
    shard = shard_of(two)
    await warmed(shard)
    for replica in two:
        replica.delay_s = 0.08
    hedges = shard.report().hedges

    for _ in range(30):
        await shard.fetch([str(n) for n in range(100)], space="")

    assert shard.report().hedges == hedges
    assert shard.report().late_s["fetch"] == pytest.approx(0.08, rel=0.06)


@given(st.lists(st.sampled_from(["call", "hedge", "owe"]), max_size=300), st.integers(0, 5), st.floats(0, 1))
def test_hedges_never_exceed_the_share_and_the_burst(steps: list[str], burst: int, share: float) -> None:
    budget = HedgeBudget(HedgePolicy(share=share, burst=burst))
    calls = hedges = 0
    for step in steps:
        if step == "call":
            calls += 1
            budget.earn()
        elif step == "hedge":
            hedges += budget.take()
        else:
            budget.owe()
        assert hedges <= burst + share * calls + 1e-9
        assert -burst - 1e-9 <= budget.tokens <= burst


@given(st.none() | st.floats(0, 10), st.none() | st.floats(1e-6, 10))
@settings(max_examples=50)
def test_a_hedge_always_leaves_half_of_the_time(late_s: float | None, remaining_s: float | None) -> None:
    delay = delay_s(late_s, remaining_s)

    assert delay > 0
    assert remaining_s is None or delay <= remaining_s / 2
