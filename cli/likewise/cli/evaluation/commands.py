"""The commands for composed retrieval: genecis, cirr, fashioniq, circo and templates."""

import sys
from pathlib import Path
from typing import Annotated, Any, Final, get_args

import typer

from likewise.cli.evaluation import options
from likewise.cli.evaluation.tables import show
from likewise.cli.evaluation.ways import Way, choose_way, mode_of, progress_bar, refusals
from likewise.export.evaluation import circo as circo_files
from likewise.export.evaluation import cirr as cirr_files
from likewise.export.evaluation import fashioniq as fashioniq_files
from likewise.export.evaluation import genecis as genecis_files
from likewise.export.evaluation import reports
from likewise.export.evaluation.problems import EvaluationError
from likewise.export.evaluation.submissions import write_submissions
from likewise.export.evaluation.task import Benchmark
from likewise.export.evaluation.templates import CUTOFFS, read_templates

_HALVES: Final = {
    "all": genecis_files.TASKS,
    "object": genecis_files.OBJECT_TASKS,
    "attribute": genecis_files.ATTRIBUTE_TASKS,
}


def genecis(
    annotations: options.Annotations,
    image_features: options.ImageFeatures = None,
    text_features: options.TextFeatures = None,
    composer: options.Composers = None,
    repository: options.Repository = None,
    server: options.Server = None,
    images: options.Images = None,
    gallery: options.KeptGallery = None,
    encoder: options.Encoder = None,
    tasks: Annotated[
        str, typer.Option(help="all, object (COCO alone), attribute, or task names with commas between.")
    ] = "all",
    mode: Annotated[
        str,
        typer.Option(
            help="none: conditions raw, as the protocol has it. task: with each task's mode, focus or change."
        ),
    ] = "none",
    as_json: options.AsJson = False,
) -> None:
    """GeneCIS: keep or change an attribute or an object, R@1/2/3 in galleries of 10 to 15.

    Image keys are COCO ids; of crops "id:x,y,w,h" with the Visual Genome id and the annotated box.
    """
    if mode not in ("none", "task"):
        raise typer.BadParameter(f"--mode must be none or task, got {mode!r}")
    names = _HALVES.get(tasks, tuple(tasks.split(",")))
    with refusals():
        benchmark = genecis_files.read_genecis(annotations, tasks=names, modes=mode == "task")
        way = _way(image_features, text_features, composer, repository, server, images, gallery, encoder)
        _run(benchmark, way, as_json=as_json)


def cirr(
    annotations: options.Annotations,
    image_features: options.ImageFeatures = None,
    text_features: options.TextFeatures = None,
    composer: options.Composers = None,
    repository: options.Repository = None,
    server: options.Server = None,
    images: options.Images = None,
    gallery: options.KeptGallery = None,
    encoder: options.Encoder = None,
    split: Annotated[str, typer.Option(help="val, or test1, whose labels are hidden.")] = "val",
    mode: options.Modes = "none",
    submission: options.Submission = None,
    as_json: options.AsJson = False,
) -> None:
    """CIRR rc2: R@1/5/10/50 over the split's images and R_subset@1/2/3 over five, both without the reference.

    Image keys are the names of the split file. For test1 give --submission: the server of the benchmark has the labels.
    """
    chosen = _one_of(split, get_args(cirr_files.Split), "--split")
    with refusals():
        benchmark = cirr_files.read_cirr(annotations, split=chosen, mode=mode_of(mode))
        way = _way(image_features, text_features, composer, repository, server, images, gallery, encoder)
        _run(benchmark, way, as_json=as_json, submission=submission)


def fashioniq(
    annotations: options.Annotations,
    image_features: options.ImageFeatures = None,
    text_features: options.TextFeatures = None,
    composer: options.Composers = None,
    repository: options.Repository = None,
    server: options.Server = None,
    images: options.Images = None,
    gallery: options.KeptGallery = None,
    encoder: options.Encoder = None,
    split: Annotated[str, typer.Option(help="val, or test, whose labels are hidden.")] = "val",
    pool: Annotated[
        str, typer.Option(help="Candidates: original (all of the category's split) or val (those the captions name).")
    ] = "original",
    captions: Annotated[
        str, typer.Option(help='joined: "a and b". both-orders: the mean of that and "b and a".')
    ] = "joined",
    categories: Annotated[str, typer.Option(help="Names with commas between.")] = "dress,shirt,toptee",
    mode: options.Modes = "none",
    submission: options.Submission = None,
    as_json: options.AsJson = False,
) -> None:
    """FashionIQ: R@10 and R@50 of each category and their mean; the reference stays a candidate."""
    chosen = _one_of(split, get_args(fashioniq_files.Split), "--split")
    candidates = _one_of(pool, get_args(fashioniq_files.Pool), "--pool")
    texts = _one_of(captions, get_args(fashioniq_files.Captions), "--captions")
    with refusals():
        benchmark = fashioniq_files.read_fashioniq(
            annotations,
            split=chosen,
            pool=candidates,
            captions=texts,
            categories=categories.split(","),
            mode=mode_of(mode),
        )
        way = _way(image_features, text_features, composer, repository, server, images, gallery, encoder)
        _run(benchmark, way, as_json=as_json, submission=submission)


def circo(
    annotations: options.Annotations,
    image_features: options.ImageFeatures = None,
    text_features: options.TextFeatures = None,
    composer: options.Composers = None,
    repository: options.Repository = None,
    server: options.Server = None,
    images: options.Images = None,
    gallery: options.KeptGallery = None,
    encoder: options.Encoder = None,
    split: Annotated[str, typer.Option(help="val, or test, whose labels are hidden.")] = "val",
    mode: options.Modes = "none",
    submission: options.Submission = None,
    as_json: options.AsJson = False,
) -> None:
    """CIRCO: mAP@5/10/25/50 over several right images, R@K on the one target; the reference stays a candidate.

    Image keys are ids of COCO's unlabelled images. The gallery is COCO's own list where it lies beside the annotations,
    else every image that is given.
    """
    chosen = _one_of(split, get_args(circo_files.Split), "--split")
    with refusals():
        if not annotations.is_dir():
            raise EvaluationError(f"no folder {annotations}: give --annotations the folder of val.json and test.json")
        way = _way(image_features, text_features, composer, repository, server, images, gallery, encoder)
        benchmark = circo_files.read_circo(annotations, split=chosen, gallery=way.gallery_keys(), mode=mode_of(mode))
        _run(benchmark, way, as_json=as_json, submission=submission)


def templates(
    annotations: Annotated[Path, typer.Option(help="File of templates: .json or .parquet.", show_default=False)],
    image_features: options.ImageFeatures = None,
    text_features: options.TextFeatures = None,
    composer: options.Composers = None,
    repository: options.Repository = None,
    server: options.Server = None,
    images: options.Images = None,
    gallery: options.KeptGallery = None,
    encoder: options.Encoder = None,
    cutoffs: Annotated[str, typer.Option(help="Places looked at, ascending, with commas between.")] = ",".join(
        map(str, CUTOFFS)
    ),
    keep_reference: Annotated[
        bool, typer.Option("--keep-reference", help="Leave a template's reference among its candidates.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Your own data: templates of reference, condition, mode, gallery and target; see docs/evaluation.md."""
    places = _cutoffs(cutoffs)
    with refusals():
        if not annotations.is_file():
            raise EvaluationError(f"no file {annotations}: give --annotations the templates, as .json or .parquet")
        way = _way(image_features, text_features, composer, repository, server, images, gallery, encoder)
        keys = way.gallery_keys() if server is None else None
        benchmark = read_templates(annotations, cutoffs=places, keep_reference=keep_reference, gallery=keys)
        _run(benchmark, way, as_json=as_json)


def _way(
    image_features: Path | None,
    text_features: Path | None,
    composers: list[str] | None,
    repository: Path | None,
    server: str | None,
    images: list[Path] | None,
    gallery: str | None,
    encoder: str | None,
) -> Way:
    return choose_way(
        image_features=image_features,
        text_features=text_features,
        composers=composers,
        repository=repository,
        server=server,
        images=images,
        gallery=gallery,
        encoder=encoder,
    )


def _run(benchmark: Benchmark, way: Way, *, as_json: bool, submission: Path | None = None) -> None:
    hidden = any(task.targets is None for task in benchmark.tasks)
    if hidden and submission is None:
        raise typer.BadParameter(
            f"the labels of this split of {benchmark.name} are hidden: give --submission a folder for the files that "
            "its evaluation server takes"
        )
    with progress_bar() as progress, way.rankers(benchmark, progress) as rankers:
        if submission is not None:
            if len(rankers) > 1:
                raise typer.BadParameter("a submission is of one --composer")
            for path in write_submissions(benchmark, rankers[0], submission):
                sys.stderr.write(f"wrote {path}\n")
        report = None if hidden else reports.run(benchmark, rankers, progress=progress)
    if report is not None:
        show(report, as_json=as_json)


def _one_of(value: str, known: tuple[Any, ...], option: str) -> Any:
    if value not in known:
        raise typer.BadParameter(f"{option} must be {' or '.join(known)}, got {value!r}")
    return value


def _cutoffs(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    numbers = [int(part) for part in parts if part.strip().isdecimal()]
    if len(numbers) != len(parts) or sorted(set(numbers)) != numbers or numbers[0] < 1:
        raise typer.BadParameter(f"--cutoffs must be ascending numbers from 1, as in 1,5,10; got {text!r}")
    return tuple(numbers)
