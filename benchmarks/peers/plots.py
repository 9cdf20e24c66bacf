"""Two pictures of a comparison: recall against calls a second, and latency against offered load."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.peers.results import WHAT

from likewise.cli.benchmark.figures import Measurement

Point = tuple[float, float]
_SERVED: Final = 0.99
"""Below this share of answered arrivals a latency tells of the survivors only."""


class NoMatplotlib(RuntimeError):
    """matplotlib is not installed."""


def recall_curves(measurements: Sequence[Measurement]) -> dict[str, list[Point]]:
    """(recall, calls a second) of each peer's curve, from cheap parameters to thorough ones as they were measured."""
    return _curves(measurements, WHAT["curve"], lambda row: (row.recall_at_k, row.qps))


def latency_curves(measurements: Sequence[Measurement]) -> dict[str, list[Point]]:
    """(offered calls a second, p99 in milliseconds) of each peer, by rising load, where nearly all were answered."""

    def point(row: Measurement) -> tuple[float | None, float | None]:
        setting = row.setting or {}
        return (setting.get("offered_qps"), row.p99_ms) if setting.get("served", 0.0) >= _SERVED else (None, None)

    return {target: sorted(points) for target, points in _curves(measurements, WHAT["open"], point).items()}


def _curves(
    measurements: Sequence[Measurement], what: str, point: Callable[[Measurement], tuple[float | None, float | None]]
) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = defaultdict(list)
    for row in measurements:
        if row.what == what:
            x, y = point(row)
            if x is not None and y is not None:
                found[row.target].append((x, y))
    return found


def draw(measurements: Sequence[Measurement], folder: Path) -> list[Path]:
    """Write recall.png and latency.png, each unless it would be empty.

    Raises:
        NoMatplotlib: If it is not installed.
    """
    made = []
    for name, curves, labels in (
        ("recall.png", recall_curves(measurements), ("recall@10", "calls a second")),
        ("latency.png", latency_curves(measurements), ("offered load, calls a second", "p99, ms")),
    ):
        if curves:
            made.append(_picture(folder / name, curves, labels, log_x=name == "latency.png"))
    return made


def _picture(path: Path, curves: dict[str, list[Point]], labels: tuple[str, str], *, log_x: bool) -> Path:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NoMatplotlib("the pictures need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for target, points in curves.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=target)
    axes.set_yscale("log")
    if log_x:
        axes.set_xscale("log")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    return path
