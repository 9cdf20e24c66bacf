"""The contact sheet as one picture, drawn with Pillow alone: for a README, a chat, or a machine without a browser."""

import io
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from likewise.cli.sheet import Sheet, SheetHit, SheetRow

_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

# Everything in pixels of the finished picture, which is meant to be shown at half its size.
_WIDTH: Final = 1_760
_MARGIN: Final = 56
_PADDING: Final = 26
_ASK: Final = 452
_REFERENCE: Final = 164
_GAP: Final = 18
_CAPTION_LINES: Final = 3
_ROW_GAP: Final = 20
_PAGE: Final = "#f6f6f4"
_CARD: Final = "#ffffff"
_INK: Final = "#1b1b1a"
_SOFT: Final = "#6d6d68"
_LINE: Final = "#e2e2dd"
_GOOD: Final = "#15803d"
_TAG: Final = "#eef0f4"


def draw(sheet: Sheet) -> Image.Image:
    """The sheet as an RGB image; its height follows from the number of rows."""
    columns = max((len(row.hits) for row in sheet.rows), default=1) or 1
    inside = _WIDTH - 2 * _MARGIN - 2 * _PADDING - _ASK
    side = min(220, (inside - _GAP * (columns - 1)) // columns)
    row_height = 2 * _PADDING + max(side + 36 + _CAPTION_LINES * 21, 250)
    head = 176
    height = head + len(sheet.rows) * (row_height + _ROW_GAP) + 62
    canvas = Image.new("RGB", (_WIDTH, height), _PAGE)
    pen = ImageDraw.Draw(canvas)
    pen.text((_MARGIN, 44), sheet.title, fill=_INK, font=_font(44))
    pen.text((_MARGIN, 104), sheet.subtitle, fill=_SOFT, font=_font(22))
    pen.rounded_rectangle((_MARGIN, 139, _MARGIN + 18, 157), 4, outline=_GOOD, width=3)
    pen.text((_MARGIN + 28, 136), sheet.legend, fill=_SOFT, font=_font(20))
    top = head
    for row in sheet.rows:
        _draw_row(canvas, pen, row, top, row_height, side)
        top += row_height + _ROW_GAP
    pen.text((_MARGIN, top + 6), sheet.footer, fill=_SOFT, font=_font(19))
    return canvas


def _draw_row(canvas: Image.Image, pen: ImageDraw.ImageDraw, row: SheetRow, top: int, height: int, side: int) -> None:
    pen.rounded_rectangle((_MARGIN, top, _WIDTH - _MARGIN, top + height), 20, fill=_CARD, outline=_LINE, width=2)
    x, y = _MARGIN + _PADDING, top + _PADDING
    if row.reference:
        _paste(canvas, row.reference, x, y, _REFERENCE)
    else:
        pen.rounded_rectangle((x, y, x + _REFERENCE, y + _REFERENCE), 12, outline=_LINE, width=2)
        pen.text((x + _REFERENCE / 2, y + _REFERENCE / 2), "words only", fill=_SOFT, font=_font(20), anchor="mm")
    x += _REFERENCE + 20
    width = _ASK - _REFERENCE - 44
    for line in _wrap(row.title, _font(27), width, 4):
        pen.text((x, y), line, fill=_INK, font=_font(27))
        y += 34
    y += 4
    for text in row.detail:
        if text:
            y = _tag(pen, x, y, text)
    some_right = any(hit.right for hit in row.hits)
    for line in _wrap(row.verdict, _font(19), width, 3):
        pen.text((x, y), line, fill=_GOOD if some_right else _SOFT, font=_font(19))
        y += 25
    y += 4
    for line in _wrap(row.facts, _font(16), width, 4):
        pen.text((x, y), line, fill=_SOFT, font=_font(16))
        y += 21
    for i, hit in enumerate(row.hits):
        _draw_hit(canvas, pen, hit, _MARGIN + _PADDING + _ASK + i * (side + _GAP), top + _PADDING, side)


def _draw_hit(canvas: Image.Image, pen: ImageDraw.ImageDraw, hit: SheetHit, x: int, y: int, side: int) -> None:
    _paste(canvas, hit.picture, x, y, side)
    if hit.right:
        pen.rounded_rectangle((x - 4, y - 4, x + side + 3, y + side + 3), 14, outline=_GOOD, width=5)
        _check(pen, x + side - 22, y + side + 20)
    pen.text((x, y + side + 9), f"{hit.score:.3f}", fill=_INK if hit.right else _SOFT, font=_font(19))
    for i, line in enumerate(_wrap(hit.caption, _font(16), side, _CAPTION_LINES)):
        pen.text((x, y + side + 36 + 21 * i), line, fill=_SOFT, font=_font(16))


def _paste(canvas: Image.Image, picture: bytes, x: int, y: int, side: int) -> None:
    with Image.open(io.BytesIO(picture)) as opened:
        thumbnail = opened.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    mask = Image.new("L", (side * 2, side * 2), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side * 2 - 1, side * 2 - 1), 24, fill=255)
    canvas.paste(thumbnail, (x, y), mask.resize((side, side), Image.Resampling.LANCZOS))
    ImageDraw.Draw(canvas).rounded_rectangle((x, y, x + side - 1, y + side - 1), 12, outline=_LINE, width=2)


def _tag(pen: ImageDraw.ImageDraw, x: int, y: int, text: str) -> int:
    font = _font(17)
    pen.rounded_rectangle((x, y, x + font.getlength(text) + 20, y + 28), 8, fill=_TAG)
    pen.text((x + 10, y + 4), text, fill=_INK, font=font)
    return y + 35


def _check(pen: ImageDraw.ImageDraw, x: float, y: float) -> None:
    # The default font has no check mark, so it is drawn.
    pen.line((x, y, x + 7, y + 7, x + 20, y - 8), fill=_GOOD, width=5, joint="curve")


def _wrap(text: str, font: _Font, width: float, lines: int) -> list[str]:
    """At most `lines` lines no wider than `width`; what does not fit ends in "...". A word is never broken."""
    made: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            made.append(line)
            line = word
        else:
            line = longer
    if line:
        made.append(line)
    return made if len(made) <= lines else [*made[: lines - 1], f"{made[lines - 1]} ..."]


def _font(size: int) -> _Font:
    return ImageFont.load_default(size=size)
