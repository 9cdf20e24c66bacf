"""The composer against what needs none: image alone, text alone, and their best weighted sum, on held-out templates."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from likewise.export.evaluate import (
    Features,
    Interval,
    Recall,
    best_sum,
    mean_interval,
    one_weight_ranks,
    query_scores,
    recall,
    unit,
    worst_ranks,
)

I64 = npt.NDArray[np.int64]

BASELINES: Final = ("image", "text", "image + text")
METHODS: Final = (*BASELINES, "composer")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task: templates, gallery size, and each method's R@1/2/3 in percent."""

    task: str
    templates: int
    candidates: int
    methods: Mapping[str, Recall]


@dataclass(frozen=True, slots=True)
class Report:
    """Held-out figures; intervals are 95 %, by bootstrap over references, and margins are paired.

    Attributes:
        tasks: Those that templates could be mined for.
        mean: Each method's R@1, unweighted mean over the tasks.
        margin: The composer's mean R@1 minus each baseline's, in points.
        one_weight: Mean R@1 of image + text under one weight for all tasks, and that weight.
    """

    tasks: tuple[TaskResult, ...]
    mean: Mapping[str, Interval]
    margin: Mapping[str, Interval]
    one_weight: tuple[Interval, str]

    def to_json(self) -> dict[str, Any]:
        """The report as plain dicts, lists, strings and numbers."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """What a manifest keeps of it."""
        figures = {name: round(value.value, 1) for name, value in self.mean.items()}
        lows = {
            f"over {name}": [round(v.value, 1), round(v.low, 1), round(v.high, 1)] for name, v in self.margin.items()
        }
        return {"mean R@1": figures, "margin": lows, "templates": {t.task: t.templates for t in self.tasks}}


def measure(
    tasks: Mapping[str, Features],
    compose_ranks: Callable[[Features], I64],
    composed: Mapping[str, Features] | None = None,
) -> Report:
    """Rank every method on every task.

    The sum's weight and the form of its text are chosen per task on these very templates, an advantage that only this
    baseline has.

    Args:
        tasks: Features of held-out templates, by task.
        compose_ranks: (t,) rank of each target under the composer; ties count against it.
        composed: The same templates as the composer is given them, if its space or its texts are others.
    """
    results, hits, clusters = [], [], []
    for task, features in tasks.items():
        tuned, setup = best_sum(features)
        alone = {"image": features.references, "text": features.bare}
        ranks = {
            name: worst_ranks(query_scores(unit(query), features.candidates), features.targets)
            for name, query in alone.items()
        }
        ranks |= {"image + text": tuned, "composer": compose_ranks((composed or tasks)[task])}
        count = features.candidates.shape[1]
        methods = {
            m: recall(r, features.clusters, setup=setup if m == "image + text" else "") for m, r in ranks.items()
        }
        results.append(TaskResult(task, len(features.targets), count, methods))
        hits.append({method: (r <= 1).astype(np.float64) for method, r in ranks.items()})
        clusters.append(features.clusters)
    shared, setup = one_weight_ranks(list(tasks.values()))
    return Report(
        tuple(results),
        {m: mean_interval([h[m] for h in hits], clusters) for m in METHODS},
        {m: mean_interval([h["composer"] - h[m] for h in hits], clusters) for m in BASELINES},
        (mean_interval([(r <= 1).astype(np.float64) for r in shared], clusters), setup),
    )
