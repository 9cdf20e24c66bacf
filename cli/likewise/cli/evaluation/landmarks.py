"""The command for Google Landmarks v2."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from likewise.cli.evaluation import options
from likewise.cli.evaluation.gallery import Place
from likewise.cli.evaluation.tables import show_landmarks
from likewise.cli.evaluation.ways import Progress, ServerWay, progress_bar, refusals
from likewise.export.evaluation import gldv2 as files
from likewise.export.evaluation.composers import make_composer
from likewise.export.evaluation.feature_ranker import FeatureRanker
from likewise.export.evaluation.features import Features, read_features
from likewise.export.evaluation.landmarks import (
    LandmarkReport,
    predictions_from,
    recognition_report,
    retrieval_report,
    submission_report,
)
from likewise.export.evaluation.problems import EvaluationError, some
from likewise.export.evaluation.task import Benchmark, Task

_TASKS: Final = ("retrieval", "recognition")


def gldv2(
    annotations: options.Annotations,
    image_features: Annotated[
        Path | None, typer.Option(help="Raw features of the test images: columns key and vector.", show_default=False)
    ] = None,
    index_features: Annotated[
        Path | None, typer.Option(help="Of the index images: measures retrieval.", show_default=False)
    ] = None,
    train_features: Annotated[
        Path | None, typer.Option(help="Of training images: measures recognition.", show_default=False)
    ] = None,
    neighbours: Annotated[
        int, typer.Option(min=1, help="Training images that vote for a landmark, each with its similarity.")
    ] = 5,
    retrieval_predictions: Annotated[
        Path | None, typer.Option(help="Score this submission instead: id, images.", show_default=False)
    ] = None,
    recognition_predictions: Annotated[
        Path | None, typer.Option(help="Score this submission instead: id, landmarks.", show_default=False)
    ] = None,
    server: options.Server = None,
    images: options.Images = None,
    gallery: options.KeptGallery = None,
    encoder: options.Encoder = None,
    tasks: Annotated[
        str, typer.Option(help="With --server: retrieval, recognition, or both with a comma.")
    ] = "retrieval",
    as_json: options.AsJson = False,
) -> None:
    """Google Landmarks v2: retrieval by mAP@100, recognition by GAP; public and private part apart.

    With --server, images lie in index/, test/ and train/ of --images, as a/b/c/abc....jpg.
    """
    _check(
        features=(image_features, index_features, train_features),
        submissions=(retrieval_predictions, recognition_predictions),
        server=server,
        tasks=tasks,
    )
    notes: list[str] = []
    made: list[LandmarkReport] = []
    with refusals(), progress_bar() as progress:
        if server is not None:
            way = ServerWay(Place(server, tuple(images or ()), gallery, encoder), ("image",))
            made += _served(annotations, way, tasks.split(","), neighbours, notes, progress)
        tests = None if image_features is None else read_features(image_features)
        if index_features is not None and tests is not None:
            progress("retrieval", 0.1)
            made += _retrieval(annotations, tests, read_features(index_features), notes)
        if retrieval_predictions is not None:
            progress("retrieval", 0.3)
            made += _retrieval_submission(annotations, retrieval_predictions)
        if train_features is not None and tests is not None:
            progress("recognition", 0.5)
            made += _recognition(annotations, tests, read_features(train_features), neighbours, notes)
        if recognition_predictions is not None:
            progress("recognition", 0.8)
            made += _recognition_submission(annotations, recognition_predictions)
    show_landmarks(made, notes, as_json=as_json)


def _check(
    *,
    features: tuple[Path | None, Path | None, Path | None],
    submissions: tuple[Path | None, Path | None],
    server: str | None,
    tasks: str,
) -> None:
    tests, index, train = features
    if server is not None:
        if any((*features, *submissions)):
            raise typer.BadParameter(
                "--server computes features and rankings itself: leave features and submissions out"
            )
        if unknown := [name for name in tasks.split(",") if name not in _TASKS]:
            raise typer.BadParameter(f"--tasks must be of {', '.join(_TASKS)}, got {unknown[0]!r}")
        return
    if not any((index, train, *submissions)):
        raise typer.BadParameter(
            "give --image-features with --index-features (retrieval) or --train-features (recognition), a submission "
            "with --retrieval-predictions or --recognition-predictions, or --server"
        )
    if (index or train) and tests is None:
        raise typer.BadParameter("--image-features is missing: features of the test images")
    if any(own and submission for own, submission in zip((index, train), submissions, strict=True)):
        raise typer.BadParameter("features and a submission for the same task: give one of them")


def _served(
    folder: Path, way: ServerWay, tasks: Sequence[str], neighbours: int, notes: list[str], progress: Progress
) -> list[LandmarkReport]:
    retrieval: tuple[Task, ...] = ()
    parts: list[files.Recognition] = []
    labels: dict[str, int] = {}
    if "retrieval" in tasks:
        index = _listed(way.place.images, "index")
        if not index:
            raise EvaluationError("no index image below index/ of the folders given with --images")
        benchmark = files.read_retrieval(folder, index)
        retrieval = benchmark.tasks
        notes.extend(benchmark.notes)
    if "recognition" in tasks:
        labels = files.read_train_labels(folder)
        parts = files.read_recognition(folder)
        train = [key for key in _listed(way.place.images, "train") if key in labels]
        if not train:
            raise EvaluationError("no labelled training image below train/ of the folders given with --images")
        notes.append(_votes(neighbours, len(train)))
    recognition = [files.recognition_task(part, train, neighbours) for part in parts]
    every = Benchmark("gldv2", (*retrieval, *recognition), patterns=files.PATTERNS)
    with way.rankers(every, progress) as (ranker,):
        for task in every.tasks:
            ranker.check(task)
        made = [retrieval_report(task, ranker.positions(task)) for task in retrieval]
        for part, task in zip(parts, recognition, strict=True):
            made.append(recognition_report(part, predictions_from(ranker.top(task, neighbours), labels)))
        notes.append("; ".join(f"{name} {value}" for name, value in ranker.facts().items() if value))
    return made


def _listed(folders: Sequence[Path], part: str) -> list[str]:
    return sorted({file.stem for folder in folders for file in (folder / part).rglob("*.jpg")})


def _votes(neighbours: int, train: int) -> str:
    return f"recognition: {neighbours} nearest of {train:,} training images vote, each with its similarity"


def _retrieval(folder: Path, tests: Features, index: Features, notes: list[str]) -> list[LandmarkReport]:
    benchmark = files.read_retrieval(folder, list(index.rows))
    notes.extend(benchmark.notes)
    ranker = FeatureRanker(tests, None, make_composer("image"), index)
    for task in benchmark.tasks:
        ranker.check(task)
    return [retrieval_report(task, ranker.positions(task)) for task in benchmark.tasks]


def _retrieval_submission(folder: Path, path: Path) -> list[LandmarkReport]:
    benchmark = files.read_retrieval(folder, None)
    known = [test for task in benchmark.tasks for test in task.ids]
    predictions = files.read_retrieval_predictions(path, [*known, *files.ignored(folder, "retrieval_solution")])
    return [submission_report(task, predictions) for task in benchmark.tasks]


def _recognition(
    folder: Path, tests: Features, train: Features, neighbours: int, notes: list[str]
) -> list[LandmarkReport]:
    labels: Mapping[str, int] = files.read_train_labels(folder)
    if unlabelled := [key for key in train.rows if key not in labels]:
        raise EvaluationError(
            f"{train.path}: {len(unlabelled):,} of {len(train.rows):,} images have no label in {folder}: "
            f"{some(unlabelled)}; leave them out, or use train.csv instead of train_clean.csv"
        )
    notes.append(_votes(neighbours, len(train.rows)))
    ranker = FeatureRanker(tests, None, make_composer("image"), train)
    made = []
    for part in files.read_recognition(folder):
        task = files.recognition_task(part, list(train.rows), neighbours)
        ranker.check(task)
        made.append(recognition_report(part, predictions_from(ranker.top(task, neighbours), labels)))
    return made


def _recognition_submission(folder: Path, path: Path) -> list[LandmarkReport]:
    parts = files.read_recognition(folder)
    known = [test for part in parts for test in part.ids]
    answers = files.read_recognition_predictions(path, [*known, *files.ignored(folder, "recognition_solution")])
    return [recognition_report(part, [answers.get(test) for test in part.ids]) for part in parts]
