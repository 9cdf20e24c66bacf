import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likewise.cli.benchmark.figures import (
    Measurement,
    Speed,
    combined_limit,
    paired_ratio,
    speed,
    summarise,
    timed,
)
from likewise.cli.benchmark.report import Report, environment, to_line


def test_quantiles_are_latencies_that_were_measured() -> None:
    measured = speed([0.001 * value for value in range(1, 101)], wall_s=2.0)

    assert measured.qps == 50
    assert (measured.p50_ms, measured.p95_ms, measured.p99_ms) == pytest.approx((50, 95, 99))


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=200))
def test_quantiles_are_ordered_and_among_the_values(latencies: list[float]) -> None:
    measured = speed(latencies, wall_s=1.0)

    assert measured.p50_ms <= measured.p95_ms <= measured.p99_ms <= max(latencies) * 1e3
    assert any(np.isclose(measured.p99_ms, value * 1e3) for value in latencies)


@pytest.mark.parametrize(("latencies", "wall_s"), [([], 1.0), ([0.1], 0.0)])
def test_a_run_without_calls_or_time_is_refused(latencies: list[float], wall_s: float) -> None:
    with pytest.raises(ValueError, match="nothing measured"):
        speed(latencies, wall_s)


def test_a_summary_takes_the_median_of_each_figure_and_the_spread_of_qps() -> None:
    runs = [Speed(100, 1, 2, 9), Speed(120, 3, 2, 8), Speed(110, 2, 2, 7)]

    summary = summarise(runs)

    assert summary.median == Speed(110, 2, 2, 8)
    assert summary.runs == 3
    assert summary.spread == pytest.approx(20 / 110)


def test_the_limit_of_two_stages_is_that_of_their_summed_costs() -> None:
    assert combined_limit(5_000, 10_000) == pytest.approx(1 / (1 / 5_000 + 1 / 10_000))
    assert combined_limit(5_000) == 5_000


def test_ratios_are_taken_run_by_run() -> None:
    ours = [Speed(10, 0, 0, 0), Speed(40, 0, 0, 0), Speed(30, 0, 0, 0)]
    limit = [Speed(20, 0, 0, 0), Speed(50, 0, 0, 0), Speed(100, 0, 0, 0)]

    assert paired_ratio(ours, limit) == pytest.approx(0.5)


def test_runs_that_are_not_paired_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([Speed(1, 0, 0, 0)] * 2, [Speed(1, 0, 0, 0)])


def _measurement() -> Measurement:
    return Measurement(
        benchmark="search",
        target="likewise",
        mode="embedded",
        what="Search",
        dataset="clustered",
        n=10,
        dim=4,
        k=10,
        ratios={"QPS / echo": 0.123456},
        **timed(summarise([Speed(1234.5678, 1, 2, 3)])),
    )


def test_a_result_line_carries_where_it_was_measured_and_leaves_out_what_has_no_meaning() -> None:
    line = json.loads(to_line(_measurement(), environment()))

    assert {"commit", "date", "versions", "hardware"} <= set(line)
    assert line["versions"]["numpy"] == np.__version__
    assert line["qps"] == 1235
    assert line["ratios"] == {"QPS / echo": 0.1235}
    assert "recall_at_k" not in line


def test_a_report_prints_one_json_object_a_line_and_nothing_else() -> None:
    out = io.StringIO()
    report = Report(as_json=True, out=out)

    report.add(_measurement())
    report.add(_measurement())
    report.close()

    assert [json.loads(line)["target"] for line in out.getvalue().splitlines()] == ["likewise", "likewise"]


def test_a_report_for_people_is_a_table_with_its_ratios() -> None:
    out = io.StringIO()
    report = Report(as_json=False, out=out)

    report.add(_measurement())
    before = out.getvalue()
    report.close()

    assert before == ""
    assert "QPS / echo 0.12" in " ".join(out.getvalue().split())


def test_one_long_job_shows_its_seconds_in_the_table() -> None:
    out = io.StringIO()
    report = Report(as_json=False, out=out)

    report.add(
        Measurement(
            benchmark="restart", target="likewise", mode="embedded", what="restart", dataset="clustered", n=10, dim=4,
            k=10, seconds=3.456, spread=0.1,
        )
    )  # fmt: skip
    report.close()

    assert "3.46 s ± 5 %" in out.getvalue()
