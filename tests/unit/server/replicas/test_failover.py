"""A call survives its replica: another one answers within the same deadline; the caller's own faults stay his own."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from tests.unit.server.replicas.scripted import (
    OPTIONS,
    QUERY,
    ScriptedReplica,
    replicas,
    search,
    seen,
    settle,
    shard_of,
    state,
    warmed,
)
from tests.unit.server.replicas.virtual_time import clock, in_virtual_time

from likewise.server import errors
from likewise.server.remote.statuses import MessageTooLarge
from likewise.server.replicas.policy import ReplicaPolicy
from likewise.server.replicas.report import ReplicaState
from likewise.server.replicas.verdicts import Verdict
from likewise.shards import protocols

GONE = protocols.Unavailable("restarting")
FULL = "64 wait, the limit is 64"


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(GONE, id="unavailable"),
        pytest.param(errors.Unavailable("draining"), id="draining"),
        pytest.param(TimeoutError(), id="timed out"),
        pytest.param(errors.DeadlinePassed("its own deadline"), id="gave up"),
        pytest.param(RuntimeError("a defect"), id="broken"),
        pytest.param(errors.DataLoss("a bad checksum"), id="corrupt"),
        pytest.param(protocols.Overloaded(FULL, retry_after_s=1.0), id="full"),
    ],
)
@in_virtual_time
async def test_a_failing_replica_is_replaced_within_the_call(failure: Exception) -> None:
    bad, good = two = replicas(2)
    shard = shard_of(two)
    bad.failure = failure

    names = {await search(shard) for _ in range(30)}

    assert names == {good.name}
    assert bad.calls > 0


@in_virtual_time
async def test_killing_one_of_two_under_fifty_callers_fails_none() -> None:
    killed, other = two = replicas(2)
    shard = shard_of(two)
    answers: Counter[str] = Counter()

    async def caller() -> None:
        for _ in range(40):
            answers[await search(shard)] += 1

    async def kill() -> None:
        await asyncio.sleep(10 * killed.delay_s)
        killed.failure = GONE
        killed.delay_s = 0.0

    await asyncio.gather(kill(), *(caller() for _ in range(50)))

    assert answers.total() == 50 * 40
    assert answers[killed.name] > 0
    assert answers[other.name] > answers[killed.name]
    assert state(shard, killed.name) is not ReplicaState.SERVING
    assert state(shard, other.name) is ReplicaState.SERVING


@in_virtual_time
async def test_a_killed_replica_costs_no_more_than_its_probes() -> None:
    killed, _ = two = replicas(2)
    shard = shard_of(two)
    killed.failure = GONE
    for _ in range(20):
        await search(shard)
    before = killed.calls

    for _ in range(1_000):
        await search(shard)

    assert killed.calls - before <= 4


@pytest.mark.parametrize(
    "fault",
    [
        protocols.UnknownAttribute("filter.comparison", "no such attribute"),
        errors.InvalidRequest("a wrong dimension"),
        errors.NotFound("no such space"),
        errors.FailedPrecondition("another space"),
        errors.Unimplemented("not in this release"),
        MessageTooLarge("300 MiB"),
    ],
    ids=lambda fault: type(fault).__name__,
)
@in_virtual_time
async def test_the_callers_own_fault_is_neither_retried_nor_held_against_the_replica(fault: Exception) -> None:
    two = replicas(2)
    shard = shard_of(two)
    for replica in two:
        replica.failure = fault

    for _ in range(20):
        with pytest.raises(type(fault)) as caught:
            await search(shard)
        assert caught.value is fault

    assert sum(replica.calls for replica in two) == 20
    assert shard.report().retries == {}
    assert [(replica.failed, replica.state) for replica in shard.report().replicas] == [(0, ReplicaState.SERVING)] * 2


@pytest.mark.parametrize("seed", range(6))
@in_virtual_time
async def test_full_replicas_are_told_by_the_soonest_to_have_room(seed: int) -> None:
    three = replicas(3)
    shard = shard_of(three, seed=seed)
    for seconds, replica in zip((3.0, 1.0, 2.0), three, strict=True):
        replica.failure = protocols.Overloaded(FULL, retry_after_s=seconds)

    with pytest.raises(protocols.Overloaded) as caught:
        await search(shard)

    asked = [replica.failure for replica in three if replica.calls]
    assert len(asked) == 2
    assert caught.value.retry_after_s == min(failure.retry_after_s for failure in asked)  # type: ignore[union-attr]
    assert shard.report().retries == {Verdict.OVERLOADED: 1}
    assert {replica.failed for replica in shard.report().replicas} == {0}


@in_virtual_time
async def test_a_full_replica_among_dead_ones_is_what_the_caller_hears_of() -> None:
    full, dead = two = replicas(2)
    shard = shard_of(two)
    full.failure = protocols.Overloaded(FULL, retry_after_s=0.5)
    dead.failure = GONE

    for _ in range(10):
        with pytest.raises(protocols.Overloaded):
            await search(shard)


@in_virtual_time
async def test_without_any_replica_left_the_shard_is_unavailable() -> None:
    two = replicas(2)
    shard = shard_of(two)
    for replica in two:
        replica.failure = GONE

    for _ in range(20):
        with pytest.raises(protocols.Unavailable, match=r"2 of 2 replicas were asked and none answers: restarting"):
            await search(shard)

    assert [replica.calls for replica in two] == [20, 20]


@in_virtual_time
async def test_a_shard_without_replicas_is_unavailable_by_name() -> None:
    with pytest.raises(protocols.Unavailable, match="shard 1 of gallery 'shoes' is not up"):
        await search(shard_of([]))


@in_virtual_time
async def test_a_query_that_brings_its_replica_down_does_not_visit_all_of_them() -> None:
    many = replicas(6)
    shard = shard_of(many, ReplicaPolicy(max_attempts=3))
    for replica in many:
        replica.failure = GONE

    with pytest.raises(protocols.Unavailable):
        await search(shard)

    assert sum(replica.calls for replica in many) == 3


@in_virtual_time
async def test_a_defect_is_shown_to_two_replicas_only_and_raised_as_it_is() -> None:
    three = replicas(3)
    shard = shard_of(three)
    for replica in three:
        replica.failure = RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        await search(shard)

    assert sum(replica.calls for replica in three) == 2


@pytest.mark.parametrize("failure", [GONE, TimeoutError()], ids=["unavailable", "timed out"])
@in_virtual_time
async def test_two_dead_replicas_of_three_fail_no_call(failure: Exception) -> None:
    three = replicas(3)
    shard = shard_of(three)
    three[0].failure = three[1].failure = failure

    assert {await search(shard) for _ in range(20)} == {three[2].name}


@in_virtual_time
async def test_the_second_replica_gets_what_is_left_of_the_deadline() -> None:
    bad, good = two = replicas(2)
    shard = shard_of(two)
    bad.failure, bad.delay_s = GONE, 0.05
    while bad.calls == 0:
        good.remaining_s.clear()
        await search(shard, timeout_s=1.0)

    assert bad.remaining_s == [pytest.approx(1.0)]
    assert good.remaining_s == [pytest.approx(0.95)]


@pytest.mark.parametrize("count", [1, 2, 3])
@in_virtual_time
async def test_frozen_replicas_never_hold_a_call_past_its_deadline(count: int) -> None:
    frozen = replicas(count)
    shard = shard_of(frozen)
    await warmed(shard)
    for replica in frozen:
        replica.frozen = True

    for timeout_s in (0.01, 0.3, 2.0):
        began_s = clock()
        with pytest.raises(errors.DeadlinePassed, match="did not answer before the deadline") as caught:
            await search(shard, timeout_s=timeout_s)
        assert clock() - began_s <= timeout_s + 1e-6
        assert caught.value.reason == "SHARD_TIMEOUT"
    await settle()
    assert [replica.running for replica in frozen] == [0] * count


@in_virtual_time
async def test_a_replica_that_does_not_even_end_when_cancelled_holds_nobody_up() -> None:
    class Stubborn(ScriptedReplica):
        async def search(self, queries: Any, options: Any) -> Any:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(60)
                raise

    shard = shard_of([Stubborn("a")])
    began_s = clock()

    with pytest.raises(errors.DeadlinePassed):
        await search(shard, timeout_s=0.2)

    assert clock() - began_s <= 0.2 + 1e-6
    assert seen(shard, "a").outstanding == 1
    await asyncio.sleep(61)
    assert seen(shard, "a").outstanding == 0


@in_virtual_time
async def test_a_call_whose_deadline_has_passed_asks_nobody() -> None:
    one = replicas(1)

    with pytest.raises(errors.DeadlinePassed):
        await search(shard_of(one), timeout_s=0.0)

    assert one[0].calls == 0


@in_virtual_time
async def test_one_frozen_replica_of_two_fails_no_call_with_time_to_spare() -> None:
    frozen, other = two = replicas(2)
    shard = shard_of(two)
    await warmed(shard)
    frozen.frozen = True

    async def caller() -> list[str]:
        return [await search(shard, timeout_s=0.5) for _ in range(20)]

    answers = await asyncio.gather(*(caller() for _ in range(50)))

    assert {name for names in answers for name in names} == {other.name}


@in_virtual_time
async def test_every_kind_of_read_moves_on_to_another_replica() -> None:
    bad, good = two = replicas(2)
    bad.failure = GONE

    for _ in range(10):
        shard = shard_of(two, seed=_)
        assert (await shard.search(QUERY, OPTIONS)).ids == [good.name]
        assert (await shard.fetch(["x"], space="")).batch["id"].to_pylist() == ["x", good.name]
        assert (await shard.page(after="x", limit=3, filter=b"", space="")).batch["id"].to_pylist() == ["x", good.name]
        assert await shard.count(b"") == (1, 1)
        assert (await shard.stats()).message == good.name


@in_virtual_time
async def test_a_call_goes_on_to_a_replica_that_came_while_it_ran() -> None:
    old, new = two = replicas(2)
    old.failure, old.delay_s = GONE, 0.1
    by_name = {replica.name: replica for replica in two}
    shard = shard_of(two)
    shard.move(["a"])
    call = asyncio.create_task(search(shard))
    await asyncio.sleep(0.05)

    shard.move(["b"])

    assert await call == new.name
    assert shard.names == ("b",)
    assert by_name["a"].calls == 1


@in_virtual_time
async def test_a_call_ends_where_it_is_when_its_replica_leaves() -> None:
    two = replicas(2)
    two[0].delay_s = 0.05
    shard = shard_of(two)
    shard.move(["a"])
    call = asyncio.create_task(search(shard))
    await asyncio.sleep(0.01)

    shard.move(["b"])

    assert await call == "a"
    assert {await search(shard) for _ in range(20)} == {"b"}


@in_virtual_time
async def test_replicas_that_stay_keep_their_history() -> None:
    two = replicas(2)
    shard = shard_of(two)
    two[0].failure = GONE
    for _ in range(20):
        await search(shard)
    assert state(shard, "a") is ReplicaState.EJECTED

    shard.move(["b", "a", "b"])

    assert shard.names == ("b", "a")
    assert state(shard, "a") is ReplicaState.EJECTED


@in_virtual_time
async def test_a_channel_closed_under_a_call_is_a_replica_that_went_away() -> None:
    class Closed(ScriptedReplica):
        async def search(self, queries: Any, options: Any) -> Any:
            self.calls += 1
            raise asyncio.CancelledError

    closed, good = Closed("a"), ScriptedReplica("b")
    shard = shard_of([closed, good])

    assert {await search(shard) for _ in range(20)} == {"b"}
    assert closed.calls > 0
