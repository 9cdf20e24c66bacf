"""Figures of Google Landmarks v2: recognition by nearest training images, and predictions made elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from likewise.export.evaluate import Interval
from likewise.export.evaluation import metrics
from likewise.export.evaluation.bootstrap import mean_of, of_statistic
from likewise.export.evaluation.gldv2 import CUTOFF, Recognition
from likewise.export.evaluation.ranking import Ranking
from likewise.export.evaluation.task import Task

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LandmarkReport:
    """One part of one task, in percent but for the places.

    Attributes:
        name: "retrieval public", "recognition private", ...
        queries: Test images that are scored.
        answered: Those with a prediction.
        values: "mAP@100", or "GAP" and "top-1", with intervals.
        facts: What else is known: positives, repeats in predictions, first places.
    """

    name: str
    queries: int
    answered: int
    values: Mapping[str, Interval]
    facts: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and numbers."""
        return {
            "n": self.queries,
            "answered": self.answered,
            **{name: value.value for name, value in self.values.items()},
            "interval": {name: [value.low, value.high] for name, value in self.values.items()},
            **self.facts,
        }


def predictions_from(rankings: Sequence[Ranking], labels: Mapping[str, int]) -> list[tuple[int, float] | None]:
    """Class and confidence of each query from its nearest training images, see `metrics.recognise`."""
    return [metrics.recognise(ranking.keys, ranking.scores, labels) for ranking in rankings]


def recognition_report(recognition: Recognition, predictions: Sequence[tuple[int, float] | None]) -> LandmarkReport:
    """GAP over all predictions, and top-1 accuracy over images that have a landmark.

    Args:
        recognition: n test images.
        predictions: (n) class and confidence; None for no answer.
    """
    rows = [row for row, answer in enumerate(predictions) if answer is not None]
    answers = [answer for answer in predictions if answer is not None]
    classes = np.asarray([label for label, _ in answers], np.int64)
    scores = np.asarray([score for _, score in answers], np.float64)
    correct = np.asarray([answers[i][0] in recognition.landmarks[row] for i, row in enumerate(rows)], bool)
    order = metrics.precision_order([recognition.ids[row] for row in rows], classes, scores)
    has_landmark = np.asarray([bool(labels) for labels in recognition.landmarks])
    taken = np.asarray(rows, np.int64)

    def gap(weights: npt.NDArray[np.float64]) -> float:
        positives = int(weights[has_landmark].sum())
        # A resample without any landmark has nothing to find.
        return metrics.global_average_precision(correct, order, positives, weights[taken]) if positives else 0.0

    hits = np.zeros(len(recognition.ids))
    hits[taken] = correct
    known = np.flatnonzero(has_landmark)
    return LandmarkReport(
        recognition.name,
        len(recognition.ids),
        len(rows),
        {
            "GAP": of_statistic(gap, len(recognition.ids)),
            "top-1": mean_of(hits[known], [recognition.ids[row] for row in known]),
        },
        {"with_landmark": recognition.positives},
    )


def retrieval_report(task: Task, positions: Sequence[I64]) -> LandmarkReport:
    """mAP@100 from every right image's place, and mean and median place of the first (101 if none within 100)."""
    values = np.asarray([metrics.average_precision(places, CUTOFF) for places in positions])
    first = np.asarray([min(int(places[0]), CUTOFF + 1) for places in positions])
    return _retrieval(task, values, first, answered=len(task.ids), repeats=0)


def submission_report(task: Task, predictions: Mapping[str, Sequence[str]]) -> LandmarkReport:
    """As `retrieval_report`, of a submission: no answer scores 0, a repeated image is skipped but takes a place."""
    values, first, answered, repeats = [], [], 0, 0
    for test, right in zip(task.ids, task.targets or (), strict=True):
        ranking = list(predictions.get(test, ()))[:CUTOFF]
        wanted = set(right)
        answered += bool(ranking)
        repeats += len(ranking) - len(set(ranking))
        values.append(metrics.average_precision_of(ranking, wanted, CUTOFF))
        first.append(next((place for place, key in enumerate(ranking, 1) if key in wanted), CUTOFF + 1))
    return _retrieval(task, np.asarray(values), np.asarray(first), answered=answered, repeats=repeats)


def _retrieval(
    task: Task, values: npt.NDArray[np.float64], first: I64, *, answered: int, repeats: int
) -> LandmarkReport:
    facts = {"mean_first_place": float(first.mean()), "median_first_place": float(np.median(first))}
    if repeats:
        facts["repeated_predictions"] = repeats
    return LandmarkReport(
        task.name, len(task.ids), answered, {f"mAP@{CUTOFF}": mean_of(values, task.references)}, facts
    )
