"""The demo's answers, for people on a terminal, for programs, and for the contact sheet."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from likewise.cli.demo_gallery import Item
from likewise.cli.demo_queries import Query
from likewise.cli.sheet import Sheet, SheetHit, SheetRow
from likewise.client.hits import Hits
from likewise.export.shapes.world import Scene, render

_REFERENCE_PIXELS = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """A query and what came.

    Attributes:
        query: What was asked.
        items: The hits, best first.
        hits: The same as the server sent them.
        elapsed_ms: From the call to the answer, seen by the client.
        possible: How many of the hits could be right: the right answers the gallery holds, at most as many as asked
            for.
    """

    query: Query
    items: Sequence[Item]
    hits: Hits
    elapsed_ms: float
    possible: int

    @property
    def right(self) -> int:
        """How many hits are right."""
        return sum(self.query.right(item) for item in self.items)


def table(answers: Sequence[Answer]) -> Table:
    """One row a query: what was asked, what came first, how many are right, what it cost and how it was found."""
    made = Table(header_style="bold", show_lines=True, pad_edge=False, expand=False)
    made.add_column("asked", overflow="fold", min_width=15, max_width=24)
    made.add_column("best three", overflow="fold", min_width=26)
    for name in ("right", "ms", "coverage"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("plan", overflow="fold", min_width=10, max_width=16)
    for answer in answers:
        query = answer.query
        best = "\n".join(
            f"[green]✓[/green] {_in_short(item.scene)}"
            if query.right(item)
            else f"[dim]· {_in_short(item.scene)}[/dim]"
            for item in answer.items[:3]
        )
        made.add_row(
            _asked(query),
            best or "[dim]nothing[/dim]",
            f"{answer.right} of {answer.possible}",
            f"{answer.elapsed_ms:.1f}",
            f"{answer.hits.coverage.fraction:.0%}",
            escape(answer.hits.plan.summary),
        )
    return made


def _in_short(scene: Scene) -> str:
    """A caption that fits a table's cell: "large plain blue heart + small red ring, beige"."""
    things = (f"{thing.size} {thing.texture} {thing.colour} {thing.shape}" for thing in scene.things)
    return f"{' + '.join(things)}, {scene.background}"


def _asked(query: Query) -> str:
    start = {"picture": "the picture", "item": "a stored item", "": ""}[query.reference]
    words = {None: "", "focus": " (keep)", "change": " (change)"}[query.mode]
    condition = f'[bold]"{query.condition}"[/bold]{words}' if query.condition else "no condition"
    where = f"[dim]where {query.where_text}[/dim]" if query.where_text else ""
    return "\n".join(part for part in (start, condition, where) if part)


def to_dict(answer: Answer) -> dict[str, Any]:
    """One answer for `--json`."""
    query, hits = answer.query, answer.hits
    return {
        "reference": query.reference or "none",
        "condition": query.condition,
        "mode": query.mode,
        "where": query.where_text or None,
        "hits": [
            {"id": item.id, "score": float(score), "caption": item.caption, "right": query.right(item)}
            for item, score in zip(answer.items, hits.scores.tolist(), strict=True)
        ],
        "right": answer.right,
        "possible": answer.possible,
        "elapsed_ms": round(answer.elapsed_ms, 3),
        "server_ms": hits.timing.total_us / 1e3,
        "coverage": hits.coverage.fraction,
        "plan": hits.plan.summary,
        "composition": hits.plan.composition,
    }


def sheet(answers: Sequence[Answer], *, picture: bytes, stored: Item, items: int, footer: str) -> Sheet:
    """The contact sheet of the answers.

    Args:
        answers: In the order shown.
        picture: PNG bytes of the demo's picture.
        stored: The stored item that some queries start from.
        items: Pictures in the gallery.
        footer: Last line of the page.
    """
    references = {"picture": picture, "item": stored.path.read_bytes(), "": None}
    return Sheet(
        title="One picture, many ways to be like it",
        subtitle=f"Likewise searched {items:,} pictures. On the left what was asked, beside it the best answers.",
        rows=[_row(answer, references[answer.query.reference]) for answer in answers],
        legend="a right answer: what the picture really shows satisfies the condition",
        footer=footer,
    )


def _row(answer: Answer, reference: bytes | None) -> SheetRow:
    query, hits = answer.query, answer.hits
    mode = {None: "", "focus": "focus: keep this", "change": "change this"}[query.mode]
    return SheetRow(
        title=query.condition or "no condition",
        detail=[mode, query.where_text, f"stored {query.reference}" if query.reference == "item" else ""],
        reference=reference,
        hits=[
            SheetHit(item.path.read_bytes(), item.caption, float(score), query.right(item))
            for item, score in zip(answer.items, hits.scores.tolist(), strict=True)
        ],
        verdict=f"{answer.right} of {answer.possible} right: {query.means}",
        facts=f"{answer.elapsed_ms:.1f} ms, coverage {hits.coverage.fraction:.0%}, {hits.plan.summary}",
    )


def photograph(scene: Scene) -> bytes:
    """PNG bytes of a scene: the demo's picture."""
    buffer = io.BytesIO()
    render(scene, _REFERENCE_PIXELS).save(buffer, "PNG")
    return buffer.getvalue()
