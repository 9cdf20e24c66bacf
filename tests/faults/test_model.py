"""Random operations and restarts against a numpy oracle: 5,000 in short, 200,000 in the long form (`make faults`)."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest
from tests.faults import report
from tests.faults.keeper import Keeper
from tests.faults.lane import PLANS, Lane
from tests.faults.options import OPTIONS
from tests.faults.tally import total

MIN_RECALL: Final = 0.9
"""Mean recall of the approximate searches of a run; the oracle's neighbours are random, which is the hard case."""


@pytest.mark.slow
def test_whatever_is_done_and_however_often_it_is_killed_the_server_answers_as_the_oracle_does(tmp_path: Path) -> None:
    numbers = [number for number, plan in enumerate(PLANS) if OPTIONS.gallery in (None, plan.name)]
    print(f"seed {OPTIONS.seed}, {OPTIONS.operations} operations")
    keeper = Keeper(tmp_path / "store")
    failed = threading.Event()
    count = -(-OPTIONS.operations // len(numbers))
    began = time.monotonic()
    until = began + OPTIONS.seconds
    lanes = [Lane(keeper, number, seed=OPTIONS.seed, count=count, until=until, failed=failed) for number in numbers]
    try:
        keeper.start()
        with ThreadPoolExecutor(len(lanes)) as pool:
            runs = [pool.submit(lane.run) for lane in lanes]
        failures = [failure for run in runs if (failure := run.exception()) is not None]
    finally:
        keeper.close()
        tally = total(lane.tally for lane in lanes)
        elapsed_s = time.monotonic() - began
        report.add(
            "model",
            {
                "seed": OPTIONS.seed,
                **tally.as_json(),
                "faults": keeper.faults(),
                "worst_recovery_s": round(keeper.worst_recovery_s(), 2),
                "worst_start_s": round(keeper.worst_start_s(), 2),
                "seconds": round(elapsed_s, 1),
                "operations_a_second": round(sum(tally.operations.values()) / elapsed_s, 1),
            },
        )
    if failures:
        raise failures[0]
    recall = tally.mean_recall()
    assert recall is None or recall >= MIN_RECALL
