import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from likewise.cli import bench
from likewise.cli.benchmark import goal_report
from likewise.cli.benchmark.figures import Measurement
from likewise.cli.benchmark.goal_list import GOALS
from likewise.cli.benchmark.goals import Check, Goal, Line, Result, Sense, Verdict, evaluate, field, memory, quotient


def _goal(sense: Sense = Sense.AT_LEAST, bound: float = 2.0) -> Goal:
    check = Check(of="it", sense=sense, bound=bound, sources=(field("ratios", "a / b", target="likewise"),))
    return Goal(1, "a goal", "a command", (check,))


def _line(value: float | None, **fields: Any) -> Line:
    return {"target": "likewise", "ratios": {"a / b": value}, "runs": 3, "recall_at_k": 0.99, **fields}


def _only(goal: Goal, *lines: Line) -> Result:
    (result,) = evaluate([goal], lines)
    return result


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_floor_is_met_from_above_and_a_ceiling_from_below(figure: float, bound: float) -> None:
    floor = _only(_goal(Sense.AT_LEAST, bound), _line(figure)).verdict
    ceiling = _only(_goal(Sense.AT_MOST, bound), _line(figure)).verdict

    assert floor == (Verdict.PASS if figure >= bound else Verdict.MISS)
    assert ceiling == (Verdict.PASS if figure <= bound else Verdict.MISS)


def test_without_a_line_of_the_setting_a_goal_is_not_measured() -> None:
    for lines in ([], [_line(5, target="echo")], [_line(None)], [{"target": "likewise"}]):
        result = _only(_goal(), *lines)

        assert (result.verdict, result.figure) == (Verdict.NOT_MEASURED, None)


def test_too_few_runs_are_shown_but_settle_nothing() -> None:
    result = _only(_goal(), _line(5, runs=2))

    assert (result.verdict, result.figure, result.note) == (Verdict.NOT_MEASURED, 5, "2 of at least 3 runs")


def test_speed_at_too_low_a_recall_is_a_miss() -> None:
    result = _only(_goal(), _line(5, recall_at_k=0.949))

    assert (result.verdict, result.note) == (Verdict.MISS, "recall 0.949 is below 0.95")


def test_the_last_line_of_a_setting_counts() -> None:
    assert _only(_goal(), _line(1), _line(5), _line(9, target="echo")).figure == 5


def test_the_first_source_that_has_a_figure_counts() -> None:
    sources = (field("qps", benchmark="search"), field("qps", benchmark="peers"))
    check = Check(of="it", sense=Sense.AT_LEAST, bound=1, sources=sources)
    goal = Goal(1, "a goal", "", (check,))

    assert _only(goal, {"benchmark": "peers", "qps": 7}).figure == 7
    assert _only(goal, {"benchmark": "search", "qps": 3}, {"benchmark": "peers", "qps": 7}).figure == 3


def test_a_quotient_is_as_sure_as_its_less_sure_half() -> None:
    source = quotient("qps", {"mode": "ray"}, {"mode": "embedded"})
    lines = [
        {"mode": "ray", "qps": 30, "runs": 5, "recall_at_k": 0.96},
        {"mode": "embedded", "qps": 60, "runs": 3, "recall_at_k": 0.99},
    ]

    found = source(lines)

    assert found is not None
    assert (found.figure, found.recall, found.runs) == (0.5, 0.96, 3)
    assert source(lines[:1]) is None


def test_memory_is_the_most_that_was_seen_less_what_is_spare() -> None:
    def line(mib: float) -> Line:
        return {"n": 200_000, "dim": 512, "setting": {"server_mib": mib}}

    found = memory(n=200_000)([line(800), line(1_000), {"n": 200_000, "dim": 512}])

    assert found is not None
    assert found.figure == pytest.approx((1_000 * 2**20 - 300e6) / (200_000 * 512 * 4))
    assert memory(n=200_000)([]) is None


def test_there_are_thirteen_goals_and_each_bound_is_as_agreed() -> None:
    bounds = {goal.number: [(str(check.sense), check.bound) for check in goal.checks] for goal in GOALS}

    assert bounds == {
        1: [("at least", 0.75)],
        2: [("at least", 2)],
        3: [("at least", 7)],
        4: [("at least", 1.5), ("at least", 1.5), ("at least", 20), ("at least", 20)],
        5: [("at most", 1.7)],
        6: [("at least", 0.7)],
        7: [("at least", 0.85)],
        8: [("at most", 1.3), ("at most", 0.6)],
        9: [("at least", 15_000)],
        10: [("at most", 1.6)],
        11: [("at most", 4)],
        12: [("at least", 0.9), ("at most", 0), ("at most", 0)],
        13: [("at least", 0.45)],
    }


def test_lines_of_the_search_benchmark_settle_its_goals() -> None:
    lines = goal_report.as_lines(
        [
            Measurement(
                benchmark="search",
                target="likewise",
                mode="embedded",
                what=f"Search, {client} client",
                dataset="clustered",
                n=50_000,
                dim=512,
                k=10,
                index="hnsw",
                shards=1,
                callers=callers,
                client=client,
                runs=3,
                qps=1_000.0,
                recall_at_k=0.99,
                ratios={"QPS / limit": 0.8, "p50 / echo p50": 1.9},
            )
            for callers, client in ((1, "sdk"), (32, "sdk"))
        ]
    )

    verdicts = {result.goal.number: result.verdict for result in evaluate(GOALS, lines)}

    assert verdicts[1] == Verdict.PASS
    assert verdicts[5] == Verdict.MISS
    assert {verdicts[number] for number in verdicts.keys() - {1, 5}} == {Verdict.NOT_MEASURED}


def test_a_goal_is_as_good_as_its_worst_check() -> None:
    two = Goal(2, "two", "", _goal().checks + _goal(Sense.AT_MOST, 1).checks)

    text = goal_report.summary(evaluate([_goal(), two], [_line(5)]))

    assert text == "of 2 goals 1 pass, 1 miss, 0 not (wholly) measured"


def test_the_table_has_a_row_for_every_check() -> None:
    console = Console(width=140)

    with console.capture() as captured:
        console.print(goal_report.table(evaluate(GOALS, [])))

    text = captured.get()
    assert text.count("not measured") == sum(len(goal.checks) for goal in GOALS)
    assert all(goal.name[:16] in text for goal in GOALS)
    assert "at least 15,000/s" in text


def _bench(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(bench.app, ["goals", "--no-measure", *arguments])
    return done.exit_code, " ".join(done.output.replace("│", " ").split())


def test_goals_are_read_from_result_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    fields = {"benchmark": "peers", "target": "likewise", "what": "Search", "client": "sdk", "n": 50_000, "dim": 512}
    ratios = {"QPS / pgvector at its recall": 2.5, "QPS / chroma at its recall": 6.0}
    line = {**fields, "filter": "none", "callers": 32, "runs": 3, "recall_at_k": 0.96, "ratios": ratios}
    path.write_text(f"{json.dumps(line)}\n\n")

    code, text = _bench("--lines", str(path), "--json")
    verdicts = {found["goal"]: found["verdict"] for found in map(json.loads, text.replace("} {", "}\n{").splitlines())}

    assert code == 0
    assert (verdicts[2], verdicts[3], verdicts[1]) == ("pass", "miss", "not measured")


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1]\n", "line 1: a result line is a JSON object"), ('{}\n{"a"\n', "line 2: not JSON"), (None, "cannot be read")],
)
def test_what_is_not_result_lines_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "x"
    if content is not None:
        path.write_text(content)

    code, text = _bench("--lines", str(path))

    assert code == 2
    assert message in text


def test_neither_measuring_nor_reading_is_refused() -> None:
    code, text = _bench()

    assert code == 2
    assert "leaves nothing" in text
