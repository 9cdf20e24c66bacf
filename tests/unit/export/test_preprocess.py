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
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**arguments)  # type: ignore[arg-type]
