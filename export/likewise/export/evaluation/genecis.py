"""GeneCIS (Vaze et al., CVPR 2023): four tasks, each template with a gallery of its own.

The target is put in front of the file's gallery, the reference is no candidate, conditions are taken raw, R@1/2/3, mean
of the four tasks (facebookresearch/genecis, eval/eval_functions.py and datasets/{coco,vaw}_dataset.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from likewise.export.evaluation.crops import crop_key
from likewise.export.evaluation.problems import EvaluationError
from likewise.export.evaluation.records import Record, optional_file, read_records
from likewise.export.evaluation.task import Benchmark, Mode, Task, blank_note

OBJECT_TASKS: Final = ("focus_object", "change_object")
ATTRIBUTE_TASKS: Final = ("focus_attribute", "change_attribute")
TASKS: Final = ("focus_attribute", "change_attribute", "focus_object", "change_object")
OFFICIAL: Final = {"focus_attribute": 2000, "change_attribute": 2112, "focus_object": 1960, "change_object": 1960}
CUTOFFS: Final = (1, 2, 3)
CONSISTENT: Final = "without_contradictory"


def read_genecis(folder: Path, *, tasks: Sequence[str] = TASKS, modes: bool = False) -> Benchmark:
    """Read those of the four task files that are there.

    Args:
        folder: Holds `<task>.json`, or the official repository with them in `genecis/`.
        tasks: Which to read.
        modes: Name the task's mode ("focus" or "change") with each condition. The protocol takes conditions raw.

    Raises:
        EvaluationError: No file is there, or one is not of this form.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise EvaluationError(f"GeneCIS has the tasks {', '.join(TASKS)}, not {unknown[0]!r}")
    found = {task: optional_file(folder, (f"{task}.json", f"genecis/{task}.json")) for task in TASKS if task in tasks}
    read = tuple(_task(name, path, modes=modes) for name, path in found.items() if path is not None)
    if not read:
        raise EvaluationError(
            f"no GeneCIS annotations in {folder}: expected one of {', '.join(f'{task}.json' for task in found)}"
        )
    return Benchmark(
        "genecis",
        read,
        mean=mean_label([task.name for task in read]),
        notes=_notes(read),
        patterns=("{coco}.jpg", "val2017/{coco}.jpg"),
        crop_patterns=("{key}.jpg", "VG_100K_all/{key}.jpg", "VG_100K/{key}.jpg", "VG_100K_2/{key}.jpg"),
    )


def mean_label(names: Sequence[str]) -> str:
    """What the mean over some of the tasks may be called; only all four give the benchmark's own figure."""
    present = set(names)
    if present == set(TASKS):
        return "mean of the four tasks"
    for half, label in ((OBJECT_TASKS, "object half"), (ATTRIBUTE_TASKS, "attribute half")):
        if present == set(half):
            return f"{label} (2 of 4 tasks)"
    return f"{len(present)} of 4 tasks"


def _task(name: str, path: Path, *, modes: bool) -> Task:
    crops = name in ATTRIBUTE_TASKS
    references, conditions, galleries, targets, clashes = [], [], [], [], []
    for index, record in enumerate(read_records(path)):
        target = _key(record.record("target"), crops=crops)
        gallery = tuple(_key(image, crops=crops) for image in record.records("gallery"))
        if not gallery:
            raise record.wrong("gallery", "a list of at least one image", [])
        if target in gallery:
            clashes.append(index)
        references.append(_key(record.record("reference"), crops=crops))
        condition = record.text("condition")
        conditions.append((condition,) if condition.strip() else ())
        targets.append((target,))
        galleries.append((target, *gallery))
    kept = tuple(index for index in range(len(targets)) if index not in set(clashes))
    mode: Mode = ("focus" if name.startswith("focus") else "change") if modes else ""
    return Task(
        name=name,
        ids=tuple(str(index) for index in range(len(targets))),
        references=tuple(references),
        conditions=tuple(conditions),
        modes=(mode,) * len(targets),
        targets=tuple(targets),
        cutoffs=CUTOFFS,
        galleries=tuple(galleries),
        slices={CONSISTENT: kept} if clashes and kept else {},
    )


def _key(image: Record, *, crops: bool) -> str:
    if crops:
        return crop_key(image.integer("image_id"), image.box("instance_bbox"))
    return str(image.integer("val_image_id"))


def _notes(tasks: Sequence[Task]) -> tuple[str, ...]:
    notes = []
    for task in tasks:
        count, official = len(task.ids), OFFICIAL[task.name]
        if count != official:
            notes.append(f"{task.name}: {count:,} templates, the official file has {official:,}")
        if clashes := count - len(task.slices.get(CONSISTENT, task.ids)):
            notes.append(
                f"{task.name}: {clashes} contradictory template(s) kept, whose gallery holds the target as a wrong "
                "candidate too"
            )
        notes.extend(f"{task.name}: {note}" for note in blank_note(task.conditions))
    return tuple(notes)
