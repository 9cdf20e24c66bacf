"""The reader of GeneCIS."""

from pathlib import Path
from typing import Any

import pytest
from tests.unit.export.evaluation.folders import cut, lists_of, object_template, right_of, write_json

from likewise.export.evaluation.genecis import CONSISTENT, mean_label, read_genecis
from likewise.export.evaluation.problems import EvaluationError


def test_the_target_is_put_in_front_of_the_gallery_and_the_condition_stays_raw(tmp_path: Path) -> None:
    write_json(tmp_path / "change_object.json", [object_template(7, " a Dog ", 1, [2, 3])])

    (task,) = read_genecis(tmp_path).tasks

    assert lists_of(task) == (("1", "2", "3"),)
    assert (task.references, task.conditions, right_of(task), task.modes) == (("7",), ((" a Dog ",),), (("1",),), ("",))
    assert not task.masks_reference


def test_crops_of_one_image_are_different_candidates(tmp_path: Path) -> None:
    image = cut(9, [1.0, 2.5, 3.0, 4.0])
    template = {
        "reference": image,
        "condition": "color",
        "target": cut(9, [5, 5, 5, 5]),
        "gallery": [cut(9, [6, 5, 5, 5])],
    }
    write_json(tmp_path / "genecis" / "focus_attribute.json", [template])

    (task,) = read_genecis(tmp_path, modes=True).tasks

    assert (*task.references, *lists_of(task)[0]) == ("9:1,2.5,3,4", "9:5,5,5,5", "9:6,5,5,5")
    assert task.modes == ("focus",)


def test_contradictory_templates_are_kept_and_marked(tmp_path: Path) -> None:
    rows = [object_template(7, "dog", 1, [2, 3]), object_template(8, "dog", 1, [2, 1])]
    write_json(tmp_path / "change_object.json", rows)

    benchmark = read_genecis(tmp_path)

    assert len(benchmark.tasks[0].ids) == 2
    assert benchmark.tasks[0].slices == {CONSISTENT: (0,)}
    assert any("1 contradictory" in note for note in benchmark.notes)


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (("focus_object", "change_object"), "object half (2 of 4 tasks)"),
        (("focus_attribute", "change_attribute"), "attribute half (2 of 4 tasks)"),
        (("focus_attribute", "change_attribute", "focus_object", "change_object"), "mean of the four tasks"),
        (("focus_object",), "1 of 4 tasks"),
    ],
)
def test_only_the_mean_of_all_four_tasks_is_called_so(names: tuple[str, ...], label: str) -> None:
    assert mean_label(names) == label


def test_a_file_that_is_not_the_official_one_is_noted(tmp_path: Path) -> None:
    write_json(tmp_path / "focus_object.json", [object_template(7, "dog", 1, [2])])

    assert "focus_object: 1 templates, the official file has 1,960" in read_genecis(tmp_path).notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gallery": []}, r"entry 0: 'gallery' must be a list of at least one image, got \[\]"),
        ({"gallery": [{"image_id": 4}]}, r"entry 0, gallery\[0\]: no field 'val_image_id'.*only \['image_id'\]"),
        ({"target": 4}, r"entry 0: 'target' must be an object, got 4"),
        ({"target": {"val_image_id": "4"}}, r"entry 0, target: 'val_image_id' must be an integer, got \"4\""),
        ({"reference": {"val_image_id": True}}, r"'val_image_id' must be an integer, got true"),
        ({"condition": None}, r"'condition' must be a string, got null"),
    ],
)
def test_a_template_of_another_shape_names_file_entry_and_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write_json(tmp_path / "change_object.json", [object_template(7, "dog", 1, [2]) | change])

    with pytest.raises(EvaluationError, match=message) as refusal:
        read_genecis(tmp_path)

    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 0, 4], [1, 2, 3, "4"], None, [1, 2, 3, float("nan")]])
def test_a_box_that_is_none_is_refused(tmp_path: Path, box: object) -> None:
    image = cut(9, [1, 2, 3, 4])
    bad = {"image_id": 9, "instance_bbox": box}
    write_json(
        tmp_path / "focus_attribute.json", [{"reference": image, "condition": "c", "target": bad, "gallery": [image]}]
    )

    with pytest.raises(EvaluationError, match=r"entry 0, target: 'instance_bbox' must be \[x, y, width, height\]"):
        read_genecis(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "holds a dict"), ("[]", "an empty list"), ("[1]", "other things"), ("[", "is no JSON file")],
)
def test_a_file_without_a_list_of_objects_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "change_object.json").write_text(content)

    with pytest.raises(EvaluationError, match=message):
        read_genecis(tmp_path)
