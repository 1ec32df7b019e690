"""Where an answer has its tiles from, by what the caches told."""

from smolvlm_mlx.events import Statistics
from smolvlm_mlx.generation.origins import tile_origins
from smolvlm_mlx.inputs.processor import Inputs
from smolvlm_mlx.inputs.settings import ImageSettings
from smolvlm_mlx.inputs.tiles import TiledImage, TileLayout

import numpy as np
import pytest

IMAGE, SETTINGS = 9, ImageSettings(2, 2)
WHOLE = TileLayout(0, 0, (2, 2), (2, 2))


def picture(shade: int) -> TiledImage:
    return TiledImage(np.full((1, 2, 2, 3), shade, np.uint8), WHOLE)


PICTURES = (picture(1), picture(2), picture(1))
#                          the first      the second           the third
IDS = np.array([3, IMAGE, IMAGE, 4, IMAGE, IMAGE, 5, 6, IMAGE, IMAGE, 7], np.int32)
INPUTS = Inputs(IDS, PICTURES, SETTINGS)
FIRST, SECOND = PICTURES[0].digests[0], PICTURES[1].digests[0]


@pytest.mark.parametrize(
    ("reused", "encoded", "expected"),
    [
        (0, {FIRST, SECOND}, ["computed", "computed", "features"]),
        (0, set(), ["features"] * 3),
        (2, {SECOND}, ["features", "computed", "features"]),  # a token of the first is missing
        (3, {SECOND}, ["prompt", "computed", "features"]),
        (3, {FIRST, SECOND}, ["prompt", "computed", "computed"]),  # its features were forgotten
        (6, {FIRST}, ["prompt", "prompt", "computed"]),
        (9, set(), ["prompt", "prompt", "features"]),
        (10, set(), ["prompt"] * 3),
    ],
)
def test_each_tile_has_one(reused: int, encoded: set[bytes], expected: list[str]) -> None:
    statistics = Statistics(reused_tokens=reused, encoded_tiles=encoded)
    assert tile_origins(INPUTS, statistics, IMAGE, 2) == expected
    assert statistics.encoded_tiles == encoded


def test_without_pictures_there_are_none() -> None:
    inputs = Inputs(np.array([1, 2], np.int32), (), SETTINGS)
    assert tile_origins(inputs, Statistics(), IMAGE, 2) == []
