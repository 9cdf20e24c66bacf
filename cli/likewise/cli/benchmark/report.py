"""Where and on what a figure was measured, and how it is printed: one JSON object a line, or a table for people."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TextIO

from rich.console import Console
from rich.table import Table

from likewise.cli.benchmark.figures import Measurement

_PIPE_WIDTH: Final = 140
_PACKAGES: Final = (
    "likewise",
    "grpcio",
    "protobuf",
    "numpy",
    "faiss-cpu",
    "faiss-gpu-cuvs",
    "onnxruntime",
    "onnxruntime-gpu",
    "pylance",
    "pyarrow",
    "ray",
    "uvloop",
)


def environment() -> dict[str, Any]:
    """Commit, date, versions and hardware of this run, in fields that every result line carries."""
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": _memory_gib(),
            "os": f"{platform.system()} {platform.release()}",
        },
    }


def _commit() -> str:
    """Commit of the source tree this module runs from, "+changes" if files differ from it; "" in an installed wheel."""
    folder = Path(__file__).parent
    try:
        git = ["git", "-C", str(folder)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    if tracked.returncode and "site-packages" in folder.parts:
        return ""
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def to_line(measurement: Measurement, where: dict[str, Any]) -> str:
    """One JSON object without the fields that mean nothing for this measurement; figures to four digits."""
    fields = {name: value for name, value in asdict(measurement).items() if value is not None}
    return json.dumps({**where, **_rounded(fields)})


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


class Report:
    """Takes measurements as they come.

    With `as_json` each is printed at once as a line to `out`; without, `close` prints a table. Progress goes to
    stderr, so that a pipe sees results only.
    """

    def __init__(self, *, as_json: bool, out: TextIO | None = None) -> None:
        self.measurements: list[Measurement] = []
        self._as_json = as_json
        self._out = out or sys.stdout
        self._where = environment()
        self._progress = Console(stderr=True)

    def say(self, text: str) -> None:
        """Tell what happens next."""
        self._progress.print(f"[dim]{text}[/dim]", highlight=False)

    def add(self, measurement: Measurement) -> None:
        """Keep a measurement, and print it when lines were asked for."""
        self.measurements.append(measurement)
        if self._as_json:
            print(to_line(measurement, self._where), file=self._out, flush=True)

    def close(self) -> None:
        """Print the table, unless lines were printed."""
        if self._as_json or not self.measurements:
            return
        # A pipe or a file has no width of its own; the table is at its best in this one.
        console = Console(file=self._out, width=None if self._out.isatty() else _PIPE_WIDTH)
        hardware = self._where["hardware"]
        console.print(
            f"{hardware['cpu']}, {hardware['cores']} cores, commit {self._where['commit'] or 'unknown'}",
            highlight=False,
        )
        console.print(table(self.measurements))


def table(measurements: Sequence[Measurement]) -> Table:
    """Measurements as a table for people, one row each."""
    made = Table(show_header=True, header_style="bold", pad_edge=False, show_lines=True)
    made.add_column("what", overflow="fold", min_width=22)
    for name in ("callers", "per second, or s", "p50 / p95 / p99 ms", "recall"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("against the limits", overflow="fold", min_width=20)
    for row in measurements:
        filtered = "" if row.filter == "none" else f", filter {row.filter}"
        spread = "" if row.spread is None else f" ± {50 * row.spread:.0f} %"
        made.add_row(
            f"[bold]{row.target}[/bold] {row.mode}: {row.what}{filtered}",
            str(row.callers),
            (_number(row.qps, "{:,.0f}") or _number(row.seconds, "{:.2f} s")) + spread,
            " / ".join(_number(value, "{:.2f}") for value in (row.p50_ms, row.p95_ms, row.p99_ms) if value is not None),
            _number(row.recall_at_k, "{:.3f}"),
            "\n".join(f"{name} {value:.2f}" for name, value in (row.ratios or {}).items()),
        )
    return made


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
