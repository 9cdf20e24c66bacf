"""`likewise train`: from captioned images of one's own to a served composer."""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from likewise.cli.train_report import PIPE_WIDTH, print_outcome, print_survey
from likewise.export.manifest import ManifestError
from likewise.export.training.parser import RuleParser
from likewise.export.training.plans import ENCODERS, METHODS, CombinerPlan, EncoderPlan, Options
from likewise.export.training.progress import Progress as OnProgress
from likewise.export.training.progress import TrainingError
from likewise.export.training.source import Listing, Problem, SourceError, read_source, refuse_above
from likewise.export.training.survey import Survey, SurveyOptions, survey

app = typer.Typer(add_completion=False)

FAILED: Final = 1
_SHOWN: Final = 10


@app.command()
def train(
    source: Annotated[
        Path, typer.Argument(help="Folder of images with captions, or a .csv, .jsonl or .parquet table of them.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="Model repository to publish into; made if there is none.")] = Path(
        "models"
    ),
    name: Annotated[str, typer.Option(help="Name of the new family, which a gallery names as its encoder.")] = "mine",
    method: Annotated[str, typer.Option(help=f"What composes: {', '.join(METHODS)}.")] = "combiner",
    encoders: Annotated[
        str,
        typer.Option(help="frozen: any family as it is; fine-tune: go on training it; train: small fresh ones."),
    ] = "frozen",
    base: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Model repository of --family; built in by default."),
    ] = None,
    family: Annotated[str, typer.Option(help="Family whose encoders are used or fine-tuned.")] = "shapes",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what was mined, and stop.")] = False,
    work: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints and features; <out>-training/<name> by default.")
    ] = None,
    path_column: Annotated[str, typer.Option(help="Column of image paths in a table, relative to it.")] = "path",
    caption_column: Annotated[str, typer.Option(help="Column of captions in a table.")] = "caption",
    attribute: Annotated[
        list[str] | None, typer.Option(help="Words of one attribute, as colour=teal,lime. May be repeated.")
    ] = None,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Share of rows that may be unusable.")] = 0.05,
    min_triplets: Annotated[int, typer.Option(min=1, help="Fewer mined triplets are refused.")] = 200,
    held_out: Annotated[
        float, typer.Option(min=0.02, max=0.8, help="Share of images for validation and test, half each.")
    ] = 0.2,
    encoder_steps: Annotated[int, typer.Option(min=1, help="Steps of encoder training, at most.")] = 2000,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the Combiner's training, at most.")] = 3000,
    batch: Annotated[int, typer.Option(min=8, help="Images per step of encoder training.")] = 96,
    patience: Annotated[
        int, typer.Option(min=1, help="Looks at held-out templates without progress until the end.")
    ] = 8,
    views: Annotated[
        int, typer.Option(min=1, max=16, help="Slightly changed versions of each image to learn from.")
    ] = 1,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 uses every core.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Another seed: another split, other draws.")] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was mined and measured as one JSON object.")
    ] = False,
) -> None:
    """Mine triplets from captions, train a composer on them, measure it on held-out images, and register it.

    Takes a folder whose images have a .txt of the same name beside them, or a table with a path and a caption column.
    Shows what was mined first; --dry-run stops there. A stopped run goes on where it was when it is started again.
    """
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, quiet=as_json)
    _check("--method", method, METHODS)
    _check("--encoders", encoders, ENCODERS)
    names = _attributes(attribute or [])
    try:
        listing = read_source(source, path_column=path_column, caption_column=caption_column)
        _report_problems(listing.problems)
        refuse_above(listing.problems, len(listing.items) + len(listing.problems), max_bad)
        with _bar() as progress:
            how = SurveyOptions(held_out=held_out, seed=seed, names=names)
            surveyed = survey(listing.items, RuleParser(), how, progress=progress)
        print_survey(surveyed, console)
        surveyed.refuse_if_poor(min_triplets)
        if dry_run:
            if as_json:
                print(json.dumps({"survey": surveyed.to_json(), "examples": surveyed.examples(2)}, indent=2))
            return
        options = Options(
            out=out,
            name=name,
            work=work or out.parent / f"{out.name}-training" / name,
            method=METHODS[METHODS.index(method)],
            encoders=ENCODERS[ENCODERS.index(encoders)],
            base=base,
            family=family,
            views=views,
            threads=threads,
            encoder_plan=EncoderPlan(steps=encoder_steps, batch=batch, patience=patience, seed=seed),
            combiner_plan=CombinerPlan(steps=steps, patience=patience, seed=seed),
        )
        _train(listing, surveyed, options, console, max_bad=max_bad, as_json=as_json)
    except (SourceError, TrainingError, ManifestError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("stopped; the same command goes on from the last checkpoint")


def _train(
    listing: Listing, surveyed: Survey, options: Options, console: Console, *, max_bad: float, as_json: bool
) -> None:
    try:
        # torch, onnxruntime and their kin only where something is trained.
        from likewise.export.training.pipeline import train as run
    except ImportError as error:
        _fail(f"training needs the extra `export` (pip install 'likewise[cpu,export]'): {error}")
    from likewise.server.images import ImageLimits, decode

    def refuse(problems: tuple[Problem, ...]) -> None:
        _report_problems(problems)
        everything = (*listing.problems, *problems)
        refuse_above(everything, len(listing.items) + len(listing.problems), max_bad)

    for exporter in ("onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(exporter).setLevel(logging.ERROR)  # they tell every rewritten node
    limits = ImageLimits()
    with _bar() as progress:
        outcome = run(
            surveyed, options, decoder=lambda data: decode(data, limits), on_problems=refuse, progress=progress
        )
    if as_json:
        print(json.dumps({"survey": surveyed.to_json(), **outcome.to_json()}, indent=2))
    print_outcome(outcome.report, outcome.registered, outcome.setup, console)
    if outcome.unknown_words:
        shown = ", ".join(outcome.unknown_words[:_SHOWN])
        more = f" and {len(outcome.unknown_words) - _SHOWN} more" if len(outcome.unknown_words) > _SHOWN else ""
        _say(
            f"the text encoder does not know {len(outcome.unknown_words)} words of the captions: {shown}{more}; "
            "--encoders fine-tune learns them"
        )


def _attributes(given: Sequence[str]) -> dict[str, frozenset[str]]:
    names: dict[str, frozenset[str]] = {}
    for text in given:
        name, equals, words = text.partition("=")
        values = frozenset(word.strip().lower() for word in words.split(",") if word.strip())
        if not (name.strip() and equals and values):
            raise typer.BadParameter(f"--attribute must look like colour=teal,lime, got {text!r}")
        names[name.strip().lower()] = names.get(name.strip().lower(), frozenset()) | values
    return names


def _check(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise typer.BadParameter(f"{option} must be one of {', '.join(known)}, got {value!r}")


@contextmanager
def _bar() -> Iterator[OnProgress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0, note="")
        yield lambda stage, share, note: bar.update(task, description=stage, completed=share, note=note)


def _report_problems(problems: Sequence[Problem]) -> None:
    for problem in problems[:_SHOWN]:
        _say(str(problem))
    if len(problems) > _SHOWN:
        _say(f"and {len(problems) - _SHOWN} more rows that cannot be used")


def _say(text: str) -> None:
    print(f"likewise train: {text}", file=sys.stderr, flush=True)


def _fail(text: str) -> NoReturn:
    _say(text)
    raise typer.Exit(FAILED)
