import numpy as np
import pytest
from PIL import Image

from likewise.export.preprocess import Preprocessing, to_tensor


def _gradient(width: int, height: int) -> Image.Image:
    x = np.linspace(0, 255, width)[None, :, None]
    y = np.linspace(0, 255, height)[:, None, None]
    pixels = np.concatenate(np.broadcast_arrays(x, y, (x + y) / 2), axis=2)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def test_an_image_of_the_models_size_is_only_scaled_and_shifted() -> None:
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    spec = Preprocessing(size=4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))

    tensor = to_tensor(Image.fromarray(pixels), spec)

    expected = (pixels / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.25, 1.0])
    assert tensor.dtype == np.float32
    assert tensor.shape == (3, 4, 4)
    assert tensor.flags.c_contiguous
    np.testing.assert_allclose(tensor, expected.transpose(2, 0, 1), atol=1e-6)


def test_a_square_image_is_resized_as_pil_does_it() -> None:
    image = _gradient(50, 50)
    plain = Preprocessing(size=16, mean=(0, 0, 0), std=(1, 1, 1))

    tensor = to_tensor(image, plain)

    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(tensor, expected, atol=1e-6)


def test_shortest_and_centre_crop_keep_the_middle_of_a_wide_image() -> None:
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = 255

    tensor = to_tensor(Image.fromarray(pixels), Preprocessing(size=32))

    np.testing.assert_array_equal(tensor, np.ones((3, 32, 32), np.float32))


def test_squash_keeps_the_whole_image() -> None:
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, :48] = 255

    tensor = to_tensor(Image.fromarray(pixels), Preprocessing(size=32, resize="squash", crop="none"))

    assert (tensor[:, :, :14] > 0.99).all()
    assert (tensor[:, :, 18:] < -0.99).all()


def test_an_extreme_aspect_ratio_gives_a_full_tensor() -> None:
    tensor = to_tensor(Image.new("RGB", (3000, 1), "white"), Preprocessing(size=64))

    np.testing.assert_array_equal(tensor, np.ones((3, 64, 64), np.float32))


def test_target_pad_adds_zeros_up_to_the_ratio() -> None:
    image = Image.new("RGB", (100, 20), "white")

    tensor = to_tensor(image, Preprocessing(size=40, resize="squash", crop="none", targetpad=1.25))

    assert (tensor[:, 0] == -1).all()
    assert (tensor[:, 20] == 1).all()


def test_the_source_image_is_not_changed() -> None:
    image = _gradient(30, 40)
    before = image.tobytes()

    to_tensor(image, Preprocessing(size=8))

    assert image.tobytes() == before


def test_a_greyscale_image_is_refused() -> None:
    with pytest.raises(ValueError, match="mode must be RGB, got L"):
        to_tensor(Image.new("L", (8, 8)), Preprocessing(size=8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"size": 0}, "size must be at least 1, got 0", id="size"),
        pytest.param({"size": 8, "resize": "longest"}, "resize must be one of", id="resize"),
        pytest.param({"size": 8, "crop": "none"}, "would not be square", id="crop"),
        pytest.param({"size": 8, "std": (1.0, 0.0, 1.0)}, "std above 0", id="std"),
        pytest.param({"size": 8, "targetpad": 0.5}, "targetpad must be at least 1", id="targetpad"),
        pytest.param({"size": 8, "interpolation": "nearest"}, "interpolation must be one of", id="interpolation"),
        pytest.param({"size": 8, "rounding": "up"}, "rounding must be one of", id="rounding"),
        pytest.param({"size": 8, "resize_to": 6}, "resize_to must be at least size 8.*got 6", id="resize_to"),
        pytest.param({"size": 8, "resize": "squash", "crop": "none", "resize_to": 9}, "needs crop", id="nothing cut"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rounding", "longer", "left"),
    [
        # 100 x 151 to a shorter side of 10: the longer one is 15.1; then 101 x 200: 19.8.
        pytest.param("nearest", (15, 20), (2, 5), id="nearest"),
        pytest.param("torchvision", (15, 19), (2, 4), id="torchvision"),
        pytest.param("transformers", (15, 19), (2, 4), id="transformers"),
    ],
)
def test_fractions_of_a_pixel_are_rounded_as_the_models_own_library_does(
    rounding: str, longer: tuple[int, int], left: tuple[int, int]
) -> None:
    spec = Preprocessing(size=10, rounding=rounding, mean=(0, 0, 0), std=(1, 1, 1))  # type: ignore[arg-type]

    for source, new, offset in zip(((151, 100), (200, 101)), longer, left, strict=True):
        image = _gradient(*source)
        resized = image.resize((new, 10), Image.Resampling.BICUBIC)
        expected = np.asarray(resized.crop((offset, 0, offset + 10, 10))).transpose(2, 0, 1) / 255
        assert np.abs(to_tensor(image, spec) - expected).max() <= 1.01 / 255


def test_torchvision_rounds_the_crops_offset_half_to_even_and_transformers_down() -> None:
    pixels = np.zeros((8, 11, 3), np.uint8)
    pixels[:, 2:] = 255

    columns = {
        rounding: to_tensor(Image.fromarray(pixels), Preprocessing(size=8, rounding=rounding))[0, 0, 0]
        for rounding in ("torchvision", "transformers")
    }

    # The excess of 3 is cut in halves of 1.5: two columns off on the left, or one.
    assert columns == {"torchvision": 1.0, "transformers": -1.0}


def test_an_image_can_be_resized_to_more_than_is_kept() -> None:
    image = _gradient(60, 90)

    tensor = to_tensor(image, Preprocessing(size=20, resize_to=30, mean=(0, 0, 0), std=(1, 1, 1)))

    whole = image.resize((30, 45), Image.Resampling.BICUBIC)
    expected = np.asarray(whole.crop((5, 12, 25, 32))).transpose(2, 0, 1) / 255
    assert np.abs(tensor - expected).max() <= 1.01 / 255


@pytest.mark.parametrize("rounding", ["torchvision", "transformers"])
def test_a_strip_is_not_resized_whole(rounding: str) -> None:
    # Whole, it would be 64 x 3,200,000 pixels: 600 MB.
    image = Image.new("RGB", (50_000, 1), "white")

    tensor = to_tensor(image, Preprocessing(size=64, rounding=rounding))  # type: ignore[arg-type]

    np.testing.assert_array_equal(tensor, np.ones((3, 64, 64), np.float32))


def test_bilinear_is_pils() -> None:
    image = _gradient(50, 50)

    tensor = to_tensor(image, Preprocessing(size=16, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)))

    expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(tensor, expected, atol=1e-6)
    assert not np.allclose(tensor, to_tensor(image, Preprocessing(size=16, mean=(0, 0, 0), std=(1, 1, 1))))
