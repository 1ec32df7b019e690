"""Pictures to tiles: the reference's pixels by digest, the two RGB rules, the budget, and the limits at their edges."""

import base64
import builtins
import hashlib
import importlib.util
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import FetchError, ImageError
from smolvlm_mlx.inputs import tiles as image_module
from smolvlm_mlx.inputs.fetch import FetchLimits
from smolvlm_mlx.inputs.tiles import ImageSettings, TileLayout, load_image, make_tiles, normalize, plan_tiles
from tests.support.pictures import draw, encoded

import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, features

SMALL_MODEL = ImageSettings(tile_size=512, longest_edge=2048)
LARGE_MODEL = ImageSettings(tile_size=384, longest_edge=1536)
GOLDENS = json.loads((Path(__file__).parent / "goldens" / "images.json").read_text(encoding="utf-8"))
PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13


# --- tiles


@pytest.mark.parametrize(
    "golden", GOLDENS, ids=lambda g: f"{g['mode']}-{g['size']}-{g['tile_size']}-{g['longest_edge']}"
)
def test_golden(golden: dict[str, Any]) -> None:
    names = ("tile_size", "longest_edge", "split")
    tiles, layout = make_tiles(
        load_image(draw(golden["mode"], *golden["size"])), ImageSettings(**{name: golden[name] for name in names})
    )
    assert (layout.rows, layout.cols) == (golden["rows"], golden["cols"])
    assert len(tiles) == layout.tiles
    if golden["size"][1] > golden["size"][0] and not PILLOW_13:
        pytest.skip("Pillow 13 changed the order of its passes for tall pictures, and so some pixels")
    pixel_values = normalize(tiles, SMALL_MODEL).transpose(0, 3, 1, 2)
    assert hashlib.sha256(np.ascontiguousarray(pixel_values).tobytes()).hexdigest() == golden["sha256"]


RESIZES = [
    *[
        ((1600, 1067), (2048, 1366)),
        ((1067, 1600), (1366, 2048)),
        ((2048, 1536), (512, 512)),
        ((700, 900), (700, 1024)),
    ],
    *[((900, 700), (1024, 700)), ((513, 1025), (700, 600)), ((1025, 513), (600, 700)), ((600, 5000), (512, 512))],
    *[((100, 4000), (512, 512)), ((9000, 30), (512, 512)), ((262144, 1), (512, 512)), ((512, 512), (1, 512))],
    *[((1000, 1200), (900, 1000)), ((1000, 1200), (900, 999)), ((1000, 1200), (1000, 1199)), ((513, 512), (512, 512))],
]


@pytest.mark.parametrize(("size", "to"), RESIZES)
def test_resize_in_two_threads_is_exact(size: tuple[int, int], to: tuple[int, int]) -> None:
    picture = draw("RGB", *size)
    with ThreadPoolExecutor(2) as pool:
        ours = image_module._resize(picture, to, pool)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(picture.resize(to, Image.Resampling.LANCZOS)))


def test_order_of_tiles() -> None:
    """Row by row, then the whole picture: four quarters of one colour each."""
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    picture = Image.fromarray(colours.repeat(64, axis=0).repeat(64, axis=1))
    tiles, layout = make_tiles(picture, ImageSettings(tile_size=64, longest_edge=128))
    assert (layout.rows, layout.cols, layout.tiles, tiles.shape) == (2, 2, 5, (5, 64, 64, 3))
    for tile, colour in zip(tiles, colours.reshape(4, 3), strict=False):
        assert (tile == colour).all()
    np.testing.assert_array_equal(tiles[4][[0, 0, 63, 63], [0, 63, 0, 63]], colours.reshape(4, 3))


@pytest.mark.parametrize(
    ("size", "small", "large"),
    [
        ((1600, 1067), (3, 4), (3, 4)),
        ((1067, 1600), (4, 3), (4, 3)),
        ((386, 386), (4, 4), (4, 4)),
        ((1, 1), (4, 4), (4, 4)),
        ((1, 9000), (4, 1), (4, 1)),
        ((9000, 1), (1, 4), (1, 4)),
        ((2048, 512), (1, 4), (1, 4)),
        ((2048, 513), (2, 4), (1, 4)),  # 513 is made even: 514; 384.75 is cut to 384
    ],
)
def test_rows_and_columns(size: tuple[int, int], small: tuple[int, int], large: tuple[int, int]) -> None:
    for settings, expected in ((SMALL_MODEL, small), (LARGE_MODEL, large)):
        layout = plan_tiles(size, settings)
        assert (layout.rows, layout.cols) == expected
        assert layout.grid == (layout.cols * settings.tile_size, layout.rows * settings.tile_size)
        assert layout.tiles == layout.rows * layout.cols + 1


def test_sizes_of_the_two_resizes() -> None:
    assert plan_tiles((1600, 1067), SMALL_MODEL) == TileLayout(3, 4, resized=(2048, 1366), grid=(2048, 1536))
    assert plan_tiles((1600, 1065), SMALL_MODEL).resized == (2048, 1364)  # 1363.2: int() and then even
    assert plan_tiles((300, 200), replace(SMALL_MODEL, longest_edge=5000)).resized == (
        4096,
        2731,
    )  # 5000 x 3334, then 4096 at most
    assert plan_tiles((1600, 1067), replace(SMALL_MODEL, split=False)) == TileLayout(0, 0, (2048, 1366), (512, 512))
    assert plan_tiles((600, 600), replace(SMALL_MODEL, longest_edge=512)) == TileLayout(0, 0, (512, 512), (512, 512))
    # The reference computes int(588 * (1 / 49)) = 11 here and is left with no column for still narrower pictures.
    assert plan_tiles((1, 49), ImageSettings(tile_size=1, longest_edge=49)).cols == 1


@pytest.mark.parametrize(
    ("budget", "rows", "cols"),
    [(None, 3, 4), (13, 3, 4), (12, 2, 3), (7, 2, 3), (6, 2, 2), (5, 2, 2), (4, 0, 0), (2, 0, 0), (1, 0, 0)],
)
def test_budget_of_tiles(budget: int | None, rows: int, cols: int) -> None:
    layout = plan_tiles((1600, 1067), replace(SMALL_MODEL, max_tiles=budget))
    assert (layout.rows, layout.cols) == (rows, cols)


@given(
    width=st.integers(1, 6000),
    height=st.integers(1, 6000),
    tile=st.sampled_from([32, 364, 384, 512]),
    edge=st.integers(1, 6000),
    budget=st.none() | st.integers(1, 40),
    split=st.booleans(),
)
@hypothesis_settings(max_examples=200, deadline=None)
def test_every_layout_is_whole(width: int, height: int, tile: int, edge: int, budget: int | None, split: bool) -> None:
    layout = plan_tiles((width, height), ImageSettings(tile, edge, split, budget))
    assert layout.tiles == 1 or layout.tiles >= 3
    assert budget is None or layout.tiles <= budget
    assert layout.grid == (max(layout.cols, 1) * tile, max(layout.rows, 1) * tile)
    assert min(layout.resized) >= 1
    assert max(layout.resized) <= 4096


def test_normalize() -> None:
    tiles = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    values = normalize(tiles, SMALL_MODEL)
    assert values.dtype == np.float32
    assert values.shape == tiles.shape
    assert (values[0, 0, 0, 0], values[0, 15, 15, 2]) == (-1.0, 1.0)
    # The reference's own arithmetic: float64 for the product, float32 after it.
    assert values[0, 6, 7, 1] == (np.float32(103 * (1 / 255)) - np.float32(0.5)) / np.float32(0.5)
    per_channel = normalize(tiles, replace(SMALL_MODEL, mean=(0.0, 0.25, 0.5), std=(1.0, 0.5, 0.25)))
    np.testing.assert_array_equal(per_channel[0, 15, 15], np.array([1.0, 1.5, 2.0], np.float32))


def test_make_tiles_wants_rgb() -> None:
    with pytest.raises(ValueError, match="mode L"):
        make_tiles(Image.new("L", (4, 4)), SMALL_MODEL)


# --- settings


def test_settings_from_dict() -> None:
    raw = {
        "do_image_splitting": False,
        "max_image_size": {"longest_edge": 512},
        "size": {"longest_edge": 2048},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [1, 1, 1],
        "rescale_factor": 0.5,
        "resample": 1,
        "do_pad": False,
        "video_sampling": {"fps": 1},
    }
    expected = ImageSettings(512, 2048, False, None, (0.5, 0.4, 0.3), (1, 1, 1), 0.5)
    assert ImageSettings.from_dict(raw) == expected
    assert ImageSettings.from_dict({}) == ImageSettings(364, 4 * 364)  # the reference's class defaults


def test_settings_name_every_problem() -> None:
    raw = {
        "do_image_splitting": 1,
        "max_image_size": {"longest_edge": 0},
        "size": {"height": 5, "width": 5},
        "image_mean": [0.5, 0.5],
        "image_std": [0.5, 0.0, 0.5],
        "rescale_factor": float("nan"),
        "resample": 3,
        "do_normalize": False,
    }
    with pytest.raises(ImageError) as caught:
        ImageSettings.from_dict(raw)
    for name in ("split", "tile_size", "longest_edge", "mean", "std", "rescale_factor", "resample", "do_normalize"):
        assert f"{name} is " in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "3"])
def test_settings_refuse_a_bad_budget(value: Any) -> None:
    with pytest.raises(ImageError, match=r"max_tiles is .* must be a whole number above 0"):
        replace(SMALL_MODEL, max_tiles=value)


# --- pictures


def test_every_form_of_a_picture(tmp_path: Path) -> None:
    picture = draw("RGB", 61, 40)
    data = encoded(picture, "PNG")
    (tmp_path / "a.png").write_bytes(data)
    path, text = str(tmp_path / "a.png"), base64.b64encode(data).decode()
    url = f"data:image/png;base64,{text}"
    forms: list[Any] = [picture, np.asarray(picture), path, Path(path), url, text, data]
    parts: list[Any] = [{"type": "image", "image": form} for form in forms]
    parts += [{"path": path}, {"path": Path(path)}, {"url": url}, {"base64": text}, {"base64": url}]
    for form in forms + parts:
        loaded = load_image(form)
        assert loaded.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(loaded), np.asarray(picture))


@pytest.mark.parametrize("part", [{}, {"image": None}, {"path": "a", "url": "b"}, {"image": 3}, {"image": [1]}])
def test_part_that_is_not_one_picture(part: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match=r"needs one of|cannot be of type"):
        load_image(part)


def test_alpha_of_a_file_is_dropped_and_of_a_picture_laid_on_white() -> None:
    picture = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert load_image(encoded(picture, "PNG")).getpixel((0, 0)) == (10, 20, 30)
    assert load_image(picture).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(Image.new("RGBA", (2, 2), (10, 20, 30, 128))).getpixel((0, 0)) == (132, 137, 142)
    assert load_image(np.full((2, 2, 4), (10, 20, 30, 128), np.uint8)).getpixel((0, 0)) == (132, 137, 142)
    assert load_image(Image.new("LA", (2, 2), (10, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_transparent_colour_turns_white_in_both() -> None:
    picture = Image.new("RGB", (2, 1), (1, 2, 3))
    picture.putpixel((1, 0), (4, 5, 6))
    data = encoded(picture, "PNG", transparency=(1, 2, 3))
    for source in (data, Image.open(io.BytesIO(data))):
        assert np.asarray(load_image(source)).tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_palette_with_alpha_gives_no_warning() -> None:
    picture = Image.new("P", (2, 1), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    assert load_image(encoded(picture, "PNG", transparency=b"\x00\x80")).getpixel((0, 0)) == (10, 20, 30)


def test_orientation_of_a_file_is_applied_and_of_a_picture_not() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(draw("RGB", 61, 40), "PNG", exif=exif)
    assert load_image(data).size == (40, 61)
    np.testing.assert_array_equal(np.asarray(load_image(data)), np.rot90(np.asarray(draw("RGB", 61, 40)), -1))
    assert load_image(Image.open(io.BytesIO(data))).size == (61, 40)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 257, 65535]], np.uint16), [0, 1, 255]),  # 16 bits: scaled
        (np.array([[0, 200, 255]], np.uint16), [0, 200, 255]),  # nothing to clip: as in the reference
        (np.array([[0, 25700, 65535]], np.int32), [0, 100, 255]),
        (np.array([[0, 0.2, 1]], np.float32), [0, 51, 255]),
        (np.array([[0, 100, 255]], np.float32), [0, 100, 255]),
    ],
)
@pytest.mark.parametrize("as_file", [True, False])
def test_grey_of_more_than_8_bits(values: np.ndarray[Any, Any], expected: list[int], as_file: bool) -> None:
    picture = Image.fromarray(values)
    loaded = load_image(encoded(picture, "TIFF") if as_file else picture)
    assert np.asarray(loaded)[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize("values", [[0.0, -1.0], [0.0, 70000.0], [0.0, float("nan")], [0.0, float("inf")]])
def test_grey_values_without_a_scale(values: list[float]) -> None:
    with pytest.raises(ImageError, match="scale the picture to 8 bits"):
        load_image(Image.fromarray(np.array([values], np.float32)))


@pytest.mark.parametrize(
    ("kind", "mode"), [("GIF", "P"), ("WEBP", "RGB"), ("PNG", "RGB"), ("TIFF", "RGB"), ("MPO", "RGB")]
)
def test_first_frame(kind: str, mode: str) -> None:
    frames = [Image.new(mode, (32, 32), colour) for colour in ((255, 0, 0), (0, 255, 0))] if mode == "RGB" else None
    first, second = frames or (Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "lime"))
    data = encoded(first, kind, save_all=True, append_images=[second])
    assert np.abs(np.asarray(load_image(data)).astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged tags
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
def test_formats_and_truncated_files(kind: str) -> None:
    if not features.check({"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}.get(kind, "zlib")):
        pytest.skip(f"Pillow is built without {kind}")
    data = encoded(draw("RGB", 120, 90), kind)
    assert load_image(data).size == (120, 90)
    for length in (0, 1, 10, 40, len(data) // 2):
        with pytest.raises(ImageError, match=r"^the picture .*(readable|damaged)") as caught:
            load_image(data[:length])
        assert "0x" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"garbage" * 50, b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xd7\xcd\xc6\x9a" + b"\0" * 60, b"<svg/>"]
)
def test_bytes_that_are_no_picture(data: bytes) -> None:
    with pytest.raises(ImageError, match="is not a readable picture; give one of JPEG"):
        load_image(data)


def test_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("pillow_heif") is None:
        pytest.skip("needs pillow-heif")
    import pillow_heif

    if not pillow_heif.libheif_info()["encoders"]:
        pytest.skip("this pillow-heif cannot write")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 40, 40))).save(file, quality=90)
    loaded = load_image(file.getvalue())
    assert loaded.size == (64, 48)
    assert np.abs(np.asarray(loaded).astype(int) - [200, 40, 40]).max() < 12
    assert "HEIF" not in Image.OPEN, "nothing is registered with Pillow"
    with pytest.raises(ImageError, match=r"damaged|readable"):
        load_image(file.getvalue()[:200])

    real_import = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "pillow_heif":
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImageError, match=r"pip install 'smolvlm-mlx\[heif\]'"):
        load_image(file.getvalue())


# --- limits


def test_limit_of_bytes(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (4, 4)), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    assert load_image(data, FetchLimits(max_bytes=len(data))).size == (4, 4)
    with pytest.raises(ImageError, match=f"{len(data)} bytes; the limit is {len(data) - 1}"):
        load_image(data, FetchLimits(max_bytes=len(data) - 1))
    with pytest.raises(FetchError, match=f"{len(data)} bytes; the limit is {len(data) - 1}"):
        load_image(tmp_path / "a.png", FetchLimits(max_bytes=len(data) - 1))
    padded = data + b"\0" * (20 * 2**20 - len(data))
    assert load_image(padded).size == (4, 4)
    with pytest.raises(ImageError, match="20971521 bytes; the limit is 20971520"):
        load_image(padded + b"\0")


def test_limit_of_pixels_is_checked_before_decoding() -> None:
    """A PPM header alone says the size; what follows is missing, so that decoding would fail in another way."""
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="damaged"):
        load_image(b"P6 10000 5000 255\n")  # 50,000,000 is allowed
    with pytest.raises(ImageError, match="has 10000 x 5001 pixels; the limit is 50000000"):
        load_image(b"P6 10000 5001 255\n")
    with pytest.raises(ImageError):
        load_image(b"P6 10000 10000 255\n")  # here Pillow warns
    with pytest.raises(ImageError):
        load_image(b"P6 100000 100000 255\n")  # and here it raises
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("as_array", [True, False])
def test_limit_of_pixels_of_what_is_decoded(as_array: bool) -> None:
    picture: Any = Image.new("RGB", (10, 10))
    source = np.asarray(picture) if as_array else picture
    assert load_image(source, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match="has 10 x 10 pixels; the limit is 99"):
        load_image(source, max_pixels=99)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_empty_picture(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"is empty: {size[0]} x {size[1]} pixels"):
        load_image(Image.new("RGB", size))
    with pytest.raises(ImageError, match="is empty"):
        load_image(np.zeros((size[1], size[0], 3), np.uint8))


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3)), np.zeros((3, 40, 50), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)],
)
def test_array_of_another_kind(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ImageError, match="an image array is uint8"):
        load_image(array)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged tags
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_flipped_bytes_give_a_picture_or_one_line(kind: str) -> None:
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    whole = encoded(draw("RGB", 40, 30), kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
    messages = []
    for _ in range(40):
        data = bytearray(whole)
        for position in random.integers(0, min(len(data), 400), 4):
            data[position] = random.integers(256)
        try:
            assert load_image(bytes(data), max_pixels=10**6).mode == "RGB"
        except ImageError as error:
            messages.append(str(error))
    assert all(len(message.splitlines()) == 1 and len(message) < 250 for message in messages)
