"""Pictures to tiles: the reference's pixels by digest, the layout and its budget, the settings."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import ImageError, quote
from smolvlm_mlx.inputs.image import load_image
from smolvlm_mlx.inputs.settings import ImageSettings
from smolvlm_mlx.inputs.tiles import TileLayout, make_tiles, normalize, plan_tiles, resize
from tests.support.pictures import draw

import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

SMALL_MODEL = ImageSettings(tile_size=512, longest_edge=2048)
LARGE_MODEL = ImageSettings(tile_size=384, longest_edge=1536)
GOLDENS = json.loads(
    (Path(__file__).parent / "goldens" / "images.json").read_text(encoding="utf-8")
)
PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13


@pytest.mark.parametrize(
    "golden", GOLDENS, ids=lambda g: f"{g['mode']}-{g['size']}-{g['tile_size']}-{g['longest_edge']}"
)
def test_golden(golden: dict[str, Any]) -> None:
    names = ("tile_size", "longest_edge", "split")
    picture = load_image(draw(golden["mode"], *golden["size"]))
    tiled = make_tiles(picture, ImageSettings(**{name: golden[name] for name in names}))
    tiles, layout = tiled.tiles, tiled.layout
    assert (layout.rows, layout.cols) == (golden["rows"], golden["cols"])
    assert len(tiles) == layout.tiles
    if golden["size"][1] > golden["size"][0] and not PILLOW_13:
        pytest.skip(
            "Pillow 13 changed the order of its passes for tall pictures, and so some pixels"
        )
    pixel_values = normalize(tiles, SMALL_MODEL).transpose(0, 3, 1, 2)
    assert (
        hashlib.sha256(np.ascontiguousarray(pixel_values).tobytes()).hexdigest() == golden["sha256"]
    )


RESIZES = [
    *[
        ((1600, 1067), (2048, 1366)),
        ((1067, 1600), (1366, 2048)),
        ((2048, 1536), (512, 512)),
        ((700, 900), (700, 1024)),
    ],
    *[
        ((900, 700), (1024, 700)),
        ((513, 1025), (700, 600)),
        ((1025, 513), (600, 700)),
        ((600, 5000), (512, 512)),
    ],
    *[
        ((100, 4000), (512, 512)),
        ((9000, 30), (512, 512)),
        ((262144, 1), (512, 512)),
        ((512, 512), (1, 512)),
    ],
    *[
        ((1000, 1200), (900, 1000)),
        ((1000, 1200), (900, 999)),
        ((1000, 1200), (1000, 1199)),
        ((513, 512), (512, 512)),
    ],
]


@pytest.mark.parametrize(
    "filter", [Image.Resampling.NEAREST, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]
)
@pytest.mark.parametrize(("size", "to"), RESIZES)
def test_resize_in_two_threads_is_exact(
    size: tuple[int, int], to: tuple[int, int], filter: Image.Resampling
) -> None:
    picture = draw("RGB", *size)
    with ThreadPoolExecutor(2) as pool:
        ours = resize(picture, to, pool, filter)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(picture.resize(to, filter)))


@pytest.mark.parametrize(
    ("size", "to", "count"),
    [
        # Both sides, one, none.
        *[((10, 10), (5, 5), 2), ((10, 10), (20, 15), 2), ((10, 10), (5, 10), 1)],
        *[((10, 10), (10, 15), 1), ((10, 10), (10, 10), 0)],
        # As many pixels as are worth it.
        *[((9, 11), (5, 5), 0), ((20, 20), (10, 10), 2), ((20, 21), (10, 10), 0)],
        # What Pillow does in the other order.
        *[((10, 10), (8, 6), 2), ((10, 10), (8, 5), 0), ((10, 10), (12, 9), 0)],
        *[((10, 10), (12, 10), 1), ((10, 10), (10, 5), 0)],
        # What has no halves.
        *[((100, 1), (50, 1), 0), ((100, 2), (50, 2), 1), ((10, 10), (1, 10), 0)],
        ((10, 10), (2, 10), 1),
    ],
)
def test_sides_are_resized_in_two_threads_where_that_is_worth_it(
    size: tuple[int, int], to: tuple[int, int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves: list[Any] = []

    class Pool(ThreadPoolExecutor):
        def map(self, work: Any, *items: Any) -> Any:  # type: ignore[override]
            halves.append(items)
            return super().map(work, *items)

    monkeypatch.setattr("smolvlm_mlx.inputs.tiles.THREADED_PIXELS", (100, 400))
    picture = draw("RGB", *size)
    for filter in (Image.Resampling.NEAREST, Image.Resampling.LANCZOS):
        halves.clear()
        with Pool(2) as pool:
            ours = resize(picture, to, pool, filter)
        assert len(halves) == (0 if filter == Image.Resampling.NEAREST else count)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(picture.resize(to, filter)))


def test_order_of_tiles() -> None:
    """Row by row, then the whole picture: four quarters of one colour each."""
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    picture = Image.fromarray(colours.repeat(64, axis=0).repeat(64, axis=1))
    tiled = make_tiles(picture, ImageSettings(tile_size=64, longest_edge=128))
    tiles, layout = tiled.tiles, tiled.layout
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
def test_rows_and_columns(
    size: tuple[int, int], small: tuple[int, int], large: tuple[int, int]
) -> None:
    for settings, expected in ((SMALL_MODEL, small), (LARGE_MODEL, large)):
        layout = plan_tiles(size, settings)
        assert (layout.rows, layout.cols) == expected
        assert layout.grid == (layout.cols * settings.tile_size, layout.rows * settings.tile_size)
        assert layout.tiles == layout.rows * layout.cols + 1


def test_sizes_of_the_two_resizes() -> None:
    assert plan_tiles((1600, 1067), SMALL_MODEL) == TileLayout(
        3, 4, resized=(2048, 1366), grid=(2048, 1536)
    )
    # 1363.2: int() and then even.
    assert plan_tiles((1600, 1065), SMALL_MODEL).resized == (2048, 1364)
    # 5000 x 3334, then 4096 at most.
    assert plan_tiles((300, 200), replace(SMALL_MODEL, longest_edge=5000)).resized == (4096, 2731)
    for size, resized in {(9000, 1): (2048, 1), (1, 9000): (1, 2048)}.items():
        assert plan_tiles(size, SMALL_MODEL).resized == resized
    assert plan_tiles((65_535, 1), replace(SMALL_MODEL, longest_edge=5000)).resized == (4096, 1)
    assert plan_tiles((1600, 1067), replace(SMALL_MODEL, split=False)) == TileLayout(
        0, 0, (2048, 1366), (512, 512)
    )
    assert plan_tiles((600, 600), replace(SMALL_MODEL, longest_edge=512)) == TileLayout(
        0, 0, (512, 512), (512, 512)
    )
    # The reference computes int(588 * (1 / 49)) = 11 here and is left with no column for still
    # narrower pictures.
    assert plan_tiles((1, 49), ImageSettings(tile_size=1, longest_edge=49)).cols == 1


@pytest.mark.parametrize(
    ("budget", "rows", "cols"),
    [
        (None, 3, 4),
        (13, 3, 4),
        (12, 2, 3),
        (7, 2, 3),
        (6, 2, 2),
        (5, 2, 2),
        (4, 0, 0),
        (2, 0, 0),
        (1, 0, 0),
    ],
)
def test_budget_of_tiles(budget: int | None, rows: int, cols: int) -> None:
    layout = plan_tiles((1600, 1067), replace(SMALL_MODEL, max_tiles=budget))
    assert (layout.rows, layout.cols) == (rows, cols)


@given(
    width=st.integers(1, 65_535),
    height=st.integers(1, 65_535),
    tile=st.sampled_from([32, 364, 384, 512]),
    edge=st.integers(1, 6000),
    budget=st.none() | st.integers(1, 40),
    split=st.booleans(),
)
@hypothesis_settings(max_examples=200)
def test_every_layout_is_whole(
    width: int, height: int, tile: int, edge: int, budget: int | None, split: bool
) -> None:
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
    per_channel = normalize(
        tiles, replace(SMALL_MODEL, mean=(0.0, 0.25, 0.5), std=(1.0, 0.5, 0.25))
    )
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
    # The reference's class defaults.
    half = (0.5, 0.5, 0.5)
    usual = ImageSettings(364, 4 * 364, True, None, half, half, 1 / 255, resample=1)
    assert ImageSettings.from_dict({}) == ImageSettings(364, 4 * 364) == usual


def test_settings_name_every_problem() -> None:
    raw = {
        "do_image_splitting": 1,
        "max_image_size": {"longest_edge": 0},
        "size": {"longest_edge": 0},
        "image_mean": [0.5, 0.5],
        "image_std": [0.5, 0.0, 0.5],
        "rescale_factor": float("nan"),
        "resample": 6,
        "do_normalize": "yes",
        "do_resize": False,
    }
    with pytest.raises(ImageError) as caught:
        ImageSettings.from_dict(raw)
    for name in (  # as they are in the file
        "do_image_splitting",
        "max_image_size.longest_edge",
        "size.longest_edge",
        "image_mean",
        "image_std",
        "rescale_factor",
        "resample",
        "do_normalize",
        "do_resize",
    ):
        assert f"{name} is " in str(caught.value)


@pytest.mark.parametrize("factor", [1, 2, 10**4])
def test_a_factor_may_be_an_integer(factor: int) -> None:
    tiles = np.full((1, 8, 8, 3), 200, np.uint8)
    whole, real = (
        normalize(tiles, ImageSettings(8, 8, rescale_factor=f)) for f in (factor, float(factor))
    )
    np.testing.assert_array_equal(whole, real)


@pytest.mark.parametrize("wrong", [0, 0.0, -1, True, "1", 9e-5, 10001, 1e30, 10**400])
def test_a_factor_is_one_for_pixels(wrong: object) -> None:
    said = f"preprocessor_config.json: rescale_factor is {quote(wrong)}, must be a number from 0.00"
    with pytest.raises(ImageError) as caught:
        ImageSettings.from_dict({"rescale_factor": wrong})
    assert str(caught.value) == f"{said}01 to 10000"


@pytest.mark.parametrize("name", ["image_mean", "image_std"])
@pytest.mark.parametrize("wrong", [float("nan"), float("-inf"), 1e30, 10**400, 10001, "1", None])
def test_means_and_deviations_are_those_of_pixels(name: str, wrong: object) -> None:
    for values in ([0.5, wrong, 0.5], wrong):
        with pytest.raises(ImageError, match=f"^preprocessor_config.json: {name} is .*, must be "):
            ImageSettings.from_dict({name: values})
    assert ImageSettings.from_dict({name: [123.675, 10000, 57.375]})


def test_how_many_tiles_a_checkpoint_may_make() -> None:
    most = {"max_image_size": {"longest_edge": 10}, "size": {"longest_edge": 640}}
    assert ImageSettings.from_dict(most).longest_edge == 640
    with pytest.raises(ImageError, match=r"size\.longest_edge is 641, more than 64 tiles"):
        ImageSettings.from_dict({**most, "size": {"longest_edge": 641}})


def test_settings_that_are_switched_off_are_those_that_change_nothing() -> None:
    raw = {"do_rescale": False, "do_normalize": False, "do_convert_rgb": False, "resample": 3}
    settings = ImageSettings.from_dict(raw)
    assert settings == ImageSettings(
        364, 4 * 364, mean=(0, 0, 0), std=(1, 1, 1), rescale_factor=1, resample=3
    )
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 256, 1).repeat(3, axis=-1)
    np.testing.assert_array_equal(normalize(levels, settings), levels.astype(np.float32))


@pytest.mark.parametrize("key", ["size", "max_image_size"])
@pytest.mark.parametrize("size", [512, {"height": 512, "width": 512}, None])
def test_sizes_that_are_no_longest_edge_are_refused(key: str, size: object) -> None:
    """The reference makes every picture a square of them, or fails."""
    with pytest.raises(ImageError) as caught:
        ImageSettings.from_dict({key: size})
    assert str(caught.value) == (
        f"preprocessor_config.json: {key} is {size!r}, must be {{'longest_edge': pixels}}"
    )


def test_one_mean_is_for_all_channels() -> None:
    settings = ImageSettings.from_dict({"image_mean": 0.25, "image_std": 2})
    assert (settings.mean, settings.std) == ((0.25, 0.25, 0.25), (2, 2, 2))


@pytest.mark.parametrize("resample", [0, 2, 3, 4, 5])
def test_tiles_are_resized_by_the_settings_filter(resample: int) -> None:
    picture = draw("RGB", 90, 60)
    settings = ImageSettings(tile_size=64, longest_edge=128, split=False, resample=resample)
    filter = Image.Resampling(resample)
    want = picture.resize((128, 86), filter).resize((64, 64), filter)
    np.testing.assert_array_equal(make_tiles(picture, settings).tiles[0], np.asarray(want))


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "3"])
def test_settings_refuse_a_bad_budget(value: Any) -> None:
    with pytest.raises(ImageError, match=r"max_tiles is .* must be a whole number above 0"):
        replace(SMALL_MODEL, max_tiles=value)
