"""The comparison itself: environments, starts, loads, tuning, and then every case run in turn by everyone."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from benchmarks.peers import environments, tuning
from benchmarks.peers.driver.pace import Pace
from benchmarks.peers.driver.protocol import I64
from benchmarks.peers.plan import SWEEP_POINTS, Case, Plan, closed_cases, in_turn
from benchmarks.peers.process import Asked, Job, PeerFailed, PeerProcess, Ran
from benchmarks.peers.registry import Params, Peer
from benchmarks.peers.results import Entry, Run

from likewise.cli.benchmark import dataset as data
from likewise.cli.benchmark.figures import Speed, speed, summarise

_MEASURED: Final = "measured"
_TUNING: Final = "tuning"
_TUNING_CALLERS: Final = 2
_T = TypeVar("_T")


class Comparison:
    """Runs a plan on peers; whatever fails is noted with its peer and does not end the rest.

    Args:
        plan: What to measure.
        cache: Where the peers' environments are.
        work: An empty folder for everything else.
        say: Takes a line about what happens next.
    """

    def __init__(self, plan: Plan, cache: Path, work: Path, say: Callable[[str], None]) -> None:
        self.entries: dict[str, Entry] = {}
        self.dataset = ""
        self._plan, self._cache, self._work, self._say = plan, cache, work, say
        self._up: dict[str, PeerProcess] = {}
        self._tuned: dict[tuple[str, float | None], tuning.Tuned] = {}
        self._truth: dict[tuple[str, float | None], I64] = {}

    def run(self, peers: tuple[Peer, ...]) -> None:
        """Measure everything; `entries` has the outcome."""
        self.entries = {peer.name: Entry(peer) for peer in peers}
        pythons = {peer.name: python for peer in peers if (python := self._environment(peer)) is not None}
        self._write_data()
        with ExitStack() as stack:
            for name, python in pythons.items():
                self._start(stack, name, python)
            self._measure()

    def _measure(self) -> None:
        self._loads()
        for percent in self._plan.filtered():
            for name in list(self._up):
                self._tune(name, percent)
        for case in closed_cases(self._plan):
            self._case(case, {name: tuned.params for (name, at), tuned in self._tuned.items() if at == case.percent})
        if self._plan.sweep:
            self._curve()
        for fraction in self._plan.loads:
            self._open(fraction)

    def _environment(self, peer: Peer) -> Path | None:
        if not peer.requirements:
            return environments.python_of_harness()
        folder = environments.folder_of(self._cache, peer.name, peer.requirements)
        if not environments.is_made(folder):
            self._say(f"{peer.name}: installing {', '.join(peer.requirements)} into {folder}")
        try:
            return environments.make(folder, peer.requirements)
        except environments.InstallFailed as error:
            self._failed(peer.name, "install", str(error))
            return None

    def _write_data(self) -> None:
        plan = self._plan
        self._say(f"drawing {plan.items:,} x {plan.dim} vectors and finding the exact answers")
        asked = plan.queries + plan.tuning_queries
        drawn = data.clustered(plan.items, plan.dim, queries=asked, seed=plan.seed)
        self.dataset = drawn.name
        sets = {_MEASURED: drawn.queries[: plan.queries], _TUNING: drawn.queries[plan.queries :]}
        folder = self._work / "data"
        folder.mkdir()
        stored: dict[str, npt.NDArray[Any]] = {"base": drawn.base, "share": drawn.share, **sets}
        stored["cluster_share"] = drawn.cluster_share
        for name, array in stored.items():
            np.save(folder / f"{name}.npy", array)
        for percent in plan.filtered():
            allowed = None if percent is None else drawn.share < percent / 100
            for name, queries in sets.items():
                self._truth[name, percent] = data.exact_topk(drawn.base, queries, plan.k, allowed=allowed)[0]

    def _start(self, stack: ExitStack, name: str, python: Path) -> None:
        self._say(f"{name}: starting")
        peer = self.entries[name].peer
        job = Job(peer.module, self._work / "data", self._work / name, self._plan.threads, peer.options)
        process = PeerProcess(python, job)
        try:
            self._up[name] = stack.enter_context(process)
        except PeerFailed as error:
            self._failed(name, "start", str(error))
        else:
            self.entries[name].versions = process.versions

    def _loads(self) -> None:
        case = Case("load")
        for number in range(self._plan.runs):
            for name in in_turn(list(self._up), number):
                self._say(f"{name}: storing {self._plan.items:,} rows, {number + 1} of {self._plan.runs}")
                seconds = self._attempt(name, "load", lambda peer: peer.load())
                if seconds is None:
                    self._drop(name)  # nothing can be asked of it
                elif self.entries[name].peer.searches:
                    self.entries[name].add(case, number, Run(Speed(self._plan.items / seconds, 0.0, 0.0, 0.0)))

    def _tune(self, name: str, percent: float | None) -> None:
        peer = self.entries[name].peer
        if percent is not None and not peer.searches:
            return
        truth = self._truth[_TUNING, percent]

        def attempt(params: Params) -> tuning.Tried:
            callers, batch = peer.callers(_TUNING_CALLERS)
            ran = self._up[name].ask(self._asked(_TUNING, percent, params, batch), Pace("once", callers))
            return tuning.Tried(tuning.recalls(ran.answers, truth), ran.wall_s)

        ladders = peer.ladders_for(percent is not None)
        if not peer.searches:
            self._tuned[name, percent] = tuning.Tuned(ladders[0][0], ladders[0], 0.0, reached=True)
            return
        what = "unfiltered" if percent is None else f"a filter of {percent:g} %"
        self._say(f"{name}: tuning for recall {self._plan.target:g}, {what}")
        tuned = self._attempt(name, f"tuning, {what}", lambda _: tuning.tune(ladders, self._plan.target, attempt))
        if tuned is not None:
            self._tuned[name, percent] = tuned
            if not tuned.reached:
                self._say(f"{name}: recall {tuned.recall:.3f} is the best it reaches, {what}")

    def _case(self, case: Case, params: Mapping[str, Params], rates: Mapping[str, float] | None = None) -> None:
        """Every run of a case, everyone in turn."""
        plan = self._plan
        for number in range(plan.runs):
            for name in in_turn([name for name in self._up if name in params], number):
                self._say(f"{name}: {case.kind}, filter {case.filter_name}, {case.callers} callers, run {number + 1}")
                entry = self.entries[name]
                callers, batch = entry.peer.callers(case.callers)
                kind, rate = ("open", rates[name]) if rates else ("closed", 0.0)
                pace = Pace(kind, callers, plan.warm_up_s, plan.measure_s, rate, seed=plan.seed + number)
                asked = self._asked(_MEASURED, case.percent, params[name], batch)
                what = f"{case.kind}, filter {case.filter_name}, {case.callers} callers"
                ran = self._attempt(name, what, partial(PeerProcess.ask, asked=asked, pace=pace))
                if ran is None:
                    continue
                if not len(ran.latencies_s):
                    self._failed(name, what, f"no call was answered within {plan.measure_s:g} s")
                    continue
                entry.params[case] = params[name]
                entry.add(case, number, self._run_of(ran, entry.peer, case, batch))

    def _curve(self) -> None:
        points = {
            name: tuning.around(tuned, SWEEP_POINTS)
            for (name, percent), tuned in self._tuned.items()
            if percent is None and self.entries[name].peer.searches
        }
        for level in range(SWEEP_POINTS):
            params = {name: ladder[level] for name, ladder in points.items() if level < len(ladder)}
            self._case(Case("curve", None, self._plan.curve_callers, level), params)

    def _open(self, fraction: float) -> None:
        saturated = Case("closed", None, max(self._plan.callers))
        rates = {
            name: fraction * summarise(list(speeds.values())).median.qps
            for name in self._up
            # What is fast by its batches alone has nothing to say to calls that arrive one by one.
            if self.entries[name].peer.batch == 1 and (speeds := self.entries[name].speeds(saturated))
        }
        params = {name: self._tuned[name, None].params for name in rates}
        self._case(Case("open", None, self._plan.open_callers, round(100 * fraction)), params, rates)

    def _run_of(self, ran: Ran, peer: Peer, case: Case, batch: int) -> Run:
        calls = speed(ran.latencies_s, ran.wall_s)
        measured = replace(calls, qps=batch * calls.qps)
        recall = None
        if peer.searches:
            recall = tuning.mean_recall(tuning.recalls(ran.answers, self._truth[_MEASURED, case.percent]))
        if case.kind != "open":
            return Run(measured, recall)
        in_time = replace(calls, qps=ran.in_time / ran.wall_s)
        return Run(in_time, recall, ran.offered / ran.wall_s, len(ran.latencies_s) / max(ran.offered, 1))

    def _asked(self, queries: str, percent: float | None, params: Params, batch: int) -> Asked:
        return Asked(queries, self._plan.k, None if percent is None else percent / 100, params, batch)

    def _attempt(self, name: str, what: str, work: Callable[[PeerProcess], _T]) -> _T | None:
        if name not in self._up:
            return None
        try:
            return work(self._up[name])
        except PeerFailed as error:
            self._failed(name, what, str(error))
            if error.gone:
                self._drop(name)
            return None

    def _failed(self, name: str, what: str, why: str) -> None:
        self._say(f"{name}: {what} failed: {why.splitlines()[0] if why else ''}")
        self.entries[name].failures.setdefault(what, why)

    def _drop(self, name: str) -> None:
        """Ask nothing more of a peer; its process ends with the others."""
        self._up.pop(name, None)
