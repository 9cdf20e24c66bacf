"""The simulation behind docs/scale.md says what theory says where there is one, and the same each time."""

import json
import math

import numpy as np
import pytest
from benchmarks import fan_out_tail as simulation
from benchmarks.fan_out_tail import Hedging, Latency, searches_ms

from likewise.server.replicas import choice
from likewise.server.replicas.policy import HedgePolicy

STEADY = Latency(pause_share=0.0)
DEFAULT = HedgePolicy()


def times(
    latency: Latency, policy: str, *, shards: int, share: float = 0.1, searches: int = 4_000
) -> tuple[float, ...]:
    """Median and 99th percentile of a search, and hedges a call."""
    found, hedges = searches_ms(
        latency,
        Hedging(policy, 0.95, share, 10.0),
        shards=shards,
        replicas=2,
        searches=searches,
        rate=50.0,
        rng=np.random.default_rng(1),
    )
    return float(np.median(found)), float(np.quantile(found, 0.99)), hedges / (searches * shards)


@pytest.mark.parametrize("shards", [1, 10, 100])
def test_without_pauses_a_search_takes_the_maximum_of_log_normal_times(shards: int) -> None:
    sigma = math.log(STEADY.p99_ms / STEADY.median_ms) / 2.3263
    draws = np.random.default_rng(2).standard_normal((20_000, shards)).max(axis=1)
    expected = float(np.median(STEADY.median_ms * np.exp(sigma * draws)))

    assert times(STEADY, "none", shards=shards)[0] == pytest.approx(expected, rel=0.02)


def test_a_pause_in_a_hundred_calls_meets_most_searches_of_a_hundred_shards() -> None:
    paused, _ = searches_ms(
        Latency(pause_ms=1_000.0),
        Hedging("none", 0.95, 0.0, 0.0),
        shards=100,
        replicas=2,
        searches=4_000,
        rate=50.0,
        rng=np.random.default_rng(1),
    )

    assert float(np.mean(paused > 10.0)) == pytest.approx(1 - 0.99**100, abs=0.04)


def test_hedging_takes_the_tail_away_and_a_choice_more_of_it() -> None:
    tails = [times(Latency(), policy, shards=100)[1] for policy in ("none", "hedged", "chosen")]

    assert tails[0] > 3 * tails[1]
    assert tails[1] > tails[2]


@pytest.mark.parametrize("policy", ["hedged", "chosen"])
def test_the_budget_holds_even_when_every_call_is_late(policy: str) -> None:
    everything_pauses = Latency(pause_share=0.9, pause_ms=500.0)

    _, _, extra = times(everything_pauses, policy, shards=10, share=0.05)

    assert extra <= 0.05 + 10 / 4_000


def test_the_constants_are_those_of_the_server() -> None:
    assert (simulation.SMOOTHING, simulation.SLOWEST, simulation.NOISE) == (
        choice._SMOOTHING,
        choice._SLOWEST,
        choice._NOISE,
    )
    assert simulation.HALF_LIFE_S == choice.HALF_LIFE_S


def test_the_same_seed_prints_the_same_lines(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shards", "3", "--searches", "200", "--seed", "5"]
    simulation.main(arguments)
    first = capsys.readouterr()
    simulation.main(arguments)
    second = capsys.readouterr()
    simulation.main([*arguments[:-1], "6"])

    assert first.out == second.out != capsys.readouterr().out
    assert [json.loads(line)["hedging"] for line in first.out.splitlines()] == list(simulation.POLICIES)
    assert first.err.count("| 3 |") == len(simulation.POLICIES)


def test_its_defaults_are_those_of_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        simulation.main(["--hedge-at", "1.5"])

    assert "--hedge-at must be in (0, 1), got 1.5" in capsys.readouterr().err
    options = simulation.parser().parse_args([])
    assert (options.hedge_at, options.budget, options.burst) == (DEFAULT.quantile, DEFAULT.share, DEFAULT.burst)
