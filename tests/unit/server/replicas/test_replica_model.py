"""Whatever replicas do, in whatever order: one that is well is enough, no deadline is passed, and all come back."""

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.server.replicas.scripted import ScriptedReplica, replicas, search, settle, shard_of
from tests.unit.server.replicas.virtual_time import VirtualLoop, clock

from likewise.server import errors
from likewise.server.remote import deadlines
from likewise.server.replicas.policy import ReplicaPolicy
from likewise.server.replicas.report import ReplicaSetReport, ReplicaState
from likewise.shards import protocols

COUNT = 3
WHICH = st.integers(0, COUNT - 1)
POLICY = ReplicaPolicy(max_attempts=COUNT)
QUICK_S = 0.002


class ReplicasThatFail(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 99))
    def start(self, seed: int) -> None:
        self.loop = VirtualLoop()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(deadlines, "time", type("Clock", (), {"monotonic": staticmethod(self.loop.time)}))
        self.patch.setattr(logging.getLogger("likewise.server.replicas.pool"), "disabled", True)
        self.all = replicas(COUNT)
        self.shard = shard_of(self.all, POLICY, seed=seed)
        self.there = [replica.name for replica in self.all]

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.patch.undo()
            self.loop.run_until_complete(settle())
            self.loop.close()

    def _there(self) -> list[ScriptedReplica]:
        return [replica for replica in self.all if replica.name in self.there]

    @rule(which=WHICH, error=st.sampled_from([protocols.Unavailable("gone"), TimeoutError()]))
    def fail(self, which: int, error: Exception) -> None:
        self._set(which, failure=error)

    @rule(which=WHICH)
    def freeze(self, which: int) -> None:
        self._set(which, frozen=True)

    @rule(which=WHICH)
    def fill(self, which: int) -> None:
        self._set(which, failure=protocols.Overloaded("64 wait", retry_after_s=1.0))

    @rule(which=WHICH, delay_s=st.sampled_from([0.01, 0.05, 0.3]))
    def slow(self, which: int, delay_s: float) -> None:
        self._set(which, delay_s=delay_s)

    @rule(which=WHICH)
    def recover(self, which: int) -> None:
        self._set(which)

    @rule(which=WHICH)
    def leave_or_join(self, which: int) -> None:
        name = self.all[which].name
        wanted = [other for other in self.there if other != name] if name in self.there else [*self.there, name]
        if wanted:
            self.there = wanted
            self.shard.move(wanted)

    @rule(seconds=st.sampled_from([0.1, 1.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self._run(asyncio.sleep(seconds))

    @rule(callers=st.integers(1, 8), calls=st.integers(1, 12))
    def call(self, callers: int, calls: int) -> None:
        async def caller() -> None:
            for _ in range(calls):
                await self._checked_call()

        async def all_callers() -> None:
            await asyncio.gather(*(caller() for _ in range(callers)))

        self._run(all_callers())

    @precondition(lambda self: len(self.there) == COUNT)
    @rule()
    def recover_all(self) -> None:
        for which in range(COUNT):
            self._set(which)
        self._run(asyncio.sleep(20.0))  # ejections are over, slowness is forgotten
        before = [replica.calls for replica in self.all]

        async def calls() -> None:
            for _ in range(120):
                await self._checked_call()

        self._run(calls())
        report = self.loop.run_until_complete(self._report())
        assert [replica.state for replica in report.replicas] == [ReplicaState.SERVING] * COUNT
        assert all(replica.calls - earlier >= 10 for replica, earlier in zip(self.all, before, strict=True))

    @invariant()
    def the_books_are_right(self) -> None:
        if not hasattr(self, "loop"):
            return
        report = self.loop.run_until_complete(self._report())
        hedge, ejection = POLICY.hedge, POLICY.ejection
        assert report.hedges <= hedge.burst + hedge.share * report.calls
        assert report.hedges_won <= report.hedges
        assert sorted(self.there) == [replica.name for replica in report.replicas]
        assert ReplicaState.SERVING in {replica.state for replica in report.replicas}
        assert all(replica.outstanding == 0 for replica in report.replicas)
        assert all(replica.ejected_for_s <= ejection.longest_s + 1e-6 for replica in report.replicas)
        assert [replica.running for replica in self.all] == [0] * COUNT

    def _set(
        self, which: int, *, failure: Exception | None = None, frozen: bool = False, delay_s: float = QUICK_S
    ) -> None:
        replica = self.all[which]
        replica.failure, replica.frozen, replica.delay_s = failure, frozen, delay_s

    async def _checked_call(self) -> None:
        began_s, timeout_s = clock(), 2.0
        there = self._there()
        well = [replica for replica in there if replica.failure is None and not replica.frozen]
        full = [replica for replica in there if isinstance(replica.failure, protocols.Overloaded)]
        serving = {replica.name for replica in self.shard.report().replicas if replica.state is ReplicaState.SERVING}
        try:
            name = await search(self.shard, timeout_s=timeout_s)
            assert name in {replica.name for replica in well}
        except protocols.Overloaded:
            # Another replica is tried once, and not one that is ejected: it may hang, and the caller can come back.
            assert full
            assert len(full) >= 2 or not [replica for replica in well if replica.name in serving]
        except (protocols.Unavailable, errors.DeadlinePassed, TimeoutError):
            assert not well
        assert clock() - began_s <= timeout_s + 1e-6

    async def _report(self) -> ReplicaSetReport:
        await settle()
        return self.shard.report()

    def _run(self, main: Any) -> None:
        self.loop.run_until_complete(main)


ReplicasThatFail.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
test_one_replica_that_is_well_is_enough = ReplicasThatFail.TestCase


def test_a_call_whose_time_is_half_gone_goes_to_the_replica_that_answers() -> None:
    """Found by the above: two replicas came back frozen, so nothing was known of them; the third one was slow."""
    state = ReplicasThatFail()
    state.start(seed=0)
    state.call(callers=7, calls=11)
    for which in (0, 1):
        state.freeze(which=which)
    for which in (0, 0, 1, 1):
        state.leave_or_join(which=which)
    state.slow(delay_s=0.3, which=2)
    state.call(callers=4, calls=3)
    state.teardown()


def test_where_all_that_serve_hang_one_that_was_ejected_is_tried_again() -> None:
    """Found by the above: each of two frozen replicas was the other's only alternative."""
    state = ReplicasThatFail()
    state.start(seed=18)
    state.call(callers=1, calls=10)
    for which in (0, 2):
        state.freeze(which=which)
    state.call(callers=5, calls=4)
    state.slow(delay_s=0.01, which=0)
    state.freeze(which=1)
    state.call(callers=4, calls=1)
    state.teardown()
