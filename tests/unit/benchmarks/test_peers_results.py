import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from benchmarks.peers import tuning
from benchmarks.peers.driver.protocol import F64
from benchmarks.peers.plan import Case, Plan, in_turn
from benchmarks.peers.plots import latency_curves, recall_curves
from benchmarks.peers.registry import PEERS, chosen
from benchmarks.peers.results import Entry, Run, at_its_recall, measurement, quotient, ratios
from benchmarks.peers.table import table
from benchmarks.peers.tuning import Tried, Tuned, around, lower_bound, mean_recall, tune
from rich.console import Console

from likewise.cli.benchmark.figures import Speed

PLAN = Plan(items=1_000)
CLOSED = Case("closed", None, 32)
NAMES = {peer.name: peer for peer in PEERS}


def _speed(qps: float, p50: float = 1.0) -> Speed:
    return Speed(qps, p50, 2 * p50, 3 * p50)


def _entry(name: str, runs: Mapping[Case, list[float]], *, recall: float | None = 0.97, **params: Any) -> Entry:
    entry = Entry(NAMES[name], {"it": "1"})
    for case, qps in runs.items():
        entry.params[case] = params or {"ef": 10 + case.level}
        for number, value in enumerate(qps):
            entry.add(case, number, Run(_speed(value), recall))
    return entry


def _recalls(value: float, count: int = 100) -> F64:
    return np.full(count, value)


def test_recall_is_the_share_of_the_true_rows_found_and_unknown_where_nothing_was_asked() -> None:
    truth = np.array([[1, 2], [3, -1], [5, 6], [-1, -1]])
    answers = np.array([[2, 9], [3, -1], [-2, -2], [-1, -1]])

    values = tuning.recalls(answers, truth)

    assert values[:2].tolist() == [0.5, 1.0]
    assert np.isnan(values[2:]).all()
    assert mean_recall(values) == 0.75
    assert mean_recall(values[2:]) is None
    assert lower_bound(values[2:]) == -math.inf


def test_tuning_takes_the_first_parameters_that_reach_the_target() -> None:
    asked: list[int] = []

    def attempt(params: Mapping[str, Any]) -> Tried:
        asked.append(params["ef"])
        return Tried(_recalls(params["ef"] / 100), 1.0)

    tuned = tune([({"ef": 90}, {"ef": 96}, {"ef": 99})], 0.95, attempt)

    assert tuned == Tuned({"ef": 96}, ({"ef": 90}, {"ef": 96}, {"ef": 99}), 0.96, reached=True)
    assert asked == [90, 96]


def test_of_several_ladders_the_fastest_that_reaches_the_target_is_taken() -> None:
    tried = {"slow": Tried(_recalls(1.0), 5.0), "fast": Tried(_recalls(0.96), 2.0), "poor": Tried(_recalls(0.5), 0.1)}

    tuned = tune([({"way": way},) for way in tried], 0.95, lambda params: tried[params["way"]])

    assert tuned.params == {"way": "fast"}


def test_a_target_that_is_never_reached_gives_the_best_recall_there_was() -> None:
    tuned = tune([({"ef": 70}, {"ef": 80}, {"ef": 60})], 0.95, lambda params: Tried(_recalls(params["ef"] / 100), 1.0))

    assert (tuned.params, tuned.reached) == ({"ef": 80}, False)


def test_a_mean_above_the_target_by_luck_alone_is_passed_over() -> None:
    lucky = np.concatenate([_recalls(1.0, 19), _recalls(0.1, 1)])

    assert float(lucky.mean()) > 0.95
    assert lower_bound(lucky) < 0.95


def test_a_curve_has_the_chosen_parameters_and_goes_on_above_them() -> None:
    ladder = tuple({"ef": ef} for ef in (10, 20, 30, 40, 50, 60, 70, 80))

    assert [point["ef"] for point in around(Tuned({"ef": 30}, ladder, 1.0, reached=True), 5)] == [20, 30, 40, 50, 70]
    assert [point["ef"] for point in around(Tuned({"ef": 10}, ladder, 1.0, reached=True), 3)] == [10, 20, 30]
    assert [point["ef"] for point in around(Tuned({"ef": 80}, ladder, 1.0, reached=True), 5)] == [70, 80]


def test_ratios_pair_the_runs_that_both_have() -> None:
    ours, theirs = {0: _speed(10), 1: _speed(40), 2: _speed(90)}, {1: _speed(20), 2: _speed(30), 3: _speed(1)}

    assert quotient(ours, theirs) == pytest.approx(2.5)
    assert quotient(ours, {7: _speed(1)}) is None


def test_likewise_is_held_against_everyone_and_everyone_against_likewise() -> None:
    entries = {
        "likewise": _entry("likewise", {CLOSED: [100, 100, 100]}),
        "pgvector": _entry("pgvector", {CLOSED: [50, 25, 50]}),
        "chroma": _entry("chroma", {CLOSED: [10, 10, 10]}),
    }

    assert ratios(entries, "likewise", CLOSED) == {"QPS / pgvector": 2, "QPS / chroma": 10}
    assert ratios(entries, "pgvector", CLOSED) == {"QPS / likewise": 0.5}


def test_a_load_is_compared_by_its_time() -> None:
    case = Case("load")
    entries = {"likewise": _entry("likewise", {case: [100]}), "pgvector": _entry("pgvector", {case: [25]})}

    assert ratios(entries, "likewise", case) == {"time / pgvector": 0.25}
    assert ratios(entries, "pgvector", case) == {"time / likewise": 4}


def test_echo_and_faiss_make_a_limit_together() -> None:
    entries = {
        "likewise": _entry("likewise", {CLOSED: [500]}),
        "echo": _entry("echo", {CLOSED: [2_000]}, recall=None),
        "faiss": _entry("faiss", {CLOSED: [2_000]}),
    }

    found = ratios(entries, "likewise", CLOSED)

    assert found["QPS / limit"] == pytest.approx(0.5)
    assert found["p50 / echo p50"] == 1


def _curve(name: str, points: list[tuple[float, float]]) -> Entry:
    """A curve of (recall, QPS), the first of them the tuned one."""
    entry = Entry(NAMES[name])
    entry.params[CLOSED] = {"ef": 0}
    for level, (recall, qps) in enumerate(points):
        case = Case("curve", None, 32, level)
        entry.params[case] = {"ef": level}
        entry.add(case, 0, Run(_speed(qps), recall))
    return entry


def test_at_a_peers_recall_likewise_is_as_fast_as_its_own_parameters_of_that_recall_or_better() -> None:
    entries = {
        "likewise": _curve("likewise", [(0.95, 1_000), (0.98, 800), (0.99, 500)]),
        "pgvector": _curve("pgvector", [(0.97, 400), (0.99, 100)]),
        "chroma": _curve("chroma", [(1.0, 50)]),
    }

    assert at_its_recall(entries, "pgvector") == 2  # 800 / 400: its 1,000 a second are at a lower recall
    assert at_its_recall(entries, "chroma") is None
    assert at_its_recall(entries, "lancedb") is None


def test_a_result_line_has_medians_recall_and_what_was_set() -> None:
    entries = {"pgvector": _entry("pgvector", {CLOSED: [30, 10, 20]}, ef=16)}

    line = measurement(PLAN, "clustered", entries, "pgvector", CLOSED)

    assert (line.benchmark, line.target, line.what, line.filter) == ("peers", "pgvector", "Search", "none")
    assert (line.qps, line.runs, line.recall_at_k, line.k, line.ratios) == (20, 3, 0.97, 10, None)
    assert line.setting is not None
    assert line.setting["search"] == {"ef": 16}
    assert line.setting["versions"] == {"it": "1"}


def test_a_load_line_has_seconds_and_no_latency() -> None:
    entries = {"pgvector": _entry("pgvector", {Case("load"): [100, 200, 400]}, recall=None)}

    line = measurement(PLAN, "clustered", entries, "pgvector", Case("load"))

    assert (line.seconds, line.p50_ms, line.k) == (5, None, None)


def test_the_table_shows_how_likewise_compares_and_leaves_the_curve_out() -> None:
    closed, load = Case("closed", 33.0, 8), Case("load")
    entries = {
        "likewise": _entry("likewise", {load: [100], closed: [300], Case("curve", None, 32, 1): [7_777]}),
        "chroma": _entry("chroma", {load: [50], closed: [20]}, recall=0.94),
    }
    lines = [
        measurement(PLAN, "clustered", entries, name, case) for name, entry in entries.items() for case in entry.runs
    ]
    console = Console(width=160, record=True, quiet=False)

    with console.capture() as captured:
        console.print(table(lines, PLAN))

    text = captured.get()
    rows = [line for line in text.splitlines() if "chroma" in line]
    assert "0.50" in rows[0]  # half its time
    assert "15.00" in rows[1]  # fifteen times its speed
    assert "0.940" in rows[1]
    assert "filter 33 % random" in text
    assert "7,777" not in text


def test_curves_for_the_pictures_leave_out_what_was_not_answered() -> None:
    entry = Entry(NAMES["pgvector"])
    for level, served in ((50, 1.0), (25, 1.0), (90, 0.5)):
        case = Case("open", None, 64, level)
        entry.add(case, 0, Run(_speed(level), 0.97, offered_qps=level, served=served))
    for level, recall in ((0, 0.95), (1, 0.99)):
        entry.add(Case("curve", None, 32, level), 0, Run(_speed(100 - level), recall))
    lines = [measurement(PLAN, "clustered", {"pgvector": entry}, "pgvector", case) for case in entry.runs]

    assert latency_curves(lines) == {"pgvector": [(25, 3), (50, 3)]}
    assert recall_curves(lines) == {"pgvector": [(0.95, 100), (0.99, 99)]}


def test_every_run_begins_with_another_peer() -> None:
    assert [in_turn(["a", "b", "c"], run)[0] for run in range(4)] == ["a", "b", "c", "a"]
    assert sorted(in_turn(["a", "b", "c"], 2)) == ["a", "b", "c"]
    assert in_turn([], 1) == []


def test_peers_are_chosen_by_name_in_their_own_order() -> None:
    assert [peer.name for peer in chosen(["echo", "likewise"], client="sdk")] == ["likewise", "echo"]


def test_peers_are_called_in_their_own_way_or_all_alike() -> None:
    ways = None, "bare", "sdk"
    called = [{peer.name: peer.options.get("client") for peer in chosen([], client=way)} for way in ways]

    assert [each["likewise"] for each in called] == ["sdk", "bare", "sdk"]
    assert [each["chroma"] for each in called] == ["bare", "bare", "sdk"]
    assert [each["pgvector"] for each in called] == [None, None, None]


def test_servers_are_reached_by_a_socket_unless_they_have_none_or_a_port_is_wanted() -> None:
    ways = None, "tcp"
    reached = [{peer.name: peer.options.get("transport") for peer in chosen([], transport=way)} for way in ways]

    assert [each["likewise"] for each in reached] == [each["echo"] for each in reached] == ["socket", "tcp"]
    assert [each["chroma"] for each in reached] == [None, None]


def test_a_peer_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="there is no peer 'oracle'; there are likewise"):
        chosen(["oracle"], client="bare")


def test_what_is_parallel_by_itself_is_asked_in_batches() -> None:
    assert NAMES["faiss"].callers(1) == (1, 1)
    assert NAMES["faiss"].callers(32) == (1, 256)
    assert NAMES["pgvector"].callers(32) == (32, 1)
