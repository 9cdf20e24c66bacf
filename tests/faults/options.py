"""How long the tests of this folder run, from the environment; `make faults` sets it.

FAULTS=long           the long form: tests marked `long` run, and the model takes 200,000 operations.
FAULTS_OPERATIONS=n   operations of the model-based test, of all galleries together.
FAULTS_SECONDS=n      ends that test after so many seconds, if its operations are not done by then.
FAULTS_SEED=n         seed of every random choice; without it 1 in the short form, and a fresh one in the long form.
FAULTS_GALLERY=name   the model-based test on this gallery alone: to repeat a failure.
FAULTS_REPORT=path    where the report is written; without it nowhere, it is printed alone.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SHORT_OPERATIONS: Final = 5_000
LONG_OPERATIONS: Final = 200_000


@dataclass(frozen=True, slots=True)
class Options:
    """See the module."""

    long: bool
    seed: int
    operations: int
    seconds: float
    gallery: str | None
    report: Path | None


def _read() -> Options:
    long = os.environ.get("FAULTS") == "long"
    seed = int(os.environ.get("FAULTS_SEED") or (time.time_ns() // 1_000 % 1_000_000_000 if long else 1))
    operations = int(os.environ.get("FAULTS_OPERATIONS") or (LONG_OPERATIONS if long else SHORT_OPERATIONS))
    report = os.environ.get("FAULTS_REPORT")
    return Options(
        long=long,
        seed=seed,
        operations=operations,
        seconds=float(os.environ.get("FAULTS_SECONDS") or "inf"),
        gallery=os.environ.get("FAULTS_GALLERY") or None,
        report=Path(report) if report else None,
    )


OPTIONS: Final = _read()
