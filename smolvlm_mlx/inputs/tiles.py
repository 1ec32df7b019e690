"""Pictures to tiles: what the vision encoder sees.

In goes a picture from `image.load_image`; out come uint8 tiles and the layout they were cut by.
Knows nothing about prompts or models. The tiles and the float values made of them are those of
transformers' Pillow processors (`SmolVLMImageProcessorPil`, `Idefics3ImageProcessorPil` of 5.23),
bit by bit; those spend most of their time on conversions between Pillow, uint8 and float, which are
left out here.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import pairwise

from smolvlm_mlx.errors import ImageError
from smolvlm_mlx.inputs.image import MAX_EDGE, Pixels, check_side
from smolvlm_mlx.inputs.settings import ImageSettings

import numpy as np
import numpy.typing as npt
from PIL import Image

# Below the first a second thread costs more than it saves; above the second Pillow's crop warns.
THREADED_PIXELS = 2**18, 2**26
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class TileLayout:
    """The one plan that tiles and prompt follow. Sizes are (width, height) in pixels, as in
    Pillow."""

    rows: int  # 0 and 0: one tile, not split
    cols: int
    resized: tuple[int, int]  # after the first resize: the longest edge as in the settings
    grid: tuple[int, int]  # after the second: whole tiles

    @property
    def tiles(self) -> int:
        """Number of tiles, the global tile included."""
        return self.rows * self.cols + 1


@dataclass(frozen=True)
class TiledImage:
    """A picture as a model sees it: N tiles (N, H, W, 3), row by row, then the global tile; and how
    they were cut."""

    tiles: Pixels
    layout: TileLayout

    @cached_property
    def digests(self) -> list[bytes]:
        """A name for each tile."""
        return digest_tiles(self.tiles)


def plan_tiles(size: tuple[int, int], settings: ImageSettings) -> TileLayout:
    """The layout for a picture of (width, height) pixels.

    With `max_tiles`, the longest edge goes down by whole tiles until the layout fits; if none that
    is split does, the picture is not split.
    """
    smaller = range((min(settings.longest_edge, MAX_EDGE) - 1) // settings.tile_size, 1, -1)
    for edge in (settings.longest_edge, *(tiles * settings.tile_size for tiles in smaller)):
        layout = _plan(size, replace(settings, longest_edge=edge))
        if settings.max_tiles is None or layout.tiles <= settings.max_tiles:
            return layout
    return _plan(size, replace(settings, split=False))


def tile_boxes(layout: TileLayout, size: tuple[int, int]) -> list[Box]:
    """Where the tiles lie in a picture of (width, height) pixels, in its pixels: row by row, then
    the global tile, which is all of it. Each resize keeps the whole, so they are equal parts."""
    width, height = size
    across = [width * col / layout.cols for col in range(layout.cols)] + [width]
    down = [height * row / layout.rows for row in range(layout.rows)] + [height]
    tiles: list[Box] = [
        (left, top, right, bottom)
        for top, bottom in pairwise(down)
        for left, right in pairwise(across)
    ]
    return [*tiles, (0, 0, width, height)]


def make_tiles(image: Image.Image, settings: ImageSettings) -> TiledImage:
    """The tiles of an RGB picture.

    The global tile is a resize of the grid picture, not of the original, as in the reference.

    Raises:
        ImageError: the picture has a side too long, or its tiles do not fit into memory.
    """
    if image.mode != "RGB":
        raise ValueError(f"make_tiles wants an RGB picture from load_image, not mode {image.mode}")
    check_side(image.size, "the picture")
    try:
        return _cut(image, plan_tiles(image.size, settings), settings)
    except MemoryError as error:
        width, height = image.size
        raise ImageError(
            f"the tiles of {width} x {height} pixels do not fit into memory; make it smaller"
        ) from error


def _cut(image: Image.Image, layout: TileLayout, settings: ImageSettings) -> TiledImage:
    t, filter = settings.tile_size, Image.Resampling(settings.resample)
    with ThreadPoolExecutor(2) as pool:
        grid = resize(resize(image, layout.resized, pool, filter), layout.grid, pool, filter)
        if not layout.rows:
            return TiledImage(np.array(grid)[None], layout)  # (1, t, t, 3)
        pixels = np.asarray(grid).reshape(layout.rows, t, layout.cols, t, 3)
        tiles = np.empty((layout.tiles, t, t, 3), np.uint8)
        tiles[:-1].reshape(layout.rows, layout.cols, t, t, 3)[...] = pixels.swapaxes(1, 2)
        tiles[-1] = np.asarray(resize(grid, (t, t), pool, filter))
    return TiledImage(tiles, layout)


def digest_tiles(tiles: Pixels) -> list[bytes]:
    """A name for each of the tiles (N, H, W, 3): equal tiles have equal names."""
    return [blake2b(tile, digest_size=16).digest() for tile in np.ascontiguousarray(tiles)]


def normalize(tiles: Pixels, settings: ImageSettings) -> npt.NDArray[np.float32]:
    """Pixel values (N, H, W, 3) float32 of uint8 tiles: (tiles * rescale_factor - mean) / std, by
    table."""
    tables = _tables(settings)  # (256, 3)
    if len(set(zip(settings.mean, settings.std, strict=True))) == 1:
        return tables[:, 0][tiles]
    return np.stack([tables[:, channel][tiles[..., channel]] for channel in range(3)], axis=-1)


@lru_cache(maxsize=8)
def _tables(settings: ImageSettings) -> npt.NDArray[np.float32]:
    # The reference's own steps: float64 for the product, float32 from there on
    # (image_transforms.rescale, normalize).
    levels = (np.arange(256, dtype=np.float64) * settings.rescale_factor).astype(np.float32)
    mean, std = np.array(settings.mean, np.float32), np.array(settings.std, np.float32)
    # (256, 3), each channel's table in one piece
    return np.ascontiguousarray(((levels[:, None] - mean) / std).T).T


def _plan(size: tuple[int, int], settings: ImageSettings) -> TileLayout:
    t, resized = settings.tile_size, _first_resize(size, settings.longest_edge)
    if not settings.split:
        return TileLayout(0, 0, resized, (t, t))
    width, height = resized
    aspect = width / height
    # int() may give 0 where width * aspect is just below 1; the reference fails there, here it is
    # one tile.
    if width >= height:
        cols = math.ceil(width / t)
        rows = max(math.ceil(int(cols * t / aspect) / t), 1)
    else:
        rows = math.ceil(height / t)
        cols = max(math.ceil(int(rows * t * aspect) / t), 1)
    grid = (cols * t, rows * t)
    return (
        TileLayout(0, 0, resized, grid)
        if rows == cols == 1
        else TileLayout(rows, cols, resized, grid)
    )


def _first_resize(size: tuple[int, int], longest_edge: int) -> tuple[int, int]:
    # get_resize_output_image_size of the reference; only the first of its two steps makes the short
    # edge even.
    width, height = _scaled(size, longest_edge)
    even = (width, height + height % 2) if size[0] >= size[1] else (width + width % 2, height)
    width, height = max(even[0], 1), max(even[1], 1)
    if max(width, height) > MAX_EDGE:
        width, height = _scaled((width, height), MAX_EDGE)
    return max(width, 1), max(height, 1)


def _scaled(size: tuple[int, int], longest_edge: int) -> tuple[int, int]:
    width, height = size
    aspect = width / height
    return (
        (longest_edge, int(longest_edge / aspect))
        if width >= height
        else (int(longest_edge * aspect), longest_edge)
    )


def resize(
    image: Image.Image,
    size: tuple[int, int],
    pool: ThreadPoolExecutor,
    filter: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """Pillow's own resize, its horizontal pass split by rows and its vertical pass by
    columns. Exact: Pillow makes the same two passes with uint8 between, and it releases the GIL."""
    (width, height), (to_width, to_height) = image.size, size
    # From 13.0 on Pillow makes the vertical pass first under this condition (ImagingResampleInner
    # in Resample.c).
    vertical_first = height - to_height > max(2 * (width - to_width), 0)
    is_threaded = THREADED_PIXELS[0] <= width * height <= THREADED_PIXELS[1]
    has_passes = filter != Image.Resampling.NEAREST
    if vertical_first or not (is_threaded and has_passes) or min(height, to_width) < 2:
        return image.resize(size, filter)
    image.load()  # not in two threads at once
    if to_width != width:
        image = _resize_side(image, (to_width, height), pool, filter)
    return image if to_height == height else _resize_side(image, size, pool, filter)


def _resize_side(
    image: Image.Image, size: tuple[int, int], pool: ThreadPoolExecutor, filter: Image.Resampling
) -> Image.Image:
    """A resize of one side, done in two halves of the other."""
    (width, height), (to_width, to_height) = image.size, size
    if width != to_width:
        half = height // 2
        boxes = [(0, 0, width, half), (0, half, width, height)]
        sizes = [(to_width, half), (to_width, height - half)]
    else:
        half = width // 2
        boxes = [(0, 0, half, height), (half, 0, width, height)]
        sizes = [(half, to_height), (width - half, to_height)]
    whole = Image.new("RGB", size)
    parts = pool.map(lambda box, to: image.crop(box).resize(to, filter), boxes, sizes)
    for (left, upper, _, _), part in zip(boxes, parts, strict=True):
        whole.paste(part, (left, upper))
    return whole
