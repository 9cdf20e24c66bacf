"""CIRCO (Baldrati et al., ICCV 2023): several right images a query among COCO's 123,403 unlabelled ones.

mAP@K over min(number of right images, K), Recall@K on the one target that the caption was written for; the reference is
not masked (miccunifi/CIRCO, src/evaluation.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from likewise.export.evaluation.problems import EvaluationError, first_repeated, some
from likewise.export.evaluation.records import Record, find_file, optional_file, read_json, read_records
from likewise.export.evaluation.task import Benchmark, Mode, Task, blank_note

CUTOFFS: Final = (5, 10, 25, 50)
GALLERY: Final = 123_403
INFO: Final = "image_info_unlabeled2017.json"
Split = Literal["val", "test"]


def read_circo(
    folder: Path, *, split: Split = "val", gallery: Sequence[str] | None = None, mode: Mode = ""
) -> Benchmark:
    """Read `<split>.json` and the list of COCO's unlabelled images.

    Args:
        folder: The official repository with `COCO2017_unlabeled/` in it, or the files' own folder.
        split: "val", or "test", whose labels are hidden.
        gallery: Keys (COCO ids without leading zeros) to rank where COCO's own list is not in the folder.
        mode: Given to every caption.

    Returns:
        With labels two tasks over the same queries: all right images ("mAP", with the semantic aspects as slices) and
        the one target ("R").

    Raises:
        EvaluationError: A file is absent or not of this form, or a name is not in the gallery.
    """
    names = (f"annotations/{split}.json", f"{split}.json")
    annotations = find_file(folder, names, what=f"CIRCO annotations of {split}")
    pool, listing = _pool(folder, gallery)
    records = read_records(annotations)
    hidden = "gt_img_ids" not in records[0].values
    known = set(pool)
    ids, references, conditions, targets = [], [], [], []
    aspects: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        reference = str(record.integer("reference_img_id"))
        right = () if hidden else _right(record)
        if absent := [key for key in (reference, *right) if key not in known]:
            raise EvaluationError(f"{record.where}: image {some(absent)} not in the gallery ({listing})")
        caption = record.text("relative_caption")
        ids.append(str(record.integer("id")))
        references.append(reference)
        conditions.append((caption,) if caption.strip() else ())
        targets.append(right)
        if record.has("semantic_aspects"):
            for aspect in record.texts("semantic_aspects"):
                aspects.setdefault(aspect, []).append(index)
    shared = (tuple(ids), tuple(references), tuple(conditions), (mode,) * len(ids))
    notes = [f"gallery: {len(pool):,} images ({listing})"]
    if len(pool) != GALLERY:
        notes.append(
            f"the official gallery has {GALLERY:,} images: these figures cannot be compared with published ones"
        )
    notes.extend(blank_note(conditions))
    slices = {aspect: tuple(indices) for aspect, indices in sorted(aspects.items())}
    every = None if hidden else tuple(targets)
    tasks = [Task(split, *shared, every, CUTOFFS, pool=pool, metric="mAP", slices=slices)]
    if not hidden:
        first = tuple((right[0],) for right in targets)
        tasks.append(Task(split, *shared, first, CUTOFFS, pool=pool))
    return Benchmark(
        "circo",
        tuple(tasks),
        notes=tuple(notes),
        patterns=("{coco}.jpg", "unlabeled2017/{coco}.jpg", "COCO2017_unlabeled/unlabeled2017/{coco}.jpg"),
    )


def _pool(folder: Path, gallery: Sequence[str] | None) -> tuple[tuple[str, ...], str]:
    info = optional_file(folder, (f"COCO2017_unlabeled/annotations/{INFO}", f"annotations/{INFO}", INFO))
    if info is not None:
        content = read_json(info)
        images = content.get("images") if isinstance(content, dict) else None
        if not isinstance(images, list) or not images or not all(isinstance(image, dict) for image in images):
            raise EvaluationError(f"{info}: must be COCO's list, an object with 'images'")
        keys = [str(Record(image, f"{info}, image {index}").integer("id")) for index, image in enumerate(images)]
        if repeated := first_repeated(keys):
            raise EvaluationError(f"{info}: image {repeated} is there twice")
        return tuple(sorted(keys)), str(info)
    if not gallery:
        raise EvaluationError(f"no list of the gallery in {folder}: expected COCO2017_unlabeled/annotations/{INFO}")
    return tuple(sorted(set(gallery))), f"no {INFO}, so all images that were given"


def _right(record: Record) -> tuple[str, ...]:
    right = tuple(str(key) for key in record.integers("gt_img_ids"))
    target = str(record.integer("target_img_id"))
    if not right or right[0] != target or first_repeated(right):
        raise record.wrong("gt_img_ids", f"different ids, target_img_id {target} the first", list(right))
    return right
