"""From single latencies to the figures of a result line: quantiles, medians over runs, shares of a limit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Speed:
    """One run: calls a second and quantiles of the latency in milliseconds."""

    qps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def speed(latencies_s: npt.ArrayLike, wall_s: float) -> Speed:
    """Speed of a run from the latencies of its calls.

    A quantile is the smallest measured value that at least that share of the calls did not exceed; none is
    interpolated.

    Raises:
        ValueError: If nothing was measured.
    """
    values = np.asarray(latencies_s, np.float64)
    if not len(values) or wall_s <= 0:
        raise ValueError(f"nothing measured: {len(values)} calls in {wall_s} s")
    p50, p95, p99 = np.quantile(values, (0.5, 0.95, 0.99), method="inverted_cdf") * 1e3
    return Speed(len(values) / wall_s, float(p50), float(p95), float(p99))


@dataclass(frozen=True, slots=True)
class Summary:
    """Several runs of the same thing.

    Attributes:
        median: The median of each figure by itself.
        runs: How many.
        spread: (largest - smallest) / median of the calls a second.
    """

    median: Speed
    runs: int
    spread: float


def summarise(runs: Sequence[Speed]) -> Summary:
    """Medians over runs.

    Raises:
        ValueError: If there are none.
    """
    if not runs:
        raise ValueError("no runs to summarise")
    columns = np.array([(run.qps, run.p50_ms, run.p95_ms, run.p99_ms) for run in runs])
    qps, p50, p95, p99 = (float(value) for value in np.median(columns, axis=0))
    spread = float(np.ptp(columns[:, 0])) / qps if qps else 0.0
    return Summary(Speed(qps, p50, p95, p99), len(runs), spread)


def combined_limit(*qps: float) -> float:
    """Calls a second of work that has to pass all of these stages on the same cores, one after the other.

    A call costs the sum of the stages' costs: 1 / limit = 1 / a + 1 / b + ...
    """
    return 1.0 / sum(1.0 / value for value in qps)


def paired_ratio(numerator: Sequence[Speed], denominator: Sequence[Speed]) -> float:
    """Median over runs of the ratio of calls a second, run by run, so that a slow minute of the machine hits both."""
    return float(np.median([a.qps / b.qps for a, b in zip(numerator, denominator, strict=True)]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One result line.

    Attributes:
        benchmark: "search", "ingest" or "encode".
        target: What was measured: "likewise", "echo", "faiss", "onnxruntime", "lance + faiss".
        mode: "embedded" or "ray" for Likewise, "process" for a limit in a server process, "in process" otherwise.
        what: What a call was, for people.
        dataset: Name of the data set.
        n: Items.
        dim: Dimensions.
        k: Hits a query; None where it means nothing.
        index: Index of the gallery.
        shards: Shards of the gallery.
        filter: "none", or the share left and how it was drawn ("1 % random").
        callers: Calls in progress at any time.
        client: How calls were made.
        runs: Runs behind the medians.
        qps: Calls (for ingest: rows, for encode: images) a second, median.
        spread: (largest - smallest) / median of qps over the runs.
        p50_ms: Median latency, milliseconds.
        p95_ms: 95 % quantile.
        p99_ms: 99 % quantile.
        recall_at_k: Mean share of the exact top k found.
        seconds: Total time, where the benchmark is one long job.
        ratios: Shares of the limits, by name.
        setting: Further parameters that matter (m, ef, batch, ...).
    """

    benchmark: str
    target: str
    mode: str
    what: str
    dataset: str
    n: int
    dim: int
    k: int | None = None
    index: str = ""
    shards: int | None = None
    filter: str = "none"
    callers: int = 1
    client: str = ""
    runs: int = 1
    qps: float | None = None
    spread: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    recall_at_k: float | None = None
    seconds: float | None = None
    ratios: dict[str, float] | None = None
    setting: dict[str, Any] | None = None


def timed(summary: Summary) -> dict[str, Any]:
    """The fields of a `Measurement` that come from runs."""
    return {
        "runs": summary.runs,
        "qps": summary.median.qps,
        "spread": summary.spread,
        "p50_ms": summary.median.p50_ms,
        "p95_ms": summary.median.p95_ms,
        "p99_ms": summary.median.p99_ms,
    }
