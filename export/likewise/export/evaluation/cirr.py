"""CIRR rc2 (Liu et al., ICCV 2021): the reference is taken out of the whole gallery and out of the subset of six.

The gallery is every image of the split, references or not: 137 targets of the validation split are never references.
"""

from pathlib import Path
from typing import Final, Literal

from likewise.export.evaluation.problems import EvaluationError, some
from likewise.export.evaluation.records import Record, find_file, read_json, read_records
from likewise.export.evaluation.task import Benchmark, Mode, Task, blank_note

VERSION: Final = "rc2"
CUTOFFS: Final = (1, 5, 10, 50)
SUBSET_CUTOFFS: Final = (1, 2, 3)
MEMBERS: Final = 6
Split = Literal["val", "test1"]


def read_cirr(folder: Path, *, split: Split = "val", mode: Mode = "") -> Benchmark:
    """Read `cap.rc2.<split>.json` and `split.rc2.<split>.json`.

    Args:
        folder: The official repository (with `captions/` and `image_splits/`), the folder above it, or both files' own.
        split: "val", or "test1", whose labels are hidden.
        mode: Given to every caption.

    Returns:
        Two tasks over the same queries, whose ids are pairids: the whole gallery ("R") and the subset ("R_subset").

    Raises:
        EvaluationError: A file is absent or not of this form, or a name is not in the split.
    """
    captions = find_file(folder, _places("captions", f"cap.{VERSION}.{split}.json"), what=f"CIRR captions of {split}")
    listing = find_file(folder, _places("image_splits", f"split.{VERSION}.{split}.json"), what=f"CIRR split {split}")
    files = _files(listing)
    records = read_records(captions)
    hidden = "target_hard" not in records[0].values
    ids, references, conditions, targets, subsets = [], [], [], [], []
    for record in records:
        reference, members = record.text("reference"), _members(record)
        target = None if hidden else record.text("target_hard")
        if target is not None and (target not in members or target == reference):
            raise EvaluationError(f"{record.where}: target_hard {target!r} is not among the other members of img_set")
        named = (reference, *members, *(() if target is None else (target,)))
        if absent := [name for name in named if name not in files]:
            raise EvaluationError(f"{record.where}: {some(absent)} not in {listing}: files of two splits or versions?")
        caption = record.text("caption")
        ids.append(str(record.integer("pairid")))
        references.append(reference)
        conditions.append((caption,) if caption.strip() else ())
        targets.append((target or "",))
        subsets.append(members)
    labels = None if hidden else tuple(targets)
    modes = (mode,) * len(ids)
    shared = (tuple(ids), tuple(references), tuple(conditions), modes, labels)
    tasks = (
        Task(split, *shared, cutoffs=CUTOFFS, pool=tuple(sorted(files)), masks_reference=True),
        Task(
            split,
            *shared,
            cutoffs=SUBSET_CUTOFFS,
            galleries=tuple(subsets),
            masks_reference=True,
            metric="R_subset",
        ),
    )
    return Benchmark("cirr", tasks, notes=blank_note(conditions), files=files)


def _places(folder: str, name: str) -> tuple[str, ...]:
    return f"{folder}/{name}", f"cirr/{folder}/{name}", name


def _files(listing: Path) -> dict[str, str]:
    content = read_json(listing)
    if not isinstance(content, dict) or not content or not all(isinstance(path, str) for path in content.values()):
        raise EvaluationError(f"{listing}: must hold one JSON object of image name to relative path")
    return {name: path.removeprefix("./") for name, path in content.items()}


def _members(record: Record) -> tuple[str, ...]:
    group = record.record("img_set")
    members = group.texts("members", MEMBERS)
    if len(set(members)) < MEMBERS or record.text("reference") not in members:
        raise group.wrong("members", f"{MEMBERS} different names, the reference among them", list(members))
    return members
