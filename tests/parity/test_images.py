"""Tiles and pixel values are bit-identical to transformers' Pillow image processors.

One difference is meant: transformers drops the alpha channel of what it decodes, so that letters on
transparent ground are black on black; here they are on white, as in its own treatment of PIL
pictures. For a transparent file the reference gets the picture as PIL has it."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from smolvlm_mlx.inputs.image import load_image
from smolvlm_mlx.inputs.settings import ImageSettings
from smolvlm_mlx.inputs.tiles import make_tiles, normalize
from tests.support.places import REAL_FILES

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.parity,
    # The reference leaves files of several frames open, and warns about palettes.
    *(
        pytest.mark.filterwarnings(f"ignore::{name}")
        for name in ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning")
    ),
    pytest.mark.filterwarnings("ignore:Palette images with Transparency"),
]

# Idefics3 with tiles of 512, SmolVLM with 384.
FAMILIES = "SmolVLM-256M-Instruct", "SmolVLM2-2.2B-Instruct"

PHOTOGRAPHS = {
    "skimage": (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "rocket.jpg",
        "camera.png",
        "logo.png",
        "page.png",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
}
FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}

SIZES = [
    *[
        (1, 1),
        (1, 2),
        (2, 1),
        (3, 3),
        (1, 7),
        (7, 1),
        (2, 999),
        (999, 2),
        (1, 4000),
        (4000, 1),
        (13, 1537),
    ],
    *[
        (384, 384),
        (383, 384),
        (385, 384),
        (386, 386),
        (512, 512),
        (511, 512),
        (513, 512),
        (512, 513),
        (1024, 512),
    ],
    *[
        (768, 384),
        (384, 768),
        (364, 364),
        (728, 364),
        (1536, 1536),
        (1535, 1537),
        (2048, 2048),
        (2048, 2047),
    ],
    *[
        (2047, 2048),
        (2048, 512),
        (512, 2048),
        (2049, 511),
        (4096, 16),
        (4097, 17),
        (17, 4097),
        (5000, 300),
    ],
    *[
        (300, 5000),
        (6000, 40),
        (40, 6000),
        (100, 101),
        (101, 100),
        (333, 777),
        (777, 333),
        (640, 480),
        (480, 640),
    ],
    *[
        (1600, 1067),
        (1067, 1600),
        (1920, 1080),
        (999, 1000),
        (1000, 999),
        (31, 97),
        (97, 31),
        (255, 257),
        (257, 255),
    ],
    *[
        (1365, 2048),
        (1366, 768),
        (1, 512),
        (512, 1),
        (1, 1536),
        (49, 1),
        (1, 49),
        (2560, 1),
        (1, 2304),
        (720, 1280),
    ],
]
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


SETTINGS = ImageSettings(tile_size=512, longest_edge=512)


@cache
def processor(family: str) -> Any:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    raw = raw_settings(family)
    classes = {
        "Idefics3ImageProcessor": Idefics3ImageProcessorPil,
        "SmolVLMImageProcessor": SmolVLMImageProcessorPil,
    }
    return classes[raw["image_processor_type"]].from_dict(raw)


def raw_settings(family: str) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((REAL_FILES / family / "preprocessor_config.json").read_text())
    return raw


def on_white(path: Path) -> Any:
    """What the reference is to see of a file: the file, but a transparent picture as PIL has it."""
    picture = Image.open(path)
    return picture if picture.has_transparency_data else str(path)


def assert_same(source: Any, family: str, seen: Any = None, **changes: Any) -> None:
    """`source` is what the reference takes: a PIL picture, an array (H, W, C) or a string. It is
    given `seen` if that is something else."""
    settings = replace(ImageSettings.from_dict(raw_settings(family)), **changes)
    reference = processor(family)
    options = {
        "size": {"longest_edge": settings.longest_edge},
        "do_image_splitting": settings.split,
    }
    seen = source if seen is None else seen
    expected = reference([[seen]], return_row_col_info=True, return_tensors="np", **options)

    tiled = make_tiles(load_image(source), settings)
    tiles, layout = tiled.tiles, tiled.layout
    assert (layout.rows, layout.cols) == (expected["rows"][0][0], expected["cols"][0][0])
    assert len(tiles) == layout.tiles
    assert len(np.unique(normalize(np.arange(256, dtype=np.uint8), settings))) == 256, (
        "equal values are equal tiles"
    )
    pixel_values = normalize(tiles, settings)
    assert pixel_values.dtype == expected["pixel_values"].dtype == np.float32
    np.testing.assert_array_equal(pixel_values, expected["pixel_values"][0].transpose(0, 2, 3, 1))
    assert expected["pixel_attention_mask"].all(), "tiles are full: no mask is needed"


def noise(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    width, height = size
    pixels = np.random.default_rng(width * 7919 + height).integers(
        0, 256, (height, width, 4), dtype=np.uint8
    )
    picture = Image.fromarray(pixels)
    if mode in ("LA", "PA"):
        return picture.convert("LA").convert(mode)
    return picture if mode == "RGBA" else picture.convert("RGB").convert(mode)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size: tuple[int, int], family: str) -> None:
    assert_same(noise(size), family)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(5, 3), (200, 331)], ids=str)
def test_modes_of_pictures(mode: str, size: tuple[int, int]) -> None:
    assert_same(noise(size, mode), FAMILIES[0], longest_edge=512)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("tiles", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("size", [(640, 427), (427, 640), (90, 3000), (384, 384)], ids=str)
def test_longest_edges(size: tuple[int, int], tiles: int, split: bool) -> None:
    assert_same(noise(size), FAMILIES[1], longest_edge=tiles * 384, split=split)


@pytest.mark.parametrize("longest_edge", [1, 2, 300, 385, 1000, 4096, 5000])
@pytest.mark.parametrize("size", [(640, 427), (21, 80)], ids=str)
def test_longest_edges_that_are_not_whole_tiles(size: tuple[int, int], longest_edge: int) -> None:
    assert_same(noise(size), FAMILIES[0], longest_edge=longest_edge)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("as_path", [True, False])
@pytest.mark.parametrize(
    ("package", "name"), [(p, n) for p, names in PHOTOGRAPHS.items() for n in names]
)
def test_photographs(package: str, name: str, as_path: bool, split: bool) -> None:
    path = Path(pytest.importorskip(package).__file__).parent / FOLDERS[package] / name
    source = str(path) if as_path else Image.open(path)
    assert_same(source, FAMILIES[split], on_white(path), split=split)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("as_path", [True, False])
def test_orientation(orientation: int, as_path: bool, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise((61, 40)).save(tmp_path / "turned.jpg", exif=exif)
    path = tmp_path / "turned.jpg"
    assert_same(str(path) if as_path else Image.open(path), FAMILIES[0], longest_edge=512)


@pytest.mark.parametrize("as_path", [True, False])
@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("alpha.png", "RGBA", {}),
        ("grey-alpha.png", "LA", {}),
        ("key.png", "RGB", {"transparency": (1, 2, 3)}),
        ("grey-key.png", "L", {"transparency": 7}),
        ("palette.png", "P", {}),
        ("palette-key.png", "P", {"transparency": 3}),
        ("palette-alpha.png", "P", {"transparency": bytes(range(256))}),
        ("bits.png", "1", {}),
        ("bits-key.png", "1", {"transparency": 0}),
        ("still.gif", "P", {"transparency": 3}),
        (
            "moving.gif",
            "RGB",
            {"save_all": True, "append_images": [Image.new("RGB", (50, 31), "red")]},
        ),
        (
            "moving.webp",
            "RGBA",
            {"save_all": True, "append_images": [Image.new("RGBA", (50, 31), "red")]},
        ),
        (
            "moving.png",
            "RGBA",
            {"save_all": True, "append_images": [Image.new("RGBA", (50, 31), "red")]},
        ),
        ("alpha.webp", "RGBA", {"lossless": True}),
        ("print.jpg", "CMYK", {}),
        (
            "pages.tif",
            "RGB",
            {"save_all": True, "append_images": [Image.new("RGB", (50, 31), "red")]},
        ),
        ("print.tif", "CMYK", {}),
        ("lab.tif", "LAB", {}),
        ("alpha.avif", "RGBA", {}),
        ("picture.jp2", "RGB", {}),
        ("picture.bmp", "RGB", {}),
        ("picture.ppm", "RGB", {}),
        (
            "two.mpo",
            "RGB",
            {"save_all": True, "append_images": [Image.new("RGB", (50, 31), "red")]},
        ),
    ],
)
def test_files(
    name: str, mode: str, options: dict[str, Any], as_path: bool, tmp_path: Path
) -> None:
    path = tmp_path / name
    picture = noise((50, 31), mode)
    if isinstance(key := options.get("transparency"), int | tuple):
        picture.paste(key, (5, 5, 25, 20))
    picture.save(path, **options)
    source = str(path) if as_path else Image.open(path)
    assert_same(source, FAMILIES[0], on_white(path), longest_edge=512)


def test_the_reference_drops_the_alpha_of_files(tmp_path: Path) -> None:
    """Should it stop doing so, `on_white` is not needed any more."""
    Image.new("RGBA", (50, 31), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    options = {"size": {"longest_edge": 512}, "return_tensors": "np"}
    as_file = processor(FAMILIES[0])([[str(tmp_path / "clear.png")]], **options)["pixel_values"]
    assert as_file.max() < -0.7
    tiles = make_tiles(load_image(tmp_path / "clear.png"), SETTINGS).tiles
    assert (tiles == 255).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays(channels: int) -> None:
    pixels = np.random.default_rng(channels).integers(0, 256, (40, 61, channels), dtype=np.uint8)
    assert_same(pixels, FAMILIES[0], longest_edge=512)


@pytest.mark.parametrize("family", FAMILIES)
def test_class_defaults(family: str) -> None:
    reference, settings = type(processor(family))(), ImageSettings.from_dict({})
    assert dict(reference.size) == {"longest_edge": settings.longest_edge}
    assert dict(reference.max_image_size) == {"longest_edge": settings.tile_size}
    assert (tuple(reference.image_mean), tuple(reference.image_std)) == (
        settings.mean,
        settings.std,
    )
    assert reference.rescale_factor == settings.rescale_factor
    assert reference.do_image_splitting == settings.split


def test_normalize_with_other_means() -> None:
    changes: dict[str, Any] = {
        "mean": (0.48, 0.45, 0.4),
        "std": (0.26, 0.25, 0.3),
        "rescale_factor": 1 / 127.5,
    }
    settings = replace(ImageSettings.from_dict(raw_settings(FAMILIES[0])), **changes)
    picture = noise((512, 512))
    expected = processor(FAMILIES[0])(
        [[picture]],
        image_mean=list(settings.mean),
        image_std=list(settings.std),
        rescale_factor=1 / 127.5,
        size={"longest_edge": 512},
        return_tensors="np",
    )
    tiles = make_tiles(picture, replace(settings, longest_edge=512)).tiles
    np.testing.assert_array_equal(
        normalize(tiles, settings), expected["pixel_values"][0].transpose(0, 2, 3, 1)
    )
