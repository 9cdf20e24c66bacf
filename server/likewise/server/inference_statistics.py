"""Counts and durations of each model version since the process started: what Triton's ModelStatistics tells."""

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from likewise.internal.inference.v1 import inference_pb2 as pb
from likewise.server.batcher import BatchReport

_NS: Final = 1_000_000_000


@dataclass(slots=True)
class _Duration:
    """How often something happened, and for how long together."""

    count: int = 0
    seconds: float = 0.0

    def add(self, count: int, seconds: float) -> None:
        self.count += count
        self.seconds += seconds

    def message(self) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=self.count, ns=round(self.seconds * _NS))


@dataclass(slots=True)
class _Counts:
    success: _Duration = field(default_factory=_Duration)
    fail: _Duration = field(default_factory=_Duration)
    queue: _Duration = field(default_factory=_Duration)
    infer: _Duration = field(default_factory=_Duration)
    by_size: defaultdict[int, _Duration] = field(default_factory=lambda: defaultdict(_Duration))
    last_ms: int = 0


class InferenceStatistics:
    """Sums by model version. Rows and batches are those of all callers, calls those of the protocol alone."""

    def __init__(self) -> None:
        self._counts: defaultdict[tuple[str, int], _Counts] = defaultdict(_Counts)

    def batch(self, report: BatchReport) -> None:
        """Add a batch that a model ran; one that failed counts as no inference."""
        name, _, version = report.name.rpartition("/")
        counts = self._counts[name, int(version)]
        counts.queue.add(report.size, sum(report.queue_s))
        if not report.failed:
            counts.infer.add(report.size, report.run_s * report.size)
            counts.by_size[report.size].add(1, report.run_s)
            counts.last_ms = time.time_ns() // 1_000_000

    def call(self, name: str, version: int, seconds: float, *, ok: bool) -> None:
        """Add a finished call of ModelInfer."""
        counts = self._counts[name, version]
        (counts.success if ok else counts.fail).add(1, seconds)

    def of(self, name: str, version: int) -> pb.ModelStatistics:
        """The sums of one version; all 0 for one that nobody called."""
        counts = self._counts.get((name, version)) or _Counts()
        return pb.ModelStatistics(
            name=name,
            version=str(version),
            last_inference=counts.last_ms,
            inference_count=counts.infer.count,
            execution_count=sum(of_size.count for of_size in counts.by_size.values()),
            inference_stats=pb.InferStatistics(
                success=counts.success.message(),
                fail=counts.fail.message(),
                queue=counts.queue.message(),
                compute_infer=counts.infer.message(),
            ),
            batch_stats=[
                pb.InferBatchStatistics(batch_size=size, compute_infer=counts.by_size[size].message())
                for size in sorted(counts.by_size)
            ],
        )
