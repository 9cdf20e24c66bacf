"""Google Landmarks v2 (Weyand et al., CVPR 2020): solutions, labels and predictions as the challenges have them.

tensorflow/models, research/delf/delf/python/datasets/google_landmarks_dataset/{dataset_file_io,metrics}.py.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from likewise.export.evaluation.problems import EvaluationError, some
from likewise.export.evaluation.task import Benchmark, Mode, Task

CUTOFF: Final = 100
PARTS: Final = ("public", "private")
PATTERNS: Final = tuple(f"{top}{{a}}/{{b}}/{{c}}/{{key}}.jpg" for top in ("", "test/", "index/", "train/"))
_IGNORED: Final = "Ignored"


@dataclass(frozen=True, slots=True)
class Recognition:
    """Test images of one part and their landmarks.

    Attributes:
        name: "recognition public" or "recognition private".
        ids: (n) test images.
        landmarks: (n) right landmarks; none for a picture of no landmark, where any answer is wrong.
    """

    name: str
    ids: tuple[str, ...]
    landmarks: tuple[frozenset[int], ...]

    @property
    def positives(self) -> int:
        """Test images that have a landmark."""
        return sum(map(bool, self.landmarks))


def read_retrieval(folder: Path, index: Sequence[str] | None) -> Benchmark:
    """Read `retrieval_solution*.csv` (id, images, Usage); one task a part.

    Args:
        folder: Where it lies; of several versions the last by name.
        index: Ids of the index images, the candidates; None where rankings are given and only right images matter.

    Raises:
        EvaluationError: The file is absent or not of this form, or a right image is not in the index.
    """
    path = _newest(folder, "retrieval_solution")
    known = None if index is None else set(index)
    rows: dict[str, list[tuple[str, tuple[str, ...]]]] = {part: [] for part in PARTS}
    for where, test, right, part in _solution(path):
        images = tuple(dict.fromkeys(right.split()))
        if not images:
            raise EvaluationError(f"{where}: {test!r} has no right image and is not ignored: no precision is defined")
        if known is not None and (absent := [image for image in images if image not in known]):
            raise EvaluationError(f"{where}: right image {some(absent)} not among the {len(known):,} index images")
        rows[part].append((test, images))
    pool = tuple(
        sorted(known if known is not None else {key for own in rows.values() for _, keys in own for key in keys})
    )
    tasks = tuple(_retrieval(part, own, pool) for part, own in rows.items() if own)
    if not tasks:
        raise EvaluationError(f"{path}: every test image is ignored")
    return Benchmark("gldv2", tasks, notes=(f"{path.name}; index: {len(pool):,} images",), patterns=PATTERNS)


def read_recognition(folder: Path) -> list[Recognition]:
    """Read `recognition_solution*.csv` (id, landmarks, Usage).

    Raises:
        EvaluationError: The file is absent or not of this form.
    """
    path = _newest(folder, "recognition_solution")
    rows: dict[str, list[tuple[str, frozenset[int]]]] = {part: [] for part in PARTS}
    for where, test, right, part in _solution(path):
        rows[part].append((test, frozenset(_number(where, label) for label in right.split())))
    made = [
        Recognition(f"recognition {part}", tuple(test for test, _ in own), tuple(labels for _, labels in own))
        for part, own in rows.items()
        if own
    ]
    if empty := [one.name for one in made if not one.positives]:
        raise EvaluationError(f"{path}: {empty[0]} has no picture of a landmark, so GAP is undefined")
    return made


def recognition_task(recognition: Recognition, train: Sequence[str], neighbours: int) -> Task:
    """The search for each test image's nearest training images."""
    count = len(recognition.ids)
    return Task(
        name=recognition.name,
        ids=recognition.ids,
        references=recognition.ids,
        conditions=((),) * count,
        modes=_no_modes(count),
        targets=None,
        cutoffs=(neighbours,),
        pool=tuple(sorted(train)),
    )


def read_train_labels(folder: Path) -> dict[str, int]:
    """Training image to landmark, from `train_clean.csv` (landmark_id, images) or `train.csv` (id, url, landmark_id).

    Raises:
        EvaluationError: Neither is there, or it is not of this form.
    """
    clean, every = folder / "train_clean.csv", folder / "train.csv"
    labels: dict[str, int] = {}
    if clean.is_file():
        for where, row in _rows(clean, ("landmark_id", "images")):
            labels |= dict.fromkeys(row["images"].split(), _number(where, row["landmark_id"]))
    elif every.is_file():
        labels = {row["id"]: _number(where, row["landmark_id"]) for where, row in _rows(every, ("id", "landmark_id"))}
    if not labels:
        raise EvaluationError(f"no labels of training images in {folder}: expected train_clean.csv or train.csv")
    return labels


def read_retrieval_predictions(path: Path, known: Sequence[str]) -> dict[str, list[str]]:
    """A retrieval submission (id, images): test image to ranking.

    Raises:
        EvaluationError: The file is not of this form, or names a test image twice or one that is not in the solution.
    """
    return {test: answer.split() for _, test, answer in _predictions(path, "images", known)}


def read_recognition_predictions(path: Path, known: Sequence[str]) -> dict[str, tuple[int, float]]:
    """A recognition submission (id, landmarks): test image to class and score.

    Raises:
        EvaluationError: As for retrieval; or an answer is not one class and one score.
    """
    answers = {}
    for where, test, answer in _predictions(path, "landmarks", known):
        parts = answer.split()
        if not parts:
            continue
        if len(parts) != 2:
            raise EvaluationError(f"{where}: an answer is one class and one score, got {answer!r}")
        try:
            score = float(parts[1])
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise EvaluationError(f"{where}: the score must be a finite number, got {parts[1]!r}")
        answers[test] = (_number(where, parts[0]), score)
    return answers


def ignored(folder: Path, stem: str) -> frozenset[str]:
    """Test images of a solution that are not scored; a submission may name them."""
    rows = _rows(_newest(folder, stem), ("id", "Usage"))
    return frozenset(row["id"] for _, row in rows if row["Usage"] == _IGNORED)


def _retrieval(part: str, rows: Sequence[tuple[str, tuple[str, ...]]], pool: tuple[str, ...]) -> Task:
    tests = tuple(test for test, _ in rows)
    return Task(
        name=f"retrieval {part}",
        ids=tests,
        references=tests,
        conditions=((),) * len(tests),
        modes=_no_modes(len(tests)),
        targets=tuple(images for _, images in rows),
        cutoffs=(CUTOFF,),
        pool=pool,
        metric="mAP",
    )


def _no_modes(count: int) -> tuple[Mode, ...]:
    none: Mode = ""
    return (none,) * count


def _newest(folder: Path, stem: str) -> Path:
    if not folder.is_dir():
        raise EvaluationError(f"no folder {folder}: give --annotations the folder of the solution files")
    found = sorted(folder.glob(f"{stem}*.csv"))
    if not found:
        raise EvaluationError(f"no solution in {folder}: expected {stem}_v2.1.csv")
    return found[-1]


def _solution(path: Path) -> Iterator[tuple[str, str, str, str]]:
    answers = "images" if path.name.startswith("retrieval") else "landmarks"
    for where, row in _rows(path, ("id", answers, "Usage")):
        usage = row["Usage"]
        if usage == _IGNORED:
            continue
        if usage.lower() not in PARTS:
            raise EvaluationError(f"{where}: Usage must be Public, Private or Ignored, got {usage!r}")
        yield where, row["id"], row[answers], usage.lower()


def _predictions(path: Path, column: str, known: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    allowed, seen = set(known), set[str]()
    for where, row in _rows(path, ("id", column)):
        test = row["id"]
        if test in seen:
            raise EvaluationError(f"{where}: test image {test!r} is answered twice")
        if test not in allowed:
            raise EvaluationError(f"{where}: test image {test!r} is not in the solution")
        seen.add(test)
        yield where, test, row[column]


def _rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    csv.field_size_limit(1 << 24)  # a landmark of train_clean.csv may have thousands of images
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
                raise EvaluationError(
                    f"{path}: no column {missing[0]!r}, its first line is {reader.fieldnames}; needed are "
                    f"{', '.join(needed)}"
                )
            for row in reader:
                if any(row[name] is None for name in needed):
                    raise EvaluationError(f"{path}, line {reader.line_num}: has fewer columns than the first line")
                yield f"{path}, line {reader.line_num}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{path}: cannot be read as CSV: {error}") from error


def _number(where: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise EvaluationError(f"{where}: a landmark is an integer, got {text!r}") from None
