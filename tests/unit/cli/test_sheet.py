import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from likewise.cli.sheet import Sheet, SheetHit, SheetRow, to_html
from likewise.cli.sheet_picture import draw


def _png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "PNG")
    return buffer.getvalue()


def _sheet(*, hits: int = 3, rows: int = 2, title: str = "in red") -> Sheet:
    answers = [SheetHit(_png("red"), f"a red star <{i}>", 0.9 - i / 10, right=i % 2 == 0) for i in range(hits)]
    asked = [
        SheetRow(title, ["change", ""], _png("blue") if i % 2 == 0 else None, answers, "2 of 3 right", "1.0 ms")
        for i in range(rows)
    ]
    return Sheet("A title & more", "subtitle", asked, "what a mark means", "the end")


def _pixels(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    """How many pixels have exactly this colour."""
    return int((np.asarray(picture) == colour).all(axis=-1).sum())


class _Page(HTMLParser):
    """What a browser would do with the page: tags in the order closed, everything that is fetched, all text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _parse(html: str) -> _Page:
    page = _Page()
    page.feed(html)
    page.close()
    return page


def test_the_page_fetches_nothing() -> None:
    html = to_html(_sheet())

    page = _parse(html)

    assert re.search(r"https?://|//cdn|@import|url\(", html) is None
    assert {"script", "link", "iframe"}.isdisjoint(page.tags)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)


def test_every_picture_is_inside_the_page_as_it_was() -> None:
    sheet = _sheet(hits=3, rows=2)

    page = _parse(to_html(sheet))

    inlined = [base64.b64decode(source.partition(",")[2]) for source in page.sources]
    assert inlined == [_png("blue"), *[_png("red")] * 3, *[_png("red")] * 3]


def test_every_tag_is_closed_in_order() -> None:
    page = _parse(to_html(_sheet()))

    assert page.open == []


def test_text_is_escaped() -> None:
    page = _parse(to_html(_sheet(title="<script>alert('x')</script>")))

    assert "script" not in page.tags
    assert "<script>alert('x')</script>" in page.text
    assert "A title & more" in page.text


def test_only_right_hits_are_marked() -> None:
    page = _parse(to_html(_sheet(hits=3, rows=1)))

    assert page.text.count("✓ right") == 2


def test_a_search_by_words_says_so_in_place_of_a_picture() -> None:
    assert "words only" in _parse(to_html(_sheet(rows=2))).text


def test_both_colour_schemes_are_given() -> None:
    assert "prefers-color-scheme: dark" in to_html(_sheet())


@pytest.mark.parametrize(("rows", "hits"), [(1, 1), (3, 6), (2, 0), (0, 0)])
def test_the_drawn_sheet_grows_with_its_rows(rows: int, hits: int) -> None:
    picture, taller = draw(_sheet(rows=rows, hits=hits)), draw(_sheet(rows=rows + 1, hits=hits))

    assert picture.mode == "RGB"
    assert picture.width == taller.width
    assert taller.height > picture.height


def test_the_drawn_sheet_shows_the_pictures_it_was_given() -> None:
    drawn = draw(_sheet(rows=1, hits=1))

    assert _pixels(drawn, (255, 0, 0)) > 1_000
    assert _pixels(drawn, (0, 0, 255)) > 1_000


def test_a_right_hit_is_framed_in_the_drawn_sheet_and_a_wrong_one_is_not() -> None:
    def marked(right: bool) -> int:
        row = SheetRow("title", [], None, [SheetHit(_png("red"), "", 0.5, right=right)], "", "")
        return _pixels(draw(Sheet("t", "s", [row], "l", "f")), (21, 128, 61))

    assert marked(True) > marked(False) + 500
