import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from likewise.server.errors import InvalidRequest
from likewise.server.images import ImageLimits, decode

LIMITS = ImageLimits()


def picture(width: int = 40, height: int = 24) -> Image.Image:
    """Red left, blue right, with a green top left corner."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    image.paste((0, 255, 0), (0, 0, width // 4, height // 4))
    return image


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(
    width: int, height: int, *, rows: bytes = b"", depth: int = 8, colour: int = 2, transparent: bytes = b""
) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    if transparent:
        header += chunk(b"tRNS", transparent)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refusal(data: bytes, limits: ImageLimits = LIMITS) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode(data, limits, field="reference.image")
    assert caught.value.field == "reference.image"
    return caught.value


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [("PNG", {}, 0), ("WEBP", {"lossless": True}, 0), ("JPEG", {"quality": 95, "subsampling": 0}, 12)],
)
def test_every_format_gives_the_pixels_it_was_made_of(format: str, options: dict[str, object], tolerance: int) -> None:
    original = picture()

    decoded = decode(saved(original, format, **options), LIMITS)

    assert decoded.mode == "RGB"
    difference = np.asarray(decoded).astype(int) - np.asarray(original).astype(int)
    assert np.percentile(abs(difference), 90) <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    upright = picture()
    lying = upright if stored is None else upright.transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}

    decoded = decode(saved(lying, format, exif=exif, **options), LIMITS)

    assert decoded.size == upright.size
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(upright).astype(int)).mean() < 12


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_the_picture_as_it_lies() -> None:
    data = saved(picture(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7fgarbage")

    assert decode(data, LIMITS).size == (40, 24)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_transparency_is_laid_on_white(format: str) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))

    decoded = decode(saved(image, format, **({"lossless": True, "exact": True} if format == "WEBP" else {})), LIMITS)

    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((1, 0)) == (127, 127, 127)
    assert decoded.getpixel((3, 3)) == (255, 0, 0)


def test_a_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])

    decoded = decode(saved(image, "PNG", transparency=0), LIMITS)

    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (40, 50, 60)]


def test_a_palette_with_several_transparencies_is_laid_on_white() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 0, 0, 0, 40, 50, 60])
    image.putdata([0, 1, 2])

    decoded = decode(saved(image, "PNG", transparency=bytes([0, 128, 255])), LIMITS)

    assert [decoded.getpixel((x, 0)) for x in range(3)] == [(255, 255, 255), (127, 127, 127), (40, 50, 60)]


@pytest.mark.parametrize(("mode", "white"), [("L", 200), ("1", 1), ("LA", (200, 255))])
def test_grey_becomes_three_equal_channels(mode: str, white: int | tuple[int, ...]) -> None:
    decoded = decode(saved(Image.new(mode, (3, 3), white), "PNG"), LIMITS)

    expected = 255 if mode == "1" else 200
    assert decoded.getpixel((1, 1)) == (expected,) * 3


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    samples = np.array([[0, 255, 256, 32768, 65535]], dtype=">u2")
    data = png(5, 1, rows=b"\x00" + samples.tobytes(), depth=16, colour=0)

    decoded = decode(data, LIMITS)

    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_the_transparent_level_of_sixteen_bit_grey_is_white() -> None:
    samples = np.array([[0, 513, 514]], dtype=">u2")
    data = png(3, 1, rows=b"\x00" + samples.tobytes(), depth=16, colour=0, transparent=struct.pack(">H", 513))

    decoded = decode(data, LIMITS)

    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 255, 2]


def test_sixteen_bit_colour_keeps_its_high_byte() -> None:
    samples = np.array([[65535, 32768, 256]], dtype=">u2")

    decoded = decode(png(1, 1, rows=b"\x00" + samples.tobytes(), depth=16, colour=2), LIMITS)

    assert decoded.getpixel((0, 0)) == (255, 128, 1)


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)])
def test_cmyk_jpeg_keeps_its_colours(colour: tuple[int, int, int]) -> None:
    data = saved(Image.new("RGB", (16, 16), colour).convert("CMYK"), "JPEG", quality=95)

    decoded = decode(data, LIMITS)

    assert decoded.mode == "RGB"
    assert np.abs(np.asarray(decoded).astype(int) - np.array(colour)).max() <= 6


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
    options = {"lossless": True} if format == "WEBP" else {}

    decoded = decode(saved(frames[0], format, save_all=True, append_images=frames[1:], **options), LIMITS)

    assert decoded.getpixel((4, 4)) == (255, 0, 0)


def test_an_empty_image_is_refused() -> None:
    error = refusal(b"")

    assert error.reason == "IMAGE_UNDECODABLE"
    assert "0 bytes" in str(error)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"this is not a picture", id="text"),
        pytest.param(b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", id="gif"),
        pytest.param(saved(picture(), "BMP"), id="bmp"),
        pytest.param(saved(picture(), "TIFF"), id="tiff"),
        pytest.param(b"\x89PNG\r\n\x1a\n", id="png signature alone"),
        pytest.param(b"\xff\xd8\xff", id="jpeg signature alone"),
        pytest.param(b"RIFF\x00\x00\x00\x00WEBP", id="webp signature alone"),
        pytest.param(b"RIFF\x00\x00\x00\x00WEBPVP8X" + bytes(40), id="webp without frames"),
    ],
)
def test_what_is_no_picture_of_a_known_format_is_refused(data: bytes) -> None:
    error = refusal(data)

    assert error.reason == "IMAGE_UNDECODABLE"
    assert "0x" not in str(error)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.0, 0.9))
def test_a_truncated_file_is_refused(format: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8))
    whole = saved(noise, format)

    error = refusal(whole[: int(len(whole) * share)])

    assert error.reason == "IMAGE_UNDECODABLE"


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.data())
def test_a_damaged_file_gives_a_picture_or_a_refusal(format: str, data: st.DataObject) -> None:
    damaged = bytearray(saved(picture(16, 16), format))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))

    decoded: Image.Image | None = None
    with contextlib.suppress(InvalidRequest):
        decoded = decode(bytes(damaged), ImageLimits(max_pixels=1_000_000))

    if decoded is not None:
        assert decoded.mode == "RGB"
        assert decoded.width * decoded.height <= 1_000_000


def test_a_pixel_bomb_is_refused_without_allocating_its_pixels() -> None:
    bomb = png(30_000, 30_000, rows=bytes(1_000_000))
    tracemalloc.start()

    error = refusal(bomb)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.reason == "IMAGE_TOO_LARGE"
    assert "30,000 x 30,000 = 900,000,000 pixels" in str(error)
    assert "50,000,000" in str(error)
    assert peak < 1_000_000


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xfe\x3f\x00\xfe\x3f\x00", id="extended"),
        pytest.param(
            b"VP8L" + struct.pack("<I", 20) + b"\x2f" + struct.pack("<I", 0x0FFFFFFF) + bytes(16), id="lossless"
        ),
        pytest.param(
            b"VP8 " + struct.pack("<I", 20) + b"\x10\x00\x00\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(10), id="lossy"
        ),
    ],
)
def test_a_webp_bomb_is_refused_by_its_header(chunk: bytes) -> None:
    error = refusal(b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk)

    assert error.reason == "IMAGE_TOO_LARGE"
    assert error.metadata["width"] in {"16383", "16384"}


def test_a_jpeg_bomb_is_refused_by_its_header() -> None:
    data = bytearray(saved(Image.new("RGB", (16, 16)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)

    error = refusal(bytes(data))

    assert error.reason == "IMAGE_TOO_LARGE"
    assert "60,000 x 60,000" in str(error)


def test_a_file_over_the_byte_limit_is_refused_with_both_numbers() -> None:
    error = refusal(saved(picture(), "PNG"), ImageLimits(max_bytes=50))

    assert error.reason == "IMAGE_TOO_LARGE"
    assert error.metadata["limit"] == "50"
    assert error.metadata["bytes"] in str(error)


def test_the_pixel_limit_itself_is_allowed() -> None:
    data = saved(picture(10, 10), "PNG")

    assert decode(data, ImageLimits(max_pixels=100)).size == (10, 10)
    assert refusal(data, ImageLimits(max_pixels=99)).reason == "IMAGE_TOO_LARGE"
