"""A team's own templates, as JSON or Parquet; docs/evaluation.md has the format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from likewise.export.evaluation.columns import read_columns
from likewise.export.evaluation.problems import EvaluationError, first_repeated, some
from likewise.export.evaluation.records import Record, read_json
from likewise.export.evaluation.task import MODES, Benchmark, Mode, Task, blank_note

FORMAT: Final = "likewise-templates/1"
CUTOFFS: Final = (1, 2, 3)
_FIELDS: Final = {"reference", "condition", "mode", "gallery", "target", "task"}
_NEEDED: Final = ("reference", "target")


def read_templates(
    path: Path, *, cutoffs: Sequence[int] = CUTOFFS, keep_reference: bool = False, gallery: Sequence[str] | None = None
) -> Benchmark:
    """Read templates.

    Args:
        path: `.json` or `.parquet`.
        cutoffs: Ascending.
        keep_reference: Leave the reference among the candidates, where it is one.
        gallery: Candidates of templates that name none: every image there is.

    Returns:
        One task for each name in `task`, in order of first appearance ("templates" where none is given).

    Raises:
        EvaluationError: The file is absent or not of this form.
    """
    if not path.is_file():
        raise EvaluationError(f"no file {path}: give the templates as .json or .parquet")
    files: dict[str, str] = {}
    if path.suffix == ".parquet":
        records = _rows(path)
    else:
        records, files = _json(path)
    groups: dict[str, list[Record]] = {}
    for record in records:
        if unknown := sorted(set(record.values) - _FIELDS):
            raise EvaluationError(f"{record.where}: unknown field {unknown[0]!r}, a template has {sorted(_FIELDS)}")
        task = record.text("task") if record.values.get("task") is not None else "templates"
        groups.setdefault(task, []).append(record)
    pool = tuple(sorted(set(gallery or files)))
    pooled = {name for name, group in groups.items() if _is_pooled(name, group)}
    if pooled and not pool:
        raise EvaluationError(f"{path}: templates without 'gallery', and no images to take as one; give each a gallery")
    tasks = tuple(
        _task(name, group, pool if name in pooled else None, cutoffs, keep_reference) for name, group in groups.items()
    )
    notes = [f"{task.name}: {note}" for task in tasks for note in blank_note(task.conditions)]
    if pooled:
        notes.append(f"templates without a gallery are ranked over all {len(pool):,} images")
    return Benchmark(
        "templates",
        tasks,
        mean=f"mean of {len(tasks)} tasks" if len(tasks) > 1 else None,
        notes=tuple(notes),
        files=files,
        patterns=("{key}", "{key}.jpg", "{key}.jpeg", "{key}.png", "{key}.webp"),
    )


def _json(path: Path) -> tuple[list[Record], dict[str, str]]:
    content: Any = read_json(path)
    files: dict[str, str] = {}
    if isinstance(content, dict):
        if content.get("format") != FORMAT:
            raise EvaluationError(f"{path}: format must be {FORMAT!r}, got {content.get('format')!r}")
        if unknown := sorted(set(content) - {"format", "templates", "images"}):
            raise EvaluationError(f"{path}: unknown field {unknown[0]!r} beside 'format', 'templates' and 'images'")
        files = content.get("images", {})
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise EvaluationError(f"{path}: 'images' must be an object of key to path")
        content = content.get("templates")
    if not isinstance(content, list) or not content or not all(isinstance(one, dict) for one in content):
        raise EvaluationError(f"{path}: must hold a list of templates (objects), or them as 'templates' of an object")
    return [Record(one, f"{path}, template {index}") for index, one in enumerate(content)], files


def _rows(path: Path) -> list[Record]:
    columns = read_columns(path, needed=_NEEDED)
    if unknown := sorted(set(columns) - _FIELDS):
        raise EvaluationError(f"{path}: unknown column {unknown[0]!r}, templates have {sorted(_FIELDS)}")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if not rows:
        raise EvaluationError(f"{path}: has no rows")
    return [Record(row, f"{path}, row {index}") for index, row in enumerate(rows)]


def _is_pooled(name: str, records: Sequence[Record]) -> bool:
    without = [record for record in records if record.values.get("gallery") is None]
    if without and len(without) < len(records):
        raise EvaluationError(
            f"{without[0].where}: has no 'gallery', others of task {name!r} have one; give them different tasks"
        )
    return bool(without)


def _task(
    name: str, records: Sequence[Record], pool: tuple[str, ...] | None, cutoffs: Sequence[int], keep_reference: bool
) -> Task:
    references, conditions, modes, targets, galleries = [], [], [], [], []
    known = set(pool or ())
    for record in records:
        reference, right = record.text("reference"), _targets(record)
        condition = "" if record.values.get("condition") is None else record.text("condition")
        if not keep_reference and reference in right:
            raise EvaluationError(
                f"{record.where}: the reference {reference!r} is a target; it is left out of the candidates unless "
                "--keep-reference is given"
            )
        if pool is None:
            listed = record.texts("gallery")
            if repeated := first_repeated(listed):
                raise EvaluationError(f"{record.where}: {repeated!r} is twice in 'gallery'")
            galleries.append((*right, *(key for key in listed if key not in right)))
        elif absent := [key for key in right if key not in known]:
            raise EvaluationError(f"{record.where}: target {some(absent)} is none of the images")
        references.append(reference)
        conditions.append((condition,) if condition.strip() else ())
        modes.append(_mode(record))
        targets.append(right)
    return Task(
        name=name,
        ids=tuple(str(index) for index in range(len(records))),
        references=tuple(references),
        conditions=tuple(conditions),
        modes=tuple(modes),
        targets=tuple(targets),
        cutoffs=tuple(cutoffs),
        galleries=None if pool is not None else tuple(galleries),
        pool=pool,
        masks_reference=not keep_reference,
    )


def _targets(record: Record) -> tuple[str, ...]:
    value = record.values.get("target")
    right = (value,) if isinstance(value, str) else record.texts("target")
    if not right or first_repeated(right):
        raise record.wrong("target", "an image key or a list of different ones", value)
    return right


def _mode(record: Record) -> Mode:
    value = record.values.get("mode")
    for mode in MODES:
        if value == mode or (value is None and mode == ""):
            return mode
    raise record.wrong("mode", "'focus', 'change' or nothing", value)
