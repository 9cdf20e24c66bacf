"""The readers of CIRR, FashionIQ, CIRCO and templates of one's own, and where their images lie."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.export.evaluation.folders import (
    circo_folder,
    cirr_folder,
    cut,
    fashioniq_folder,
    object_template,
    pool_of,
    right_of,
    write_json,
)

from likewise.export.evaluation.circo import read_circo
from likewise.export.evaluation.cirr import read_cirr
from likewise.export.evaluation.fashioniq import joined, read_fashioniq
from likewise.export.evaluation.genecis import read_genecis
from likewise.export.evaluation.pictures import find_pictures
from likewise.export.evaluation.problems import EvaluationError
from likewise.export.evaluation.templates import read_templates


def _edit(path: Path, entry: int, **changes: Any) -> None:
    content = json.loads(path.read_text())
    content[entry] |= changes
    path.write_text(json.dumps(content))


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_absent_folders_and_files_say_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no folder .*nowhere"):
        read_genecis(tmp_path / "nowhere")
    for read, names in (
        (read_genecis, "change_object"),
        (read_cirr, r"cap\.rc2\.val"),
        (read_fashioniq, r"cap\.dress\.val"),
    ):
        with pytest.raises(EvaluationError, match=names):
            read(tmp_path)
    with pytest.raises(EvaluationError, match=r"annotations/val\.json"):
        read_circo(tmp_path, gallery=["1"])
    with pytest.raises(EvaluationError, match="no file"):
        read_templates(tmp_path / "t.json")


# CIRR


def test_cirr_masks_the_reference_in_the_gallery_and_in_the_subset(tmp_path: Path) -> None:
    whole, subset = read_cirr(cirr_folder(tmp_path)).tasks

    assert set(whole.candidate_counts()) == {59}
    assert set(subset.candidate_counts()) == {5}
    assert whole.references[0] in pool_of(whole)
    assert all(reference not in subset.candidates(query) for query, reference in enumerate(subset.references))
    assert whole.cutoffs == (1, 5, 10, 50)
    assert subset.metric_names() == ("R_subset@1", "R_subset@2", "R_subset@3")


def test_cirr_ranks_every_image_of_the_split_whether_a_caption_names_it_or_not(tmp_path: Path) -> None:
    whole, _ = read_cirr(cirr_folder(tmp_path, queries=1)).tasks

    assert len(pool_of(whole)) == 60


def test_a_blank_caption_leaves_the_reference_alone_and_is_noted(tmp_path: Path) -> None:
    _edit(cirr_folder(tmp_path) / "captions" / "cap.rc2.val.json", 3, caption="  ")

    benchmark = read_cirr(tmp_path)

    assert benchmark.tasks[0].conditions[3] == ()
    assert benchmark.notes == ("1 of 30 queries have a blank condition: searched by their image alone",)


def test_the_hidden_labels_of_cirr_are_no_labels(tmp_path: Path) -> None:
    assert [task.targets for task in read_cirr(cirr_folder(tmp_path, split="test1"), split="test1").tasks] == [
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "dev-x"}, "'members' must be 6 different names, the reference among them"),
        ({"target_hard": "dev-x"}, "target_hard 'dev-x' is not among the other members"),
        ({"img_set": {"members": ["a"] * 5}}, "'members' must be a list of 6 strings"),
        ({"pairid": "1"}, "'pairid' must be an integer"),
    ],
)
def test_a_caption_of_cirr_of_another_shape_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _edit(cirr_folder(tmp_path) / "captions" / "cap.rc2.val.json", 2, **change)

    with pytest.raises(EvaluationError, match=f"cap.rc2.val.json, entry 2.*{message}"):
        read_cirr(tmp_path)


def test_captions_of_another_split_are_refused(tmp_path: Path) -> None:
    listing = cirr_folder(tmp_path) / "image_splits" / "split.rc2.val.json"
    write_json(listing, {"dev-1": "./dev/dev-1.png"})

    with pytest.raises(EvaluationError, match=r"entry 0: .* not in .*split\.rc2\.val\.json: files of two splits"):
        read_cirr(tmp_path)


# FashionIQ


def test_captions_are_joined_without_the_stops_around_them() -> None:
    assert joined("is shiny. ", " fit and flare?") == "is shiny and fit and flare"
    assert joined("", "is red,") == "is red"
    assert joined(" . ", "") == ""


def test_fashioniq_keeps_the_reference_and_names_its_gallery(tmp_path: Path) -> None:
    fashioniq_folder(tmp_path, queries=6)

    original, named = read_fashioniq(tmp_path), read_fashioniq(tmp_path, pool="val")

    assert [len(pool_of(task)) for task in original.tasks] == [70, 70, 70]
    for task in named.tasks:
        assert set(pool_of(task)) == {*task.references, *(target for (target,) in right_of(task))}
    assert not any(task.masks_reference for task in original.tasks)
    assert original.notes[0].startswith("gallery: original split; dress 70")
    assert named.notes[0].startswith("gallery: val split")


def test_both_orders_of_captions_are_two_conditions(tmp_path: Path) -> None:
    task = read_fashioniq(fashioniq_folder(tmp_path), captions="both-orders").tasks[0]

    assert task.conditions[0] == ("is dress 0 and has more", "has more and is dress 0")


def test_a_part_of_fashioniq_is_not_called_the_mean_of_three(tmp_path: Path) -> None:
    assert read_fashioniq(fashioniq_folder(tmp_path), categories=["dress"]).mean == "1 of 3 categories"


def test_fashioniq_refuses_what_the_splits_do_not_know(tmp_path: Path) -> None:
    path = fashioniq_folder(tmp_path) / "captions" / "cap.shirt.val.json"
    _edit(path, 1, target="B1")

    with pytest.raises(EvaluationError, match=r"cap\.shirt\.val\.json, entry 1: 'B1' not in"):
        read_fashioniq(tmp_path)
    _edit(path, 1, captions=["one"])
    with pytest.raises(EvaluationError, match="entry 1: "):
        read_fashioniq(tmp_path)
    with pytest.raises(EvaluationError, match="has no targets"):
        read_fashioniq(fashioniq_folder(tmp_path / "t", split="test"), split="test", pool="val")


# CIRCO


def test_circo_ranks_all_of_cocos_list_and_keeps_the_reference(tmp_path: Path) -> None:
    benchmark = read_circo(circo_folder(tmp_path))
    precision, recall = benchmark.tasks

    assert len(pool_of(precision)) == 200
    assert not precision.masks_reference
    assert all(first == (right[0],) for first, right in zip(right_of(recall), right_of(precision), strict=True))
    assert set(precision.slices) == {"addition", "negation", "viewpoint"}
    assert any("123,403" in note for note in benchmark.notes)


def test_circo_takes_what_is_given_where_cocos_list_is_not_at_hand(tmp_path: Path) -> None:
    circo_folder(tmp_path)
    info = tmp_path / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json"
    ids = [str(image["id"]) for image in json.loads(info.read_text())["images"]]
    info.unlink()

    assert len(pool_of(read_circo(tmp_path, gallery=ids).tasks[0])) == 200
    with pytest.raises(EvaluationError, match="not in the gallery"):
        read_circo(tmp_path, gallery=ids[:3])
    with pytest.raises(EvaluationError, match="no list of the gallery"):
        read_circo(tmp_path)


@pytest.mark.parametrize("right", [[], [5, 5], [6, 5]])
def test_right_images_of_circo_differ_and_begin_with_the_target(tmp_path: Path, right: list[int]) -> None:
    _edit(circo_folder(tmp_path) / "annotations" / "val.json", 0, gt_img_ids=right, target_img_id=5)

    with pytest.raises(EvaluationError, match="entry 0: 'gt_img_ids' must be different ids, target_img_id 5 the first"):
        read_circo(tmp_path)


# Templates of one's own


def _template(**changes: Any) -> dict[str, Any]:
    return {
        "reference": "r",
        "condition": "in red",
        "mode": "change",
        "gallery": ["a", "b", "r"],
        "target": "a",
    } | changes


def test_own_templates_leave_the_reference_out_unless_told_otherwise(tmp_path: Path) -> None:
    path = write_json(tmp_path / "t.json", [_template(), _template(target=["b", "c"], task="two")])

    one, two = read_templates(path).tasks

    assert (one.name, one.candidates(0), one.modes) == ("templates", ("a", "b"), ("change",))
    assert (two.name, two.candidates(0)) == ("two", ("b", "c", "a"))
    assert read_templates(path, keep_reference=True).tasks[0].candidates(0) == ("a", "b", "r")


def test_own_templates_without_a_gallery_are_ranked_over_every_image(tmp_path: Path) -> None:
    row = _template()
    del row["gallery"]
    content = {"format": "likewise-templates/1", "templates": [row], "images": {"a": "x/a.png", "r": "x/r.png"}}

    benchmark = read_templates(write_json(tmp_path / "t.json", content))

    assert pool_of(benchmark.tasks[0]) == ("a", "r")
    assert benchmark.files == {"a": "x/a.png", "r": "x/r.png"}


def test_own_templates_in_parquet_are_those_in_json(tmp_path: Path) -> None:
    rows = [_template(), _template(condition=None, mode=None)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")

    columns = read_templates(tmp_path / "t.parquet").tasks
    objects = read_templates(write_json(tmp_path / "t.json", rows)).tasks

    assert columns == objects
    assert columns[0].conditions == (("in red",), ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param([_template(mode="keep")], "'mode' must be 'focus', 'change' or nothing, got \"keep\"", id="mode"),
        pytest.param([_template(target=[])], "'target' must be an image key", id="no target"),
        pytest.param([_template(target=["a", "a"])], "'target' must be an image key", id="target twice"),
        pytest.param([_template(gallery=["a", "a"])], "'a' is twice in 'gallery'", id="candidate twice"),
        pytest.param([_template(galery=[])], "unknown field 'galery'", id="misspelt"),
        pytest.param([_template(target="r")], "the reference 'r' is a target", id="reference is target"),
        pytest.param([_template(), _template(gallery=None)], "template 1: has no 'gallery'", id="mixed"),
        pytest.param([_template(gallery=None)], "no images to take as one", id="no pool"),
        pytest.param({"format": "x", "templates": []}, "format must be 'likewise-templates/1', got 'x'", id="format"),
        pytest.param({"format": "likewise-templates/1", "templates": [], "k": 1}, "unknown field 'k'", id="top field"),
        pytest.param([], "must hold a list of templates", id="empty"),
        pytest.param([{"condition": "x", "target": "a", "gallery": ["a"]}], "no field 'reference'", id="no reference"),
    ],
)
def test_own_templates_of_another_shape_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        read_templates(write_json(tmp_path / "t.json", content))


# Images


def test_images_lie_where_the_data_sets_have_them(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "change_object.json", [object_template(7, "dog", 139, [2])])
    row = {
        "reference": cut(9, [1, 2, 3, 4]),
        "condition": "c",
        "target": cut(8, [1, 2, 3, 4]),
        "gallery": [cut(9, [2, 2, 3, 4])],
    }
    write_json(tmp_path / "a" / "focus_attribute.json", [row])
    _touch(tmp_path / "coco", "val2017/000000000007.jpg", "000000000139.jpg", "000000000002.jpg")
    _touch(tmp_path / "vg", "VG_100K_all/8.jpg", "VG_100K_2/9.jpg", "2.jpg")
    benchmark = read_genecis(tmp_path / "a")
    keys = [key for task in benchmark.tasks for key in task.image_keys()]

    found = find_pictures(benchmark, keys, [tmp_path / "vg", tmp_path / "coco"])

    assert found["139"].path == tmp_path / "coco" / "000000000139.jpg"
    assert found["2"].path == tmp_path / "coco" / "000000000002.jpg"
    assert (found["9:2,2,3,4"].path.name, found["9:2,2,3,4"].box) == ("9.jpg", (2, 2, 3, 4))


def test_a_missing_image_is_named_with_its_file_before_anything_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "change_object.json", [object_template(7, "dog", 1, [2])])
    _touch(tmp_path, "000000000007.jpg")
    benchmark = read_genecis(tmp_path)

    with pytest.raises(EvaluationError, match=r"2 of 3 images .*'000000000001\.jpg', '000000000002\.jpg'.*--images"):
        find_pictures(benchmark, benchmark.tasks[0].image_keys(), [tmp_path])
    with pytest.raises(EvaluationError, match=r"no folder .*nowhere"):
        find_pictures(benchmark, ["7"], [tmp_path / "nowhere"])


def test_cirrs_images_lie_where_its_split_says(tmp_path: Path) -> None:
    benchmark = read_cirr(cirr_folder(tmp_path))
    _touch(tmp_path, "img_raw/dev/dev-0-0-img0.png")

    (picture,) = find_pictures(benchmark, ["dev-0-0-img0"], [tmp_path / "img_raw"]).values()

    assert picture.read() == b""
