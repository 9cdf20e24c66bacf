import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from likewise.cli import bench, evaluate
from likewise.export.evaluate import Interval, Recall
from likewise.export.shapes.benchmark import METHODS, Part, Report, TaskReport


def _invoke(app: typer.Typer, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["search", "--mode", "cloud"], "got 'cloud'", id="mode"),
        pytest.param(["search", "--callers", "1,x"], "got '1,x'", id="callers"),
        pytest.param(["search", "--callers", "0"], "got 0", id="no callers"),
        pytest.param(["search", "--filter", "101"], "got 101", id="filter"),
        pytest.param(["search", "--client", "curl"], "got 'curl'", id="client"),
        pytest.param(["ingest", "--index", "magic"], "got 'magic'", id="index"),
        pytest.param(["encode", "--mode", "cloud"], "got 'cloud'", id="encode mode"),
    ],
)
def test_bench_refuses_what_it_cannot_measure(arguments: list[str], message: str) -> None:
    code, text = _invoke(bench.app, *arguments)

    assert code == 2
    assert message in " ".join(text.replace("│", " ").split())


def test_eval_refuses_an_unknown_split() -> None:
    code, text = _invoke(evaluate.app, "shapes", "--split", "training")

    assert code == 2
    assert "got 'training'" in " ".join(text.replace("│", " ").split())


def test_a_report_shows_every_method_with_its_interval_and_chance_beside_them() -> None:
    recall = Recall({k: Interval(10.0 * k, 10.0 * k - 1, 10.0 * k + 1) for k in (1, 2, 3)}, "weight 0.3")
    task = TaskReport("focus_attribute", 600, 10, {1: 10.0, 2: 20.0, 3: 30.0}, dict.fromkeys(METHODS, recall))
    mean = dict.fromkeys(METHODS, Interval(50.0, 49.0, 51.0))
    one_weight = (Interval(30.0, 29.0, 31.0), "weight 0.5")
    report = Report(600, 0, (Part("strict", "held-out", (task,), mean, Interval(40.0, 38.0, 42.0), one_weight),))
    console = Console(width=160, record=True, file=None, quiet=False)

    with console.capture() as captured:
        evaluate.print_report(report, console)

    text = captured.get()
    assert all(method in text for method in (*METHODS, "chance"))
    assert "10.0 [9.0, 11.0]" in text
    assert "margin 40.0 [38.0, 42.0]" in text
