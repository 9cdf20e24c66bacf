import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from likewise.export.training.source import Problem, SourceError, read_source, refuse_above


def _image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def _csv(folder: Path, rows: list[tuple[str, str]]) -> Path:
    (folder / "t.csv").write_text("path,caption\n" + "".join(f'{p},"{c}"\n' for p, c in rows), encoding="utf-8")
    return folder / "t.csv"


def _jsonl(folder: Path, rows: list[tuple[str, str]]) -> Path:
    text = "".join(json.dumps({"path": p, "caption": c}) + "\n" for p, c in rows)
    (folder / "t.jsonl").write_text(text, encoding="utf-8")
    return folder / "t.jsonl"


def _parquet(folder: Path, rows: list[tuple[str, str]]) -> Path:
    columns = {"path": [p for p, _ in rows], "caption": [c for _, c in rows]}
    parquet.write_table(pa.table(columns), folder / "t.parquet")
    return folder / "t.parquet"


@pytest.mark.parametrize("write", [_csv, _jsonl, _parquet])
def test_a_table_names_images_beside_it(tmp_path: Path, write: Callable[..., Path]) -> None:
    _image(tmp_path / "a" / "1.png")
    table = write(tmp_path, [("a/1.png", "a red  star "), ("a/2.png", "gone"), ("a/1.png", "  ")])

    listing = read_source(table)

    assert [(item.path, item.caption) for item in listing.items] == [(tmp_path / "a" / "1.png", "a red star")]
    assert [problem.place for problem in listing.problems] == [f"{table.name}, row 2", f"{table.name}, row 3"]
    assert str(tmp_path / "a" / "2.png") in listing.problems[0].reason
    assert "caption is empty" in listing.problems[1].reason


def test_a_folder_takes_the_text_beside_each_image(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "sub/c.webp", "d.png"):
        _image(tmp_path / name).with_suffix(".txt").write_text(f"caption of {name}\n", encoding="utf-8")
    (tmp_path / "d.txt").unlink()

    listing = read_source(tmp_path)

    assert [item.caption for item in listing.items] == [
        f"caption of {name}" for name in ("a.png", "b.jpg", "sub/c.webp")
    ]
    assert listing.problems == (Problem("d.png", "no caption: d.txt is missing beside it"),)


def test_a_table_in_the_folder_wins_over_text_files_and_two_are_refused(tmp_path: Path) -> None:
    _image(tmp_path / "1.png")
    _csv(tmp_path, [("1.png", "from the table")]).rename(tmp_path / "captions.csv")

    assert read_source(tmp_path).items[0].caption == "from the table"
    _jsonl(tmp_path, [("1.png", "x")]).rename(tmp_path / "captions.jsonl")
    with pytest.raises(SourceError, match=r"captions\.csv and captions\.jsonl: name the one"):
        read_source(tmp_path)


def test_other_column_names_are_asked_for_by_option(tmp_path: Path) -> None:
    _image(tmp_path / "1.png")
    (tmp_path / "t.csv").write_text("file,text\n1.png,a star\n", encoding="utf-8")

    with pytest.raises(SourceError, match=r"no column 'path', it has 'file', 'text'; other names: --path-column"):
        read_source(tmp_path / "t.csv")
    assert read_source(tmp_path / "t.csv", path_column="file", caption_column="text").items[0].caption == "a star"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"x", r"must be a folder of captioned images or a file ending in \.csv"),
        ("t.csv", b"path,caption\n\xff\xfe,x\n", "cannot be read as UTF-8 csv"),
        ("t.parquet", b"no parquet", "cannot be read as Parquet"),
        ("t.jsonl", b"[1]\n{\n", "no usable captioned image: t.jsonl, row 1: a row must be a JSON object, got list"),
    ],
)
def test_what_is_no_table_is_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(SourceError, match=message):
        read_source(tmp_path / name)


def test_a_place_without_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no"):
        read_source(tmp_path / "gone")
    with pytest.raises(SourceError, match=r"has no images \(\.jpeg, \.jpg, \.png, \.webp\) and none of captions\.csv"):
        read_source(tmp_path)


def test_a_path_that_is_no_text_and_a_caption_without_end_are_problems_of_their_row(tmp_path: Path) -> None:
    _image(tmp_path / "1.png")
    rows = [
        {"path": 7, "caption": "x"},
        {"path": "1.png", "caption": "w " * 2000},
        {"path": "1.png", "caption": "fine"},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    listing = read_source(tmp_path / "t.jsonl")

    assert len(listing.items) == 1
    assert [p.reason for p in listing.problems] == [
        "path must be a path, got 7",
        "the caption has 3999 characters, the limit is 2000",
    ]


def test_too_many_problems_are_refused_with_the_first_ones_listed() -> None:
    problems = tuple(Problem(f"t.csv, row {i}", "the caption is empty") for i in range(12))

    refuse_above(problems, 240, 0.05)
    with pytest.raises(SourceError) as caught:
        refuse_above(problems, 239, 0.05)

    assert "12 of 239 rows (5.0 %) cannot be used, the limit is 5.0 % (--max-bad)" in str(caught.value)
    assert "t.csv, row 9" in str(caught.value)
    assert str(caught.value).endswith("and 2 more")
