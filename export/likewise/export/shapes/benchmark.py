"""The shapes benchmark: four tasks, two gallery designs, held-out and seen pairs, three baselines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

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
from likewise.export.preprocess import Preprocessing, to_tensor
from likewise.export.shapes.conditions import compose_text
from likewise.export.shapes.templates import CANDIDATES, DESIGNS, SPLITS, Template, build_templates
from likewise.export.shapes.world import render

F32 = npt.NDArray[np.float32]
METHODS: Final = ("image", "text", "image + text", "composer")
RENDER_SIZE: Final = 144
_BATCH: Final = 256


class Model(Protocol):
    """What is measured: three functions of numpy arrays, whatever runs them."""

    preprocessing: Preprocessing

    def encode_images(self, images: F32) -> F32:
        """(n, 3, size, size) to (n, d) raw features."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> F32:
        """Texts to (n, d) raw features."""
        ...

    def compose(self, references: F32, conditions: F32) -> F32:
        """(n, d) raw image and (n, d) raw text features to (n, d) unit queries."""
        ...


@dataclass(frozen=True, slots=True)
class TaskReport:
    """One task: chance at R@1/2/3 in percent, and each method's recall."""

    task: str
    templates: int
    candidates: int
    chance: Mapping[int, float]
    methods: Mapping[str, Recall]


@dataclass(frozen=True, slots=True)
class Part:
    """One gallery design on one split.

    Attributes:
        design: "strict" or "soft".
        split: "held-out" or "seen" (or a validation split).
        tasks: The four tasks.
        mean: Each method's R@1, mean over the tasks.
        margin: The composer's mean R@1 minus that of image + text, paired.
        one_weight: Mean R@1 of image + text under one weight for all four tasks, and that weight.
    """

    design: str
    split: str
    tasks: tuple[TaskReport, ...]
    mean: Mapping[str, Interval]
    margin: Interval
    one_weight: tuple[Interval, str]


@dataclass(frozen=True, slots=True)
class Report:
    """All parts, and how they were made."""

    templates_per_task: int
    seed: int
    parts: tuple[Part, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as plain dicts, lists, strings and numbers."""
        return asdict(self)

    def part(self, design: str, split: str) -> Part:
        """The part of a design and a split."""
        return next(part for part in self.parts if (part.design, part.split) == (design, split))


Progress = Callable[[str, float], None]


def run(
    repository: Path | None = None,
    *,
    templates_per_task: int = 600,
    seed: int = 0,
    designs: Sequence[str] = DESIGNS,
    splits: Sequence[str] = ("held-out", "seen"),
    progress: Progress | None = None,
) -> Report:
    """Measure the family "shapes" of a model repository (the built-in one by default) on CPU.

    Args:
        repository: Folder of the model repository.
        templates_per_task: Templates of each task in each part.
        seed: Another seed, other templates.
        designs: Gallery designs, of "strict" and "soft".
        splits: Names of ``templates.SPLITS``.
        progress: Called with what is being done and the share done, in [0, 1].

    Raises:
        ManifestError: The repository is damaged or holds no such family.
    """
    from likewise.export.runtime import load_family  # onnxruntime only where a model is run

    return measure(
        load_family(repository, "shapes"),
        templates_per_task=templates_per_task,
        seed=seed,
        designs=designs,
        splits=splits,
        progress=progress,
    )


def measure(
    model: Model,
    *,
    templates_per_task: int,
    seed: int = 0,
    designs: Sequence[str] = DESIGNS,
    splits: Sequence[str] = ("held-out", "seen"),
    progress: Progress | None = None,
) -> Report:
    """As ``run``, for any model."""
    total, done = len(designs) * len(splits) * len(CANDIDATES), 0
    parts = []
    for split in splits:
        for design in designs:
            reports, hits, clusters, tasks = [], [], [], []
            for task in CANDIDATES:
                if progress is not None:
                    progress(f"{split}, {design}, {task}", done / total)
                templates = build_templates(task, templates_per_task, split=SPLITS[split], design=design, seed=seed)
                features = extract(model, templates)
                ranks = _rank_methods(model, features)
                reports.append(_report(task, features, ranks))
                hits.append({method: (r <= 1).astype(np.float64) for method, (r, _) in ranks.items()})
                clusters.append(features.clusters)
                tasks.append(features)
                done += 1
            shared, setup = one_weight_ranks(tasks)
            shared_hits = [(ranks <= 1).astype(np.float64) for ranks in shared]
            margin = [h["composer"] - h["image + text"] for h in hits]
            parts.append(
                Part(
                    design,
                    split,
                    tuple(reports),
                    {m: mean_interval([h[m] for h in hits], clusters) for m in METHODS},
                    mean_interval(margin, clusters),
                    (mean_interval(shared_hits, clusters), setup),
                )
            )
    if progress is not None:
        progress("done", 1.0)
    return Report(templates_per_task, seed, tuple(parts))


def extract(model: Model, templates: Sequence[Template]) -> Features:
    """Render and encode templates, which all have the same number of candidates."""
    scenes = [scene for t in templates for scene in (t.reference, *t.candidates)]
    encoded = []
    for start in range(0, len(scenes), _BATCH):
        tensors = [
            to_tensor(render(scene, RENDER_SIZE), model.preprocessing) for scene in scenes[start : start + _BATCH]
        ]
        encoded.append(model.encode_images(np.stack(tensors)))
    images = np.concatenate(encoded).reshape(len(templates), len(templates[0].candidates) + 1, -1)
    bare = [t.condition.bare for t in templates]
    return Features(
        references=np.ascontiguousarray(images[:, 0]),
        candidates=unit(images[:, 1:]),
        targets=np.asarray([t.target for t in templates], np.int64),
        bare=_encode_unique(model, bare),
        composed=_encode_unique(
            model, [compose_text(t.condition.mode, text) for t, text in zip(templates, bare, strict=True)]
        ),
        clusters=np.arange(len(templates)),
    )


def _encode_unique(model: Model, texts: Sequence[str]) -> F32:
    unique, inverse = np.unique(np.asarray(texts), return_inverse=True)
    return np.asarray(model.encode_texts(unique.tolist())[inverse], np.float32)


def _rank_methods(model: Model, features: Features) -> dict[str, tuple[npt.NDArray[np.int64], str]]:
    queries = {
        "image": unit(features.references),
        "text": unit(features.bare),
        "composer": model.compose(features.references, features.composed),
    }
    ranks = {
        name: (worst_ranks(query_scores(query, features.candidates), features.targets), "")
        for name, query in queries.items()
    }
    ranks["image + text"] = best_sum(features)
    return {method: ranks[method] for method in METHODS}


def _report(task: str, features: Features, ranks: Mapping[str, tuple[npt.NDArray[np.int64], str]]) -> TaskReport:
    count = features.candidates.shape[1]
    return TaskReport(
        task,
        len(features.targets),
        count,
        {k: 100 * k / count for k in (1, 2, 3)},
        {method: recall(r, features.clusters, setup=setup) for method, (r, setup) in ranks.items()},
    )
