"""A contact sheet of searches, what was asked and what came, as one HTML file that needs nothing else."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class SheetHit:
    """One answer: `picture` is a PNG file's bytes, `right` None where nobody knows whether it is."""

    picture: bytes
    caption: str
    score: float
    right: bool | None = None


@dataclass(frozen=True, slots=True)
class SheetRow:
    """One search.

    Attributes:
        title: The condition, or what stands in its place.
        detail: Further lines below the title (mode, filter), empty ones are left out.
        reference: PNG bytes of the picture asked with; None for a search by words alone.
        hits: Answers, best first.
        verdict: How many are right, in words; "" for none.
        facts: Small print: time, coverage, plan.
    """

    title: str
    detail: Sequence[str]
    reference: bytes | None
    hits: Sequence[SheetHit]
    verdict: str
    facts: str


@dataclass(frozen=True, slots=True)
class Sheet:
    """The whole page; `legend` says what a mark means."""

    title: str
    subtitle: str
    rows: Sequence[SheetRow]
    legend: str
    footer: str


_STYLE: Final = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #ffffff; --ink: #1b1b1a; --soft: #6d6d68; --line: #e2e2dd;
  --good: #15803d; --good-pale: #dcfce7; --tag: #eef0f4; }
@media (prefers-color-scheme: dark) { :root { --page: #161615; --card: #21211f; --ink: #efefec; --soft: #a1a19b;
  --line: #363633; --good: #4ade80; --good-pale: #14351f; --tag: #2d2f35; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.45 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 40px 24px 32px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.01em; margin: 0 0 6px; }
header p, footer { color: var(--soft); margin: 0; max-width: 76ch; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; border: 2px solid var(--good);
  margin-right: 6px; }
section { display: grid; grid-template-columns: 232px 1fr; gap: 22px; margin-top: 18px; padding: 18px;
  background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
.ask { display: flex; flex-direction: column; gap: 4px; min-width: 0; }
.ask img, .words { width: 104px; height: 104px; border-radius: 9px; margin-bottom: 6px; }
.words { display: grid; place-items: center; border: 1px dashed var(--line); color: var(--soft); font-size: 13px; }
h2 { font-size: 17px; line-height: 1.3; margin: 0; }
.tag { align-self: flex-start; background: var(--tag); border-radius: 6px; padding: 1px 8px; font-size: 12.5px; }
.verdict { color: var(--good); font-weight: 600; font-size: 13.5px; margin-top: 4px; }
.facts { color: var(--soft); font-size: 12px; overflow-wrap: anywhere; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(134px, 1fr)); }
li img { width: 100%; aspect-ratio: 1; display: block; border-radius: 9px; outline: 1px solid var(--line);
  outline-offset: -1px; }
li.right img { outline: 3px solid var(--good); outline-offset: 1px; }
.score { display: flex; justify-content: space-between; margin-top: 8px; font-size: 12.5px;
  font-variant-numeric: tabular-nums; color: var(--soft); }
.score b { color: var(--good); background: var(--good-pale); border-radius: 5px; padding: 0 6px; font-weight: 600; }
.caption { color: var(--soft); font-size: 12px; line-height: 1.35; }
footer { margin-top: 22px; font-size: 13px; }
@media (max-width: 720px) { section { grid-template-columns: 1fr; } main { padding: 24px 14px; } }
"""


def to_html(sheet: Sheet) -> str:
    """One page: styles inside, pictures as data, no scripts, nothing fetched; it follows light and dark themes."""
    rows = "\n".join(_row(row) for row in sheet.rows)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(sheet.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{html.escape(sheet.title)}</h1>
<p>{html.escape(sheet.subtitle)}</p>
<p><span class="key"></span>{html.escape(sheet.legend)}</p>
</header>
{rows}
<footer>{html.escape(sheet.footer)}</footer>
</main>
</body>
</html>
"""


def _row(row: SheetRow) -> str:
    picture = (
        f'<img src="{_data(row.reference)}" alt="the picture asked with" width="104" height="104">'
        if row.reference
        else '<div class="words">words only</div>'
    )
    tags = "".join(f'<span class="tag">{html.escape(text)}</span>' for text in row.detail if text)
    colour = "verdict" if any(hit.right for hit in row.hits) else "facts"
    verdict = f'<div class="{colour}">{html.escape(row.verdict)}</div>' if row.verdict else ""
    facts = f'<div class="facts">{html.escape(row.facts)}</div>'
    return f"""<section>
<div class="ask">{picture}<h2>{html.escape(row.title)}</h2>{tags}{verdict}{facts}</div>
<ol>{"".join(_hit(hit) for hit in row.hits)}</ol>
</section>"""


def _hit(hit: SheetHit) -> str:
    caption = html.escape(hit.caption)
    mark = "<b>✓ right</b>" if hit.right else ""
    return (
        f'<li{" class=right" if hit.right else ""}><img src="{_data(hit.picture)}" alt="{caption}" loading="lazy">'
        f'<div class="score"><span>{hit.score:.3f}</span>{mark}</div><div class="caption">{caption}</div></li>'
    )


def _data(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"
