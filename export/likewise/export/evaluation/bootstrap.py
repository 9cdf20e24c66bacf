"""95 % intervals by cluster bootstrap: queries that share a reference are one observation and are drawn together.

Every method is resampled with the same draws, so that differences between methods on the same queries are paired.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from likewise.export.evaluate import Interval, interval

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

RESAMPLES: Final = 2000
_CELLS: Final = 1 << 22  # drawn clusters held at a time: 32 MiB


def cluster_numbers(keys: Sequence[str]) -> I64:
    """(n,) a number for each key, the same for equal keys."""
    return np.asarray(np.unique(np.asarray(keys), return_inverse=True)[1].reshape(-1), np.int64)


def mean_of(values: F64, references: Sequence[str]) -> Interval:
    """Mean of (n,) values in percent with its interval, clustered by reference."""
    return interval(values, cluster_numbers(references))


def means_of_tasks(
    values: Sequence[Mapping[str, F64]], references: Sequence[Sequence[str]], *, seed: int = 0
) -> dict[str, Interval]:
    """Unweighted means over tasks in percent, with intervals that know of references shared between tasks.

    A reference is drawn for all tasks that it occurs in at once: GeneCIS's two object tasks have the same 218
    references, and drawing them apart would count them twice. References are drawn among those that occur in the same
    tasks, so that no resample leaves a task empty.

    Args:
        values: Per task, the same metric names to (n,) values (or differences of values) in [-1, 1].
        references: Per task, the reference of each value.
        seed: Of the draws.

    Returns:
        Metric name to its mean and interval.
    """
    names = sorted({key for keys in references for key in keys})
    numbers = {key: number for number, key in enumerate(names)}
    rows = [np.fromiter((numbers[key] for key in keys), np.int64, len(keys)) for keys in references]
    sizes = np.stack([np.bincount(own, minlength=len(names)) for own in rows]).astype(np.float64)
    # (resamples, names): how often each reference is drawn.
    drawn = np.zeros((RESAMPLES, len(names)))
    patterns = np.unique(sizes > 0, axis=1, return_inverse=True)[1].reshape(-1)
    rng = np.random.default_rng(seed)
    for pattern in np.unique(patterns):
        stratum = np.flatnonzero(patterns == pattern)
        drawn[:, stratum] = rng.multinomial(len(stratum), np.full(len(stratum), 1 / len(stratum)), size=RESAMPLES)
    counts = drawn @ sizes.T
    made = {}
    for metric in values[0]:
        sums = np.stack([np.bincount(own, task[metric], len(names)) for own, task in zip(rows, values, strict=True)])
        low, high = np.percentile((drawn @ sums.T / counts).mean(1), (2.5, 97.5))
        value = float(np.mean([task[metric].mean() for task in values]))
        made[metric] = Interval(100 * value, 100 * float(low), 100 * float(high))
    return made


def of_statistic(statistic: Callable[[F64], float], count: int, *, seed: int = 0) -> Interval:
    """A statistic of `count` observations in percent, with its interval.

    Args:
        statistic: (count,) float64 numbers of times that each observation counts, to the value in [0, 1].
        count: Observations, drawn one by one.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // count)
    made: list[float] = []
    while len(made) < RESAMPLES:
        draws = rng.integers(count, size=(min(step, RESAMPLES - len(made)), count))
        made.extend(statistic(np.bincount(row, minlength=count).astype(np.float64)) for row in draws)
    low, high = np.percentile(made, (2.5, 97.5))
    return Interval(100 * statistic(np.ones(count)), 100 * float(low), 100 * float(high))
