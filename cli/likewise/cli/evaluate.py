"""`likewise eval`: how well conditions are understood, on held-out pictures of the built-in world and in the field."""

import json
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from likewise.cli.evaluation import commands, landmarks
from likewise.export.evaluate import Interval
from likewise.export.manifest import ManifestError
from likewise.export.shapes import benchmark
from likewise.export.shapes.benchmark import Part, Report
from likewise.export.shapes.templates import DESIGNS, SPLITS

app = typer.Typer(add_completion=False)

_PIPE_WIDTH: Final = 120
_DESIGN_MEANS: Final = {
    "strict": "every wrong candidate breaks the condition or the rest in one thing only",
    "soft": "wrong candidates share each attribute by chance",
}


@app.callback()
def evaluate() -> None:
    """Measure models on benchmarks of conditional similarity."""


for _command in (
    commands.genecis,
    commands.cirr,
    commands.fashioniq,
    commands.circo,
    landmarks.gldv2,
    commands.templates,
):
    app.command()(_command)


@app.command()
def shapes(
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as one JSON object.")] = False,
    templates: Annotated[int, typer.Option(min=10, max=20_000, help="Templates of each task in each part.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other templates.")] = 0,
    design: Annotated[
        list[str] | None, typer.Option(help=f"Gallery designs: {', '.join(DESIGNS)}; all by default.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help=f"Splits: {', '.join(SPLITS)}; held-out and seen by default.")
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Model repository; the built-in one by default.")
    ] = None,
) -> None:
    """Four tasks (keep or change an attribute or an object) in galleries of 10 to 15, by the GeneCIS protocol.

    Prints recall at 1, 2 and 3 in percent of the composer and of three baselines, with 95 % intervals, chance beside
    them.
    """
    designs, splits = design or list(DESIGNS), split or ["held-out", "seen"]
    for name, given, known in (("--design", designs, DESIGNS), ("--split", splits, tuple(SPLITS))):
        if wrong := [value for value in given if value not in known]:
            raise typer.BadParameter(f"{name} must be one of {', '.join(known)}, got {wrong[0]!r}")
    progress_console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=progress_console, transient=True) as bar:
            task = bar.add_task("starting", total=1.0)
            report = benchmark.run(
                repository,
                templates_per_task=templates,
                seed=seed,
                designs=designs,
                splits=splits,
                progress=lambda text, share: bar.update(task, description=text, completed=share),
            )
    except ManifestError as error:
        progress_console.print(f"[red]The model cannot be used:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        # A pipe or a file has no width of its own; the tables are at their best in this one.
        print_report(report, Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH))


def print_report(report: Report, console: Console) -> None:
    """The report as tables, one for each split and gallery design."""
    for part in report.parts:
        console.print(part_table(part, report.templates_per_task))
        console.print(
            f"Mean R@1: composer {_interval(part.mean['composer'])}, "
            f"image + text {_interval(part.mean['image + text'])}; margin {_interval(part.margin)} points.\n",
            highlight=False,
        )
    console.print(
        "Intervals are 95 %, by bootstrap over templates. Ties count against a method. The weight of image + text is "
        "tuned for each task on these very templates, which favours it.",
        style="dim",
    )


def part_table(part: Part, templates: int) -> Table:
    """One row for each task and method: R@1 with its interval, R@2, R@3, chance in the task's heading."""
    made = Table(
        title=f"{part.split} pairs, {part.design} galleries ({_DESIGN_MEANS.get(part.design, part.design)}); "
        f"{templates} templates a task",
        title_justify="left",
        title_style="bold",
        header_style="bold",
    )
    made.add_column("task", overflow="fold")
    made.add_column("method", no_wrap=True)
    for name in ("R@1", "R@2", "R@3"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("set up", style="dim", overflow="fold")
    for task in part.tasks:
        chance = [f"{task.chance[k]:.1f}" for k in (1, 2, 3)]
        label = f"{task.task.replace('_', ' ')} ({task.candidates})"
        made.add_row(label, "[dim]chance[/dim]", *(f"[dim]{value}[/dim]" for value in chance), "")
        for method, recall in task.methods.items():
            style = "bold green" if method == "composer" else None
            made.add_row(
                "",
                method,
                _interval(recall.at[1]),
                *(f"{recall.at[k].value:.1f}" for k in (2, 3)),
                recall.setup,
                style=style,
            )
        made.add_section()
    return made


def _interval(value: Interval) -> str:
    return f"{value.value:.1f} [{value.low:.1f}, {value.high:.1f}]"
