"""Files for the evaluation servers of benchmarks that hide their labels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from likewise.export.evaluation.cirr import VERSION
from likewise.export.evaluation.problems import EvaluationError
from likewise.export.evaluation.ranking import Ranker, Ranking, check_ranking
from likewise.export.evaluation.task import Benchmark, Task

CIRR_LENGTHS: Final = {"R": ("recall", 50), "R_subset": ("recall_subset", 3)}
CIRCO_LENGTH: Final = 50
FASHIONIQ_LENGTH: Final = 50
MAX_CIRR_BYTES: Final = 5_000_000


def write_submissions(benchmark: Benchmark, ranker: Ranker, folder: Path) -> list[Path]:
    """Write what the benchmark's server takes; labels are not looked at.

    CIRR: `cirr_<split>_recall.json` and `cirr_<split>_recall_subset.json`, each {"version": "rc2", "metric": ...,
    "<pairid>": [names]} with 50 and 3 names. CIRCO: `circo_<split>.json`, {"<id>": [50 image ids]}. FashionIQ, in the
    form of its start kit: `<category>.pred.json`, a list of {"candidate", "ranking"} in the order of the captions, 50
    names each.

    Returns:
        The files.

    Raises:
        EvaluationError: The benchmark has no submission, the gallery is too small for one, or a file is too large.
    """
    makers = {"cirr": _cirr, "circo": _circo, "fashioniq": _fashioniq}
    if benchmark.name not in makers:
        raise EvaluationError(f"{benchmark.name} has no submission file: its labels are public")
    for task in benchmark.tasks:
        ranker.check(task)
    contents = makers[benchmark.name](benchmark, ranker)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in contents.items():
        text = json.dumps(content, ensure_ascii=False)
        size = len(text.encode())
        if benchmark.name == "cirr" and size > MAX_CIRR_BYTES:
            raise EvaluationError(f"{name} would have {size:,} bytes, the server takes {MAX_CIRR_BYTES:,}")
        path = folder / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _cirr(benchmark: Benchmark, ranker: Ranker) -> dict[str, object]:
    contents: dict[str, object] = {}
    for task in benchmark.tasks:
        metric, length = CIRR_LENGTHS[task.metric]
        rows = {query: list(one.keys) for query, one in zip(task.ids, _ranked(task, ranker, length), strict=True)}
        contents[f"cirr_{task.name}_{metric}.json"] = {"version": VERSION, "metric": metric, **rows}
    return contents


def _circo(benchmark: Benchmark, ranker: Ranker) -> dict[str, object]:
    task = benchmark.tasks[0]
    ranked = _ranked(task, ranker, CIRCO_LENGTH)
    rows = {query: [int(key) for key in one.keys] for query, one in zip(task.ids, ranked, strict=True)}
    return {f"circo_{task.name}.json": rows}


def _fashioniq(benchmark: Benchmark, ranker: Ranker) -> dict[str, object]:
    contents: dict[str, object] = {}
    for task in benchmark.tasks:
        ranked = _ranked(task, ranker, FASHIONIQ_LENGTH)
        rows = [
            {"candidate": reference, "ranking": list(one.keys)}
            for reference, one in zip(task.references, ranked, strict=True)
        ]
        contents[f"{task.name}.pred.json"] = rows
    return contents


def _ranked(task: Task, ranker: Ranker, length: int) -> Sequence[Ranking]:
    smallest = min(task.candidate_counts())
    if smallest < length:
        raise EvaluationError(
            f"a submission names exactly {length} images a query, {task.name} has {smallest} candidates: is the "
            "gallery whole?"
        )
    ranked = ranker.top(task, length)
    for query, one in zip(task.ids, ranked, strict=True):
        check_ranking(one.keys, where=f"query {query}")
        if len(one.keys) != length:
            raise EvaluationError(f"query {query}: {len(one.keys)} images ranked instead of {length}")
    return ranked
