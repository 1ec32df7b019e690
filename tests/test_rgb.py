"""Transparency lies on white however a picture comes; grey of any depth is scaled, not clipped."""

import io
import struct
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import ImageError
from smolvlm_mlx.inputs.image import load_image
from smolvlm_mlx.inputs.media import Attachment
from smolvlm_mlx.inputs.settings import ImageSettings
from tests.support.pictures import data_url, encoded, png

import numpy as np
import pytest
from PIL import Image

CLEAR, HALF, SOLID = (10, 20, 30, 0), (10, 20, 30, 128), (10, 20, 30, 255)
WHITE = (255, 255, 255)
ON_WHITE = [WHITE, (132, 137, 142), (10, 20, 30)]


def three() -> Image.Image:
    """Of 48 x 16 pixels: a clear, a half clear and a solid square."""
    pixels = np.array([[CLEAR, HALF, SOLID]], np.uint8)
    return Image.fromarray(pixels.repeat(16, axis=0).repeat(16, axis=1))


def squares(picture: Image.Image) -> list[Any]:
    """The pixel in the middle of each square."""
    assert picture.mode == "RGB"
    return [picture.getpixel((x, 8)) for x in (8, 24, 40)]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True, "exact": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("JPEG2000", {}),
        ("QOI", {}),
    ],
)
def test_a_transparent_file_lies_on_white(kind: str, options: dict[str, Any]) -> None:
    assert squares(load_image(encoded(three(), kind, **options))) == ON_WHITE


def test_a_transparent_avif_lies_on_white() -> None:
    loaded = squares(load_image(encoded(three(), "AVIF", quality=100)))
    assert np.abs(np.array(loaded) - ON_WHITE).max() <= 2


def test_a_transparent_heic_lies_on_white() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    if not pillow_heif.libheif_info()["encoders"]:
        pytest.skip("this pillow-heif cannot write")
    file = io.BytesIO()
    pillow_heif.from_pillow(three()).save(file, quality=100)
    loaded = squares(load_image(file.getvalue()))
    assert np.abs(np.array(loaded) - ON_WHITE).max() < 12


@pytest.mark.parametrize("mode", ["RGBA", "RGBa"])
def test_a_transparent_picture_lies_on_white(mode: str) -> None:
    assert squares(load_image(three().convert(mode))) == ON_WHITE


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1)])
def test_a_grey_array_has_its_value_in_each_channel(shape: tuple[int, ...]) -> None:
    values = np.arange(6, dtype=np.uint8)
    loaded = np.asarray(load_image(values.reshape(shape)))
    assert np.array_equal(loaded, values.reshape(2, 3, 1).repeat(3, axis=2))


@pytest.mark.parametrize("mode", ["LA", "La"])
def test_transparent_grey_lies_on_white(mode: str) -> None:
    grey = Image.new("LA", (2, 2), (10, 128)).convert(mode)
    assert load_image(grey).getpixel((0, 0)) == (132, 132, 132)
    assert load_image(Image.new("LA", (2, 2), (10, 0)).convert(mode)).getpixel((0, 0)) == WHITE


def test_every_form_of_a_transparent_picture_gives_the_same_pixels(tmp_path: Path) -> None:
    data = encoded(three(), "PNG")
    (tmp_path / "logo.png").write_bytes(data)
    forms: list[Any] = [three(), np.asarray(three()), data, data_url(three())]
    forms += [str(tmp_path / "logo.png"), tmp_path / "logo.png"]
    for form in forms:
        assert squares(load_image(form)) == ON_WHITE
        tiles = Attachment(form).tiled(ImageSettings(tile_size=32, longest_edge=32)).tiles
        assert tiles[0, 16, 5].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_an_animation_begins_on_white(kind: str) -> None:
    frames = [Image.new("RGBA", (32, 32), CLEAR), Image.new("RGBA", (32, 32), SOLID)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert load_image(data).getpixel((16, 16)) == WHITE


def test_a_palette_with_alpha_lies_on_white() -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.putdata([0, 1, 1])
    data = encoded(picture, "PNG", transparency=b"\x00\x80")
    for source in (data, Image.open(io.BytesIO(data))):
        assert load_image(source).getpixel((0, 0)) == WHITE
        assert load_image(source).getpixel((1, 0)) == (132, 137, 142)
    quantized = three().quantize(8, method=Image.Quantize.FASTOCTREE)  # its palette is RGBA
    assert squares(load_image(quantized))[::2] == ON_WHITE[::2]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(2, 1, 0, b"\x40", b"\0\0"), [255, 255]),
        (png(2, 1, 0, b"\x40", b"\0\1"), [0, 255]),
        (png(4, 2, 0, b"\x1b", b"\0\1"), [0, 255, 170, 255]),
        (png(2, 4, 0, b"\x5a", b"\0\5"), [255, 170]),
        (png(2, 8, 0, b"\x05\x0a", b"\0\5"), [255, 10]),
        (png(3, 16, 0, struct.pack(">3H", 0, 2570, 65535), b"\0\0"), [255, 10, 255]),
        (png(3, 16, 0, struct.pack(">3H", 0, 30, 255), b"\0\x1e"), [0, 255, 255]),
        (png(2, 16, 4, struct.pack(">4H", 2570, 0x8080, 2570, 0)), [132, 255]),
        (png(2, 16, 2, struct.pack(">6H", 257, 514, 771, 5, 5, 5), b"\1\1\2\2\3\3"), [255, 0]),
    ],
)
def test_a_transparent_colour_of_every_depth_is_white(data: bytes, expected: list[int]) -> None:
    assert np.asarray(load_image(data))[0].tolist() == [[value] * 3 for value in expected]


def test_transparent_colour_turns_white_in_files_and_pictures() -> None:
    picture = Image.new("RGB", (2, 1), (1, 2, 3))
    picture.putpixel((1, 0), (4, 5, 6))
    data = encoded(picture, "PNG", transparency=(1, 2, 3))
    for source in (data, Image.open(io.BytesIO(data))):
        assert np.asarray(load_image(source)).tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_a_picture_that_changes_afterwards_is_not_ours() -> None:
    picture = Image.new("RGB", (2, 2), "red")
    loaded = load_image(picture)
    picture.paste("blue", (0, 0, 2, 2))
    assert loaded.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 257, 65535]], np.uint16), [0, 1, 255]),  # 16 bits: scaled
        # Nothing to clip: as in the reference.
        (np.array([[0, 200, 255]], np.uint16), [0, 200, 255]),
        (np.array([[0, 128, 256]], np.uint16), [0, 0, 1]),
        (np.array([[0, 25700, 65535]], np.int32), [0, 100, 255]),
        (np.array([[0, 0.2, 1]], np.float32), [0, 51, 255]),
        (np.array([[0, 100, 255]], np.float32), [0, 100, 255]),
        (np.array([[0, 1, 2]], np.float32), [0, 1, 2]),
    ],
)
@pytest.mark.parametrize("as_file", [True, False])
def test_grey_of_more_than_8_bits(
    values: np.ndarray[Any, Any], expected: list[int], as_file: bool
) -> None:
    picture = Image.fromarray(values)
    loaded = load_image(encoded(picture, "TIFF") if as_file else picture)
    assert np.asarray(loaded)[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize(
    "values", [[0.0, -1.0], [0.0, 70000.0], [0.0, float("nan")], [0.0, float("inf")]]
)
def test_grey_values_without_a_scale(values: list[float]) -> None:
    with pytest.raises(ImageError, match="scale the picture to 8 bits"):
        load_image(Image.fromarray(np.array([values], np.float32)))
