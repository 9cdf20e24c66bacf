"""What `likewise train` prints: what was mined, what was measured, and how to serve it."""

from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

from likewise.export.evaluate import Interval
from likewise.export.training.measure import METHODS, Report
from likewise.export.training.survey import Survey

if TYPE_CHECKING:  # torch comes with it
    from likewise.export.training.register import Registered

PIPE_WIDTH: Final = 120
_EXAMPLES: Final = 2


def print_survey(surveyed: Survey, console: Console) -> None:
    """Counts, attributes and examples of what was mined."""
    counts = surveyed.to_json()
    split = counts["split"]
    console.print(
        f"{counts['images']:,} captioned images: {split['training']:,} to learn from, "
        f"{split['validation']:,} to stop by, {split['test']:,} to measure on",
        highlight=False,
    )
    if counts["unread captions"]:
        console.print(f"{counts['unread captions']:,} captions could not be read", style="yellow", highlight=False)
    for slot in counts["attributes"]:
        shown = ", ".join(slot["values"][:8]) + (", ..." if len(slot["values"]) > 8 else "")
        console.print(f"  {slot['name'] or '(no name)'}: {shown}", highlight=False)
    table = Table(header_style="bold")
    for column in ("condition", "triplets", "validation templates", "test templates"):
        table.add_column(column, justify="left" if column == "condition" else "right")
    for kind, number in counts["triplets"].items():
        held = [counts["templates"][part].get(kind, 0) for part in ("validation", "test")]
        table.add_row(kind.replace("_", " "), f"{number:,}", *(f"{count:,}" for count in held))
    console.print(table)
    examples = Table(header_style="bold", title="Examples", title_justify="left")
    for column in ("reference", "condition", "target", "wrong"):
        examples.add_column(column, overflow="fold")
    for row in surveyed.examples(_EXAMPLES):
        examples.add_row(row["reference"], f"[bold]{row['condition']}[/bold]", row["target"], row["wrong"])
    console.print(examples)


def print_outcome(report: Report, registered: "Registered", setup: str, console: Console) -> None:
    """Recall with intervals on the test templates, and how to serve what was registered."""
    table = Table(
        title="Held-out templates, recall in percent with 95 % intervals", title_justify="left", header_style="bold"
    )
    for column in ("task", "method", "R@1", "R@2", "R@3", "set up"):
        table.add_column(column, justify="right" if column.startswith("R@") else "left", overflow="fold")
    for task in report.tasks:
        label = f"{task.task.replace('_', ' ')} (1 of {task.candidates}, n = {task.templates})"
        for method in METHODS:
            recall = task.methods[method]
            figures = (interval_text(recall.at[k]) for k in (1, 2, 3))
            table.add_row(label, method, *figures, recall.setup, style="green" if method == "composer" else None)
            label = ""
        table.add_section()
    for method, value in report.mean.items():
        style = "bold green" if method == "composer" else "bold"
        table.add_row("mean" if method == METHODS[0] else "", method, interval_text(value), "", "", "", style=style)
    console.print(table)
    for baseline, margin in report.margin.items():
        console.print(f"composer over {baseline}: {interval_text(margin)} points", highlight=False)
    one, which = report.one_weight
    console.print(
        f"image + text under one weight for all tasks ({which}): {interval_text(one)}. The weight of image + text is "
        "chosen per task on these very templates, which favours it.",
        style="dim",
        highlight=False,
    )
    console.print(f"\ncomposer: {setup}", highlight=False)
    written = ", ".join(f"{name} version {number}" for name, number in registered.versions.items())
    family = next(iter(registered.versions)).rsplit("-", 1)[0]
    console.print(f"registered in {registered.path}: {written}", highlight=False, soft_wrap=True)
    console.print(
        f"\nserve it:\n  likewise serve --models {registered.path}\n"
        f"  likewise gallery create pictures --encoder {family}\n"
        "  likewise ingest pictures FOLDER\n"
        '  likewise search pictures --image QUERY.jpg --condition "but in red" --mode change',
        highlight=False,
        soft_wrap=True,
    )


def interval_text(value: Interval) -> str:
    """A value with its interval: "45.2 [41.0, 49.5]"."""
    return f"{value.value:.1f} [{value.low:.1f}, {value.high:.1f}]"
