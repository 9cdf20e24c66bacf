from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from likewise.export.evaluation.crops import canonical_key, crop, crop_bytes, crop_key, dilated, split_key
from likewise.export.evaluation.problems import EvaluationError


def test_the_box_grows_to_the_left_and_up_only() -> None:
    assert dilated((100.0, 80.0, 20.0, 10.0), 500, 400) == pytest.approx((86.0, 73.0, 120.0, 90.0))


def test_a_box_clamped_at_the_edge_grows_to_the_right_and_down_instead() -> None:
    # left = max(0, 5 - 14) = 0, right = 0 + 1.7 * 20.
    assert dilated((5.0, 2.0, 20.0, 10.0), 500, 400) == pytest.approx((0.0, 0.0, 34.0, 17.0))
    assert dilated((5.0, 2.0, 20.0, 10.0), 30, 12) == pytest.approx((0.0, 0.0, 30.0, 12.0))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_crop_is_centred_on_a_black_square(mode: str) -> None:
    white = Image.new("RGB", (200, 200), "white").convert(mode)

    made = crop(white, (100, 100, 40, 20))

    # 1.7 * 40 = 68 wide, 1.7 * 20 = 34 high: 17 black rows above and below.
    assert (made.size, made.mode) == ((68, 68), mode)
    rows = np.asarray(made.convert("L")).mean(1)
    assert (rows[:17] == 0).all()
    assert (rows[17:51] == 255).all()
    assert (rows[51:] == 0).all()


def test_a_tall_crop_is_padded_at_its_sides() -> None:
    made = crop(Image.new("RGB", (200, 200), "white"), (100, 100, 20, 40))

    columns = np.asarray(made.convert("L")).mean(0)
    assert made.size == (68, 68)
    assert columns[0] == columns[-1] == 0
    assert columns[34] == 255


def test_one_image_yields_many_keys_and_a_key_says_its_box() -> None:
    key = crop_key(2345, (10.0, 20.5, 30.0, 40.25))

    assert key == "2345:10,20.5,30,40.25"
    assert split_key(key) == ("2345", (10.0, 20.5, 30.0, 40.25))
    assert split_key("2345") == ("2345", None)


@pytest.mark.parametrize("key", ["7:1.0,2.50,3,4", "7: 1, 2.5, 3.0, 4e0", "7:1,2.5,3,4"])
def test_a_key_is_known_however_its_numbers_are_written(key: str) -> None:
    assert canonical_key(key) == "7:1,2.5,3,4"


@pytest.mark.parametrize("key", ["7", "a:b", "7:1,2,3", "7:1,2,3,x", "7:nan,1,1,1", "7:inf,1,1,1", "http://a/b:1"])
def test_other_keys_stay_as_they_are(key: str) -> None:
    assert canonical_key(key) == key


def test_a_box_outside_the_image_names_file_and_box(tmp_path: Path) -> None:
    path = tmp_path / "7.jpg"
    Image.new("RGB", (30, 30)).save(path)

    with pytest.raises(EvaluationError, match=r"7\.jpg: no crop .*lies outside the image of 30 x 30"):
        crop_bytes(path, (100, 100, 5, 5))
