import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from likewise.export.preprocess import Preprocessing, to_tensor
from likewise.export.training.pictures import BATCH, decode, decode_plainly, fingerprints
from likewise.export.training.source import Captioned

SPEC = Preprocessing(size=8)


def _items(folder: Path, count: int) -> list[Captioned]:
    items = []
    for i in range(count):
        path = folder / f"{i:03}.png"
        Image.fromarray(np.full((12, 12, 3), i % 256, np.uint8)).save(path)
        items.append(Captioned(path, "x", path.name))
    return items


def test_pictures_come_in_order_whoever_decodes_them_first(tmp_path: Path) -> None:
    items = _items(tmp_path, BATCH + 5)

    batches = list(decode(items, SPEC, workers=3))

    assert [batch.start for batch in batches] == [0, BATCH]
    pixels = np.concatenate([batch.pixels for batch in batches])
    for i, item in enumerate(items):
        np.testing.assert_array_equal(pixels[i], to_tensor(Image.open(item.path).convert("RGB"), SPEC))


def test_an_unreadable_picture_is_named_and_its_neighbours_are_kept(tmp_path: Path) -> None:
    items = _items(tmp_path, BATCH + 4)
    items[1].path.write_bytes(b"no image")
    items[BATCH + 2].path.write_bytes(items[BATCH + 3].path.read_bytes()[:40])

    first, second = decode(items, SPEC)

    assert {**first.problems, **second.problems}.keys() == {1, BATCH + 2}
    assert all("the image cannot be read" in reason for reason in second.problems.values())
    assert (second.pixels[2] == 0).all()
    assert (second.pixels[3] != 0).any()


def test_transparency_lies_on_white_and_a_turned_picture_stands_upright() -> None:
    clear, turned = io.BytesIO(), io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(clear, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 3)).save(turned, "JPEG", exif=exif)

    assert decode_plainly(clear.getvalue()).getpixel((0, 0)) == (255, 255, 255)
    assert decode_plainly(turned.getvalue()).size == (3, 6)


def test_copies_of_an_image_have_one_fingerprint(tmp_path: Path) -> None:
    items = _items(tmp_path, 3)
    items[2].path.write_bytes(items[0].path.read_bytes())

    first, second, copy = fingerprints(items)

    assert first == copy != second


def test_a_decoder_that_runs_out_of_memory_is_not_taken_for_a_bad_picture(tmp_path: Path) -> None:
    def full(data: bytes) -> Image.Image:
        raise MemoryError

    with pytest.raises(MemoryError):
        list(decode(_items(tmp_path, 1), SPEC, full))
