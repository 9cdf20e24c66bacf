"""FashionIQ (Wu et al., CVPR 2021): three categories, R@10 and R@50 of each, and their mean.

The reference stays a candidate, as in CLIP4Cir's and SEARLE's code. Two galleries circulate: all images of the
category's split ("original", 3,817 / 6,346 / 5,373 in val), or only those that its captions name ("val", 2,628 /
3,089 / 2,902: easier). Figures over different galleries cannot be compared.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from likewise.export.evaluation.problems import EvaluationError, first_repeated, some
from likewise.export.evaluation.records import find_file, read_json, read_records
from likewise.export.evaluation.task import Benchmark, Mode, Task, blank_note

CATEGORIES: Final = ("dress", "shirt", "toptee")
CUTOFFS: Final = (10, 50)
Pool = Literal["original", "val"]
Captions = Literal["joined", "both-orders"]
Split = Literal["val", "test"]

_STRIPPED: Final = ".?, "


def read_fashioniq(
    folder: Path,
    *,
    split: Split = "val",
    pool: Pool = "original",
    captions: Captions = "joined",
    categories: Sequence[str] = CATEGORIES,
    mode: Mode = "",
) -> Benchmark:
    """Read `cap.<category>.<split>.json` and `split.<category>.<split>.json` of each category.

    Args:
        folder: The official repository (with `captions/` and `image_splits/`), or both files' own.
        split: "val", or "test", whose labels are hidden.
        pool: "original" or "val", see above.
        captions: "joined": the two captions as "a and b" (see `joined`). "both-orders": that and "b and a", averaged.
        categories: Which to read.
        mode: Given to every text.

    Raises:
        EvaluationError: A file is absent or not of this form, or a name is not in the split.
    """
    if unknown := [name for name in categories if name not in CATEGORIES]:
        raise EvaluationError(f"FashionIQ has the categories {', '.join(CATEGORIES)}, not {unknown[0]!r}")
    tasks = tuple(_task(folder, name, split, pool, captions, mode) for name in CATEGORIES if name in categories)
    whole = len(tasks) == len(CATEGORIES)
    mean = "mean of the three categories" if whole else f"{len(tasks)} of 3 categories"
    notes = [f"gallery: {pool} split; " + ", ".join(f"{task.name} {len(task.pool or ()):,}" for task in tasks)]
    notes.append("captions: " + ('"a and b"' if captions == "joined" else 'mean of "a and b" and "b and a"'))
    for task in tasks:
        notes.extend(f"{task.name}: {note}" for note in blank_note(task.conditions))
    return Benchmark(
        "fashioniq",
        tasks,
        mean=mean,
        notes=tuple(notes),
        patterns=("{key}.jpg", "{key}.png", "images/{key}.jpg", "images/{key}.png"),
    )


def joined(first: str, second: str) -> str:
    """Two captions as one, "a and b", without the full stops, commas and blanks around each; "" if both are blank."""
    parts = [part for part in (first.strip(_STRIPPED), second.strip(_STRIPPED)) if part]
    return " and ".join(parts)


def _task(folder: Path, category: str, split: Split, pool: Pool, captions: Captions, mode: Mode) -> Task:
    name = f"cap.{category}.{split}.json"
    caption_file = find_file(folder, (f"captions/{name}", name), what=f"FashionIQ captions of {category}")
    name = f"split.{category}.{split}.json"
    listing = find_file(folder, (f"image_splits/{name}", name), what=f"FashionIQ split of {category}")
    names = _names(listing)
    known = set(names)
    records = read_records(caption_file)
    hidden = "target" not in records[0].values
    if hidden and pool == "val":
        raise EvaluationError(
            f"{caption_file}: has no targets, so the gallery of named images is not known; use the original one"
        )
    references, conditions, targets = [], [], []
    for record in records:
        reference = record.text("candidate")
        target = "" if hidden else record.text("target")
        if absent := [key for key in (reference, *(() if hidden else (target,))) if key not in known]:
            raise EvaluationError(f"{record.where}: {some(absent)} not in {listing}: files of two splits?")
        first, second = record.texts("captions", 2)
        orders = [joined(first, second)] + ([joined(second, first)] if captions == "both-orders" else [])
        references.append(reference)
        conditions.append(tuple(text for text in orders if text))
        targets.append((target,))
    if pool == "val":
        names = tuple({*references, *(target for (target,) in targets)})
    return Task(
        name=category,
        ids=tuple(str(index) for index in range(len(references))),
        references=tuple(references),
        conditions=tuple(conditions),
        modes=(mode,) * len(references),
        targets=None if hidden else tuple(targets),
        cutoffs=CUTOFFS,
        pool=tuple(sorted(names)),
    )


def _names(listing: Path) -> tuple[str, ...]:
    content = read_json(listing)
    if not isinstance(content, list) or not content or not all(isinstance(name, str) for name in content):
        raise EvaluationError(f"{listing}: must hold one JSON list of image names")
    if repeated := first_repeated(content):
        raise EvaluationError(f"{listing}: {repeated!r} is there twice")
    return tuple(content)
