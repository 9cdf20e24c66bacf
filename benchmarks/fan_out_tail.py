"""Tail latency of a fan-out by number of shards, without and with hedged requests: a seeded simulation in numpy.

A search waits for the slowest of its shards, so what happens to one shard call in a hundred happens to most searches
over a hundred shards (Dean and Barroso, The Tail at Scale, CACM 2013). A shard call takes a log-normal time, and in a
small share of the calls a pause is added to it, exponentially distributed: a replica that collects garbage, compacts,
is paged in or shares its cores. Replicas pause independently, and a paused one stays so for some searches in a row.

    none       each shard is asked at one replica, drawn at random
    hedged     a call that takes longer than the shard's 95th percentile is made again at another replica, out of a
               token bucket that each call fills by a share; the first answer counts
    chosen     hedged, and the replica is chosen by how slow it was, as `likewise.server.replicas` does
    unbounded  hedged without a budget

The ejection of replicas is not simulated, nor is queueing: the share of extra calls is told instead.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_Z99: Final = 2.3263478740408408
"""99th percentile of the standard normal distribution."""

CALIBRATION_CALLS: Final = 200_000
POLICIES: Final = ("none", "hedged", "chosen", "unbounded")

# As in likewise.server.replicas.choice.
SMOOTHING: Final = 0.2
SLOWEST: Final = 10.0
NOISE: Final = 1.25
HALF_LIFE_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one shard call takes.

    Attributes:
        median_ms: Median without pauses.
        p99_ms: 99th percentile without pauses, above the median.
        pause_share: Share of a replica's calls that meet a pause, in [0, 1).
        pause_ms: Mean length of what a pause adds.
        pause_calls: Mean number of searches in a row that meet the same pause, at least 1.
    """

    median_ms: float = 1.8
    p99_ms: float = 3.4
    pause_share: float = 0.01
    pause_ms: float = 50.0
    pause_calls: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.median_ms < self.p99_ms:
            raise ValueError(f"the median must be positive and below p99, got {self.median_ms} and {self.p99_ms} ms")
        if not 0 <= self.pause_share < 1 or self.pause_ms < 0 or self.pause_calls < 1:
            raise ValueError(
                f"pauses need a share in [0, 1), a length of at least 0 and at least one call, got {self.pause_share}, "
                f"{self.pause_ms} ms and {self.pause_calls}"
            )

    def draw(self, rng: np.random.Generator, paused: Mask) -> F64:
        """Milliseconds of one call for each entry of `paused`."""
        sigma = np.log(self.p99_ms / self.median_ms) / _Z99
        times = self.median_ms * np.exp(sigma * rng.standard_normal(paused.shape))
        return np.asarray(times + np.where(paused, rng.exponential(self.pause_ms, paused.shape), 0.0))


class Pauses:
    """Which replicas are paused: a two-state chain each, stationary from the start.

    Attributes:
        now: (replicas, shards) booleans.
    """

    def __init__(self, latency: Latency, replicas: int, shards: int, rng: np.random.Generator) -> None:
        self._end = 1.0 / latency.pause_calls
        share = latency.pause_share
        self._begin = min(1.0, self._end * share / (1.0 - share))
        self._rng = rng
        self.now: Mask = rng.random((replicas, shards)) < share

    def step(self) -> None:
        """On to the next search."""
        change = self._rng.random(self.now.shape)
        self.now = np.where(self.now, change >= self._end, change < self._begin)


class Choice:
    """Which replica each shard is asked at first: the less slow of two drawn at random, or the first of them.

    Args:
        decay: What is left of a replica's slowness after a search.
        blind: Draw one and look at nothing.
    """

    def __init__(
        self, replicas: int, shards: int, rng: np.random.Generator, *, typical_ms: float, decay: float, blind: bool
    ) -> None:
        self._slowness = np.ones((replicas, shards))
        self._rng = rng
        self._typical_ms = typical_ms
        self._decay = decay
        self._blind = blind
        self._every = np.arange(shards)

    def first(self) -> I64:
        """(shards,) replicas."""
        replicas, shards = self._slowness.shape
        one = self._rng.integers(replicas, size=shards)
        if self._blind or replicas == 1:
            return one
        other = (one + self._rng.integers(1, replicas, size=shards)) % replicas
        cost = np.maximum(1.0, self._slowness / NOISE)
        return np.where(cost[other, self._every] < cost[one, self._every], other, one)

    def observe(self, replicas: I64, shards: I64, times_ms: F64) -> None:
        """Take note of how long calls took, or how long they were waited for."""
        ratio = np.minimum(times_ms / self._typical_ms, SLOWEST)
        self._slowness[replicas, shards] += SMOOTHING * (ratio - self._slowness[replicas, shards])

    def step(self) -> None:
        """On to the next search."""
        self._slowness = 1.0 + (self._slowness - 1.0) * self._decay


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the result; times in milliseconds.

    Attributes:
        shards: Shards of each search.
        replicas: Of each shard.
        hedging: One of `POLICIES`.
        extra_calls: Hedges as a share of the calls.
        over_deadline: Share of the searches that took longer than the deadline.
    """

    shards: int
    replicas: int
    hedging: str
    searches: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    extra_calls: float
    over_deadline: float


@dataclass(frozen=True, slots=True)
class Hedging:
    """When a late call is made again; as `likewise.server.replicas.policy.HedgePolicy`."""

    policy: str
    quantile: float
    share: float
    burst: float


def searches_ms(
    latency: Latency,
    hedging: Hedging,
    *,
    shards: int,
    replicas: int,
    searches: int,
    rate: float,
    rng: np.random.Generator,
) -> tuple[F64, int]:
    """(searches,) times of that many searches one after the other, and the hedges they made."""
    pauses = Pauses(latency, replicas, shards, rng)
    known = latency.draw(rng, rng.random(CALIBRATION_CALLS) < latency.pause_share)
    typical, late = (float(q) for q in np.quantile(known, [0.5, hedging.quantile]))
    decay = 2.0 ** (-1.0 / (HALF_LIFE_S * rate))
    blind = hedging.policy != "chosen"
    choice = Choice(replicas, shards, rng, typical_ms=typical, decay=decay, blind=blind)
    tokens = np.full(shards, hedging.burst)
    times = np.empty(searches)
    hedges = 0
    every = np.arange(shards)
    for search in range(searches):
        first = choice.first()
        calls = latency.draw(rng, pauses.now[first, every])
        if hedging.policy != "none" and replicas > 1:
            tokens = np.minimum(hedging.burst, tokens + hedging.share)
            late_ones = calls > late
            if hedging.policy != "unbounded":
                late_ones &= tokens >= 1.0
            hedged = np.flatnonzero(late_ones)
            tokens[hedged] -= 1.0
            hedges += len(hedged)
            other = (first[hedged] + rng.integers(1, replicas, size=len(hedged))) % replicas
            again = latency.draw(rng, pauses.now[other, hedged])
            calls[hedged] = np.minimum(calls[hedged], late + again)
            choice.observe(other, hedged, np.minimum(again, calls[hedged]))
        choice.observe(first, every, calls)
        times[search] = calls.max()
        pauses.step()
        choice.step()
    return times, hedges


def simulate(latency: Latency, options: argparse.Namespace) -> Iterator[Result]:
    """Every number of shards under every policy; each pair sees its own stream of the seed."""
    for shards in options.shards:
        for index, policy in enumerate(POLICIES):
            times, hedges = searches_ms(
                latency,
                Hedging(policy, options.hedge_at, options.budget, options.burst),
                shards=shards,
                replicas=options.replicas,
                searches=options.searches,
                rate=options.rate,
                rng=np.random.default_rng((options.seed, shards, index)),
            )
            p50, p95, p99, p999 = (float(q) for q in np.quantile(times, [0.5, 0.95, 0.99, 0.999]))
            yield Result(
                shards=shards,
                replicas=options.replicas,
                hedging=policy,
                searches=options.searches,
                p50_ms=round(p50, 2),
                p95_ms=round(p95, 2),
                p99_ms=round(p99, 2),
                p999_ms=round(p999, 2),
                extra_calls=round(hedges / (options.searches * shards), 4),
                over_deadline=round(float(np.mean(times > options.deadline_ms)), 5),
            )


def table(results: Sequence[Result], deadline_ms: float) -> str:
    """The results as a Markdown table."""
    head = f"| shards | hedging | p50 | p95 | p99 | p99.9 ms | extra calls | over {deadline_ms:g} ms |"
    rows = [
        f"| {r.shards:,} | {r.hedging} | {r.p50_ms:.1f} | {r.p95_ms:.1f} | {r.p99_ms:.1f} | {r.p999_ms:.1f} "
        f"| {r.extra_calls:.1%} | {r.over_deadline:.2%} |"
        for r in results
    ]
    return "\n".join([head, "|---|---|---|---|---|---|---|---|", *rows])


def parser() -> argparse.ArgumentParser:
    """What can be asked."""
    fixed = Latency()
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--shards", type=int, nargs="+", default=[1, 10, 100, 1_000])
    command.add_argument("--replicas", type=int, default=2)
    command.add_argument("--searches", type=int, default=20_000, help="searches of each line")
    command.add_argument("--median-ms", type=float, default=fixed.median_ms, help="of a shard call without pauses")
    command.add_argument("--p99-ms", type=float, default=fixed.p99_ms, help="of a shard call without pauses")
    command.add_argument(
        "--pause-share", type=float, default=fixed.pause_share, help="share of calls that meet a pause"
    )
    command.add_argument("--pause-ms", type=float, default=fixed.pause_ms, help="mean length of what a pause adds")
    command.add_argument("--pause-calls", type=float, default=fixed.pause_calls, help="searches in a row that meet it")
    command.add_argument("--hedge-at", type=float, default=0.95, help="quantile past which a call is late")
    command.add_argument("--budget", type=float, default=0.1, help="hedges that a call earns")
    command.add_argument("--burst", type=float, default=10.0, help="hedges that can be saved up")
    command.add_argument("--rate", type=float, default=50.0, help="searches a second: how soon slowness is forgotten")
    command.add_argument("--deadline-ms", type=float, default=100.0)
    command.add_argument("--seed", type=int, default=7)
    return command


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a JSON line for each number of shards and policy, and a table of them on standard error."""
    command = parser()
    options = command.parse_args(arguments)
    if min(options.shards) < 1 or options.replicas < 1 or options.searches < 1:
        command.error("--shards, --replicas and --searches must be at least 1")
    if options.rate <= 0 or options.budget < 0 or options.burst < 0:
        command.error("--rate must be above 0, --budget and --burst at least 0")
    if not 0 < options.hedge_at < 1:
        command.error(f"--hedge-at must be in (0, 1), got {options.hedge_at}")
    try:
        latency = Latency(options.median_ms, options.p99_ms, options.pause_share, options.pause_ms, options.pause_calls)
    except ValueError as error:
        command.error(str(error))
    results = []
    for result in simulate(latency, options):
        print(json.dumps(asdict(result)), flush=True)
        results.append(result)
    print(table(results, options.deadline_ms), file=sys.stderr)


if __name__ == "__main__":
    main()
